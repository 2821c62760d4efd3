package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/xapi"
)

// cleanup is procedure's.
func (r *restore) cleanup(ctx context.Context, j *job, cause error) (out outcome) {
	out = outcome{Succeeded: cause == nil, Before: r.before, After: r.before, PowerRestored: true, Err: cause}
	if r.claim == nil {
		return out
	}
	defer r.claim.abandon()
	defer func() { out.Downtime = r.down.lasted }()
	err := r.a.retry().do(ctx, passing, func(ctx context.Context) error {
		_, err := r.claim.check(ctx)
		return err
	})
	if err != nil || r.broken {
		out.Warnings = append(out.Warnings, "not cleaned up; the agent's sweep and `dpxen repair` go on from the journal")
		if err != nil {
			out.Warnings = append(out.Warnings, err.Error())
		}
		out.Leftovers = append(out.Leftovers, "whatever the journal says of VM "+j.VM)
		r.powerAfter(ctx, cause, &out)
		return out
	}
	if cause != nil {
		if err := r.rollBack(ctx, j, &out); err != nil {
			out.Warnings = append(out.Warnings, "the VM is blocked until `dpxen repair` has put its disks right: "+err.Error())
			out.Leftovers = append(out.Leftovers, "blocked VM "+r.vm.UUID)
			r.powerAfter(ctx, cause, &out)
			return out // what has arrived may still be wanted
		}
	}
	r.powerAfter(ctx, cause, &out)
	failpoint.Pass("agent/restore/before-settle")
	r.settle(ctx, j, cause, &out)
	if r.result != nil {
		out.Warnings = append(out.Warnings, r.result.Warnings...)
	}
	return out
}

// exchanged is the VM, by UUID, whose disks alone are exchanged; empty where a VM is made.
func (r *restore) exchanged() string {
	if r.goal == goalInPlace {
		return r.vm.UUID // empty before it was looked at
	}
	return ""
}

// rollBack puts a VM whose restore failed wholly on its former disks, or after the point of no return on its restored
// ones, and starts it again. An error says that its disks are not right.
func (r *restore) rollBack(ctx context.Context, j *job, out *outcome) error {
	if r.goal != goalInPlace || r.vm.Ref.Null() {
		return nil
	}
	start := r.stopped && r.before == running
	var m mended
	if r.swap != nil {
		if err := r.howFar(ctx); err != nil {
			return err
		}
		if err := r.goBack(ctx); err != nil {
			return err
		}
		var err error
		if m, err = r.a.mend(ctx, r.swapper(j), *r.swap); err != nil {
			return err
		}
		r.lost = len(m.lost) > 0
		out.Warnings = append(out.Warnings, m.notes()...)
		if r.lost {
			out.Warnings = append(out.Warnings, m.whyLost()+": restore the VM again")
		}
		start = start && !r.lost
		if err := r.fillVIFs(ctx); err != nil {
			out.Warnings = append(out.Warnings, err.Error())
		}
	}
	if start {
		j.setPhase(phaseStarting, "starting the VM again")
		if err := r.startVM(ctx); err != nil {
			out.Warnings = append(out.Warnings, err.Error())
			m.keepOld = true
		}
	}
	if m.forward && !r.spec.DeleteFirst || r.swap != nil && r.swap.pastReturn() {
		r.cleanReplaced(ctx, j, m, out)
	}
	return nil
}

// cleanReplaced deletes the old disks of a VM that does not go back to them, or keeps them.
func (r *restore) cleanReplaced(ctx context.Context, j *job, m mended, out *outcome) {
	var err error
	if m.keepOld {
		_, err = r.a.keepReplaced(ctx, r.swap.Steps, replacedSuffix(j.Session, r.vm.UUID))
	} else {
		_, err = r.a.deleteReplaced(ctx, r.swap.Steps)
	}
	if err != nil {
		out.Warnings = append(out.Warnings, err.Error())
		out.Leftovers = append(out.Leftovers, "replaced disks")
	}
}

// fillVIFs gives the VM those interfaces back that the restore has taken off it.
func (r *restore) fillVIFs(ctx context.Context) error {
	return r.a.retry().do(ctx, passing, func(ctx context.Context) error {
		var plans []vifPlan
		if noted, err := r.claim.noted(ctx, stepVIFs, &plans); err != nil || !noted {
			return err
		}
		for _, p := range plans {
			has, err := vifAt(ctx, r.a.xapi, r.vm.Ref, p.Want.Device)
			if err == nil && has == nil {
				err = fillVIF(ctx, r.a.xapi, r.vm.Ref, p)
			}
			if err != nil {
				return fmt.Errorf("give the VM its network interface %s back: %w", p.Want.Device, err)
			}
		}
		return nil
	})
}

// howFar finds out from the journal what of the exchange was noted, where the answer was lost, and notes disks that have
// arrived in place of ones that were deleted first.
func (r *restore) howFar(ctx context.Context) error {
	return r.a.retry().do(ctx, passing, func(ctx context.Context) error {
		var err error
		if !r.swap.Swapped {
			if r.swap.Swapped, err = r.claim.noted(ctx, stepSwapped, nil); err != nil {
				return err
			}
		}
		if !r.swap.Deletes {
			if r.swap.Deletes, err = r.claim.noted(ctx, stepDelete, nil); err != nil {
				return err
			}
		}
		if !r.spec.DeleteFirst || !r.proven || r.swap.Arrived {
			return nil
		}
		return r.noteArrived(ctx)
	})
}

// noteArrived completes the swap entry of a restore that deletes first, once.
func (r *restore) noteArrived(ctx context.Context) error {
	steps, err := stepsFor(r.plan, r.arrived)
	if err != nil {
		return err
	}
	noted, err := r.claim.noted(ctx, stepArrived, nil)
	if err == nil && !noted {
		err = r.claim.note(ctx, stepArrived, arrivedNote{Steps: steps})
	}
	if err != nil {
		return err
	}
	r.swap.Steps, r.swap.Arrived = steps, true
	return nil
}

// powerAfter says in what power state the VM is left, and whether that is the one that it is to have.
func (r *restore) powerAfter(ctx context.Context, cause error, out *outcome) {
	out.Before = r.before
	if r.goal != goalInPlace || r.vm.Ref.Null() {
		out.After = r.before
		return
	}
	state, err := r.a.power.state(ctx, r.vm.Ref)
	if err != nil {
		out.Warnings = append(out.Warnings, err.Error())
		out.After, out.PowerRestored = "", !r.stopped
		return
	}
	out.After = state
	asked := cause == nil && (r.spec.Start && state == running || r.before == suspended && state == halted)
	out.PowerRestored = state == r.before || !r.stopped || asked
}

// endImports ends what is pending of the restore's imports. A task that neither this process nor the journal knows was never
// handed to a host, since it is noted before; XAPI would leave it pending however long its end was waited for.
func (r *restore) endImports(ctx context.Context, j *job) error {
	tasks, err := r.a.pendingTasks(ctx, importLabel(j.Nonce))
	if len(tasks) == 0 {
		return err
	}
	l, checkErr := r.claim.check(ctx)
	for _, t := range tasks {
		if checkErr == nil && !r.began(l, t.UUID) {
			err = errors.Join(err, r.a.xapi.DropTask(ctx, t.Ref))
		} else {
			err = errors.Join(err, r.a.endImport(ctx, t.Ref, j.Nonce))
		}
	}
	return err
}

// began tells whether an import may have been begun with a task. A note that cannot be read may be about any.
func (r *restore) began(l *ledger, task string) bool {
	return slices.Contains(r.imports, task) || slices.ContainsFunc(l.steps(r.claim.vm, r.claim.work.Nonce), func(e entry) bool {
		var note importNote
		return strings.HasPrefix(e.Step, stepImport) && (e.decode(&note) != nil || note.Task == task)
	})
}

// settle removes what is left, and gives the claim back unless the journal has to keep something.
func (r *restore) settle(ctx context.Context, j *job, cause error, out *outcome) {
	// A task whose creation was not answered, or one that XAPI has made late for an attempt whose agent died.
	if err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.endImports(ctx, j) }); err != nil {
		out.Warnings = append(out.Warnings, err.Error())
	}
	leftovers, err := r.a.discard(ctx, j.Nonce, r.exchanged())
	for err != nil && (passing(err) || errors.Is(err, xapi.ErrBusy)) && sleep(ctx, r.a.cfg.Timing.RetryMax) == nil {
		leftovers, err = r.a.discard(ctx, j.Nonce, r.exchanged()) // an import that was cut off is being cleaned up by XAPI
	}
	if err != nil {
		out.Warnings = append(out.Warnings, err.Error())
		out.Leftovers = append(out.Leftovers, leftovers...)
	}
	if err != nil || len(out.Leftovers) > 0 {
		out.Warnings = append(out.Warnings, "the journal keeps what is left to do; the agent's sweep and `dpxen repair` go on with it")
		return
	}
	if !out.PowerRestored && r.before == running && !r.lost {
		// The disks are right, and stay as they are; what is left to do is to start the VM.
		out.Warnings = append(out.Warnings, "the VM is not running again; the agent's sweep and `dpxen repair` go on trying")
		l, err := r.claim.check(ctx)
		if err == nil {
			err = r.dropSteps(ctx, l.steps(r.vm.UUID, j.Nonce), aboutPower)
		}
		if err != nil {
			out.Warnings = append(out.Warnings, err.Error())
		}
		return
	}
	if given := r.watched && cause != nil; given || r.unanswered && r.before == running && !r.lost {
		out.Warnings = append(out.Warnings, r.watchOn(ctx, j, !given))
		return
	}
	kept, err := r.keptCopy(ctx, j, cause)
	if err != nil {
		out.Warnings = append(out.Warnings, err.Error())
		return // the journal keeps it all
	}
	if !kept.Ref.Null() {
		text := fmt.Sprintf("the VM was made completely, as %q (%s), and is kept", kept.Name, kept.UUID)
		if cause == nil {
			text += "; its session does not know of it"
		}
		out.Warnings = append(out.Warnings, text)
		if !j.heard() { // nobody hears this: the journal tells it for a while
			return
		}
	}
	if err := r.a.retry().do(ctx, passing, r.claim.release); err != nil {
		out.Leftovers = append(out.Leftovers, "journal entries of "+j.Nonce)
		out.Warnings = append(out.Warnings, err.Error())
	}
}

// watchOn hands the claim over to the watch on a shutdown that was given up or, where late, on a call for one that may come after
// all is done. It says what comes of it.
func (r *restore) watchOn(ctx context.Context, j *job, late bool) string {
	limit, why := r.a.watchTerm(r.shutdownLimit(), late)
	if late {
		// The disks are right: what is left to be seen to is that the VM runs.
		l, err := r.claim.check(ctx)
		if err == nil {
			err = r.dropSteps(ctx, l.steps(r.vm.UUID, j.Nonce), aboutPower)
		}
		if err != nil {
			return err.Error()
		}
	}
	until, err := r.a.beginWatch(ctx, r.claim, r.vm, limit, late)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s is watched until %s and started if it does", why, until.Format(time.RFC3339))
}

// keptCopy is the VM that a restore made as new which comes to nothing after that, or whose result nobody has taken; the zero VM
// where there is none. Of the journal's steps that which names it is left.
func (r *restore) keptCopy(ctx context.Context, j *job, cause error) (xapi.VM, error) {
	// A stream may have taken the result when whoever held it had released the transfer already, and did not listen any more.
	if r.goal != goalAsNew || cause == nil && r.told.Load() && j.ctx.Err() == nil {
		return xapi.VM{}, nil
	}
	l, err := r.claim.check(ctx)
	if err != nil {
		return xapi.VM{}, err
	}
	steps := l.steps(j.Nonce, j.Nonce)
	s := &sweeping{a: r.a, work: work{vm: j.Nonce, nonce: j.Nonce, steps: steps}}
	vm, err := s.madeWhole(ctx)
	if err != nil || vm.Ref.Null() {
		return vm, err
	}
	return vm, r.dropSteps(ctx, steps, func(step string) bool { return step == stepMade })
}
