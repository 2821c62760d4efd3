package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/staging"
)

// RepairReport is what Repair did, or would do.
type RepairReport struct {
	DryRun   bool          `json:"dry_run"`
	Agents   []AgentStatus `json:"agents"`
	Sessions []string      `json:"sessions"` // that had died, or had left something
	Actions  []SweepAction `json:"actions"`
	Notes    []string      `json:"notes,omitempty"`
	Errors   []string      `json:"errors,omitempty"`
	Code     int           `json:"code"`
}

// Repair finishes or undoes what sessions that died, or could not clean up, have left in the pools and in the staging
// folder. It may be repeated, and touches nothing of sessions that live. A dry run changes nothing, and has the very actions
// that a run at this moment would have.
func (c *Controller) Repair(ctx context.Context, dryRun bool) (*RepairReport, error) {
	rep := &RepairReport{DryRun: dryRun, Sessions: []string{}, Actions: []SweepAction{}}
	if doubt := c.stateDoubt(); doubt != "" {
		rep.Notes = append(rep.Notes, doubt)
	}
	broken, over, err := c.brokenSessions(rep)
	defer func() {
		for _, s := range broken {
			_ = s.lock.Unlock() // retire has done so where all went well
		}
	}()
	if err != nil {
		return nil, err
	}
	forgotten, err := c.forgotten(rep)
	done := false
	defer func() { rep.release(forgotten, done && rep.Code == CodeOK && !dryRun) }()
	if err != nil {
		return nil, err
	}
	var intents []Intent
	var dead []string
	for _, s := range forgotten {
		dead = append(dead, s.id)
	}
	for _, s := range broken {
		rep.Sessions = append(rep.Sessions, s.id)
		dead = append(dead, s.id)
		for _, i := range s.report.Unfinished() {
			i.Session = s.id
			intents = append(intents, i)
		}
		if off := s.snapshot().neverStarted(); s.snapshot().State != StateDone && len(off) > 0 {
			rep.Notes = append(rep.Notes, fmt.Sprintf("session %s died before it started VMs that it had restored; start them: %s", s.id, strings.Join(off, ", ")))
		}
	}
	asked, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("controller/repair/before-sweep"); err != nil {
		return nil, err
	}
	swept := c.sweepPools(ctx, rep, asked, intents, dead, over)
	rep.dropKnown(broken)
	if !dryRun {
		if err := failpoint.Hit("controller/repair/after-sweep"); err != nil {
			return nil, err
		}
	}
	c.settleRepaired(rep, broken, swept)
	if err := c.cleanPartials(rep); err != nil {
		rep.Errors = append(rep.Errors, err.Error())
	}
	rep.Code, done = repairCode(rep, asked), true
	return rep, nil
}

// maxOver is how many of the sessions that are over are named to agents, the last ones.
const maxOver = 1000

// brokenSessions takes over every session that died or has left work behind. Those that live are left out. over are the ids of
// those that have ended, and that have nothing left to do.
func (c *Controller) brokenSessions(rep *RepairReport) (broken []*session, over []string, err error) {
	ids, err := c.sessionIDs()
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		r, err := c.Session(id)
		if path := (*fs.PathError)(nil); errors.As(err, &path) && !errors.Is(err, fs.ErrNotExist) {
			rep.Errors = append(rep.Errors, fmt.Sprintf("what session %s may have left is not known to this user: %s", id, err))
			continue
		}
		if err != nil || r.State == StateDone && len(r.Unfinished()) == 0 {
			if err == nil {
				over = append(over, id)
			}
			continue // one that is damaged is shown by dpxen sessions
		}
		if r.State == StateInterrupted && !r.Ended.IsZero() && len(r.Unfinished()) == 0 {
			over = append(over, id)
			continue // retired before
		}
		s, err := c.takeOver(id, lookPatience)
		if is[*LockedError](err) {
			continue
		}
		if err != nil {
			return broken, nil, err
		}
		broken = append(broken, s)
	}
	return broken, over[max(0, len(over)-maxOver):], nil
}

// sweepPools has one agent of each pool sweep, another where that one fails, and returns the pools that were swept. Work
// that an agent still does for a session that died is released first.
func (c *Controller) sweepPools(ctx context.Context, rep *RepairReport, asked []answer, intents []Intent, dead, over []string) map[string]*sweptPool {
	swept := map[string]*sweptPool{}
	var ended []Intent
	for i := range asked {
		rep.Agents = append(rep.Agents, asked[i].status)
		if asked[i].status.OK {
			ended = append(ended, c.releaseDead(ctx, rep, asked[i].conn, intents)...)
		}
	}
	for i := range asked {
		a := &asked[i]
		if !a.status.OK || swept[a.status.PoolUUID] != nil {
			continue
		}
		mine := slices.DeleteFunc(slices.Clone(intents), func(i Intent) bool { return i.PoolUUID != a.status.PoolUUID })
		call, cancel := context.WithTimeout(ctx, c.cfg.Timing.ReleaseTimeout)
		actions, err := a.conn.sweep(call, rep.DryRun, mine, dead, over)
		cancel()
		if rpc.ReasonOf(err) == rpc.Deadline && ctx.Err() == nil {
			err = fmt.Errorf("it is still at work after %s, and goes on: run dpxen repair again", c.cfg.Timing.ReleaseTimeout)
			rep.Actions = append(rep.Actions, a.conn.stillOff(ctx, mine)...)
		}
		if err != nil {
			rep.Errors = append(rep.Errors, fmt.Sprintf("agent %s: %s", a.status.Name, err))
			continue
		}
		if rep.DryRun { // of these nothing would be left for the sweep
			actions = slices.DeleteFunc(actions, func(s SweepAction) bool {
				return slices.ContainsFunc(ended, s.concerns)
			})
		}
		p := &sweptPool{actions: actions}
		if len(mine) > 0 {
			if p.vms, err = a.conn.vms(ctx); err != nil {
				rep.Errors = append(rep.Errors, fmt.Sprintf("agent %s: %s", a.status.Name, err))
			}
		}
		swept[a.status.PoolUUID] = p
		rep.Actions = append(rep.Actions, actions...)
	}
	return swept
}

// releaseDead ends the transfers of dead sessions that an agent still works on, and waits until it has cleaned up. It returns
// their intents.
func (c *Controller) releaseDead(ctx context.Context, rep *RepairReport, conn *agentConn, intents []Intent) (ended []Intent) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.ReleaseTimeout)
	defer cancel()
	for _, in := range intents {
		if in.Agent != conn.name {
			continue
		}
		atWork, err := conn.atWork(ctx, in.Key)
		if err != nil {
			rep.Errors = append(rep.Errors, fmt.Sprintf("agent %s, VM %s: %s", conn.name, in.VMName, err))
			continue
		}
		if !atWork {
			continue
		}
		action := SweepAction{Agent: conn.name, VMUUID: in.VMUUID, VMName: in.VMName, Object: in.Session,
			Action: endTransfer}
		if !rep.DryRun {
			end, err := conn.release(ctx, in.Key)
			if action.Done = err == nil; err != nil {
				action.Error = err.Error()
			}
			for _, w := range end.Warnings {
				rep.Notes = append(rep.Notes, fmt.Sprintf("VM %s, session %s: %s", in.VMName, in.Session, w))
			}
		}
		rep.Actions = append(rep.Actions, action)
		ended = append(ended, in)
	}
	return ended
}

// findStaged makes the results of a backup's VMs true that were being worked on when the session died: one whose file was
// proven and committed before is good.
func (r *Report) findStaged() {
	if r.Action != ActionBackup || r.State == StateDone {
		return
	}
	dir, err := staging.Open(r.Folder, staging.Options{ReadOnly: true})
	if err != nil {
		return // nothing can be proven
	}
	entries, err := dir.List()
	if err != nil {
		return
	}
	for _, e := range entries {
		m := e.Manifest
		if e.State != staging.Complete || m.Session != r.ID {
			continue
		}
		for i := range r.VMs {
			vm := &r.VMs[i]
			if vm.Status != StatusRunning || vm.UUID != m.VM.UUID || vm.PoolUUID != m.VM.Pool.UUID {
				continue
			}
			vm.Status, vm.File, vm.Bytes, vm.Digest, vm.DigestAlgorithm = StatusGood, e.Base(), m.File.Bytes, m.File.Digest, m.File.DigestAlgorithm
			vm.Warnings = appendNew(vm.Warnings, "the session died after the file was staged; it was cleaned up by repair")
		}
	}
}

// cleanPartials removes what transfers that were killed have left in the staging folder, unless a session is at work there.
func (c *Controller) cleanPartials(rep *RepairReport) error {
	known, err := c.knownFolders()
	if err != nil || !slices.Contains(known, c.cfg.Staging) {
		return err
	}
	if rep.DryRun {
		return c.wouldClean(rep)
	}
	dir, lock, err := c.openStaging("")
	if is[*LockedError](err) {
		return nil
	}
	if err != nil {
		return err
	}
	left, err := findLeavings(dir)
	if err == nil {
		err = left.remove(dir)
	}
	for _, a := range left.actions() {
		if a.Done = err == nil; err != nil {
			a.Error = err.Error()
		}
		rep.Actions = append(rep.Actions, a)
	}
	if len(left.actions()) > 0 {
		err = nil // told
	}
	return errors.Join(err, lock.Unlock())
}

// wouldClean tells what cleanPartials would do.
func (c *Controller) wouldClean(rep *RepairReport) error {
	dir, err := staging.Open(c.cfg.Staging, staging.Options{ReadOnly: true, RequireMarker: true})
	if err != nil {
		return &PreflightError{Failure{What: "staging folder " + c.cfg.Staging, Err: err}}
	}
	if _, held, err := dir.Holder(); held || err != nil {
		return err
	}
	left, err := findLeavings(dir)
	rep.Actions = append(rep.Actions, left.actions()...)
	return err
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
		if _, err := c.RepairWithin(ctx, c.RepairWait()); err != nil {
			return r, err
		}
		return c.Session(id)
	}
	return r, nil
}
