package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
)

// watchTerm is for how long a VM is watched whose shutdown was given up or, where late, may come late by a call alone; and the
// beginning of a sentence that tells why. shutdown is the shutdown's limit.
func (a *Agent) watchTerm(shutdown time.Duration, late bool) (d time.Duration, why string) {
	if late { // calls that got no answer do not come after that
		return a.journal.ttl, "XAPI gave no answer to a call that shuts the VM down, and may still do it; the VM"
	}
	return shutdown + a.cfg.Timing.Late, "the guest may still power off; it"
}

// beginWatch notes the watch in the journal and hands the claim over to it; d is how long the VM is watched at most, call as in
// the note. After an error nothing has changed hands.
func (a *Agent) beginWatch(ctx context.Context, c *claim, vm xapi.VM, d time.Duration, call bool) (until time.Time, err error) {
	err = a.retry().do(ctx, passing, func(ctx context.Context) error {
		now, err := a.journal.now(ctx)
		if err != nil {
			return err
		}
		until = now.Add(d)
		return c.note(ctx, stepWatch, watchNote{Until: until, Call: call})
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("watch the VM: %w", err)
	}
	a.watchShutdown(c.handOver(), vm, until)
	return until, nil
}

// watching is a watch that is under way.
type watching struct {
	claim *claim
	vm    xapi.VM
	until time.Time
	stop  context.CancelCauseFunc
	done  chan struct{}
}

// errPreempted ends a watch whose claim is passed on.
var errPreempted = errors.New("another backup of the VM takes over")

// watchShutdown watches a VM whose shutdown was given up, in the background and
// beyond the end of the job: until the VM was seen Running for the shutdown's
// limit and five minutes more; once it is seen Halted it is started, and, where
// there may be another call for a shutdown, watched on, as it is while XAPI is at
// one of them. It owns the
// claim from here on: it renews it, and drops the journal's entries at the end.
// An agent that stops leaves them to the next start's sweep, which calls this
// again with the time in the watch entry.
func (a *Agent) watchShutdown(c *claim, vm xapi.VM, until time.Time) {
	ctx, stop := context.WithCancelCause(a.ctx)
	w := &watching{claim: c, vm: vm, until: until, stop: stop, done: make(chan struct{})}
	a.watchMu.Lock()
	a.watches[vm.UUID] = w
	a.watchMu.Unlock()
	a.work.Go(func() {
		defer close(w.done)
		defer stop(nil)
		log := a.log.Named("watch").With("vm", vm.UUID)
		err := a.watch(ctx, c, vm.Ref, until)
		a.watchMu.Lock()
		if a.watches[vm.UUID] == w {
			delete(a.watches, vm.UUID)
		}
		a.watchMu.Unlock()
		switch {
		case errors.Is(err, errPreempted):
			log.Info("shutdown watch ended", "err", err)
			return // the claim goes on
		case err == nil:
			log.Info("shutdown watch ended")
		case a.ctx.Err() != nil:
			log.Info("shutdown watch left to the next start")
		default:
			log.Warn("shutdown watch failed; a sweep goes on from its journal entry", "err", err)
		}
		c.abandon()
	})
}

// watchedUntil is until when this process watches a VM, if it does.
func (a *Agent) watchedUntil(vm string) (time.Time, bool) {
	a.watchMu.Lock()
	defer a.watchMu.Unlock()
	w := a.watches[vm]
	if w == nil {
		return time.Time{}, false
	}
	return w.until, true
}

// watchedWhy says what a watch is for.
func watchedWhy(until time.Time) string {
	return "the guest may still power off because of an earlier shutdown; it is watched until " + until.Format(time.RFC3339)
}

// preemptWatch ends the watch on a VM, if there is one, and turns its claim into
// one for other work, which has to bring the VM back in its place. Without a
// watch the claim is nil.
func (a *Agent) preemptWatch(ctx context.Context, vm string, who owner) (*claim, error) {
	a.watchMu.Lock()
	w := a.watches[vm]
	delete(a.watches, vm)
	a.watchMu.Unlock()
	if w == nil {
		return nil, nil
	}
	w.stop(errPreempted)
	<-w.done
	if w.claim.ended() {
		return nil, nil // it was over at this very moment
	}
	c, err := w.claim.passOn(ctx, who)
	if errors.Is(err, errClaimLost) { // another agent has taken the watch over, and the next renewal would have told
		w.claim.abandon()
		return nil, nil
	}
	if err != nil {
		a.watchShutdown(w.claim, w.vm, w.until)
		return nil, fmt.Errorf("go on from the watch of a given-up shutdown: %w", err)
	}
	return c, nil
}

// takeWatch takes over the watch that another agent has on a VM, and turns it into a claim for other work, which has to
// bring the VM back in its place. The other notices before it makes any change, and ends.
func (a *Agent) takeWatch(ctx context.Context, vm, nonce string, who owner) (*claim, error) {
	c, err := a.journal.takeOver(ctx, vm, nonce, true)
	if err != nil {
		return nil, fmt.Errorf("take the watch of a given-up shutdown over: %w", err)
	}
	next, err := c.passOn(ctx, who)
	if err != nil {
		c.abandon()
		return nil, fmt.Errorf("go on from the watch of a given-up shutdown: %w", err)
	}
	return next, nil
}

// watch is watchShutdown in the foreground: it returns nil when the VM is known
// to stay Running and the journal's entries are gone. After an error they stay.
func (a *Agent) watch(ctx context.Context, c *claim, vm xapi.Ref, until time.Time) error {
	ctx, cancel := context.WithCancelCause(c.on(ctx))
	defer cancel(nil)
	a.work.Go(func() { c.keep(ctx, cancel) })
	var again bool
	var end time.Time // by this process's own clock from here on: the master's may be set meanwhile
	if err := a.retry().do(ctx, passing, func(ctx context.Context) error {
		now, err := a.journal.now(ctx)
		if err != nil {
			return err
		}
		end = time.Now().Add(until.Sub(now))
		again, err = c.noted(ctx, stepAgain, nil)
		return err
	}); err != nil {
		return err
	}
	for {
		over, err := a.watchOnce(ctx, vm, end)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		switch {
		case err != nil && !passing(err):
			return err
		case again && (over == watchedOff || over == watchedBusy): // the next call may come after this one
			end = a.watchOn(c.vm, end)
		case over == watchedOff || over == watchedOver:
			return a.retry().do(ctx, passing, c.release)
		}
		if err := sleep(ctx, a.cfg.Timing.Watch); err != nil {
			return err
		}
	}
}

// watchOn has a VM watched for a claim's time from now on at least. It returns the new end for the former one.
func (a *Agent) watchOn(vm string, end time.Time) time.Time {
	next := time.Now().Add(a.journal.ttl)
	if !next.After(end) {
		return end
	}
	a.watchMu.Lock()
	defer a.watchMu.Unlock()
	if w := a.watches[vm]; w != nil {
		w.until = w.until.Add(next.Sub(end))
	}
	return next
}

// What a look at a watched VM has come to.
type watched int

const (
	watchedOn   watched = iota // there is more to wait for
	watchedBusy                // XAPI shuts it down
	watchedOff                 // it was off, and was started
	watchedOver                // the time is over, or the VM is gone
)

// watchOnce looks at the VM. end is of this process's clock.
func (a *Agent) watchOnce(ctx context.Context, vm xapi.Ref, end time.Time) (watched, error) {
	rec, err := a.xapi.VM(ctx, vm)
	if gone(err) {
		return watchedOver, nil
	}
	if err != nil {
		return watchedOn, fmt.Errorf("watch the VM: %w", err)
	}
	if rec.PowerState == halted {
		ctx, cancel := context.WithTimeout(ctx, a.cfg.Timing.Start)
		defer cancel()
		if err := a.power.start(ctx, vm); err != nil {
			return watchedOn, err
		}
		return watchedOff, nil
	}
	switch {
	case shuttingDown(rec):
		return watchedBusy, nil
	case time.Now().After(end):
		return watchedOver, nil
	}
	return watchedOn, nil
}

// shuttingDown tells whether XAPI shuts the VM down now.
func shuttingDown(vm xapi.VM) bool {
	for _, op := range vm.CurrentOperations {
		if op == "clean_shutdown" || op == "hard_shutdown" || op == "shutdown" {
			return true
		}
	}
	return false
}
