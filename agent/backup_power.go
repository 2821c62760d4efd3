package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// stop shuts the VM down if it runs, after noting in the journal that it did.
func (b *backup) stop(ctx context.Context, j *job) error {
	if b.before != running {
		return nil
	}
	limit := b.shutdownLimit()
	earlier := b.powerNoted
	if !earlier {
		if err := b.agent.startable(ctx, b.vm, b.spec.ForceOff); err != nil {
			return err
		}
		if err := b.claim.note(ctx, stepPower, notePower(b.vm, running, limit)); err != nil {
			return err
		}
		b.powerNoted = true
	}
	vm, err := b.readVM(ctx, j.VM)
	if err != nil {
		return err
	}
	if vm.PowerState != running && !earlier {
		// Somebody was faster than our intent: a VM that was off stays off.
		b.vm, b.before, b.facts.VM.Power = vm, vm.PowerState, vm.PowerState
		if err := b.claim.drop(ctx, stepPower); err != nil {
			return err
		}
		b.powerNoted = false
		return b.spec.admits(vm.PowerState)
	}
	j.setPhase(phaseStopping, fmt.Sprintf("waiting up to %s for the guest to shut down", limit))
	if !earlier { // else it may have been down for long
		b.down.begin()
	}
	asked, err := b.agent.power.stop(ctx, vm, stopOptions{Timeout: limit, Force: b.spec.ForceOff,
		Earlier: earlier, Again: b.claim.noteAgain, Unanswered: func() { b.unanswered = true }})
	b.asked = asked || earlier
	if err != nil {
		return err
	}
	failpoint.Pass("agent/backup/stopped")
	b.stopped = true
	return nil
}

func (b *backup) shutdownLimit() time.Duration {
	if b.spec.ShutdownTimeout > 0 {
		return b.spec.ShutdownTimeout
	}
	return b.agent.cfg.Timing.Shutdown
}

// bringBack starts the VM if it is down because of us, in spite of the job's end.
// One that runs is left to cleanup, which knows whether it has to be watched.
func (b *backup) bringBack(ctx context.Context, j *job) error {
	if !b.powerNoted {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if b.agent.power.is(ctx, b.vm.Ref, running) {
		return nil
	}
	j.setPhase(phaseStarting, "")
	return b.startAgain(ctx)
}

// startAgain starts the VM if it ran before, and takes the intent out of the
// journal. It is repeatable; ctx is bounded here.
func (b *backup) startAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.agent.cfg.Timing.Start)
	defer cancel()
	if err := b.agent.power.start(ctx, b.vm.Ref); err != nil {
		return err
	}
	b.down.end()
	if err := failpoint.Hit("agent/backup/started-again"); err != nil {
		return err
	}
	if b.unanswered { // the watch on it needs the note
		return nil
	}
	if err := b.agent.retry().do(ctx, passing, func(ctx context.Context) error {
		return b.claim.drop(ctx, stepPower)
	}); err != nil {
		return err
	}
	b.powerNoted = false
	return nil
}

// cleanup brings the VM back, deletes the snapshot and gives the claim back.
func (b *backup) cleanup(ctx context.Context, j *job, cause error) (out outcome) {
	out = outcome{Succeeded: cause == nil, Err: cause, Before: b.before, Warnings: b.warnings}
	if b.claim == nil { // nothing was touched
		out.After, out.PowerRestored = b.before, true
		return out
	}
	defer func() { out.Downtime = b.down.lasted }()
	defer b.claim.abandon()
	if err := b.standing(ctx); err != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("not cleaned up: %v", err))
		out.Leftovers = append(out.Leftovers, "whatever the journal says of VM "+j.VM)
		b.powerAfter(ctx, &out)
		return out
	}
	out.Before = b.before
	failpoint.Pass("agent/backup/before-cleanup")
	watch := b.cleanPower(ctx, j, &out)
	// A task whose creation was not answered, or that XAPI has made for an agent that died while this one was exporting already.
	if err := b.agent.retry().do(ctx, passing, func(ctx context.Context) error { return b.dropEarlier(ctx, j) }); err != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("look for tasks of earlier attempts: %v", err))
	}
	failpoint.Pass("agent/backup/between-power-and-snapshot")
	if b.snapshot != "" {
		b.cleanSnapshot(ctx, &out)
	}
	b.powerAfter(ctx, &out)
	if len(out.Leftovers) > 0 || !out.PowerRestored {
		out.Warnings = append(out.Warnings, "the agent's sweep goes on with what is left")
		return out // the journal keeps it
	}
	if watch {
		b.watchOn(ctx, &out)
		return out
	}
	b.letGo(ctx, j, &out)
	return out
}

// letGo drops the journal's entries, once it is on XAPI's disk that the snapshot is gone: after a crash it would be there again, and
// named by nothing. Where XAPI gives no answer to the dropping it may have crashed, in spite of that or where it cannot write at
// will: the snapshot is looked for before the entries that name it go.
func (b *backup) letGo(ctx context.Context, j *job, out *outcome) {
	if b.snapshot != "" {
		if b.staysGone(ctx, out); len(out.Leftovers) > 0 {
			return
		}
	}
	again := false
	err := b.agent.retry().do(ctx, passing, func(ctx context.Context) error {
		if again && b.snapshot != "" {
			if b.cleanSnapshot(ctx, out); len(out.Leftovers) > 0 {
				return nil // the journal keeps it
			}
		}
		again = true
		return b.claim.release(ctx)
	})
	if err != nil {
		out.Leftovers = append(out.Leftovers, "journal entries of VM "+j.VM)
		out.Warnings = append(out.Warnings, err.Error())
	}
}

// staysGone sees to it that the snapshot, which was deleted, is gone for good: a crash of XAPI before its database was written out
// brings the record back, and one that is there again at once is not even noticed.
func (b *backup) staysGone(ctx context.Context, out *outcome) {
	for range 3 {
		b.agent.syncDatabase(ctx)
		back, err := b.agent.isBack(ctx, b.vm, b.snapshot)
		if err != nil {
			out.Warnings = append(out.Warnings, err.Error())
		}
		if err != nil || !back {
			return
		}
		if b.cleanSnapshot(ctx, out); len(out.Leftovers) > 0 {
			return
		}
	}
}

// standing makes sure that the claim stands, and that what is to be undone is known: the work may have ended before it was.
func (b *backup) standing(ctx context.Context) error {
	return b.agent.retry().do(ctx, passing, func(ctx context.Context) error {
		if !b.recalled {
			return b.recall(ctx)
		}
		_, err := b.claim.check(ctx)
		return err
	})
}

// cleanPower starts the VM if it is off because of us. It is true when the
// guest may still power off, so that the VM has to be watched.
func (b *backup) cleanPower(ctx context.Context, j *job, out *outcome) (watch bool) {
	if !b.powerNoted {
		return false
	}
	state, err := b.agent.power.state(ctx, b.vm.Ref)
	if err == nil && state != halted {
		return state == running && (b.asked && !b.stopped || b.unanswered)
	}
	if err == nil {
		j.setPhase(phaseStarting, "")
		err = b.startAgain(ctx)
	}
	if err != nil {
		j.log.Error("the VM is not in its former power state", "err", err)
		out.Warnings = append(out.Warnings, err.Error())
	}
	return err == nil && b.unanswered
}

// cleanSnapshot deletes the snapshot with its disks.
func (b *backup) cleanSnapshot(ctx context.Context, out *outcome) {
	snap, err := b.agent.settledSnapshot(ctx, b.vm, b.snapshot)
	for look := 0; b.unsure && look < 3 && err == nil && snap.Ref.Null(); look++ {
		if err = sleep(ctx, b.agent.cfg.Timing.RetryMax); err == nil { // what has no task may still be at work
			snap, err = b.agent.settledSnapshot(ctx, b.vm, b.snapshot)
		}
	}
	left := []string{"snapshot " + b.snapshot}
	if err == nil && !snap.Ref.Null() {
		left, err = b.agent.deleteSnapshots(ctx, b.vm, b.snapshot)
	}
	if err != nil {
		out.Leftovers = append(out.Leftovers, left...)
		out.Warnings = append(out.Warnings, fmt.Sprintf("the snapshot was not deleted: %v", err))
		return
	}
	b.cleanStray(ctx, out)
}

// powerAfter reads the state that the VM is left in.
func (b *backup) powerAfter(ctx context.Context, out *outcome) {
	state, err := b.agent.power.state(ctx, b.vm.Ref)
	if err != nil {
		out.Warnings = append(out.Warnings, err.Error())
		out.PowerRestored = !b.powerNoted
		return
	}
	out.After = state
	// One that ran when the work began and is off without our doing was shut down by somebody else.
	out.PowerRestored = state == out.Before || !b.spec.Offline || !b.powerNoted
}

// watchOn hands the claim over to the watch on a shutdown that was given up, or that may come late.
func (b *backup) watchOn(ctx context.Context, out *outcome) {
	if b.snapshot != "" { // deleted by now; the watch is about the power state alone
		for _, step := range []string{stepSnapshot, stepTaken} {
			if err := b.claim.drop(ctx, step); err != nil {
				out.Warnings = append(out.Warnings, err.Error())
			}
		}
	}
	late := b.stopped && b.unanswered
	limit, why := b.agent.watchTerm(b.shutdownLimit(), late)
	until, err := b.agent.beginWatch(ctx, b.claim, b.vm, limit, late)
	if err != nil {
		out.Leftovers = append(out.Leftovers, "journal entries of VM "+b.vm.UUID)
		out.Warnings = append(out.Warnings, err.Error())
		return
	}
	out.Warnings = append(out.Warnings, fmt.Sprintf("%s is watched until %s and started if it does", why, until.Format(time.RFC3339)))
}
