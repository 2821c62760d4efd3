package rpc

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Error is a failure with a reason, on either side of the wire. Reason, VM, Host, Msg and RetryAfter cross it; what it
// wraps does not.
type Error struct {
	Reason     Reason
	VM, Host   string        // what it is about, by name; empty where it goes without saying
	Msg        string        // for the operator; no secrets
	RetryAfter time.Duration // how long to wait at least; 0 when it does not matter

	cause error
}

// Errorf returns an error whose message is formatted as by fmt.Errorf; a %w is its cause and its text crosses the wire.
func Errorf(reason Reason, format string, a ...any) *Error {
	err := fmt.Errorf(format, a...)
	return &Error{Reason: reason, Msg: err.Error(), cause: err}
}

// About returns a copy of e that names the VM and the host, where they are not empty.
func (e *Error) About(vm, host string) *Error {
	c := *e
	if vm != "" {
		c.VM = vm
	}
	if host != "" {
		c.Host = host
	}
	return &c
}

// Error returns one line: what it is about, and the message or the reason's sentence.
func (e *Error) Error() string {
	msg := e.Msg
	if msg == "" {
		msg = e.Reason.Error()
	}
	var about []string
	if e.VM != "" && !strings.Contains(msg, e.VM) {
		about = append(about, "VM "+e.VM)
	}
	if e.Host != "" && !strings.Contains(msg, e.Host) {
		about = append(about, "host "+e.Host)
	}
	if len(about) == 0 {
		return msg
	}
	return strings.Join(about, ", ") + ": " + msg
}

// Unwrap returns the cause; after the wire it is the status error, so that status.Code works.
func (e *Error) Unwrap() error { return e.cause }

// Is matches an *Error and a Reason by the reason, and a sentinel that has a method WireReason likewise.
func (e *Error) Is(target error) bool {
	var (
		other    *Error
		reason   Reason
		sentinel wireReasoner
	)
	switch {
	case errors.As(target, &other):
		return other.Reason == e.Reason
	case errors.As(target, &reason):
		return reason == e.Reason
	case errors.As(target, &sentinel):
		return Reason(sentinel.WireReason()) == e.Reason
	}
	return false
}

// RetryDelay returns RetryAfter, for package transfer's Redial.
func (e *Error) RetryDelay() time.Duration { return e.RetryAfter }
