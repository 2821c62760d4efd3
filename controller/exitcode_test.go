package controller

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestExitCode(t *testing.T) {
	good := VMResult{Status: StatusGood}
	warned := VMResult{Status: StatusGood, Warnings: []string{"w"}}
	noted := VMResult{Status: StatusGood, Notes: []string{"n"}}
	failed := VMResult{Status: StatusFailed}
	refused := VMResult{Status: StatusRefused, Reason: ReasonPowerState}
	cancelled := VMResult{Status: StatusCancelled}
	skipped := VMResult{Status: StatusSkipped}
	damaged := VMResult{Status: StatusFailed, Reason: ReasonIntegrity}
	refusedFile := VMResult{Status: StatusRefused, Reason: ReasonIntegrity}
	off := VMResult{Status: StatusGood, PowerNotRestored: true}

	usage, locked := &UsageError{Failure{What: "u"}}, &LockedError{Failure{What: "l"}}
	auth, away := &AuthError{Failure{What: "a"}}, &UnreachableError{Failure{What: "x"}}
	preflight, integrity := &PreflightError{Failure{What: "p"}}, &IntegrityError{Failure{What: "i"}}
	config := &ConfigError{File: "f"}
	vms := func(r ...VMResult) *Report { return &Report{VMs: r} }

	for _, tt := range []struct {
		name string
		r    *Report
		err  error
		want int
		word string
	}{
		{"nothing wrong", nil, nil, 0, "OK"},
		{"all good", vms(good, good), nil, 0, "OK"},
		{"notes are no warnings", vms(noted), nil, 0, "OK"},
		{"skipped do not count", vms(good, skipped), nil, 0, "OK"},
		{"a VM's warning", vms(good, warned), nil, 4, "WARN"},
		{"the session's warning", &Report{VMs: []VMResult{good}, Warnings: []string{"w"}}, nil, 4, "WARN"},
		{"some", vms(good, failed), nil, 3, "PARTIAL"},
		{"some refused", vms(good, refused), nil, 3, "PARTIAL"},
		{"some, with warnings", vms(warned, failed), nil, 3, "PARTIAL"},
		{"none", vms(failed, failed), nil, 1, "FAILED"},
		{"all refused", vms(refused), nil, 1, "FAILED"},
		{"agent away, rest good", &Report{VMs: []VMResult{good}, Agents: []AgentStatus{{OK: true}, {}}}, nil, 3, "PARTIAL"},
		{"agent away, of a restore", &Report{Action: ActionRestore, VMs: []VMResult{good}, Agents: []AgentStatus{{OK: true}, {}}}, nil, 3, "PARTIAL"},
		{"good, then an error", vms(good), errors.New("state"), 3, "PARTIAL"},
		{"begun, so the error's class does not matter", vms(failed), preflight, 1, "FAILED"},

		{"usage", nil, usage, 2, "REFUSED"},
		{"configuration", nil, config, 2, "REFUSED"},
		{"locked", nil, locked, 11, "REFUSED"},
		{"authentication", nil, auth, 12, "REFUSED"},
		{"unreachable", nil, away, 10, "REFUSED"},
		{"preflight", nil, preflight, 6, "REFUSED"},
		{"preflight, VMs refused", vms(refused), preflight, 6, "REFUSED"},
		{"wrapped", nil, fmt.Errorf("plan: %w", away), 10, "REFUSED"},
		{"anything else", nil, errors.New("e"), 1, "FAILED"},
		{"usage beats locked", nil, errors.Join(locked, usage), 2, "REFUSED"},
		{"locked beats authentication", nil, errors.Join(auth, locked), 11, "REFUSED"},
		{"authentication beats unreachable", nil, errors.Join(away, auth), 12, "REFUSED"},
		{"unreachable beats preflight", nil, errors.Join(preflight, away), 10, "REFUSED"},

		{"integrity of a VM", vms(good, damaged), nil, 5, "FAILED"},
		{"integrity of a refused file", vms(refusedFile), nil, 5, "FAILED"},
		{"integrity error", nil, integrity, 5, "FAILED"},
		{"integrity beats usage", nil, errors.Join(usage, integrity), 5, "FAILED"},
		{"cancelled VM", vms(good, cancelled), nil, 130, "CANCELLED"},
		{"cancelled session", &Report{Cancelled: true, VMs: []VMResult{good}}, nil, 130, "CANCELLED"},
		{"context", nil, fmt.Errorf("ask: %w", context.Canceled), 130, "CANCELLED"},
		{"cancelled beats integrity", vms(damaged, cancelled), nil, 130, "CANCELLED"},
		{"power beats cancelled", vms(off, cancelled), nil, 20, "FAILED"},
		{"power beats all good", vms(off), nil, 20, "FAILED"},
		{"power beats integrity and usage", vms(off, damaged), usage, 20, "FAILED"},
	} {
		if got := ExitCode(tt.r, tt.err); got != tt.want {
			t.Errorf("%s: code %d, want %d", tt.name, got, tt.want)
		}
		if got := ResultWord(tt.want); got != tt.word {
			t.Errorf("%s: word %s, want %s", tt.name, got, tt.word)
		}
	}
}

func TestResultLine(t *testing.T) {
	r := &Report{ID: "20261122T203000Z-ab12cd", VMs: []VMResult{{Status: StatusGood}, {Status: StatusRefused}, {Status: StatusSkipped}}}
	if got, want := ResultLine(r, 3), "RESULT PARTIAL code=3 good=1/2 session=20261122T203000Z-ab12cd"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := ResultLine(nil, 12), "RESULT REFUSED code=12 good=0/0 session=-"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
