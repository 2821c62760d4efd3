package agent

import (
	"context"
	"fmt"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
)

// openJob returns the job of the opening's key: the one that is there, after
// same has agreed that it is meant, or a new one that has been started.
func (a *Agent) openJob(o opening, kind string, same func(*job) bool, create func() procedure) (j *job, resumed bool, err error) {
	a.opening.Lock()
	defer a.opening.Unlock()
	j, resumed, err = a.jobs.OpenAt(o.Key, o.Attempt, o.Offset, func() (*job, error) {
		if a.closing {
			return nil, errStopping
		}
		if n := a.cfg.Limits.Transfers; a.jobsOpen >= n {
			return nil, rpc.Errorf(rpc.Busy, "the agent has %d transfers open, which is its limit", n)
		}
		a.jobsOpen++
		return newJob(a, o, kind, create()), nil
	})
	if err != nil {
		return nil, false, err
	}
	if !resumed {
		a.audit.called(kind, actor{Controller: o.Peer, Session: o.Session, VM: o.VM}, "key", o.Key, "attempt", o.Attempt)
		j.start()
		return j, false, nil
	}
	if j.Peer != o.Peer {
		return nil, false, fmt.Errorf("transfer %s: %w", o.Key, transfer.ErrGone)
	}
	if j.kind != kind || j.VM != o.VM || j.Nonce != o.Nonce || j.Session != o.Session || !same(j) {
		return nil, false, rpc.Errorf(rpc.Invalid, "transfer %s was opened for other work", o.Key)
	}
	return j, true, nil
}

// jobEnded gives a job's place to the next.
func (a *Agent) jobEnded(j *job) {
	a.opening.Lock()
	defer a.opening.Unlock()
	a.jobsOpen--
	a.jobs.Remove(j.Key)
}

// lookup returns a controller's own transfer.
func (a *Agent) lookup(key, peer string) (*job, bool) {
	j, ok := a.jobs.Lookup(key)
	if !ok || j.Peer != peer {
		return nil, false
	}
	return j, true
}

// result returns the job's outcome once it stands.
func (j *job) result() (outcome, bool) {
	select {
	case <-j.done:
	default:
		return outcome{}, false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.outcome, true
}

// awaitResult waits for the outcome until ctx ends.
func (j *job) awaitResult(ctx context.Context) (outcome, bool) {
	select {
	case <-j.done:
	case <-ctx.Done():
	}
	return j.result()
}
