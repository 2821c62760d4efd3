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

	mu   sync.Mutex
	last time.Time // of the last event: heartbeats fill longer silences
	move int64     // bytes moved so far
}

// emit tells the observer of the session.
func (r *runner) emit(e Event) {
	e.Session = r.s.id
	r.mu.Lock()
	r.last = time.Now()
	r.mu.Unlock()
	r.c.emit(e)
}

func (r *runner) moved(n int64) {
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

// result changes a VM's result durably. That it cannot be written does not stop the work: the final report says so.
func (r *runner) result(pool, uuid string, change func(*VMResult)) {
	if err := r.s.vm(pool, uuid, change); err != nil {
		r.s.note(func(rep *Report) { rep.Warnings = append(rep.Warnings, err.Error()) })
	}
}

// phase tells what is being done with a VM.
func (r *runner) phase(vm *VMRef, phase, message string) {
	r.emit(Event{Type: EventVMPhase, VM: vm, Phase: phase, Message: message})
}

// steps returns what tells an agent's progress as it changes.
func (r *runner) steps(vm *VMRef) func(step) {
	var last step
	return func(s step) {
		if s.Phase != last.Phase || s.Message != last.Message {
			last = s
			r.phase(vm, s.Phase, s.Message)
		}
	}
}

// end tells a VM's final result.
func (r *runner) end(vm *VMRef, pool string) {
	rep := r.s.snapshot()
	r.emit(Event{Type: EventVMEnd, VM: vm, Result: rep.vm(pool, vm.UUID)})
}

// finish ends the session: final state, summary event.
func (r *runner) finish(err error, cancelled bool) (*Report, error) {
	if cancelled {
		r.s.note(func(rep *Report) { rep.Cancelled = true })
	}
	rep, werr := r.s.finish(r.c.o.Now(), err)
	r.emit(Event{Type: EventSummary, Report: rep})
	return rep, errors.Join(err, werr)
}
