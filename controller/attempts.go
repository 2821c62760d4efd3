package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xva"
)

// parting puts into the report how an attempt left the VM; nil where nothing was begun.
type parting func()

// persistence is how a VM is tried again, until it is good, hopeless, or patience is used up (see trouble). A failed attempt
// that is followed by another leaves in the result that it was and why: the last one tells how the VM was left.
type persistence struct {
	*runner
	slot   int
	vm     *VMRef
	agents func() []string // in order of preference; the next one takes over where one is gone
	seat   *seat           // is given up between attempts
	place  func(agent string) place
	// find, where it is set, finds out where the VM is now, so that agents and place tell the truth. It returns the agent
	// that has told.
	find  func(ctx context.Context) (agent string, err error)
	once  func(ctx context.Context, agent string) (parting, error)
	worth func(error) bool
	at    string // the agent of the last attempt
	// announced is the agent that the VM was said to be begun by: it may be gone by then, or the VM elsewhere.
	announced string
}

// fileSecond is how long to wait where a file of the same second is in the way.
const fileSecond = 1100 * time.Millisecond

// run tries, within the limit for a VM: one whose agent always moves a little, and never ends, would else hold the session
// for ever.
func (p *persistence) run(ctx context.Context) error {
	limit := p.c.cfg.Timing.VMLimit
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := p.persist(untold{within})
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		return rpc.Errorf(rpc.Deadline, "it was not done within %s (timing.vm_limit): %w", limit, err)
	}
	return err
}

// untold is a context that tells nobody when it ends. gRPC would tell the agent, whose end of the stream could then break first, by
// an error that says nothing of the limit.
type untold struct{ context.Context }

// Deadline is none.
func (untold) Deadline() (time.Time, bool) { return time.Time{}, false }

func (p *persistence) persist(ctx context.Context) error {
	patience := patience{timing: p.c.cfg.Timing, agents: len(p.agents())}
	var leave parting
	for {
		began := time.Now()
		left, err := p.attempt(ctx)
		if left != nil { // an attempt that began nothing does not undo what an earlier one has left
			leave = left
		}
		p.heard(p.at, err)
		t := p.troubleOf(err)
		away, since := p.outage(p.vm.Pool, t)
		if err == nil || ctx.Err() != nil || !patience.allows(t, away, since) {
			if leave != nil {
				leave()
			}
			return err
		}
		p.seat.leave()
		p.failedAttempt(began, t, err)
		pause := patience.pause(t)
		if errors.Is(err, staging.ErrExists) {
			pause = max(pause, fileSecond)
		}
		select {
		case <-ctx.Done():
			if leave != nil {
				leave()
			}
			return err
		case <-time.After(pause):
		}
	}
}

// attempt tries once: the agent is chosen, the seat taken where the VM is, then the work done.
func (p *persistence) attempt(ctx context.Context) (parting, error) {
	agent, err := p.settle(ctx)
	if err != nil {
		return nil, err
	}
	if agent != p.at {
		if p.at == "" && agent != p.announced {
			p.emit(Event{Type: EventNote, VM: p.vm, Agent: agent, Message: fmt.Sprintf("agent %s works on it, in place of %s", agent, p.announced)})
		}
		p.at = agent
		p.result(p.slot, func(r *VMResult) { r.Agent = agent })
	}
	return p.once(ctx, agent)
}

// maxSettle is how often a VM is followed that moves on while its seat is waited for.
const maxSettle = 5

// settle finds the VM and takes a seat there. Whoever had to wait for it looks again.
func (p *persistence) settle(ctx context.Context) (agent string, err error) {
	for range maxSettle {
		if agent, err = p.choose(ctx); err != nil {
			return agent, err
		}
		if p.place == nil {
			return agent, nil
		}
		waited := false
		err = p.seat.move(ctx, p.place(agent), func() {
			waited = true
			p.phase(p.vm, "waiting", "for a place beside others, by agent "+agent)
		})
		if err != nil || !waited {
			return agent, err
		}
	}
	return agent, nil
}

// choose returns the agent for the next attempt.
func (p *persistence) choose(ctx context.Context) (string, error) {
	if p.find != nil {
		return p.find(ctx)
	}
	return p.inTurn(p.agents())[0], nil
}

// failedAttempt puts an attempt that is followed by another into the result, and tells of it.
func (p *persistence) failedAttempt(began time.Time, t trouble, err error) {
	a := Attempt{Agent: p.at, Began: began.UTC(), Ended: time.Now().UTC(), Times: 1, Reason: string(rpc.ReasonOf(err)), Error: err.Error()}
	again := false
	p.result(p.slot, func(r *VMResult) {
		if t != troubleMoved && t != troubleOurs {
			r.Retries++
		}
		again = r.addAttempt(a)
	})
	if !again {
		p.emit(Event{Type: EventError, VM: p.vm, Agent: p.at, Message: fmt.Sprintf("attempt failed and is made again: %s", err)})
	}
}

// redial is how the streams of a transfer are attached again.
func (r *runner) redial(vm *VMRef, lease time.Duration) transfer.Redial {
	return transfer.Redial{Lease: lease, MinBackoff: r.c.cfg.Timing.BackoffMin, MaxBackoff: r.c.cfg.Timing.BackoffMax,
		Notify: func(attempt uint32, err error, wait time.Duration) {
			r.emit(Event{Type: EventError, VM: vm, Message: fmt.Sprintf("connection %d broke and is made again in %s: %s",
				attempt, wait.Round(time.Millisecond), err)})
		}}
}

// failed puts an error into a VM's result. What failed for a reason of its own keeps it, whatever was cancelled meanwhile.
func (r *runner) failed(ctx context.Context, vm *VMResult, err error) {
	vm.Status, vm.Error, vm.Reason = StatusFailed, err.Error(), string(rpc.ReasonOf(err))
	folder, ofFolder := errors.AsType[*folderError](err)
	switch {
	case ofFolder:
		vm.Reason = folder.reason
	case xva.IsBad(err), is[*IntegrityError](err), errors.Is(err, staging.ErrMismatch), errors.Is(err, staging.ErrContradiction):
		vm.Reason = ReasonIntegrity
	case errors.Is(err, staging.ErrNoRoom):
		vm.Reason = ReasonNoRoom
	case errors.Is(err, staging.ErrExists):
		vm.Reason = ReasonFileExists
	case ctx.Err() != nil && (errors.Is(err, ctx.Err()) || vm.Reason == string(rpc.Cancelled)):
		vm.Status, vm.Reason, vm.Error = StatusCancelled, ReasonCancelled, "cancelled"
	}
	vm.Advice, vm.HeldBy = adviceFor(vm.Reason), rpc.HolderOf(err)
}

// adviceFor says what to do about a failed VM.
func adviceFor(reason string) string {
	switch reason {
	case ReasonNoRoom:
		return "free room in the staging folder and run it again"
	case ReasonStaging:
		return "look at the staging folder's file system (is it mounted, writable and sound?) and run it again"
	case ReasonState:
		return "look at the state folder's file system (room, mounted, writable?) and run it again"
	case ReasonFileExists:
		return "run it again; if it happens again, compare the clocks of the pool's hosts"
	case ReasonSRFull:
		return "free room on the SR, or use an offline mode"
	case ReasonIntegrity:
		return "run it again; if it happens again, suspect the host's storage or network"
	case string(rpc.ShutdownTimeout), string(rpc.LacksFeature):
		return "shut the guest down by hand, use an online mode, or allow --force-off"
	case string(rpc.Unreachable), string(rpc.XAPIUnreachable):
		return "see dpxen hosts; dpxen repair cleans up what is left"
	case string(rpc.Claimed):
		return "wait for the session that has it and run dpxen rerun, or see dpxen repair where that one has died"
	case string(rpc.HostAuth), string(rpc.Auth):
		return "see dpxen hosts"
	}
	return ""
}

// roomQueue lets a VM that finds no room in the staging folder wait for what the estimates of running ones hold too much.
// The zero value is ready.
type roomQueue struct {
	mu      sync.Mutex
	holders int
	changed chan struct{}
}

// reserve sets n bytes aside; release gives them back and may be repeated. Where there is no room and nobody is left who
// may give some back, the error is staging.ErrNoRoom. waits is called once before the first wait.
func (q *roomQueue) reserve(ctx context.Context, dir *staging.Dir, n int64, waits func()) (_ *staging.Reservation, release func(), err error) {
	for waited := false; ; waited = true {
		q.mu.Lock()
		if q.changed == nil {
			q.changed = make(chan struct{})
		}
		room, err := dir.Reserve(n)
		if err == nil {
			q.holders++
		}
		others, changed := q.holders > 0, q.changed
		q.mu.Unlock()
		if err == nil {
			return room, sync.OnceFunc(func() { q.release(room) }), nil
		}
		if !errors.Is(err, staging.ErrNoRoom) || !others {
			return nil, nil, err
		}
		if !waited {
			waits()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for room: %w", ctx.Err())
		}
	}
}

func (q *roomQueue) release(room *staging.Reservation) {
	room.Release()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.holders--
	close(q.changed)
	q.changed = make(chan struct{})
}
