package agent

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// deleteVM deletes a halted VM with its disks, as its user would. Its snapshots stay.
func (b *bench) deleteVM(x *xapi.Client, vm xensim.VMState) {
	b.t.Helper()
	b.must(nil, x.DestroyVM(b.t.Context(), xapi.Ref(vm.Ref)))
	for _, d := range vm.Disks {
		if d.Type != "Disk" {
			continue
		}
		vdi, err := x.VDIByUUID(b.t.Context(), d.VDI.UUID)
		b.must(nil, err)
		b.must(nil, x.DestroyVDI(b.t.Context(), vdi.Ref))
	}
}

// A VM is deleted by its user while a dead backup's snapshot of it is there: the snapshot is of nothing then, and goes all the
// same. A snapshot of that very name which is of another VM stays.
func TestSnapshotOfDeletedVM(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	name := snapshotPrefix + nonce
	vm, other := b.vm(halted, 0), b.vm(halted, 1)
	c, err := newJournal(x, "gone", fastTiming()).claim(ctx, vm.UUID, owner{Session: "session-dead", Key: "key-00000", Nonce: nonce})
	b.must(nil, err)
	b.must(nil, c.note(ctx, stepSnapshot, snapshotNote{Name: name}))
	for _, of := range []xensim.VMState{vm, other} {
		_, _, err := x.Snapshot(ctx, xapi.Ref(of.Ref), name, nil)
		b.must(nil, err)
	}
	b.deleteVM(x, vm)

	a := b.agent(nil)
	o := sweepOptions{AtStart: true, DeadSessions: []string{"session-dead"}}
	for _, dry := range []bool{true, false} {
		o.DryRun = dry
		actions, err := a.agent.sweeper.sweep(ctx, o)
		b.must(nil, err)
		if !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Action == "delete snapshot" && s.Done == !dry }) {
			t.Errorf("dry=%t: got %+v, want the snapshot deleted", dry, actions)
		}
	}
	left := b.dump()
	if len(left.Snapshots) != 1 || left.Snapshots[0].SnapshotOf != other.UUID {
		t.Errorf("snapshots: got %+v, want that of the other VM alone", left.Snapshots)
	}
	if len(left.Orphans) > 0 {
		t.Errorf("disks are left: %+v", left.Orphans)
	}
	wantSame(t, "pool.other_config", b.before.PoolOtherConfig, withoutMarks(left.PoolOtherConfig))
}

// A user deletes the record of our snapshot, and not its disks, before the backup is over: the disks go all the same, also
// where the control domain still has them from the export. (While it has, they are no orphans: they are asked for one by one.)
func TestSnapshotRecordDeleted(t *testing.T) {
	t.Parallel()
	for name, speedup := range map[string]float64{"free": 1000, "still in dom0": 20} {
		t.Run(name, func(t *testing.T) { t.Parallel(); snapshotRecordDeleted(t, speedup) })
	}
}

func snapshotRecordDeleted(t *testing.T, speedup float64) {
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20, Speedup: speedup})
	ctx, x := t.Context(), b.client()
	vm := b.vm(halted, 0)
	a := b.agent(nil)
	p := newPuller(t, a, vm.UUID, online())
	if err := p.pull(); err != nil {
		t.Fatal(err)
	}
	refs, err := x.VMsByName(ctx, snapshotPrefix+p.opening.GetNonce())
	b.must(nil, err)
	if len(refs) != 1 {
		t.Fatalf("%d snapshots", len(refs))
	}
	snap, err := x.VM(ctx, refs[0])
	b.must(nil, err)
	disks, err := a.agent.snapshotDisks(ctx, snap)
	b.must(nil, err)
	if len(disks) == 0 {
		t.Fatal("the snapshot has no disks")
	}
	b.must(nil, x.DestroyVM(ctx, snap.Ref))
	for _, d := range disks {
		if _, err := x.VDI(ctx, d.vdi.Ref); err != nil {
			t.Fatalf("the disks went with the record: %v", err)
		}
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	for _, d := range disks {
		if _, err := x.VDI(ctx, d.vdi.Ref); !gone(err) {
			t.Errorf("disk %s: %v", d.vdi.UUID, err)
		}
	}
	b.wantClean()
}

// The agent of a backup has died, and a user has deleted the record of its snapshot alone: a sweep deletes the disk that was
// left, but neither one that somebody has taken into use nor one that the journal names and that is no snapshot.
// The controller's copy counts where the journal has lost its own.
func TestDisksOfDeletedRecord(t *testing.T) {
	t.Parallel()
	for name, known := range map[string]struct{ byCopy, marked bool }{
		"by the journal": {}, "by the controller's copy": {byCopy: true}, "by the copy of finished work": {true, true},
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); disksOfDeletedRecord(t, known.byCopy, known.marked) })
	}
}

func disksOfDeletedRecord(t *testing.T, byCopy, marked bool) {
	b := newBench(t, xensim.Config{VMs: 4, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	name := snapshotPrefix + nonce
	vm, other := b.vm(halted, 0), b.vm(halted, 1)
	a := b.agent(nil)
	o := sweepOptions{DeadSessions: []string{"session-dead"}}
	if marked { // by the sweep that takes over from an agent that is dead, before its claim's term is out
		b.deadWork(x, vm.UUID, nonce, time.Minute)
		_, err := a.agent.sweeper.sweep(ctx, o)
		b.must(nil, err)
		name = "nothing that a sweep knows"
	}
	second, err := x.VDIByUUID(ctx, other.Disks[0].VDI.UUID)
	b.must(nil, err)
	_, err = x.CreateVBD(ctx, xapi.VBDSpec{VM: xapi.Ref(vm.Ref), VDI: second.Ref, UserDevice: "7", Mode: "RW", Type: "Disk"})
	b.must(nil, err)
	ref, _, err := x.Snapshot(ctx, xapi.Ref(vm.Ref), name, nil)
	b.must(nil, err)
	snap, err := x.VM(ctx, ref)
	b.must(nil, err)
	disks, err := a.agent.snapshotDisks(ctx, snap)
	b.must(nil, err)
	if len(disks) != 2 {
		t.Fatalf("the snapshot has %d disks", len(disks))
	}
	stray, used := disks[0].vdi, disks[1].vdi
	named := []string{stray.UUID, used.UUID, vm.Disks[0].VDI.UUID, "00000000-0000-0000-0000-000000000000"}
	if byCopy {
		o.Intents = []sweepIntent{{VM: vm.UUID, Nonce: nonce, Session: "session-dead", Disks: named}}
	} else {
		c := b.deadWork(x, vm.UUID, nonce, time.Minute)
		b.must(nil, c.note(ctx, stepSnapshot, snapshotNote{Name: name}))
		b.must(nil, c.note(ctx, stepTaken, takenNote{Disks: named}))
	}
	b.must(nil, x.DestroyVM(ctx, ref))
	_, err = x.CreateVBD(ctx, xapi.VBDSpec{VM: xapi.Ref(other.Ref), VDI: used.Ref, UserDevice: "8", Mode: "RO", Type: "Disk"})
	b.must(nil, err)

	for _, dry := range []bool{true, false} {
		o.DryRun = dry
		actions, err := a.agent.sweeper.sweep(ctx, o)
		b.must(nil, err)
		told := 0
		for _, s := range actions {
			if strings.HasPrefix(s.Action, "delete the disk of a snapshot") && s.Object == stray.UUID && s.Done == !dry {
				told++
			} else if s.Object == used.UUID || s.Object == vm.Disks[0].VDI.UUID {
				t.Errorf("dry=%t: %+v", dry, s)
			}
		}
		if told != 1 {
			t.Errorf("dry=%t: got %+v, want disk %s deleted", dry, actions, stray.UUID)
		}
	}
	if _, err := x.VDIByUUID(ctx, stray.UUID); !gone(err) {
		t.Errorf("the disk that was left: %v", err)
	}
	for _, uuid := range []string{used.UUID, vm.Disks[0].VDI.UUID} {
		_, err := x.VDIByUUID(ctx, uuid)
		b.must(nil, err)
	}
	wantSame(t, "pool.other_config", b.before.PoolOtherConfig, withoutMarks(b.dump().PoolOtherConfig))
}

// A user gives a disk of our snapshot to another VM: it stays, and the backup tells of it.
func TestSnapshotDiskPutToUse(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	vm, other := b.vm(halted, 0), b.vm(halted, 1)
	a := b.agent(nil)
	p := newPuller(t, a, vm.UUID, online())
	if err := p.pull(); err != nil {
		t.Fatal(err)
	}
	refs, err := x.VMsByName(ctx, snapshotPrefix+p.opening.GetNonce())
	b.must(nil, err)
	snap, err := x.VM(ctx, refs[0])
	b.must(nil, err)
	disks, err := a.agent.snapshotDisks(ctx, snap)
	b.must(nil, err)
	_, err = x.CreateVBD(ctx, xapi.VBDSpec{VM: xapi.Ref(other.Ref), VDI: disks[0].vdi.Ref, UserDevice: "8", Mode: "RO", Type: "Disk"})
	b.must(nil, err)
	out := a.release(t, p.opening.GetKey())
	if !out.GetSucceeded() || len(out.GetLeftovers()) > 0 || !strings.Contains(strings.Join(out.GetWarnings(), " "), "they stay: "+disks[0].vdi.UUID) {
		t.Errorf("outcome: got %v", out)
	}
	if _, err := x.VDIByUUID(ctx, disks[0].vdi.UUID); err != nil {
		t.Errorf("the disk: %v", err)
	}
}

// XAPI crashes when the snapshot was deleted, or when the journal's entries go after that, and has written out neither: the
// snapshot's record is there again, and goes once more before the entries that name it do. So it is where nobody notices the crash,
// and where XAPI does not write out at will.
func TestSnapshotIsBack(t *testing.T) {
	for name, tc := range map[string]struct {
		at      string // the call that XAPI crashes in
		refuses bool   // to write its database out
	}{
		"in the dropping of the journal":              {at: "pool.remove_from_other_config"},
		"in the dropping of the journal, not written": {at: "pool.remove_from_other_config", refuses: true},
		"as it writes out":                            {at: "pool.sync_database"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
			a := b.agent(nil)
			if tc.refuses {
				b.inject(xensim.Fault{Name: "call-fails", Method: "pool.sync_database", Code: "INTERNAL_ERROR"})
			}
			p := newPuller(t, a, b.vm(halted, 0).UUID, online())
			p.onFrame = sync.OnceValue(func() error {
				b.inject(xensim.Fault{Name: "database-rolled-back", Method: tc.at, Times: 1})
				return nil
			})
			if err := p.pull(); err != nil {
				t.Fatal(err)
			}
			wantGood(t, a.release(t, p.opening.GetKey()))
			b.wantClean()
		})
	}
}

// The same where a sweep cleans up: it says that it is not done, and the next one is.
func TestSweptSnapshotIsBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	vm, name := b.vm(halted, 0), snapshotPrefix+nonce
	c := b.deadWork(x, vm.UUID, nonce, time.Minute)
	b.must(nil, c.note(ctx, stepSnapshot, snapshotNote{Name: name}))
	_, _, err := x.Snapshot(ctx, xapi.Ref(vm.Ref), name, nil)
	b.must(nil, err)
	a := b.agent(nil)
	b.inject(xensim.Fault{Name: "database-rolled-back", Method: "pool.sync_database", Times: 1})
	o := sweepOptions{DeadSessions: []string{"session-dead"}}
	actions, err := a.agent.sweep(ctx, o)
	b.must(nil, err)
	if !slices.ContainsFunc(actions, func(s sweepAction) bool { return errors.Is(s.Err, errIsBack) }) {
		t.Errorf("the first sweep tells %+v", actions)
	}
	for range 3 {
		_, err = a.agent.sweep(ctx, o)
		b.must(nil, err)
	}
	if left := b.dump(); len(left.Snapshots) > 0 || len(left.Orphans) > 0 {
		t.Errorf("left: %+v, %+v", left.Snapshots, left.Orphans)
	}
}
