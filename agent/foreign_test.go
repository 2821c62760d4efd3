package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
)

// A VM's user has moved its disk to other storage, where it has another UUID, or put another one there, while its disks were
// exchanged, and the agent has died: the VM keeps that disk and is let go, whichever way the exchange was.
func TestDiskMovedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, swapped := range []bool{false, true} {
		b := newBench(t, xensim.Config{VMs: 2})
		ctx, x := t.Context(), b.client()
		const nonce = "0123456789abcdef"
		vm := b.vm(halted, 0)
		rec, err := x.VMByUUID(ctx, vm.UUID)
		b.must(nil, err)
		disk, err := x.VDIByUUID(ctx, vm.Disks[0].VDI.UUID)
		b.must(nil, err)
		old, err := x.VBD(ctx, disk.VBDs[0])
		b.must(nil, err)
		another := func() xapi.VDI {
			ref, err := x.CallAsync(ctx, "copy", "VDI.copy", disk.Ref, disk.SR)
			b.must(nil, err)
			vdi, err := x.VDI(ctx, xapi.Ref(ref))
			b.must(nil, err)
			return vdi
		}
		moved, arrived := another(), another()
		_, err = x.CallAsync(ctx, "mark", "VDI.add_to_other_config", arrived.Ref, xva.CarrierKey, nonce)
		b.must(nil, err)
		c := b.deadWork(x, vm.UUID, nonce, time.Minute)
		b.must(nil, c.note(ctx, stepRestore, restoreNote{}))
		b.must(nil, c.note(ctx, stepSwap, swapNote{Steps: []swapStep{{Device: old.UserDevice, Old: disk.UUID, New: arrived.UUID,
			Mode: old.Mode, Bootable: old.Bootable, Unpluggable: old.Unpluggable}}}))
		if swapped {
			b.must(nil, c.note(ctx, stepSwapped, struct{}{}))
		}
		b.must(nil, (&swapper{xapi: x, vm: rec.Ref, session: "session-dead"}).block(ctx))
		b.must(nil, x.DestroyVBD(ctx, old.Ref))
		b.must(x.CreateVBD(ctx, xapi.VBDSpec{VM: rec.Ref, VDI: moved.Ref, UserDevice: old.UserDevice, Mode: old.Mode, Type: "Disk",
			Bootable: old.Bootable, Unpluggable: old.Unpluggable, OtherConfig: old.OtherConfig}))
		b.must(nil, x.DestroyVDI(ctx, disk.Ref))

		a := b.agent(nil)
		for _, dry := range []bool{true, false} {
			actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DryRun: dry, DeadSessions: []string{"session-dead"}})
			b.must(nil, err)
			for _, s := range actions {
				if s.Err != nil {
					t.Errorf("swapped %v, dry %v: %s: %v", swapped, dry, s.Action, s.Err)
				}
			}
			if !slices.ContainsFunc(actions, func(s sweepAction) bool {
				return s.Action == "leave the disk that somebody else has put at position" && s.Object == old.UserDevice
			}) {
				t.Errorf("swapped %v, dry %v: nothing tells of the disk: %+v", swapped, dry, actions)
			}
		}
		now := b.vmNow(vm.UUID)
		if now.Disks[0].VDI.UUID != moved.UUID || len(now.Blocked) > 0 || len(b.dump().Orphans) > 0 {
			t.Errorf("swapped %v: got disk %s, blocked %v, orphans %v", swapped, now.Disks[0].VDI.UUID, now.Blocked, b.dump().Orphans)
		}
		b.wantUnmarked()
	}
}

// Of two disks one was moved by the VM's user to other storage while they were exchanged, the former one or the restored one:
// the other goes the same way, so that both are of one generation.
func TestOneOfTwoDisksMovedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, swapped := range []bool{false, true} {
		b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
		ctx, x := t.Context(), b.client()
		const nonce = "0123456789abcdef"
		vm := b.vm(halted, 0)
		first, err := x.VDIByUUID(ctx, vm.Disks[0].VDI.UUID)
		b.must(nil, err)
		anew := func(mark bool) xapi.VDI {
			ref, err := x.CallAsync(ctx, "copy", "VDI.copy", first.Ref, first.SR)
			b.must(nil, err)
			if mark {
				b.must(x.Call(ctx, "VDI.add_to_other_config", xapi.Ref(ref), xva.CarrierKey, nonce))
			}
			vdi, err := x.VDI(ctx, xapi.Ref(ref))
			b.must(nil, err)
			return vdi
		}
		put := func(device string, vdi xapi.VDI) xapi.Ref {
			ref, err := x.CreateVBD(ctx, xapi.VBDSpec{VM: xapi.Ref(vm.Ref), VDI: vdi.Ref, UserDevice: device, Mode: "RW", Type: "Disk"})
			b.must(nil, err)
			return ref
		}
		b.must(nil, x.DestroyVBD(ctx, first.VBDs[0]))
		old, fresh := []xapi.VDI{first, anew(false)}, []xapi.VDI{anew(true), anew(true)}
		steps := []swapStep{{Device: "0", Old: old[0].UUID, New: fresh[0].UUID, Mode: "RW"}, {Device: "1", Old: old[1].UUID, New: fresh[1].UUID, Mode: "RW"}}
		now, other := old, fresh
		if swapped {
			now, other = fresh, old
		}
		moved := anew(false) // of now[0]
		put("0", moved)
		put("1", now[1])
		b.must(nil, x.DestroyVDI(ctx, now[0].Ref))
		c := b.deadWork(x, vm.UUID, nonce, time.Minute)
		b.must(nil, c.note(ctx, stepRestore, restoreNote{}))
		b.must(nil, c.note(ctx, stepSwap, swapNote{Steps: steps}))
		if swapped {
			b.must(nil, c.note(ctx, stepSwapped, struct{}{}))
		}
		b.must(nil, (&swapper{xapi: x, vm: xapi.Ref(vm.Ref), session: "session-dead"}).block(ctx))

		a := b.agent(nil)
		_, err = a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{"session-dead"}})
		b.must(nil, err)
		has := map[string]string{}
		for _, d := range b.vmNow(vm.UUID).Disks {
			has[d.UserDevice] = d.VDI.UUID
		}
		if has["0"] != moved.UUID || has["1"] != now[1].UUID {
			t.Errorf("swapped %t: got %v, want the moved disk %s and %s (not %s)", swapped, has, moved.UUID, now[1].UUID, other[1].UUID)
		}
		if left := b.dump().Orphans; len(left) > 0 {
			t.Errorf("swapped %t: disks are left: %v", swapped, left)
		}
		b.wantUnmarked()
	}
}

// A VM that was off for its restore when its agent died has been made a template by its user: it does not start, which is told
// once, and nothing is left to be done.
func TestVMMadeTemplateMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	vm := b.vm(halted, 0)
	c := b.deadWork(x, vm.UUID, "0123456789abcdef", time.Minute)
	b.must(nil, c.note(ctx, stepPower, powerNote{Before: running}))
	b.must(nil, x.SetIsATemplate(ctx, xapi.Ref(vm.Ref), true))
	a := b.agent(nil)
	for _, dry := range []bool{true, false} {
		actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DryRun: dry, DeadSessions: []string{"session-dead"}})
		b.must(nil, err)
		if !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Lost && s.PowerNotRestored && s.Err != nil }) {
			t.Errorf("dry %v: got %+v", dry, actions)
		}
	}
	wantSame(t, "journal", b.before.PoolOtherConfig, withoutMarks(b.dump().PoolOtherConfig))
}
