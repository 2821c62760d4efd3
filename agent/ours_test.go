package agent

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
)

// client is a connection to XAPI of somebody else's.
func (b *bench) client() *xapi.Client {
	b.t.Helper()
	x, err := xapi.New(xapi.Config{URL: b.info.Hosts[0].HTTP, Username: b.info.Username, PasswordFile: b.dir + "/password",
		Timeouts: fastTiming().XAPI})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = x.Close(context.Background()) })
	return x
}

// must ends the test where the pool could not be prepared.
func (b *bench) must(_ any, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// truth is all of the pool that nobody but its users may change.
func (b *bench) truth() xensim.State {
	s := b.dump()
	s.Sessions, s.SRs = 0, nil
	return s
}

// What only looks like ours is not: somebody's snapshots, templates, VMs, disks, tasks and keys are as they were after dead
// work of the very same nonce was swept, by the journal, by the controller's copy, and by both again.
func TestSweepTouchesOnlyOurs(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{Scenario: "demo"})
	ctx, x := t.Context(), b.client()
	const nonce, other = "0123456789abcdef", "fedcba9876543210"
	vm, bystander := b.vm(halted, 0), b.vm(halted, 1)
	ref := func(vm xensim.VMState) xapi.Ref { return xapi.Ref(vm.Ref) }
	clone := func(name string, template bool, config map[string]string) {
		made, err := x.CallAsync(ctx, "clone", "VM.clone", ref(bystander), name)
		b.must(nil, err)
		b.must(nil, x.SetIsATemplate(ctx, xapi.Ref(made), template))
		for key, value := range config {
			b.must(nil, x.AddToVMMap(ctx, xapi.Ref(made), "other_config", key, value))
		}
	}
	clone(xva.CarrierName(nonce), true, nil)
	clone(xva.CarrierName(other), true, map[string]string{xva.CarrierKey: other})
	clone("a template with our mark and a name of its own", true, map[string]string{xva.CarrierKey: nonce})
	clone(snapshotPrefix+nonce, false, nil)
	clone("half made by somebody", false, map[string]string{xva.CarrierKey: other})
	for name, of := range map[string]xapi.Ref{snapshotPrefix + nonce: ref(bystander), snapshotPrefix + other: ref(vm), "nightly": ref(vm)} {
		_, _, err := x.Snapshot(ctx, of, name, nil)
		b.must(nil, err)
	}
	// A disk with another's mark, and one with ours whose snapshot has inherited it.
	disk := func(vm xensim.VMState) xapi.VDI {
		vdi, err := x.VDIByUUID(ctx, vm.Disks[0].VDI.UUID)
		b.must(nil, err)
		return vdi
	}
	b.must(nil, x.AddToVDIOtherConfig(ctx, disk(bystander).Ref, xva.CarrierKey, other))
	b.must(nil, x.AddToVDIOtherConfig(ctx, disk(vm).Ref, xva.CarrierKey, nonce))
	_, err := x.CallAsync(ctx, "snapshot", "VDI.snapshot", disk(vm).Ref)
	b.must(nil, err)
	b.must(nil, x.RemoveFromVDIOtherConfig(ctx, disk(vm).Ref, xva.CarrierKey))
	b.must(nil, x.AddBlockedOperation(ctx, ref(vm), "start", blockPrefix+"(session somebody-else)"))
	b.must(nil, x.AddToVMMap(ctx, ref(vm), "other_config", "dpxen:"+vm.UUID+":claim", "a copy of a key"))
	for key, value := range map[string]string{
		"dpxen:" + vm.UUID + ":claim":      "not JSON",
		"dpxen:" + vm.UUID + ":snapshot":   `{"v":99,"agent":"xs1","nonce":"` + nonce + `"}`,
		"dpxen:" + vm.UUID + ":restore.1x": "no number",
		"dpxen:" + vm.UUID + ":swap":       `{"v":1,"agent":"xs1","nonce":"../../etc"}`,
		"dpxen:something":                  "else",
		"dpxenlike":                        "x",
	} {
		b.must(nil, x.AddToPoolOtherConfig(ctx, key, value))
	}
	task, err := x.Call(ctx, "task.create", "somebody's import", "")
	b.must(nil, err)
	taskRef, err := task.Ref()
	b.must(nil, err)
	theirs, err := x.Task(ctx, taskRef)
	b.must(nil, err)

	before := b.truth()
	a := b.agent(nil)
	timing := fastTiming()
	timing.Claim = -time.Minute // an agent that died long ago
	dead := newJournal(x, "gone", timing)
	c, err := dead.claim(ctx, vm.UUID, owner{Session: "session-dead", Key: "key-00000", Nonce: nonce})
	b.must(nil, err)
	b.must(nil, c.note(ctx, stepRestore, restoreNote{}))
	b.must(nil, c.note(ctx, stepSnapshot, snapshotNote{Name: snapshotPrefix + nonce}))
	b.must(nil, c.note(ctx, stepImport+"0", importNote{Task: theirs.UUID}))
	o := sweepOptions{AtStart: true, DeadSessions: []string{"session-dead"},
		Intents: []sweepIntent{{VM: vm.UUID, Nonce: nonce, Session: "session-dead"}, {VM: bystander.UUID, Nonce: "not-in-the-journal"}}}
	for range 3 {
		actions, err := a.agent.sweeper.sweep(ctx, o)
		b.must(nil, err)
		for _, action := range actions {
			if action.Err != nil {
				t.Errorf("%+v", action)
			}
		}
	}
	if diff := cmp.Diff(before, b.truth()); diff != "" {
		t.Errorf("touched (-before +after):\n%s", diff)
	}
}

// A disk that bears the mark of dead work and that a user's VM has is the user's: it loses the mark and nothing else.
func TestMarkedDiskOfUser(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	for _, state := range []string{running, halted} {
		vm := b.vm(state, 0)
		vdi, err := x.VDIByUUID(ctx, vm.Disks[0].VDI.UUID)
		b.must(nil, err)
		b.must(nil, x.AddToVDIOtherConfig(ctx, vdi.Ref, xva.CarrierKey, nonce))
	}
	a := b.agent(nil)
	o := sweepOptions{Intents: []sweepIntent{{VM: b.vm(running, 0).UUID, Nonce: nonce, Session: "session-dead"}}}
	_, err := a.agent.sweeper.sweep(ctx, o)
	b.must(nil, err)
	b.wantClean()
	b.wantUnmarked()
	wantSame(t, "VMs", b.before.VMs, b.dump().VMs)
}
