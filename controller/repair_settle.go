package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
)

// What a repair makes of the sessions that it has taken over.

// settleRepaired notes the intents of which nothing is left, with what became of their VMs, and ends the sessions that died. A
// dry run notes nothing, and tells of the VMs alone.
func (c *Controller) settleRepaired(rep *RepairReport, broken []*session, swept map[string]*sweptPool) {
	for _, s := range broken {
		settle := func(r *Report) {
			for i := range r.Intents {
				in := &r.Intents[i]
				switch pool := swept[in.PoolUUID]; {
				case in.Done:
				case pool == nil:
					rep.Errors = appendNew(rep.Errors, fmt.Sprintf("what session %s has left in pool %s, of VM %s, is not known: no agent of that pool has finished a sweep",
						s.id, in.PoolUUID, in.VMName))
				case !rep.wouldBringBack(*in):
					pool.settle(r, in)
					rep.notAsBefore(r, *in)
					rep.bare(r, *in, pool)
					rep.waitsOff(r, *in)
				}
			}
		}
		if rep.DryRun {
			settle(s.snapshot())
			continue
		}
		s.note(func(r *Report) {
			settle(r)
			r.findStaged()
		})
		failpoint.Pass("controller/repair/before-retire")
		if err := s.retire(c.o.Now()); err != nil {
			rep.Errors = append(rep.Errors, err.Error())
		}
	}
}

// dropKnown drops what agents tell of VMs that were made as new, where the session's report names them: it heard of them, and
// left something else behind.
func (r *RepairReport) dropKnown(broken []*session) {
	for _, s := range broken {
		for _, vm := range s.snapshot().VMs {
			r.Actions = slices.DeleteFunc(r.Actions, func(a SweepAction) bool {
				return a.Action == rpc.ActionKeepMade && vm.NewUUID != "" && strings.HasSuffix(a.Object, " "+vm.NewUUID)
			})
		}
	}
}

// wouldBringBack tells whether a dry run has an action that may bring the intent's VM back.
func (r *RepairReport) wouldBringBack(in Intent) bool {
	return r.DryRun && slices.ContainsFunc(r.Actions, func(a SweepAction) bool {
		return a.concerns(in) && !a.Open() && (a.Action == rpc.ActionStartVM || a.Action == endTransfer)
	})
}

// endTransfer is what repair does about a transfer that an agent still works on for a session that died.
const endTransfer = "end and clean up after the transfer of dead session"

// notAsBefore tells of a VM of which nothing is left to be repaired, and that is not in its former power state all the same:
// an agent that cleaned up alone could not start it, or its disks were deleted first, as asked, and the new ones never came.
func (r *RepairReport) notAsBefore(of *Report, in Intent) {
	vm := of.vm(in.PoolUUID, in.VMUUID)
	told := func(a SweepAction) bool { return a.VMUUID == in.VMUUID && a.PowerNotRestored }
	if !in.Done || !vm.PowerNotRestored || slices.ContainsFunc(r.Actions, told) {
		return
	}
	r.Actions = append(r.Actions, SweepAction{VMUUID: in.VMUUID, VMName: in.VMName, Action: "session " + of.ID, Done: true,
		PowerNotRestored: true, Error: fmt.Sprintf("it was %s and is %s, and nothing is left to repair: %s", in.PowerBefore, vm.PowerAfter,
			powerAdvice(of.Action, vm.PowerAfter))})
}

// waitsOff tells with what waits for an agent at work on a VM that the VM is off meanwhile: that agent may try to start it for
// long, and again and again, and nobody else would say so.
func (r *RepairReport) waitsOff(of *Report, in Intent) {
	if in.Done || !in.StopsVM || !of.vm(in.PoolUUID, in.VMUUID).PowerNotRestored {
		return
	}
	for i := range r.Actions {
		if a := &r.Actions[i]; a.VMUUID == in.VMUUID && a.Waiting != "" {
			a.PowerNotRestored = true
		}
	}
}

// stillOff tells of the VMs that are off while an agent's sweep goes on: it may try to start one for long.
func (c *agentConn) stillOff(ctx context.Context, intents []Intent) (off []SweepAction) {
	vms, err := c.vms(ctx)
	if err != nil {
		return nil // that of the sweep is told
	}
	for _, in := range intents {
		if vm, known := vms[in.VMUUID]; known && !in.Done && in.stopped() && vm.Power != PowerRunning {
			off = append(off, SweepAction{Agent: c.name, VMUUID: in.VMUUID, VMName: in.VMName, Action: rpc.ActionStartVM,
				Waiting: "the agent is still at work, perhaps on this", PowerNotRestored: true})
		}
	}
	return off
}

// powerAdvice says what to do about a VM that ran, is in another state now, and of which nothing is left to repair.
func powerAdvice(action Action, now string) string {
	switch {
	case action == ActionRestore:
		return "look at its disks, and restore again or start it"
	case now == PowerSuspended:
		return "resume it"
	case now == PowerPaused:
		return "unpause it"
	case now == PowerHalted:
		return "start it"
	}
	return "look whether it is still there, and start it"
}

// sweptPool is what a sweep of a pool came to.
type sweptPool struct {
	actions []SweepAction
	vms     map[string]VM // of the pool after it, by UUID; nil where they could not be read
}

// settle notes that nothing is left of an intent, unless the sweep says otherwise, and how the VM is now.
func (p *sweptPool) settle(r *Report, in *Intent) {
	in.Done = true
	vm := r.vm(in.PoolUUID, in.VMUUID)
	failed := false
	for _, a := range p.actions {
		if a.Action == rpc.ActionKeepMade && a.nonce == in.Nonce {
			vm.NewUUID = a.Object[strings.LastIndexByte(a.Object, ' ')+1:]
		}
		if a.concerns(*in) {
			in.Done = in.Done && !a.Left()
			failed = failed || a.PowerNotRestored
		}
	}
	if now, ok := p.vms[in.VMUUID]; ok && in.Done && vm.Status != StatusGood {
		if text := disksAfter(in.Former, now.diskUUIDs()); text != "" {
			vm.Warnings = appendNew(vm.Warnings, text)
		}
	}
	if now := p.vms[in.VMUUID].Power; now != "" && in.PowerBefore != "" {
		vm.PowerAfter = now
		if in.StopsVM {
			failed = failed || in.PowerBefore == PowerRunning && now != PowerRunning
		}
		vm.PowerNotRestored = failed
		return
	}
	vm.PowerNotRestored = vm.PowerNotRestored || failed
}
