package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// ending is what a transfer came to, after the agent cleaned up.
type ending struct {
	Known         bool // the agent knows the transfer
	Succeeded     bool
	Before, After string
	PowerRestored bool
	Leftovers     []string
	Warnings      []string
	Downtime      time.Duration // of the VM; 0: none, or not known
	Deduced       bool          // from what is there, since the agent does not know the transfer any more
	// Untold says what is known of a VM that was made as new, and that nobody has been told of; else it is empty.
	Untold string
}

// release ends a transfer and waits until the agent has cleaned up after it, through cuts, until ctx ends.
func (a *agentConn) release(ctx context.Context, key string) (ending, error) {
	for {
		client, err := a.client()
		if err != nil {
			return ending{}, err
		}
		call, cancel := context.WithTimeout(ctx, a.timing.CallTimeout)
		m, err := client.ReleaseTransfer(call, &agentv1.ReleaseTransferRequest{Key: key})
		cancel()
		switch {
		case err == nil && !m.GetFound():
			return ending{}, nil
		case err == nil && m.GetOutcome() != nil:
			o := m.GetOutcome()
			return ending{Known: true, Succeeded: o.GetSucceeded(), Before: PowerName(o.GetPowerBefore()),
				After: PowerName(o.GetPowerAfter()), PowerRestored: o.GetPowerRestored(), Leftovers: texts(o.GetLeftovers()),
				Warnings: texts(o.GetWarnings()), Downtime: o.GetDowntime().AsDuration()}, nil
		case err != nil && !rpc.Retryable(err) && rpc.ReasonOf(err) != rpc.Deadline:
			return ending{}, fmt.Errorf("release the transfer: %w", err)
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = context.Cause(ctx)
			}
			return ending{}, fmt.Errorf("release the transfer: %w", err)
		case <-time.After(a.timing.BackoffMin):
		}
	}
}

// atWork tells whether an agent still works on a transfer.
func (a *agentConn) atWork(ctx context.Context, key string) (bool, error) {
	client, err := a.client()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timing.CallTimeout)
	defer cancel()
	m, err := client.LookupTransfer(ctx, &agentv1.LookupTransferRequest{Key: key})
	if err != nil {
		return false, fmt.Errorf("look the transfer up: %w", err)
	}
	return m.GetFound() && m.GetOutcome() == nil, nil
}

// departure is how an agent left a VM after a transfer, as far as can be known.
type departure struct {
	ending
	err error // why it is not known
}

// clean tells whether nothing of the work is left, for certain.
func (d *departure) clean() bool {
	return d.err == nil && len(d.Leftovers) == 0 && d.PowerRestored && d.Untold == ""
}

// unseen corrects the ending of an agent that took the transfer up before, died, and did not look at the VM in its new life: it
// knows of nothing that it has left.
func (d *departure) unseen(intent Intent, before bool) {
	if before && intent.StopsVM && d.Known && d.After == PowerUnknown {
		d.PowerRestored = false
	}
}

// part ends a transfer and finds out how the agent left the VM. It goes on when ctx is over: a session that was cancelled
// must know the truth as well. An agent that never answered is not waited for as long: reached says whether it did.
func (r *runner) part(ctx context.Context, conn *agentConn, intent Intent, reached bool) departure {
	limit := r.c.cfg.Timing.ReleaseTimeout
	if !reached {
		limit = min(limit, r.c.cfg.Timing.ConnectTimeout)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	failpoint.Pass("controller/release/before-call")
	end, err := conn.release(ctx, intent.Key)
	if err == nil && !end.Known {
		end, err = r.confirm(ctx, conn, intent)
	}
	return departure{ending: end, err: err}
}

// abandoned tells whether an agent that is gone is not to be waited for, since another one takes over and cleans up after it.
// One that has not answered for a lease has let go of the VM, so its seat is free.
func (r *runner) abandoned(seat *seat, agents []string, agent string, err error) bool {
	if rpc.ReasonOf(err) != rpc.Unreachable {
		return false
	}
	seat.leave()
	return r.other(agents, agent)
}

// confirm finds out how a VM was left by an agent that does not know the transfer, since it was started anew or never heard
// of it: its sweep cleans up at its start. What a dry run still finds is waited for until ctx ends.
func (r *runner) confirm(ctx context.Context, conn *agentConn, intent Intent) (ending, error) {
	for {
		actions, err := conn.sweep(ctx, true, []Intent{intent}, nil, nil)
		var left []string
		untold := ""
		for _, a := range actions {
			switch {
			case !a.concerns(intent):
			case a.Action == rpc.ActionTellMade: // the next attempt hears of it; where there is none, whoever repairs
				untold = a.Waiting
			default:
				left = append(left, a.Action+" "+a.Object)
			}
		}
		var vms map[string]VM
		if err == nil {
			vms, err = conn.vms(ctx)
		}
		vm, exists := vms[intent.VMUUID]
		after := vm.Power
		if err == nil && !exists { // deleted by its user, or the agent was given another pool
			if err = conn.speaksFor(ctx, intent.PoolUUID); is[*foreignPool](err) {
				return ending{}, err
			}
		}
		if err == nil && (len(left) == 0 || after == intent.PowerBefore && !intent.StopsVM) {
			// A snapshot that waits for its lease is deleted by the agent's next sweep.
			return ending{Known: true, Deduced: true, Before: intent.PowerBefore, After: after,
				PowerRestored: !exists || intent.PowerBefore == "" || after == intent.PowerBefore, Leftovers: left, Untold: untold}, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("still to be done: %s: %w", left[0], context.Cause(ctx))
			}
			return ending{}, err
		case <-time.After(r.c.cfg.Timing.BackoffMax):
		}
	}
}

// depart puts into a VM's result how the agent left it, and settles the intents of which nothing is left.
func (r *runner) depart(slot int, conn *agentConn, intent Intent, d departure) {
	ran := r.ran(intent)
	r.result(slot, func(res *VMResult) {
		if d.err != nil {
			res.Warnings = appendNew(res.Warnings, fmt.Sprintf("what agent %s left is not known: %s; run dpxen repair", conn.name, d.err))
			if res.PowerAfter == "" {
				res.PowerAfter = PowerUnknown
			}
			res.PowerNotRestored = intent.StopsVM && res.PowerAfter != intent.PowerBefore
			return
		}
		if d.Before != "" && d.Before != PowerUnknown {
			res.PowerBefore = d.Before
		}
		res.PowerAfter, res.PowerNotRestored = d.After, !d.PowerRestored
		if d.Downtime > 0 && !res.PowerNotRestored {
			res.DowntimeSeconds = d.Downtime.Seconds()
		}
		if d.After != "" && d.After != PowerRunning && ran {
			res.PowerBefore, res.PowerNotRestored = PowerRunning, true
		}
		// Whatever the agent calls it: who stops a VM that ran leaves it running.
		if intent.StopsVM && d.Before == PowerRunning && d.After != PowerRunning && d.After != PowerUnknown {
			res.PowerNotRestored = true
		}
		if d.PowerRestored && d.After == PowerUnknown && !ran {
			res.PowerAfter = "" // it was not even looked at
		}
		for _, left := range d.Leftovers {
			res.Warnings = appendNew(res.Warnings, "left on the host: "+left+"; dpxen repair removes it")
		}
		for _, w := range d.Warnings {
			res.Warnings = appendNew(res.Warnings, w)
		}
		if d.Untold != "" {
			res.Warnings = appendNew(res.Warnings, fmt.Sprintf("agent %s died when it had made a VM as new: %s; dpxen repair tells what has come of it",
				conn.name, d.Untold))
		}
	})
	if !d.clean() {
		return
	}
	r.settleLost(conn, intent)
	open := r.settleEarlier(slot, conn, intent, d)
	// The nonce names all that attempts before have made, and the agent that made it has just cleaned up after it.
	err := r.s.update(func(rep *Report) {
		for i := range rep.Intents {
			if in := &rep.Intents[i]; in.Nonce == intent.Nonce && in.Agent == intent.Agent && !slices.Contains(open, in.Key) {
				in.Done = true
			}
		}
	})
	if err != nil {
		r.unwritten(err)
	}
}

// ran tells whether the VM ran before an earlier attempt of the session that may have stopped it. The agent of a later one
// takes the state that it finds for the former one.
func (r *runner) ran(intent Intent) bool {
	return slices.ContainsFunc(r.s.snapshot().Intents, func(i Intent) bool {
		return i.VMUUID == intent.VMUUID && i.PoolUUID == intent.PoolUUID && i.Key != intent.Key && i.StopsVM && i.PowerBefore == PowerRunning
	})
}
