package rpc

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Error is a failure with a reason, on either side of the wire. Reason, VM, Host, Msg, RetryAfter and Holder cross it; what it
// wraps does not.
type Error struct {
	Reason     Reason
	VM, Host   string        // what it is about, by name; empty where it goes without saying
	Msg        string        // for the operator; no secrets
	RetryAfter time.Duration // how long to wait at least; 0 when it does not matter
	Holder     *Holder       // who has the VM, where the reason is Claimed and it is known

	cause error
}

// Holder is who works on a VM: an agent, for a controller's session. Times are of the pool master's clock. What is not known
// is empty or zero.
type Holder struct {
	Controller string    `json:"controller,omitempty"`
	Session    string    `json:"session,omitempty"`
	Agent      string    `json:"agent,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Until      time.Time `json:"until,omitzero"` // the claim ends then unless it is renewed
}

// metadata is the holder in ErrorInfo.
func (h *Holder) metadata() map[string]string {
	if h == nil {
		return nil
	}
	return map[string]string{keyController: h.Controller, keySession: h.Session, keyAgent: h.Agent,
		keySince: timeText(h.Since), keyUntil: timeText(h.Until)}
}

// holderFrom is the reverse of metadata; nil where nothing is said of a holder.
func holderFrom(m map[string]string) *Holder {
	h := Holder{Controller: clip(m[keyController], maxName), Session: clip(m[keySession], maxName), Agent: clip(m[keyAgent], maxName),
		Since: timeFrom(m[keySince]), Until: timeFrom(m[keyUntil])}
	if h == (Holder{}) {
		return nil
	}
	return &h
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func timeFrom(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{} // nothing is said, or nothing that this version reads
	}
	return t.UTC()
}

// HolderOf returns who holds the VM that err says is claimed, or nil.
func HolderOf(err error) *Holder {
	var e *Error
	if errors.As(err, &e) {
		return e.Holder
	}
	return nil
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
