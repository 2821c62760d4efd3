package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/xensim"
)

// An agent has died when a restore had deleted the disks that it replaced, and the VM's user deletes one of the restored ones
// before anybody repairs: no storage that comes back has that position's disk. Repair says so, gives the VM the others and ends.
func TestRestoredDiskDeleted(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ first, blocked, away, ends bool }{
		"deleted first":                    {true, true, false, true},
		"deleted first, and free again":    {true, false, false, true},
		"replaced ones deleted at the end": {false, false, false, true},
		"storage is away in the exchange":  {false, true, false, false},
		"its SR was forgotten":             {true, true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{Scenario: "demo", DiskSize: 1 << 20})
			ctx, x := t.Context(), b.client()
			vm := b.before.VMs[slices.IndexFunc(b.before.VMs, func(vm xensim.VMState) bool { return vm.Name == "archive" })]
			ref, err := x.VMByUUID(ctx, vm.UUID)
			b.must(nil, err)

			note := swapNote{Start: true, DeleteFirst: tt.first}
			for _, d := range vm.Disks {
				if d.Type == "Disk" {
					step := swapStep{Device: d.UserDevice, Old: uuid.NewString(), New: d.VDI.UUID, SR: d.VDI.SR, Mode: "RW"}
					if tt.away {
						step.SR = uuid.NewString()
					}
					note.Steps = append(note.Steps, step)
				}
			}
			c := b.deadWork(x, vm.UUID, "0123456789abcdef", time.Hour) // only who knows that its session is dead takes it over
			b.must(nil, c.note(ctx, stepSwap, note))
			if tt.first {
				b.must(nil, c.note(ctx, stepDelete, struct{}{}))
				b.must(nil, c.note(ctx, stepArrived, arrivedNote{Steps: note.Steps}))
			}
			b.must(nil, c.note(ctx, stepSwapped, struct{}{}))
			sw := &swapper{xapi: x, vm: ref.Ref, session: "session-dead"}
			if tt.blocked {
				b.must(nil, sw.block(ctx))
			}
			vdi, err := x.VDIByUUID(ctx, vm.Disks[1].VDI.UUID)
			b.must(nil, err)
			b.must(x.Call(ctx, "VDI.destroy", vdi.Ref))

			a := b.agent(nil)
			dead := sweepOptions{DeadSessions: []string{"session-dead"}}
			dry := dead
			dry.DryRun = true
			wantEnd(t, a, dry, tt.ends)
			wantEnd(t, a, dead, tt.ends)
			now := b.vmNow(vm.UUID)
			if blocked := len(now.Blocked) > 0; blocked == tt.ends || now.PowerState != halted {
				t.Errorf("after the repair: %s, blocked %v", now.PowerState, now.Blocked)
			}
			if got := digests(now); len(got) != 1 || got["0"] != digests(vm)["0"] {
				t.Errorf("disks: got %v", got)
			}
			if !tt.ends {
				return
			}
			actions, err := a.agent.sweeper.sweep(ctx, dead)
			if err != nil || slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Err != nil }) {
				t.Errorf("a second repair: %+v, %v", actions, err)
			}
			b.wantClean()
		})
	}
}

// wantEnd sweeps, and checks that the sweep says that the VM is to be restored again and is done with it, or that neither way has its disks.
func wantEnd(t *testing.T, a *runningAgent, o sweepOptions, ends bool) {
	t.Helper()
	actions, err := a.agent.sweeper.sweep(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	said := slices.ContainsFunc(actions, func(s sweepAction) bool {
		return s.Lost && s.PowerNotRestored && strings.Contains(s.Err.Error(), "somebody has deleted the restored ones")
	})
	stuck := slices.ContainsFunc(actions, func(s sweepAction) bool {
		return s.Err != nil && strings.Contains(s.Err.Error(), errNeitherWay.Error())
	})
	if said != ends || stuck == ends {
		t.Errorf("dry run %t: got %+v", o.DryRun, actions)
	}
}

// An agent has died while it lifted the blocks of an exchange, and the VM's user takes a disk off and starts the VM before anybody
// repairs: repair lifts the other blocks, leaves the VM as it is, and ends.
func TestStartedWithoutARestoredDisk(t *testing.T) {
	t.Parallel()
	for name, swapped := range map[string]bool{"on its restored disks": true, "on its former disks": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{Scenario: "demo", DiskSize: 1 << 20})
			ctx, x := t.Context(), b.client()
			vm := b.before.VMs[slices.IndexFunc(b.before.VMs, func(vm xensim.VMState) bool { return vm.Name == "archive" })]
			note := swapNote{}
			for _, d := range vm.Disks {
				if d.Type != "Disk" {
					continue
				}
				step := swapStep{Device: d.UserDevice, Old: uuid.NewString(), New: d.VDI.UUID, Mode: "RW"}
				if !swapped {
					step.Old, step.New = step.New, step.Old
				}
				note.Steps = append(note.Steps, step)
			}
			c := b.deadWork(x, vm.UUID, "0123456789abcdef", 2*time.Second)
			b.must(nil, c.note(ctx, stepSwap, note))
			if swapped {
				b.must(nil, c.note(ctx, stepSwapped, struct{}{}))
			}
			ref, err := x.VMByUUID(ctx, vm.UUID)
			b.must(nil, err)
			b.must(nil, (&swapper{xapi: x, vm: ref.Ref, session: "session-dead"}).block(ctx))
			for _, op := range []string{"start", "start_on"} {
				b.must(nil, x.RemoveBlockedOperation(ctx, ref.Ref, op))
			}
			for _, vbd := range ref.VBDs {
				if has, err := x.VBD(ctx, vbd); err == nil && has.UserDevice == "1" {
					b.must(x.Call(ctx, "VBD.destroy", vbd))
				}
			}
			b.must(x.Call(ctx, "VM.start", ref.Ref, false, false))

			a := b.agent(nil)
			for end := time.Now().Add(20 * time.Second); len(withoutMarks(b.dump().PoolOtherConfig)) > len(b.before.PoolOtherConfig); {
				if time.Now().After(end) {
					t.Fatalf("the journal has %v", b.dump().PoolOtherConfig)
				}
				b.must(nil, sleep(ctx, 50*time.Millisecond))
				actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{"session-dead"}})
				if err != nil || slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Err != nil }) {
					t.Errorf("repair: %+v, %v", actions, err)
				}
			}
			now := b.vmNow(vm.UUID)
			if got := digests(now); len(now.Blocked) > 0 || now.PowerState != running || len(got) != 1 || got["0"] != digests(vm)["0"] {
				t.Errorf("after the repair: %s, blocked %v, disks %v", now.PowerState, now.Blocked, got)
			}
		})
	}
}
