package controller

import (
	"context"
	"errors"
	"fmt"
)

// The exit codes of a session and of the commands about one.
const (
	CodeOK          = 0   // all good
	CodeNone        = 1   // no VM is good
	CodeUsage       = 2   // usage or configuration
	CodeSome        = 3   // some VMs are good, or one agent of several could not be asked
	CodeWarnings    = 4   // all good, with warnings
	CodeIntegrity   = 5   // a file or stream is damaged or contradictory
	CodePreflight   = 6   // room, marker, versions
	CodeUnreachable = 10  // no agent, or no XAPI, answers
	CodeLocked      = 11  // another session holds the staging folder
	CodeAuth        = 12  // certificates or passwords
	CodePower       = 20  // a VM is not in its former power state
	CodeCancelled   = 130 // cancelled
)

// ExitCode makes the exit code of a session's report and of the error it ended with; either may be nil. What comes first
// here beats what comes later:
//
//	20 a VM is not in its former power state, 130 cancelled, 5 integrity failure;
//	where a VM was begun: 0 all good, 4 all good with warnings, 3 some, 1 none;
//	where none was: 2 usage, 11 locked, 12 authentication, 10 unreachable, 6 preflight, 1 anything else.
func ExitCode(r *Report, err error) int {
	if r == nil {
		r = &Report{}
	}
	f := factsOf(r)
	switch {
	case f.power:
		return CodePower
	case f.cancelled || errors.Is(err, context.Canceled):
		return CodeCancelled
	case f.integrity || is[*IntegrityError](err):
		return CodeIntegrity
	case f.begun:
		return f.code(err)
	case is[*UsageError](err) || is[*ConfigError](err):
		return CodeUsage
	case is[*LockedError](err):
		return CodeLocked
	case is[*AuthError](err):
		return CodeAuth
	case is[*UnreachableError](err):
		return CodeUnreachable
	case is[*PreflightError](err):
		return CodePreflight
	case err != nil:
		return CodeNone
	}
	return f.code(nil)
}

// facts are what decides the exit code of a session.
type facts struct {
	power, cancelled, integrity bool
	begun                       bool // a VM was touched
	incomplete                  bool // an agent could not be asked
	warnings                    bool
	good, selected              int
}

func factsOf(r *Report) facts {
	f := facts{cancelled: r.Cancelled, warnings: len(r.Warnings) > 0}
	for _, a := range r.Agents {
		f.incomplete = f.incomplete || !a.OK
	}
	for _, vm := range r.VMs {
		if vm.Status == StatusSkipped {
			continue
		}
		f.selected++
		f.power = f.power || vm.PowerNotRestored
		f.warnings = f.warnings || len(vm.Warnings) > 0
		switch vm.Status {
		case StatusGood:
			f.good++
			f.begun = true
		case StatusFailed, StatusRunning:
			f.begun = true
		case StatusCancelled:
			f.cancelled = true
		case StatusPending, StatusRefused, StatusSkipped:
		}
		f.integrity = f.integrity || vm.Status != StatusGood && vm.Reason == ReasonIntegrity
	}
	return f
}

// code is the code by the VMs alone.
func (f facts) code(err error) int {
	switch {
	case f.good == 0 && f.selected > 0:
		return CodeNone
	case f.good < f.selected || f.incomplete || err != nil:
		return CodeSome
	case f.warnings:
		return CodeWarnings
	}
	return CodeOK
}

// ResultWord returns the word that stands for an exit code in the RESULT line.
func ResultWord(code int) string {
	switch code {
	case CodeOK:
		return "OK"
	case CodeWarnings:
		return "WARN"
	case CodeSome:
		return "PARTIAL"
	case CodeCancelled:
		return "CANCELLED"
	case CodeUsage, CodePreflight, CodeUnreachable, CodeLocked, CodeAuth:
		return "REFUSED"
	}
	return "FAILED"
}

// ResultLine returns the last line of a session. r is nil where none came to be; its session is then "-".
func ResultLine(r *Report, code int) string {
	id, c := "-", Counts{}
	if r != nil {
		c = r.Counts()
		if r.ID != "" {
			id = r.ID
		}
	}
	return fmt.Sprintf("RESULT %s code=%d good=%d/%d session=%s", ResultWord(code), code, c.Good, c.Selected, id)
}
