package main

import (
	"context"
	"errors"
	"time"

	"github.com/dpxen/dpxen/controller"
)

// session is a backup or restore on the command line.
type session struct {
	action controller.Action
	mode   controller.Mode
	c      *controller.Controller
	// verdict is the exit code and a line about it, printed before the last one; nil = the session's code.
	verdict func(r *controller.Report, code int) (exit int, says string)
}

// beginFunc makes the session's controller once its flags are known to be good.
type beginFunc func() (*controller.Controller, error)

// session runs one and tells of it from the first line to the last, which says what came of it whatever happened. The error
// it returns is the exit code alone.
func (a *app) session(ctx context.Context, s *session, run func(context.Context, beginFunc) (*controller.Report, error)) error {
	show := a.watcher()
	report, err := run(ctx, func() (c *controller.Controller, err error) {
		s.c, err = a.controller(show)
		return s.c, err
	})
	show.close()
	if s.c != nil {
		err = errors.Join(err, s.c.Close())
	}
	code := controller.ExitCode(report, err)
	if report == nil {
		report = s.refused(a.version, err)
	}
	report.Code, report.Result = code, controller.ResultLine(report, code)
	a.complain(err)
	exit, says := code, ""
	if s.verdict != nil {
		exit, says = s.verdict(report, code)
	}
	if a.json {
		e := show.summary
		e.V, e.Type, e.Session, e.Report = controller.EventVersion, controller.EventSummary, report.ID, report
		if e.Time.IsZero() {
			e.Time = time.Now().UTC()
		}
		if err := a.encode(e); err != nil {
			return err
		}
		return withCode(exit)
	}
	p := a.log()
	if report.ID != "" {
		p.ending(report, remarksShown)
	}
	if says != "" {
		p.line("%s", says)
	}
	p.line("%s", report.Result)
	return withCode(exit)
}

// refused is the report of a session that never came to be.
func (s *session) refused(version string, err error) *controller.Report {
	now := time.Now().UTC()
	r := &controller.Report{V: controller.ReportVersion, Action: s.action, Mode: s.mode, State: controller.StateDone,
		Started: now, Ended: now, Version: version, VMs: []controller.VMResult{}}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}
