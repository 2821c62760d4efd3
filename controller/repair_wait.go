package controller

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// repairPause is the least time between two repairs, and more than the difference between two clocks' roundings.
const repairPause = 100 * time.Millisecond

// RepairWait is how long a repair waits for what it cannot clean up yet, unless it is told otherwise: an agent does not
// touch what another one has claimed, and XAPI may still do what a dead agent asked for, until a lease has run out.
func (c *Controller) RepairWait() time.Duration { return 2 * c.cfg.Timing.Lease }

// RepairWithin repairs, and again while something waits that will be ready within limit. What will not, and what has failed,
// is in the report, whose actions are all that were done and what is left at the end. The error is Repair's.
func (c *Controller) RepairWithin(ctx context.Context, limit time.Duration) (*RepairReport, error) {
	end := time.Now().Add(limit)
	var before *RepairReport
	for {
		rep, err := c.Repair(ctx, false)
		if err != nil {
			return nil, err
		}
		rep.follow(before)
		again := rep.again()
		if again == 0 || time.Now().Add(again).After(end) {
			return rep, nil
		}
		c.emit(Event{Type: EventNote, Message: fmt.Sprintf(
			"what an earlier session left is not cleaned up yet: repairing again in %s, until %s at most", again.Round(repairPause), end.UTC().Format(time.TimeOnly+"Z"))})
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(again):
		}
		before = rep
	}
}

// again is in how long the first of what waits may be ready; 0 where nothing will be.
func (r *RepairReport) again() time.Duration {
	var first time.Duration
	for _, a := range r.Actions {
		if a.Left() && a.again > 0 && (first == 0 || a.again < first) {
			first = a.again
		}
	}
	if first == 0 {
		return 0
	}
	return max(first, repairPause)
}

// follow puts what was done in an earlier round, and whose work it was, before what this one has.
func (r *RepairReport) follow(before *RepairReport) {
	if before == nil {
		return
	}
	for _, id := range slices.Backward(before.Sessions) {
		if !slices.Contains(r.Sessions, id) {
			r.Sessions = slices.Insert(r.Sessions, 0, id)
		}
	}
	for _, text := range before.Notes {
		r.Notes = appendNew(r.Notes, text)
	}
	done := slices.DeleteFunc(slices.Clone(before.Actions), SweepAction.Left)
	if slices.ContainsFunc(done, func(a SweepAction) bool { return a.PowerNotRestored }) {
		r.Code = CodePower
	}
	r.Actions = append(done, r.Actions...)
}
