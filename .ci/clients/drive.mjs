// Drives a running xensim with the client that XenServer's best known JavaScript
// tool uses: npm's xen-api, over both protocols, following events.
//
// Argument: the line that xensim prints when it is ready. Run where xen-api is
// installed; every check is independent, the last line counts them.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { createRequire } from 'node:module'
import { Readable } from 'node:stream'
import { pathToFileURL } from 'node:url'

// Found from the folder that this is run in, which need not be the file's own.
const require = createRequire(pathToFileURL(process.cwd() + '/'))
const { createClient } = await import(pathToFileURL(require.resolve('xen-api')))

const INFO = JSON.parse(process.argv[2])
const MASTER = INFO.hosts.find(host => host.master)
const CHECKS = []
const LIMIT = 30e3

const check = (name, run) => CHECKS.push([name, run])

async function withClient(scheme, transport, run) {
  const xapi = createClient({
    url: MASTER[scheme].replace(/\/$/, ''),
    auth: { user: INFO.username, password: INFO.password },
    allowUnauthorized: true,
    transport,
    watchEvents: true,
  })
  await xapi.connect()
  try {
    await xapi.objectsFetched
    await run(xapi)
  } finally {
    await xapi.disconnect()
  }
}

const limited = (promise, what) =>
  Promise.race([promise, new Promise((_, reject) => setTimeout(() => reject(new Error('waited in vain: ' + what)), LIMIT).unref())])

const all = (xapi, type) => Object.values(xapi.objects.all).filter(object => object.$type === type)

const vmNamed = (xapi, name, state = 'Halted') => {
  const vm = all(xapi, 'VM').find(vm => vm.name_label === name && vm.power_state === state && !vm.is_a_snapshot)
  assert.ok(vm, 'no VM ' + name)
  return vm
}

async function fails(promise, code, ...params) {
  await assert.rejects(promise, error => {
    assert.deepEqual([error.code, ...(error.params ?? [])], [code, ...params])
    return true
  })
}

// Resolves when the client hears that an object is gone.
const removed = (xapi, object) =>
  limited(
    new Promise(resolve => xapi.objects.on('remove', gone => object.$id in gone && resolve())),
    'the end of ' + object.name_label
  )

async function exported(xapi, ref, query) {
  const response = await xapi.getResource('/export/', { query: { ref, ...query }, task: true })
  const parts = []
  for await (const part of response.body) parts.push(part)
  await response.task
  return Buffer.concat(parts)
}

// What the disks of an archive hold, whatever its objects are called.
function blocks(xva) {
  const found = []
  for (let at = 0; xva[at] !== 0; ) {
    const name = xva.subarray(at, at + 100).toString().replace(/\0.*$/s, '')
    const size = parseInt(xva.subarray(at + 124, at + 135).toString(), 8)
    if (/\/\d+$/.test(name)) {
      const data = xva.subarray(at + 512, at + 512 + size)
      found.push(name.replace(/.*\//, '') + ' ' + createHash('sha256').update(data).digest('hex'))
    }
    at += 512 + Math.ceil(size / 512) * 512
  }
  assert.equal(xva.length % 512, 0)
  assert.ok(xva.subarray(-1024).every(byte => byte === 0), 'the archive has no end')
  return found
}

async function imported(xapi, xva, sr, withLength) {
  const pieces = function* () {
    for (let at = 0; at < xva.length; at += 65536) yield xva.subarray(at, at + 65536)
  }
  const body = Readable.from(pieces(), { objectMode: false })
  if (withLength) body.length = xva.length // else the client claims 1 PiB and hangs up when all is sent
  const refs = await xapi.putResource(body, '/import/', { query: { sr_id: sr.$ref }, task: true })
  assert.equal(refs.length, 1)
  return limited(xapi.barrier(refs[0]), 'the imported VM')
}

for (const [scheme, transport] of [
  ['http', 'json-rpc'],
  ['https', 'json-rpc'],
  ['http', 'xml-rpc'],
  ['https', 'auto'],
]) {
  const how = ` (${transport} over ${scheme})`

  check('objects, links and events' + how, () =>
    withClient(scheme, transport, async xapi => {
      const vms = await xapi.call('VM.get_all')
      assert.deepEqual(all(xapi, 'VM').map(vm => vm.$ref).sort(), vms.sort())
      const vm = vmNamed(xapi, 'web-01', 'Running')
      assert.equal(vm.$resident_on.$type, 'host')
      assert.ok(vm.$VBDs.length > 0 && vm.$VBDs.every(vbd => vbd.$VM.$ref === vm.$ref))
      assert.equal(vm.$consoles[0].$VM.$ref, vm.$ref)
      assert.equal(typeof vm.memory_static_max, transport === 'xml-rpc' ? 'string' : 'number')

      const snapshot = await limited(xapi.barrier(await xapi.callAsync('VM.snapshot', vm.$ref, 'by JavaScript')), 'the snapshot')
      assert.equal(snapshot.is_a_snapshot, true)
      assert.equal(snapshot.$snapshot_of.$ref, vm.$ref)
      assert.ok((await xapi.barrier(vm.$ref)).snapshots.includes(snapshot.$ref))
      for (const value of ['1', '2', null]) {
        await xapi.setFieldEntry('VM', snapshot.$ref, 'other_config', 'js', value)
        assert.equal((await xapi.call('VM.get_other_config', snapshot.$ref)).js ?? null, value)
      }
      const gone = removed(xapi, snapshot)
      const disks = snapshot.$VBDs.filter(vbd => vbd.type === 'Disk').map(vbd => vbd.$VDI)
      await xapi.callAsync('VM.destroy', snapshot.$ref)
      await gone
      await Promise.all(disks.map(disk => xapi.callAsync('VDI.destroy', disk.$ref)))
    })
  )

  check('errors' + how, () =>
    withClient(scheme, transport, async xapi => {
      const vm = vmNamed(xapi, 'web-01', 'Running')
      await fails(xapi.call('VM.nosuch'), 'MESSAGE_METHOD_UNKNOWN', 'VM.nosuch')
      await fails(xapi.call('VM.get_record', 'OpaqueRef:none'), 'HANDLE_INVALID', 'VM', 'OpaqueRef:none')
      await fails(xapi.call('VM.get_by_uuid', 'none'), 'UUID_INVALID', 'VM', 'none')
      await fails(xapi.call('VM.set_actions_after_crash', vm.$ref, 'none'), 'FIELD_TYPE_ERROR', 'value')
      await fails(xapi.callAsync('VM.start', vm.$ref, false, false), 'VM_BAD_POWER_STATE', vm.$ref, 'halted', 'running')
      await fails(xapi.call('VM.start', vm.$ref), 'MESSAGE_PARAMETER_COUNT_MISMATCH', 'VM.start', '3', '1')
    })
  )
}

check('snapshots out and in, on every SR', () =>
  withClient('http', 'json-rpc', async xapi => {
    // The first is on a member's own disks: the client is sent there and back.
    for (const name of ['db-01', 'web-01']) {
      const vm = all(xapi, 'VM').find(vm => vm.name_label === name && !vm.is_a_snapshot)
      const snapshot = await xapi.barrier(await xapi.callAsync('VM.snapshot', vm.$ref, 'out and in'))
      await xapi.call('VM.set_is_a_template', snapshot.$ref, false)
      const xva = await exported(xapi, snapshot.$ref)
      const want = blocks(xva)
      assert.ok(want.length > 0)
      for (const sr of all(xapi, 'SR').filter(sr => sr.content_type === 'user')) {
        for (const withLength of [true, false]) {
          const copy = await imported(xapi, xva, sr, withLength)
          assert.equal(copy.name_label, 'out and in')
          assert.equal(copy.is_a_template, false)
          assert.ok(copy.$VBDs.filter(vbd => vbd.type === 'Disk').every(vbd => vbd.$VDI.SR === sr.$ref))
          assert.deepEqual(blocks(await exported(xapi, copy.$ref)), want)
          await xapi.callAsync('VM.destroy', copy.$ref)
        }
      }
      await xapi.callAsync('VM.destroy', snapshot.$ref)
    }
  })
)

console.warn = () => {} // the client tells that it sends a stream of unknown length
let failed = 0
for (const [name, run] of CHECKS) {
  try {
    await run()
    console.log('ok   ' + name)
  } catch (error) {
    failed++
    console.log('FAIL ' + name)
    console.log(error)
  }
}
console.log(`${CHECKS.length - failed} passed, ${failed} failed`)
process.exit(failed > 0 || CHECKS.length === 0 ? 1 : 0)
