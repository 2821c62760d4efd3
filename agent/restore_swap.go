package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// completeInPlace exchanges the VM's disks for those on the carriers.
func (r *restore) completeInPlace(ctx context.Context, j *job) (*restoreResult, error) {
	if r.spec.DeleteFirst {
		if err := r.noteArrived(ctx); err != nil {
			return nil, err
		}
	} else {
		steps, err := stepsFor(r.plan, r.arrived)
		if err != nil {
			return nil, err
		}
		if err := r.stopAndBlock(ctx, j, steps); err != nil {
			return nil, err
		}
	}
	j.setPhase(phaseSwapping, "exchanging "+disks(len(r.swap.Steps)))
	if err := failpoint.Hit("agent/restore/before-exchange"); err != nil {
		return nil, err
	}
	err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.swapper(j).exchange(ctx, r.swap.Steps) })
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("agent/restore/after-exchange"); err != nil {
		return nil, err
	}
	if err := r.claim.note(ctx, stepSwapped, struct{}{}); err != nil {
		return nil, err
	}
	r.swap.Swapped = true
	// From here on there is no way back, so nobody's leaving may stop it half way.
	ctx, cancel := r.a.cleanupContext(ctx)
	defer cancel()
	return r.finishInPlace(ctx, j)
}

// finishInPlace makes the VM whole again on its restored disks. Only what keeps the VM from being started is an error, and
// the cleanup tries it again; the rest are warnings: the disks are there.
func (r *restore) finishInPlace(ctx context.Context, j *job) (*restoreResult, error) {
	result := &restoreResult{InPlace: true, Warnings: slices.Clone(r.plan.Warnings)}
	warn := func(err error) {
		if err != nil {
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	sw := r.swapper(j)
	if err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return sw.unmark(ctx, r.swap.Steps) }); err != nil {
		return nil, err
	}
	failpoint.Pass("agent/restore/before-settings")
	if !r.spec.Online {
		result.NotRestored = append(result.NotRestored,
			applySettings(ctx, r.a.xapi, r.vm, r.spec.OVA, r.spec.Name, r.spec.Settings)...)
		missed, err := r.applyVIFs(ctx)
		if err != nil {
			return nil, err
		}
		result.NotRestored = append(result.NotRestored, missed...)
	}
	if err := r.setAffinity(ctx, r.vm); err != nil {
		result.NotRestored = append(result.NotRestored, err.Error())
	}
	m, err := r.a.mend(ctx, sw, *r.swap)
	if err == nil && (!m.forward || len(m.lost) > 0) {
		err = fmt.Errorf("the restored disks have vanished: %w", errDisksChanged)
	}
	if err != nil {
		return nil, fmt.Errorf("let the VM be started again: %w", err)
	}
	result.Warnings = append(result.Warnings, m.notes()...)
	failpoint.Pass("agent/restore/before-start")
	up := true
	if r.before == running || r.spec.Start {
		j.setPhase(phaseStarting, "")
		err := r.startVM(ctx)
		up = err == nil
		warn(err)
	}
	failpoint.Pass("agent/restore/after-start")
	j.setPhase(phaseCleaning, "removing carriers and replaced disks")
	_, err = r.a.discard(ctx, j.Nonce, r.exchanged())
	warn(err)
	failpoint.Pass("agent/restore/before-replaced-disks")
	if err := r.replaced(ctx, j, up, result); err != nil {
		return nil, err
	}
	result.VM = r.vm
	if vm, err := r.a.xapi.VM(ctx, r.vm.Ref); err != nil {
		warn(fmt.Errorf("read the restored VM: %w", err))
	} else {
		result.VM = vm
	}
	return result, nil
}

// applyVIFs gives the VM the file's network interfaces, with the intent in the journal first. It returns what could not be
// done; an error says that the journal could not be written, and that nothing was changed.
func (r *restore) applyVIFs(ctx context.Context) (missed []string, err error) {
	plans, missed := planVIFs(ctx, r.a.xapi, r.view, r.vm, r.spec.OVA, r.spec.Networks)
	if len(plans) == 0 {
		return missed, nil
	}
	err = r.a.retry().do(ctx, passing, func(ctx context.Context) error {
		noted, err := r.claim.noted(ctx, stepVIFs, nil)
		if err != nil || noted {
			return err
		}
		return r.claim.note(ctx, stepVIFs, plans)
	})
	if err != nil {
		return missed, fmt.Errorf("note the network interfaces: %w", err)
	}
	return append(missed, replaceVIFs(ctx, r.a.xapi, r.a.retry(), r.vm.Ref, plans)...), nil
}

// replaced deletes the old disks, or keeps them. An error says that some are left, and that the cleanup is to try again.
func (r *restore) replaced(ctx context.Context, j *job, up bool, result *restoreResult) (err error) {
	if r.spec.DeleteFirst {
		return nil
	}
	// The last moment at which somebody who has taken the work over could still want them.
	if _, err := r.claim.check(ctx); err != nil {
		return err
	}
	if up && !r.spec.KeepOld {
		result.Kept, err = r.a.deleteReplaced(ctx, r.swap.Steps)
		for _, uuid := range result.Kept {
			result.Warnings = append(result.Warnings, fmt.Sprintf("the replaced disk %s is used elsewhere too, and stays", uuid))
		}
		return err
	}
	if !up {
		result.Warnings = append(result.Warnings, "the VM did not start on its restored disks, so the replaced ones are kept")
	}
	suffix := replacedSuffix(j.Session, r.vm.UUID)
	if result.Kept, err = r.a.keepReplaced(ctx, r.swap.Steps, suffix); err != nil {
		result.Warnings = append(result.Warnings, err.Error())
	}
	before, err := r.a.keptBefore(ctx, suffix, result.Kept)
	if err != nil {
		result.Warnings = append(result.Warnings, err.Error())
	}
	if len(before) > 0 {
		result.Warnings = append(result.Warnings, fmt.Sprintf("an attempt before this one had exchanged the disks already: those that the VM had "+
			"before the restore are kept as %s; the others that were kept are copies, which that attempt had restored", strings.Join(before, ", ")))
		result.Kept = append(result.Kept, before...)
	}
	return nil
}

// stopAndBlock stops the VM, writes the plan of the exchange to the journal and keeps everybody from starting the VM.
func (r *restore) stopAndBlock(ctx context.Context, j *job, steps []swapStep) error {
	sw := r.swapper(j)
	for try := 0; ; try++ {
		if err := r.stopVM(ctx, j); err != nil {
			return err
		}
		if err := failpoint.Hit("agent/restore/stopped"); err != nil {
			return err
		}
		vm, err := r.a.xapi.VM(ctx, r.vm.Ref)
		if err != nil {
			return fmt.Errorf("read the stopped VM: %w", err)
		}
		if r.swap == nil {
			note := swapNote{Steps: steps, Start: r.before == running, Blocked: prior(vm),
				DeleteFirst: r.spec.DeleteFirst, KeepOld: r.spec.KeepOld}
			if err := r.claim.note(ctx, stepSwap, note); err != nil {
				return err
			}
			r.swap = &exchangeState{swapNote: note}
		}
		if err := sw.block(ctx); err != nil {
			return err
		}
		if err := failpoint.Hit("agent/restore/blocked"); err != nil {
			return err
		}
		if vm, err = r.a.xapi.VM(ctx, r.vm.Ref); err != nil {
			return fmt.Errorf("read the blocked VM: %w", err)
		}
		if vm.PowerState == halted {
			return sw.unchanged(ctx, steps)
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
	if !r.stopped {
		// What counts is the state now: whoever has shut the VM down or started it since the plan had a reason.
		r.before = vm.PowerState
	}
	if vm.PowerState == halted {
		return nil
	}
	limit, earlier := r.shutdownLimit(), r.stopped
	if !earlier {
		if vm.PowerState == running {
			if err := r.a.startable(ctx, vm, r.spec.ForceOff); err != nil {
				return err
			}
		}
		if err := r.claim.note(ctx, stepPower, notePower(vm, r.before, limit)); err != nil {
			return err
		}
		r.stopped = true
	}
	j.setPhase(phaseStopping, "waiting for the guest to shut down")
	if err := failpoint.Hit("agent/restore/before-stop"); err != nil {
		return err
	}
	if r.before == running {
		r.down.begin()
	}
	asked, err := r.a.power.stop(ctx, vm, stopOptions{Timeout: limit, Force: r.spec.ForceOff, DiscardMemory: r.spec.DiscardMemory,
		Earlier: earlier, Again: r.claim.noteAgain, Unanswered: func() { r.unanswered = true }})
	r.watched = err != nil && asked && r.before == running
	return err
}

// clearPositions deletes the old disks before the new ones arrive. Once that is noted only the restore itself, which knows
// what XAPI has answered, may still go back to them.
func (r *restore) clearPositions(ctx context.Context, j *job) error {
	sw := r.swapper(j)
	for _, step := range r.swap.Steps {
		if step.Old == "" {
			continue
		}
		if err := sw.setPosition(ctx, step, ""); err != nil {
			return fmt.Errorf("take the old disk at position %s off: %w", step.Device, err)
		}
	}
	if err := r.claim.note(ctx, stepDelete, struct{}{}); err != nil {
		return err
	}
	r.swap.Deletes = true
	r.a.syncDatabase(ctx)
	for _, step := range r.swap.Steps {
		if err := r.deleteOld(ctx, step); err != nil {
			return fmt.Errorf("delete the old disk at position %s: %w", step.Device, err)
		}
	}
	return nil
}

// deleteOld deletes the old disk of a position, unless something else uses it.
func (r *restore) deleteOld(ctx context.Context, step swapStep) error {
	if step.Old == "" {
		return nil
	}
	vdi, err := r.a.replaced(ctx, step)
	if gone(err) {
		r.doubt = true
		return nil
	}
	if err != nil {
		return err
	}
	if err := failpoint.Hit("agent/restore/before-old-disk-destroy"); err != nil {
		return err
	}
	err = r.a.destroyDiskTelling(ctx, vdi.Ref, func(err error) {
		var refused *xapi.Error
		r.doubt = r.doubt || !errors.As(err, &refused) || noVerdict(err)
	})
	if errors.Is(err, errNotOurs) {
		return nil // another VM uses it, or another position of this one
	}
	return err
}

// goBack lets a restore that deletes first go back to the old disks, where XAPI has refused to delete the first of them: all
// of them are there then, and nothing that was asked for is on its way.
func (r *restore) goBack(ctx context.Context) error {
	if !r.swap.pastReturn() || r.doubt {
		return nil
	}
	if err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.claim.drop(ctx, stepDelete) }); err != nil {
		return err
	}
	r.swap.Deletes = false
	return nil
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
	return &swapper{xapi: r.a.xapi, vm: r.vm.Ref, session: j.Session, first: r.spec.DeleteFirst, check: func(ctx context.Context) error {
		_, err := r.claim.check(ctx)
		return err
	}}
}

func (r *restore) startVM(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.a.cfg.Timing.Start)
	defer cancel()
	if err := r.a.power.start(ctx, r.vm.Ref); err != nil {
		return err
	}
	r.down.end()
	return nil
}

func (r *restore) shutdownLimit() time.Duration {
	if r.spec.ShutdownLimit > 0 {
		return r.spec.ShutdownLimit
	}
	return r.a.cfg.Timing.Shutdown
}

// disks is a number of them, for people.
func disks(n int) string {
	if n == 1 {
		return "1 disk"
	}
	return fmt.Sprintf("%d disks", n)
}
