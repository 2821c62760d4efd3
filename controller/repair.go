package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// RepairReport is what Repair did, or would do.
type RepairReport struct {
	DryRun   bool          `json:"dry_run"`
	Agents   []AgentStatus `json:"agents"`
	Sessions []string      `json:"sessions"` // that had died, or had left something
	Actions  []SweepAction `json:"actions"`
	Errors   []string      `json:"errors,omitempty"`
	Code     int           `json:"code"`
}

// Repair finishes or undoes what sessions that died, or could not clean up, have left in the pools and in the staging
// folder. It may be repeated, and touches nothing of sessions that live. A dry run only tells.
func (c *Controller) Repair(ctx context.Context, dryRun bool) (*RepairReport, error) {
	rep := &RepairReport{DryRun: dryRun, Sessions: []string{}, Actions: []SweepAction{}}
	broken, err := c.brokenSessions()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, s := range broken {
			if s.lock != nil {
				_ = s.lock.Unlock() //nolint:errcheck // retire has done so where all went well
			}
		}
	}()
	var intents []Intent
	var dead []string
	for _, s := range broken {
		rep.Sessions = append(rep.Sessions, s.id)
		dead = append(dead, s.id)
		for _, i := range s.report.Unfinished() {
			i.Session = s.id
			intents = append(intents, i)
		}
	}
	asked, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	swept := c.sweepPools(ctx, rep, asked, intents, dead)
	if dryRun {
		rep.Code = repairCode(rep, asked)
		return rep, nil
	}
	c.settleRepaired(rep, broken, swept)
	if err := c.cleanPartials(); err != nil {
		rep.Errors = append(rep.Errors, err.Error())
	}
	rep.Code = repairCode(rep, asked)
	return rep, nil
}

// brokenSessions takes over every session that died or has left work behind. Those that live are left out.
func (c *Controller) brokenSessions() ([]*session, error) {
	ids, err := c.sessionIDs()
	if err != nil {
		return nil, err
	}
	var broken []*session
	for _, id := range ids {
		r, err := c.Session(id)
		if err != nil || r.State == StateDone && len(r.Unfinished()) == 0 {
			continue // one that cannot be read is shown by dpxen sessions
		}
		if r.State == StateInterrupted && !r.Ended.IsZero() && len(r.Unfinished()) == 0 {
			continue // retired before
		}
		s, err := c.takeOver(id)
		if is[*LockedError](err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		broken = append(broken, s)
	}
	return broken, nil
}

// sweepPools has one agent of each pool sweep, another where that one fails, and returns the pools that were swept.
func (c *Controller) sweepPools(ctx context.Context, rep *RepairReport, asked []answer, intents []Intent, dead []string) map[string]bool {
	swept := map[string]bool{}
	for i := range asked {
		a := &asked[i]
		rep.Agents = append(rep.Agents, a.status)
		if !a.status.OK || swept[a.status.PoolUUID] {
			continue
		}
		mine := slices.DeleteFunc(slices.Clone(intents), func(i Intent) bool { return i.PoolUUID != a.status.PoolUUID })
		call, cancel := context.WithTimeout(ctx, c.cfg.Timing.ReleaseTimeout)
		actions, err := a.conn.sweep(call, rep.DryRun, mine, dead)
		cancel()
		if err != nil {
			rep.Errors = append(rep.Errors, fmt.Sprintf("agent %s: %s", a.status.Name, err))
			continue
		}
		swept[a.status.PoolUUID] = true
		rep.Actions = append(rep.Actions, actions...)
	}
	return swept
}

// settleRepaired notes the intents of which nothing is left, and ends the sessions that died.
func (c *Controller) settleRepaired(rep *RepairReport, broken []*session, swept map[string]bool) {
	open := map[string]SweepAction{}
	for _, a := range rep.Actions {
		if a.Open() {
			open[a.VMUUID] = a
		}
	}
	for _, s := range broken {
		s.note(func(r *Report) {
			for i := range r.Intents {
				in := &r.Intents[i]
				a, left := open[in.VMUUID]
				if in.Done || !swept[in.PoolUUID] {
					continue
				}
				in.Done = !left
				if left && a.PowerNotRestored {
					r.vm(in.PoolUUID, in.VMUUID).PowerNotRestored = true
				}
			}
		})
		if err := s.retire(c.o.Now()); err != nil {
			rep.Errors = append(rep.Errors, err.Error())
		}
	}
}

// cleanPartials removes what transfers that were killed have left in the staging folder, unless a session is at work there.
func (c *Controller) cleanPartials() error {
	known, err := c.knownFolders()
	if err != nil || !slices.Contains(known, c.cfg.Staging) {
		return err
	}
	dir, lock, err := c.openStaging("")
	if is[*LockedError](err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = dir.CleanPartials()
	return errors.Join(err, lock.Unlock())
}

func repairCode(rep *RepairReport, asked []answer) int {
	code := CodeOK
	for i := range asked {
		if !asked[i].status.OK {
			code = CodeSome
		}
	}
	if code == CodeSome && !slices.ContainsFunc(asked, func(a answer) bool { return a.status.OK }) {
		var all []error
		for i := range asked {
			all = append(all, asked[i].status.Err())
		}
		return ExitCode(nil, errors.Join(all...))
	}
	for _, a := range rep.Actions {
		switch {
		case a.PowerNotRestored && !rep.DryRun:
			return CodePower
		case a.Open():
			code = CodeSome
		}
	}
	if len(rep.Errors) > 0 {
		code = CodeSome
	}
	return code
}

// Cancel asks a session to end and waits until it has; one that is dead is repaired instead. It returns the session's final
// report. An id that is no session's is a UsageError.
func (c *Controller) Cancel(ctx context.Context, id string) (*Report, error) {
	r, err := c.Session(id)
	if err != nil || r.State == StateDone {
		return r, err
	}
	if r.State == StateRunning {
		if err := c.requestCancel(id); err != nil {
			return r, err
		}
	}
	for r.State == StateRunning {
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("wait for session %s to end: %w", id, context.Cause(ctx))
		case <-time.After(c.cfg.Timing.CancelPoll):
		}
		if r, err = c.Session(id); err != nil {
			return nil, err
		}
	}
	if r.State == StateInterrupted {
		if _, err := c.Repair(ctx, false); err != nil {
			return r, err
		}
		return c.Session(id)
	}
	return r, nil
}
