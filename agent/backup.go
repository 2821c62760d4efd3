package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xapi"
)

// facts describe what is in the stream.
type facts struct {
	VM           vmInfo // before it was touched, without the disks left out
	Excluded     []diskInfo
	SnapshotUUID string
	Disks        []string  // UUIDs of the snapshot's disks, and of those of one before it
	Taken        time.Time // by the master's clock
	Pool         poolInfo
	Host         hostInfo
	FromSnapshot bool   // offline, from a snapshot of the halted VM
	Own          []byte // then: the VM's own record, see xva.OwnRecord
	Warnings     []string
}

// summary ends the logical stream.
type summary struct {
	Bytes    int64
	CRC32C   uint32
	TaskGone bool // otherwise the task said success
	Warnings []string
}

// backup is the procedure of one backup.
type backup struct {
	agent  *Agent
	spec   backupSpec
	sender *transfer.Sender

	ready chan struct{} // closed when facts stand
	over  chan struct{} // closed when the procedure failed or ended
	once  sync.Once
	// facts stand once ready is closed, summary once the sender is finished.
	facts   facts
	summary summary

	passed  atomic.Int64
	reading atomic.Pointer[time.Time] // when the current read from XAPI began; nil while none is under way

	// What run has come to, for cleanup; both are the job's goroutine.
	claim      *claim
	vm         xapi.VM  // as it was first seen
	before     string   // the power state that it must have at the end
	snapshot   string   // the name of the snapshot that may exist
	unsure     bool     // nobody has said whether it does
	taken      []string // UUIDs of the disks of the snapshot, and of ones that earlier attempts had
	recalled   bool     // what earlier attempts have noted is known
	powerNoted bool     // the power entry is in the journal
	asked      bool     // the guest may be shutting down
	stopped    bool     // it was seen to be down
	unanswered bool     // a call that shuts it down got no answer, and may still come
	down       downtime
	warnings   []string
}

func newBackup(a *Agent, o opening, spec backupSpec) *backup {
	window := o.Window
	if window <= 0 {
		window = transfer.DefaultWindow
	}
	return &backup{agent: a, spec: spec, sender: transfer.NewSender(min(window, int64(a.cfg.Limits.Window))),
		ready: make(chan struct{}), over: make(chan struct{})}
}

// bytes tells how much XAPI has sent.
func (b *backup) bytes() int64 { return b.passed.Load() }

// fail ends the stream.
func (b *backup) fail(err error) {
	b.sender.Abort(err)
	b.once.Do(func() { close(b.over) })
}

// run backs the VM up and waits for the release.
func (b *backup) run(ctx context.Context, j *job) error {
	if err := b.prepare(ctx, j); err != nil {
		return err
	}
	source, err := b.fix(ctx, j)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("agent/backup/fixed"); err != nil {
		return err
	}
	close(b.ready)
	verdict, err := b.export(ctx, j, source)
	if err != nil {
		return err // cleanup starts the VM first of all
	}
	if err := failpoint.Hit("agent/backup/exported"); err != nil {
		return err
	}
	b.summary = verdict
	j.complete() // first: whoever gets the summary may release it at once
	b.sender.Finish()
	if err := b.bringBack(ctx, j); err != nil {
		j.log.Warn("the VM was not started after its export", "err", err)
	}
	failpoint.Pass("agent/backup/before-release")
	j.setPhase(phaseFinishing, "waiting for the controller to release the transfer")
	return b.settled(j, j.awaitRelease(ctx))
}

// settled tells how a backup ends whose bytes are all produced: one that was
// not released has still succeeded when the controller has acknowledged it all.
func (b *backup) settled(j *job, err error) error {
	if err == nil {
		return nil
	}
	if produced, acked := b.sender.Progress(); produced == acked && !errors.Is(err, errClaimLost) {
		b.warnings = append(b.warnings, fmt.Sprintf("not released by the controller: %v", err))
		j.log.Warn("transfer not released", "err", err)
		return nil
	}
	return err
}

// prepare claims the VM and reads what has to be known of it.
func (b *backup) prepare(ctx context.Context, j *job) error {
	vm, err := b.readVM(ctx, j.VM)
	if err != nil {
		return err
	}
	if err := b.spec.admits(vm.PowerState); err != nil {
		return err
	}
	b.vm, b.before = vm, vm.PowerState
	if b.claim, err = j.claimVM(ctx); err != nil {
		return err
	}
	// Again, now that nobody of ours can change it.
	if vm, err = b.readVM(ctx, j.VM); err != nil {
		return err
	}
	b.vm, b.before = vm, vm.PowerState
	if err := b.recall(ctx); err != nil {
		return err
	}
	if err := b.spec.admits(b.before); err != nil {
		return err
	}
	if b.before == suspended && !b.spec.Offline {
		b.facts.Warnings = append(b.facts.Warnings, "the VM is suspended: its disks are backed up without its memory")
	}
	return nil
}

func (b *backup) readVM(ctx context.Context, uuid string) (xapi.VM, error) {
	vm, err := b.agent.xapi.VMByUUID(ctx, uuid)
	if err != nil {
		return xapi.VM{}, fmt.Errorf("read VM %s: %w", uuid, err)
	}
	if !isUsers(vm) {
		return xapi.VM{}, rpc.Errorf(rpc.Invalid, "%q is a template, a snapshot, a control domain or a carrier", vm.Name)
	}
	return vm, nil
}

// describe fills the facts from the records as they are now.
func (b *backup) describe(ctx context.Context) error {
	inv, err := b.agent.loadVM(ctx, b.vm)
	if err != nil {
		return err
	}
	pool, err := b.agent.xapi.Pool(ctx)
	if err != nil {
		return fmt.Errorf("read the pool: %w", err)
	}
	f := &b.facts
	f.VM = inv.vm(b.vm)
	f.VM.Power = b.before
	if f.VM.Problem != "" {
		return rpc.Errorf(rpc.ExportFailed, "%s", f.VM.Problem)
	}
	f.Pool = inv.pool(pool)
	f.Host = b.agent.servingHost(inv, b.vm, pool)
	disks := f.VM.Disks
	f.VM.Disks, f.Excluded = nil, nil
	for _, d := range disks {
		if slices.Contains(b.spec.Excluded, d.VDIUUID) {
			f.Excluded = append(f.Excluded, d)
		} else {
			f.VM.Disks = append(f.VM.Disks, d)
		}
	}
	if err := b.stillThere(inv); err != nil {
		return err
	}
	for _, uuid := range b.spec.Excluded {
		if !slices.ContainsFunc(f.Excluded, func(d diskInfo) bool { return d.VDIUUID == uuid }) {
			f.Warnings = append(f.Warnings, fmt.Sprintf("disk %s, to be left out, is not a disk of the VM", uuid))
		}
	}
	return nil
}

// source is what is to be exported.
type source struct {
	vm       xapi.Ref
	preserve bool // with the memory image
}

// fix brings the VM's disks to a state that stays while they are exported.
func (b *backup) fix(ctx context.Context, j *job) (source, error) {
	if !b.spec.Offline {
		return b.fixBySnapshot(ctx, j, nil)
	}
	if b.before == suspended {
		if err := b.describe(ctx); err != nil {
			return source{}, err
		}
		return b.direct(ctx, true)
	}
	if len(b.spec.Excluded) > 0 || b.spec.FromSnapshot && b.before == running {
		// Disks to be left out cannot be said to an export; a snapshot of the halted VM can do without them. And while a
		// snapshot is exported, the VM need not be down.
		b.facts.FromSnapshot = true
		src, err := b.fixBySnapshot(ctx, j, b.stop)
		if err == nil {
			if startErr := b.bringBack(ctx, j); startErr != nil {
				j.log.Warn("the VM was not started after its snapshot", "err", startErr)
			}
		}
		return src, err
	}
	if err := b.describe(ctx); err != nil {
		return source{}, err
	}
	if text, blocked := b.vm.BlockedOperations["export"]; blocked { // before it is off for nothing
		return source{}, rpc.Errorf(rpc.ExportFailed, "the VM's export is blocked (%s)", text)
	}
	if err := b.stop(ctx, j); err != nil {
		return source{}, err
	}
	return b.direct(ctx, false)
}

// direct exports the VM itself.
func (b *backup) direct(ctx context.Context, preserve bool) (_ source, err error) {
	b.facts.Taken, err = b.agent.journal.now(ctx)
	return source{vm: b.vm.Ref, preserve: preserve}, err
}

// fixBySnapshot takes the snapshot, after calling before it unless an earlier
// attempt has left one. The intent is in the journal first.
func (b *backup) fixBySnapshot(ctx context.Context, j *job, before func(context.Context, *job) error) (source, error) {
	name := snapshotPrefix + j.Nonce
	if b.snapshot == "" {
		if err := b.claim.note(ctx, stepSnapshot, snapshotNote{Name: name}); err != nil {
			return source{}, err
		}
	}
	b.snapshot = name
	// The records after the intent: from here on what is read is what is snapshotted.
	vm, err := b.readVM(ctx, j.VM)
	if err != nil {
		return source{}, err
	}
	b.vm = vm
	if err := b.describe(ctx); err != nil {
		return source{}, err
	}
	found, err := b.agent.settledSnapshot(ctx, b.vm, name)
	if err != nil {
		return source{}, err
	}
	if found.Ref.Null() && before != nil {
		if err := before(ctx, j); err != nil {
			return source{}, err
		}
	}
	if !b.spec.Offline {
		if err := b.spec.admits(b.vm.PowerState); err != nil {
			return source{}, err
		}
	}
	if b.facts.FromSnapshot {
		if err := b.keepOwn(ctx, j); err != nil {
			return source{}, err
		}
	}
	j.setPhase(phaseSnapshot, "")
	snap, err := b.agent.takeSnapshot(ctx, b.vm, name, b.leaveOut())
	if err != nil {
		if b.unsure = noVerdict(err); b.unsure {
			b.claim.unanswered()
		}
		return source{}, err
	}
	b.facts.SnapshotUUID, b.facts.Taken = snap.UUID, snap.SnapshotTime
	if b.facts.Taken.Year() < 2000 {
		if b.facts.Taken, err = b.agent.journal.now(ctx); err != nil {
			return source{}, err
		}
	}
	return source{vm: snap.Ref}, b.compare(ctx, snap)
}

func (b *backup) leaveOut() []xapi.Ref {
	var out []xapi.Ref
	for _, d := range b.facts.Excluded {
		out = append(out, d.VDI)
	}
	return out
}

// compare makes sure that the snapshot has every disk that the facts promise
// and none that is left out.
func (b *backup) compare(ctx context.Context, snap xapi.VM) error {
	disks, err := b.agent.snapshotDisks(ctx, snap)
	if err != nil {
		return err
	}
	if err := b.noteTaken(ctx, disks); err != nil {
		return err
	}
	has := func(d diskInfo) bool {
		return slices.ContainsFunc(disks, func(s attachedDisk) bool {
			return s.vdi.SnapshotOf == d.VDI || (s.vdi.SnapshotOf.Null() && s.vbd.UserDevice == d.UserDevice)
		})
	}
	for _, d := range b.facts.VM.Disks {
		if !has(d) {
			return rpc.Errorf(rpc.ExportFailed, "snapshot %s lacks disk %s (%q): the VM was changed meanwhile",
				snap.UUID, d.UserDevice, d.Name)
		}
	}
	for _, d := range b.facts.Excluded {
		if has(d) {
			return rpc.Errorf(rpc.ExportFailed, "snapshot %s has disk %s (%q), which was to be left out",
				snap.UUID, d.UserDevice, d.Name)
		}
	}
	if len(disks) > len(b.facts.VM.Disks) {
		var names []string
		for _, d := range disks {
			names = append(names, d.vdi.Name)
		}
		return rpc.Errorf(rpc.ExportFailed, "snapshot %s has other disks than the VM had: %s", snap.UUID, strings.Join(names, ", "))
	}
	return nil
}
