package controller

import (
	"errors"
	"strings"
)

// Failure is what the errors of this package have in common: what could not be done, what to do next, and the cause.
type Failure struct {
	What   string // what is wrong, with the VM, agent or file concerned
	Advice string // what to do next, or empty
	Err    error  // the cause, or nil
}

// Error says what is wrong, the cause and the advice in one sentence.
func (f Failure) Error() string {
	var b strings.Builder
	b.WriteString(f.What)
	if f.Err != nil {
		if f.What != "" {
			b.WriteString(": ")
		}
		b.WriteString(f.Err.Error())
	}
	if f.Advice != "" {
		b.WriteString("; " + f.Advice)
	}
	return b.String()
}

// Unwrap returns the cause.
func (f Failure) Unwrap() error { return f.Err }

// The classes of failure that have an exit code of their own; find them with errors.As. See ExitCode.
type (
	// UsageError says that what was asked for makes no sense, such as an unknown VM. Code 2.
	UsageError struct{ Failure }
	// LockedError says that another session holds the staging folder. Code 11.
	LockedError struct{ Failure }
	// AuthError says that an agent refused us, we refused it, or XAPI refused the agent. Code 12.
	AuthError struct{ Failure }
	// UnreachableError says that an agent, or XAPI behind it, does not answer. Code 10.
	UnreachableError struct{ Failure }
	// PreflightError says that the session cannot run as things are: room, marker, versions. Code 6.
	PreflightError struct{ Failure }
	// IntegrityError says that a file is damaged, or contradicts its manifest or its name. Code 5.
	IntegrityError struct{ Failure }
)

// is tells whether an error of type T is in err's tree.
func is[T error](err error) bool {
	_, ok := errors.AsType[T](err)
	return ok
}
