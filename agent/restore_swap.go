package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// completeInPlace exchanges the VM's disks for those on the carriers.
func (r *restore) completeInPlace(ctx context.Context, j *job) (*restoreResult, error) {
	steps, err := stepsFor(r.plan, r.arrived)
	if err != nil {
		return nil, err
	}
	if r.spec.DeleteFirst {
		if err := r.claim.note(ctx, stepArrived, arrivedNote{Steps: steps}); err != nil {
			return nil, err
		}
		r.swap.Steps = steps
	} else if err := r.stopAndBlock(ctx, j, steps); err != nil {
		return nil, err
	}
	j.setPhase(phaseSwapping, fmt.Sprintf("exchanging %d disks", len(steps)))
	sw := r.swapper(j)
	if err := sw.exchange(ctx, steps); err != nil {
		return nil, err
	}
	if err := r.claim.note(ctx, stepSwapped, struct{}{}); err != nil {
		return nil, err
	}
	r.swapped = true
	// From here on there is no way back, so nobody's leaving may stop it half way.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.a.cfg.Timing.Cleanup)
	defer cancel()
	return r.finishInPlace(ctx, j)
}

// finishInPlace makes the VM whole again on its restored disks. What fails from here on is a warning: the disks are there.
func (r *restore) finishInPlace(ctx context.Context, j *job) (*restoreResult, error) {
	result := &restoreResult{InPlace: true, Warnings: r.plan.Warnings}
	if !r.spec.Online {
		result.NotRestored = append(result.NotRestored,
			applySettings(ctx, r.a.xapi, r.vm, r.spec.OVA, r.spec.Name, r.spec.Settings)...)
		result.NotRestored = append(result.NotRestored,
			applyVIFs(ctx, r.a.xapi, r.view, r.vm, r.spec.OVA, r.spec.Networks)...)
	}
	if err := r.swapper(j).unblock(ctx, r.swap.Blocked); err != nil {
		return nil, fmt.Errorf("let the VM be started again: %w", err)
	}
	up := true
	if r.before == running || r.spec.Start {
		j.setPhase(phaseStarting, "")
		if err := r.startVM(ctx); err != nil {
			up = false
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	j.setPhase(phaseCleaning, "removing carriers and replaced disks")
	if _, err := r.a.discard(ctx, j.Nonce); err != nil {
		result.Warnings = append(result.Warnings, err.Error())
	}
	switch {
	case r.spec.DeleteFirst:
	case !up:
		result.Warnings = append(result.Warnings, "the VM did not start on its restored disks, so the replaced ones are kept")
		result.Kept = r.keepOld(ctx, j, result)
	case r.spec.KeepOld:
		result.Kept = r.keepOld(ctx, j, result)
	default:
		if err := r.a.deleteReplaced(ctx, r.swap.Steps); err != nil {
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	vm, err := r.a.xapi.VM(ctx, r.vm.Ref)
	if err != nil {
		return nil, fmt.Errorf("read the restored VM: %w", err)
	}
	result.VM = vm
	return result, nil
}

// stopAndBlock stops the VM, writes the plan of the exchange to the journal and keeps everybody from starting the VM.
func (r *restore) stopAndBlock(ctx context.Context, j *job, steps []swapStep) error {
	sw := r.swapper(j)
	for try := 0; ; try++ {
		if err := r.stopVM(ctx, j); err != nil {
			return err
		}
		vm, err := r.a.xapi.VM(ctx, r.vm.Ref)
		if err != nil {
			return fmt.Errorf("read the stopped VM: %w", err)
		}
		if r.swap == nil {
			note := &swapNote{Steps: steps, Start: r.before == running, Blocked: prior(vm),
				DeleteFirst: r.spec.DeleteFirst, KeepOld: r.spec.KeepOld}
			if err := r.claim.note(ctx, stepSwap, note); err != nil {
				return err
			}
			r.swap = note
		}
		if err := sw.block(ctx); err != nil {
			return err
		}
		if vm, err = r.a.xapi.VM(ctx, r.vm.Ref); err != nil {
			return fmt.Errorf("read the blocked VM: %w", err)
		}
		if vm.PowerState == halted {
			return nil
		}
		// Somebody started it between our shutdown and our block.
		if try == 2 {
			return rpc.Errorf(rpc.Conflict, "somebody starts the VM again and again")
		}
	}
}

// stopVM shuts the VM down if it runs, with the intent to start it again in the journal first.
func (r *restore) stopVM(ctx context.Context, j *job) error {
	vm, err := r.a.xapi.VM(ctx, r.vm.Ref)
	if err != nil {
		return fmt.Errorf("read the VM before stopping it: %w", err)
	}
	if vm.PowerState == halted {
		return nil
	}
	limit := r.shutdownLimit()
	if !r.stopped {
		if err := r.claim.note(ctx, stepPower, notePower(vm, r.before, limit)); err != nil {
			return err
		}
		r.stopped = true
	}
	j.setPhase(phaseStopping, "waiting for the guest to shut down")
	asked, err := r.a.power.stop(ctx, vm, stopOptions{Timeout: limit, Force: r.spec.ForceOff, DiscardMemory: r.spec.DiscardMemory})
	if err != nil && asked {
		r.watched = true
	}
	return err
}

// clearPositions deletes the old disks before the new ones arrive.
func (r *restore) clearPositions(ctx context.Context) error {
	sw := &swapper{xapi: r.a.xapi, vm: r.vm.Ref}
	for _, step := range r.swap.Steps {
		if step.Old == "" {
			continue
		}
		if err := sw.setPosition(ctx, step, ""); err != nil {
			return fmt.Errorf("take the old disk at position %s off: %w", step.Device, err)
		}
	}
	return r.a.deleteReplaced(ctx, r.swap.Steps)
}

// stepsWithout are the steps of a restore that deletes first: the new disks are not there yet.
func (r *restore) stepsWithout() []swapStep {
	arrived := map[string]xapi.VDI{}
	for _, pos := range r.plan.Positions {
		arrived[pos.Disk.UserDevice] = xapi.VDI{}
	}
	steps, err := stepsFor(r.plan, arrived)
	if err != nil {
		return nil // every position is there
	}
	return steps
}

func (r *restore) swapper(j *job) *swapper {
	return &swapper{xapi: r.a.xapi, vm: r.vm.Ref, session: j.Session}
}

func (r *restore) startVM(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.a.cfg.Timing.Start)
	defer cancel()
	return r.a.power.start(ctx, r.vm.Ref)
}

// keepOld renames the disks that were replaced, so that their owner finds them.
func (r *restore) keepOld(ctx context.Context, j *job, result *restoreResult) []string {
	var kept []string
	for _, pos := range r.plan.Positions {
		if pos.OldVDI == nil {
			continue
		}
		kept = append(kept, pos.OldVDI.UUID)
		name := fmt.Sprintf("%s (replaced in dpxen session %s)", pos.OldVDI.Name, j.Session)
		if err := r.a.xapi.SetVDIName(ctx, pos.OldVDI.Ref, name); err != nil {
			result.Warnings = append(result.Warnings, fmt.Sprintf("rename the replaced disk %s: %v", pos.OldVDI.UUID, err))
		}
	}
	return kept
}

// rollBack puts a VM whose restore failed on its former disks and into its former power state.
func (r *restore) rollBack(ctx context.Context, j *job, out *outcome) {
	if r.goal != goalInPlace || r.vm.Ref.Null() {
		return
	}
	start := r.stopped && r.before == running
	if r.swap != nil {
		var err error
		start, err = r.rollBackDisks(ctx, j, start)
		if err != nil {
			out.PowerRestored = r.before != running
			out.After = ""
			out.Warnings = append(out.Warnings, "the VM is blocked until `dpxen repair` has put its disks right: "+err.Error())
			out.Leftovers = append(out.Leftovers, "blocked VM "+r.vm.UUID)
			return
		}
	}
	if start {
		j.setPhase(phaseStarting, "starting the VM again")
		if err := r.startVM(ctx); err != nil {
			out.Warnings = append(out.Warnings, err.Error())
		}
	}
	state, err := r.a.power.state(ctx, r.vm.Ref)
	if err != nil {
		out.Warnings = append(out.Warnings, err.Error())
	}
	out.After = state
	out.PowerRestored = state == r.before || (r.before == suspended && r.spec.DiscardMemory && !r.stopped)
}

// rollBackDisks undoes, or after the point of no return finishes, the exchange. It says whether the VM may be started.
func (r *restore) rollBackDisks(ctx context.Context, j *job, start bool) (bool, error) {
	sw := r.swapper(j)
	steps, err := r.swap.Steps, error(nil)
	switch {
	case r.swapped:
		err = sw.exchange(ctx, steps)
	case r.spec.DeleteFirst && len(r.arrived) == len(r.plan.Positions):
		err = sw.exchange(ctx, steps)
	case r.spec.DeleteFirst:
		start = r.undoCleared(ctx, sw) && start
	default:
		err = sw.undo(ctx, steps)
	}
	if err != nil {
		return false, err
	}
	return start, sw.unblock(ctx, r.swap.Blocked)
}

// undoCleared gives the positions back those of their old disks that were not deleted yet; true when that is all of them.
func (r *restore) undoCleared(ctx context.Context, sw *swapper) bool {
	all := true
	for _, step := range r.swap.Steps {
		if step.Old == "" {
			continue
		}
		if _, err := r.a.xapi.VDIByUUID(ctx, step.Old); err != nil {
			all = false
			continue
		}
		if err := sw.setPosition(ctx, step, step.Old); err != nil {
			all = false
		}
	}
	return all
}

func (r *restore) shutdownLimit() time.Duration {
	if r.spec.ShutdownLimit > 0 {
		return r.spec.ShutdownLimit
	}
	return r.a.cfg.Timing.Shutdown
}
