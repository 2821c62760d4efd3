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

// persistence is how a VM is tried again, until it is good, hopeless, or the retries are used up. A failed attempt that is
// followed by another leaves nothing in the result but the count: the last one tells how the VM was left.
type persistence struct {
	*runner
	slot   int
	vm     *VMRef
	agents []string // in order of preference; the next one takes over where one is gone
	once   func(ctx context.Context, agent string) (parting, error)
	worth  func(error) bool
}

// fileSecond is how long to wait where a file of the same second is in the way.
const fileSecond = 1100 * time.Millisecond

// run tries.
func (p *persistence) run(ctx context.Context) error {
	timing := p.c.cfg.Timing
	wait, at := timing.BackoffMin, 0
	var patience time.Time // a dead agent's claim on the VM is waited for so long
	for try := 0; ; {
		leave, err := p.once(ctx, p.agents[at])
		other := agentTrouble(err) && len(p.agents) > 1
		inherited := rpc.ReasonOf(err) == rpc.Claimed && time.Now().Before(patience)
		away, tooLong := p.xapiAway(err)
		if err == nil || ctx.Err() != nil || tooLong || !inherited && !away && (try >= timing.Retries || !other && !p.worth(err)) {
			if leave != nil {
				leave()
			}
			return err
		}
		if !inherited {
			if !away {
				try++
			}
			p.result(p.slot, func(r *VMResult) { r.Retries++ })
		}
		if other {
			at = (at + 1) % len(p.agents)
			patience = time.Now().Add(2 * timing.Lease)
			p.result(p.slot, func(r *VMResult) { r.Agent = p.agents[at] })
		}
		p.emit(Event{Type: EventError, VM: p.vm, Agent: p.agents[at], Message: fmt.Sprintf("attempt failed and is made again: %s", err)})
		pause := wait
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
		wait = min(2*wait, timing.BackoffMax)
	}
}

// xapiAway tells whether an attempt failed because the pool's XAPI is away, and whether that is so for too long already: a
// toolstack that is restarted is back in a minute or two, and no reason to give a VM up.
func (p *persistence) xapiAway(err error) (away, tooLong bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		delete(p.outages, p.vm.Pool)
		return false, false
	case rpc.ReasonOf(err) != rpc.XAPIUnreachable:
		return false, false
	}
	if p.outages == nil {
		p.outages = map[string]time.Time{}
	}
	if p.outages[p.vm.Pool].IsZero() {
		p.outages[p.vm.Pool] = time.Now()
	}
	return true, time.Since(p.outages[p.vm.Pool]) >= p.c.cfg.Timing.XAPIOutage
}

// agentTrouble tells whether another agent of the pool may do what this one cannot.
func agentTrouble(err error) bool {
	switch rpc.ReasonOf(err) {
	case rpc.Unreachable, rpc.XAPIUnreachable, rpc.HostAuth, rpc.Auth, rpc.Peer, rpc.UnsupportedVersion:
		return true
	}
	return false
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
	vm.Advice = adviceFor(vm.Reason)
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
		return "wait for the other session, or see dpxen repair"
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
