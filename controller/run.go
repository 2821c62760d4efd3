package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// errCancelled is why a session's context ends when somebody asked for it, by signal or by request file.
var errCancelled = fmt.Errorf("the session was cancelled: %w", context.Canceled)

// runner is what backup and restore sessions have in common while they run.
type runner struct {
	c *Controller
	s *session

	mu      sync.Mutex
	last    time.Time // of the last event: heartbeats fill longer silences
	move    int64     // bytes moved so far
	warned  bool      // that the state cannot be written
	phases  map[VMRef]step
	outages map[string]time.Time // since when a pool is away, by its name
	gone    map[string]time.Time // when an agent was last found gone, by its name
	waiting roomQueue
	hosts   map[string]string // by agent: the UUID of the host that it stands beside; not changed while VMs are worked on
}

// emit tells the observer of the session.
func (r *runner) emit(e Event) {
	e.Session = r.s.id
	r.mu.Lock()
	r.last = time.Now()
	r.mu.Unlock()
	r.c.emit(e)
}

// moved counts bytes, and waits where they come too fast.
func (r *runner) moved(n int64) {
	r.c.pacer.pass(n)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.move += n
}

// watch returns a context that ends when the caller's does or when the session is asked to end, and sends heartbeats until
// stop is called. stop says whether the session was cancelled.
func (r *runner) watch(ctx context.Context) (_ context.Context, stop func() bool) {
	inner, cancel := context.WithCancelCause(ctx)
	quit := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		poll := time.NewTicker(r.c.cfg.Timing.CancelPoll)
		defer poll.Stop()
		for {
			select {
			case <-quit:
				return
			case <-poll.C:
				if inner.Err() == nil && r.s.cancelRequested() {
					cancel(errCancelled)
				}
				r.heartbeat()
			}
		}
	})
	return inner, func() bool {
		close(quit)
		wait.Wait()
		cancelled := ctx.Err() != nil || errors.Is(context.Cause(inner), errCancelled)
		cancel(nil)
		return cancelled
	}
}

// heartbeat says that the session lives when nothing else was said for a while.
func (r *runner) heartbeat() {
	r.mu.Lock()
	silent, moved := time.Since(r.last) >= r.c.cfg.Timing.Heartbeat, r.move
	r.mu.Unlock()
	if silent {
		counts := r.s.snapshot().Counts()
		r.emit(Event{Type: EventHeartbeat, Counts: &counts, Bytes: moved})
	}
}

// result changes a VM's result durably; slot is its place in the report. That it cannot be written does not stop the work:
// the final report says so.
func (r *runner) result(slot int, change func(*VMResult)) {
	if err := r.s.update(func(rep *Report) { change(&rep.VMs[slot]) }); err != nil {
		r.unwritten(err)
	}
}

// unwritten warns once that the session's state could not be written.
func (r *runner) unwritten(err error) {
	r.mu.Lock()
	first := !r.warned
	r.warned = true
	r.mu.Unlock()
	if first {
		r.s.note(func(rep *Report) { rep.Warnings = append(rep.Warnings, err.Error()) })
		r.emit(Event{Type: EventWarning, Message: err.Error()})
	}
}

// warn adds a warning to the session's.
func (r *runner) warn(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	r.s.note(func(rep *Report) { rep.Warnings = appendNew(rep.Warnings, text) })
	r.emit(Event{Type: EventWarning, Message: text})
}

// phase tells what is being done with a VM, once where it is told several times in a row.
func (r *runner) phase(vm *VMRef, phase, message string) {
	now := step{Phase: phase, Message: message}
	r.mu.Lock()
	last := r.phases[*vm]
	if r.phases == nil {
		r.phases = map[VMRef]step{}
	}
	r.phases[*vm] = now
	r.mu.Unlock()
	if now != last {
		r.emit(Event{Type: EventVMPhase, VM: vm, Phase: phase, Message: message})
	}
}

func (r *runner) lastPhase(vm *VMRef) step {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phases[*vm]
}

// steps returns what tells an agent's progress as it changes. That the agent is done with the transfer, the result says.
func (r *runner) steps(vm *VMRef) func(step) {
	told := 0
	return func(s step) {
		if now := (step{Phase: s.Phase, Message: s.Message}); s.Phase == phaseDone || now == r.lastPhase(vm) {
			return
		}
		if told++; told > maxSteps { // an agent that does not come to rest fills no log
			return
		}
		r.phase(vm, s.Phase, s.Message)
	}
}

// end tells a VM's final result.
func (r *runner) end(vm *VMRef, slot int) {
	r.emit(Event{Type: EventVMEnd, VM: vm, Result: &r.s.snapshot().VMs[slot]})
}

// finish ends the session: final state, summary event. What was over before somebody asked for its end was not cancelled.
func (r *runner) finish(err error, cancelled bool) (*Report, error) {
	if cancelled && err != nil {
		r.s.note(func(rep *Report) { rep.Cancelled = true })
		if errors.Is(err, context.Canceled) {
			err = nil // the report says it
		}
	}
	r.s.note((*Report).warnOfOpen)
	rep, werr := r.s.finish(r.c.o.Now(), err)
	if werr != nil { // what is on disk is not the end; at least what is told is true
		err = errors.Join(err, werr)
		rep.Error, rep.Code = err.Error(), ExitCode(rep, err)
		rep.Advice = "this end is not on disk: look at the state folder's file system (room, mounted, writable?), then run dpxen repair; " +
			"until then the session reads as interrupted"
		rep.Result = ResultLine(rep, rep.Code)
	}
	r.emit(Event{Type: EventSummary, Report: rep})
	return rep, err
}

// warnOfOpen puts a warning to good VMs of which an agent that is gone may have left something.
func (r *Report) warnOfOpen() {
	for _, in := range r.Unfinished() {
		for i := range r.VMs {
			vm := &r.VMs[i]
			if vm.UUID == in.VMUUID && vm.PoolUUID == in.PoolUUID && vm.Status == StatusGood && len(vm.Warnings) == 0 {
				vm.Warnings = append(vm.Warnings, "agent "+in.Agent+" was lost and may have left something; run dpxen repair")
			}
		}
	}
}
