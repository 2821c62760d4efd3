package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// repeatedWithin is how long after a post-exec another one without any ID is taken for a repetition of it, rather than for
// one whose pre-exec did not run. A clock that was set back by more says nothing of the time between, and a session that is
// taken for the one before would be called as good as that.
const repeatedWithin = time.Hour

// PostExecResult is what a post-exec has done.
type PostExecResult struct {
	Report  *Report  // of the session that pre-exec ran; nil where there is none
	Code    int      // for Data Protector, before the platform has its say: 0, or 1 to 125
	Object  bool     // at object level, where Data Protector is always told success
	Saved   bool     // Data Protector has saved the files
	Lines   []string // what was done, for people
	Repeat  bool     // this session's post-exec had run before
	Deleted int      // exports deleted
}

func (r *PostExecResult) say(format string, a ...any) {
	r.Lines = append(r.Lines, fmt.Sprintf(format, a...))
}

// PostExec ends a Data Protector session (DESIGN section 8): it finds the session that pre-exec ran, repairs what that left
// if it died, notes whether Data Protector has saved the files, and deletes those of sets that need not be kept. It may be
// repeated. The error is why it could not do so; the result says what is known all the same.
func (c *Controller) PostExec(ctx context.Context, dp DP) (*PostExecResult, error) {
	res := &PostExecResult{Object: dp.ObjectLevel()}
	saved, why := dp.Saved()
	res.Saved = saved
	r, err := c.preExecOf(dp)
	if err != nil {
		res.Code = CodeNone
		return res, err
	}
	if r == nil {
		res.Code = CodeNone
		res.say("no pre-exec of %s has run for this session: no VM was backed up", dp.name())
		return res, nil
	}
	res.Report = r
	if r.State == StateRunning {
		res.Code = CodeLocked
		return res, &LockedError{Failure{What: "session " + r.ID + " is still running", Advice: "wait for it, or dpxen cancel " + r.ID}}
	}
	if r.State == StateInterrupted || len(r.Unfinished()) > 0 {
		if r, err = c.repairFor(ctx, res, r); err != nil {
			res.Code = CodeNone
			return res, err
		}
	}
	res.Repeat = !r.DP.Closed.IsZero()
	if r.DP.Saved && !saved {
		res.say("an earlier post-exec of this session was told that its files are saved (%s); now %s", r.DP.Why, why)
		saved = true
	}
	res.Code = dpCode(r)
	var lost map[int]string
	if saved && !r.DP.Saved { // before the first deletion of ours
		lost = r.lostUnsaved(ctx)
	}
	r, err = c.amend(r.ID, func(r *Report) {
		r.DP.join(dp)
		r.loseUnsaved(lost)
		r.DP.Saved, r.DP.Why, r.DP.Closed = saved, why, c.o.Now().UTC().Truncate(time.Second)
	})
	if err != nil {
		return res, fmt.Errorf("note the end of the Data Protector session: %w", err)
	}
	res.Report, res.Code = r, dpCode(r)
	_ = c.remember(r.ID) // the report has it: whoever asks next takes it from there
	return res, c.closeSets(dp, res, why)
}

// preExecOf finds the session that pre-exec ran: by Data Protector's IDs where both sides have one, else the newest of the
// specification that was not closed yet. One that was refused because another was running is not it, unless by its ID.
func (c *Controller) preExecOf(dp DP) (*Report, error) {
	byID, err := c.newestOf(dp.Spec, func(r *Report) bool { match, _ := r.DP.of(dp); return match })
	if err != nil || byID != nil {
		return byID, err
	}
	newest, err := c.newestOf(dp.Spec, func(r *Report) bool {
		_, known := r.DP.of(dp)
		return !known && r.Code != CodeLocked
	})
	if err != nil || newest == nil {
		return nil, err
	}
	if newest.DP.Closed.IsZero() || dp.id() == "" && c.o.Now().Sub(newest.DP.Closed).Abs() < repeatedWithin {
		return newest, nil
	}
	return nil, nil
}

// repairFor repairs after a pre-exec that died or left something, and returns its report as it is then.
func (c *Controller) repairFor(ctx context.Context, res *PostExecResult, r *Report) (*Report, error) {
	rep, err := c.RepairWithin(ctx, c.RepairWait())
	if err != nil {
		return r, fmt.Errorf("repair what session %s left: %w", r.ID, err)
	}
	switch rep.Code {
	case CodeOK:
		res.say("session %s had died or left something: it is repaired", r.ID)
	default:
		res.say("session %s left something that could not be repaired yet: run dpxen repair", r.ID)
	}
	after, err := c.Session(r.ID)
	if err != nil {
		return r, err
	}
	return after, nil
}

// dpCode is the session's code as Data Protector is told it.
func dpCode(r *Report) int {
	switch code := ExitCode(r, nil); {
	case r.State == StateDone && r.Code != code: // why it could not run is in its code alone
		return dpFailure(r.Code, r.DP.Warnings)
	case r.State != StateDone && (code == CodeOK || code == CodeWarnings):
		return CodeNone // it died, so not all that was asked for was tried
	default:
		return dpFailure(code, r.DP.Warnings)
	}
}

func dpFailure(code int, warnings string) int {
	switch {
	case code == CodeWarnings && warnings != WarningsFail:
		return CodeOK
	case code == CodeCancelled:
		return CodeNone
	}
	return code
}

// closeSets deletes the files that need not be kept after Data Protector has saved them.
func (c *Controller) closeSets(dp DP, res *PostExecResult, why string) error {
	spec, _ := c.cfg.Spec(dp.Spec)
	r := res.Report
	if !r.DP.Saved {
		res.say("the staged files stay, since it is not certain that Data Protector has saved them (%s)", why)
		if !spec.KeepUnsaved {
			res.say("the next pre-exec of %s deletes them", dp.name())
		}
		return nil
	}
	dir, lock, err := c.openStaging("")
	if is[*LockedError](err) {
		res.say("another session is at work: the next pre-exec deletes what was saved")
		return nil
	}
	if err != nil {
		return err
	}
	bereft, berr := c.removeBereft(dir, dp.Spec)
	sets, remarks, err := c.sets(dir, dp.Spec)
	err = errors.Join(berr, err)
	for _, text := range slices.Concat(bereft, remarks) {
		res.say("%s", text)
	}
	for _, s := range c.surplus(sets, Spec{KeepSets: spec.KeepSets, KeepUnsaved: true}) {
		n, rerr := s.remove(dir)
		res.Deleted += n
		err = errors.Join(err, rerr)
	}
	err = errors.Join(err, lock.Unlock())
	res.say("Data Protector has saved the files (%s): %d of them deleted, the newest %d sets are kept", why, res.Deleted, spec.KeepSets)
	return err
}
