package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// fakeVM is a VM whose power calls follow a script.
type fakeVM struct {
	state string
	// shutdown and start are called by the calls of that name; they may change state.
	shutdown, start func(ctx context.Context) error
	calls           []string
}

func (f *fakeVM) VM(context.Context, xapi.Ref) (xapi.VM, error) {
	return xapi.VM{Ref: "ref", PowerState: f.state}, nil
}

func (f *fakeVM) CleanShutdown(ctx context.Context, _ xapi.Ref) error {
	f.calls = append(f.calls, "clean_shutdown")
	return f.shutdown(ctx)
}

func (f *fakeVM) HardShutdown(context.Context, xapi.Ref) error {
	f.calls = append(f.calls, "hard_shutdown")
	f.state = halted
	return nil
}

func (f *fakeVM) Start(ctx context.Context, _ xapi.Ref) error {
	f.calls = append(f.calls, "start")
	return f.start(ctx)
}

func failure(code string) error { return &xapi.Error{Code: code} }

func TestStop(t *testing.T) {
	ignore := func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("cancelled: %w", xapi.ErrCancelled) }
	for name, tc := range map[string]struct {
		state    string
		shutdown func(f *fakeVM) func(context.Context) error
		o        stopOptions
		reason   rpc.Reason // "" = halted at the end
		asked    bool
		hard     bool
		takes    time.Duration
	}{
		"halted":              {state: halted},
		"paused":              {state: paused, reason: rpc.PowerState},
		"unknown state":       {state: "Unrecorded", reason: rpc.PowerState},
		"suspended":           {state: suspended, reason: rpc.PowerState},
		"suspended, forced":   {state: suspended, o: stopOptions{Force: true}, reason: rpc.PowerState},
		"suspended, discard":  {state: suspended, o: stopOptions{DiscardMemory: true}, asked: true, hard: true},
		"paused, all allowed": {state: paused, o: stopOptions{Force: true, DiscardMemory: true}, reason: rpc.PowerState},
		"good guest": {state: running, asked: true, shutdown: func(f *fakeVM) func(context.Context) error {
			return func(context.Context) error { f.state = halted; return nil }
		}},
		"no tools": {state: running, reason: rpc.LacksFeature, shutdown: func(*fakeVM) func(context.Context) error {
			return func(context.Context) error { return failure("VM_LACKS_FEATURE") }
		}},
		"no tools, forced": {state: running, o: stopOptions{Force: true}, asked: true, hard: true,
			shutdown: func(*fakeVM) func(context.Context) error {
				return func(context.Context) error { return failure("VM_LACKS_FEATURE") }
			}},
		"blocked": {state: running, reason: rpc.PowerState, shutdown: func(*fakeVM) func(context.Context) error {
			return func(context.Context) error { return failure("OPERATION_BLOCKED") }
		}},
		"asked, then blocked": {state: running, reason: rpc.PowerState, asked: true, takes: 200 * time.Millisecond,
			shutdown: func(f *fakeVM) func(context.Context) error {
				return func(context.Context) error {
					if len(f.calls) < 2 {
						return xapi.ErrUnreachable
					}
					return failure("OPERATION_BLOCKED")
				}
			}},
		"ignores": {state: running, reason: rpc.ShutdownTimeout, asked: true, takes: 20 * time.Minute,
			shutdown: func(*fakeVM) func(context.Context) error { return ignore }},
		"ignores, forced": {state: running, o: stopOptions{Force: true}, asked: true, hard: true, takes: 20 * time.Minute,
			shutdown: func(*fakeVM) func(context.Context) error { return ignore }},
		"off at the last moment": {state: running, asked: true, takes: 20 * time.Minute,
			shutdown: func(f *fakeVM) func(context.Context) error {
				return func(ctx context.Context) error { err := ignore(ctx); f.state = halted; return err }
			}},
		"answer lost": {state: running, asked: true, shutdown: func(f *fakeVM) func(context.Context) error {
			return func(context.Context) error { f.state = halted; return xapi.ErrUnreachable }
		}},
		"given up by XAPI": {state: running, asked: true, takes: 10 * time.Minute, shutdown: func(f *fakeVM) func(context.Context) error {
			return func(context.Context) error {
				time.Sleep(5 * time.Minute)
				if len(f.calls) < 2 {
					return failure("VM_SHUTDOWN_TIMEOUT")
				}
				f.state = halted
				return nil
			}
		}},
		"given up by XAPI again and again": {state: running, asked: true, reason: rpc.ShutdownTimeout, takes: 20 * time.Minute,
			shutdown: func(*fakeVM) func(context.Context) error {
				return func(ctx context.Context) error {
					if err := sleep(ctx, 7*time.Minute); err != nil {
						return xapi.ErrCancelled
					}
					return failure("VM_SHUTDOWN_TIMEOUT")
				}
			}},
		"busy for a while": {state: running, asked: true, takes: 600 * time.Millisecond,
			shutdown: func(f *fakeVM) func(context.Context) error {
				return func(context.Context) error {
					if len(f.calls) < 3 {
						return failure("OTHER_OPERATION_IN_PROGRESS")
					}
					f.state = halted
					return nil
				}
			}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeVM{state: tc.state}
				if tc.shutdown != nil {
					f.shutdown = tc.shutdown(f)
				}
				p := &power{calls: f, timing: Defaults().Timing}
				tc.o.Timeout = 20 * time.Minute
				began := time.Now()
				asked, err := p.stop(t.Context(), xapi.VM{Ref: "ref", PowerState: tc.state}, tc.o)
				if got := rpc.ReasonOf(err); got != tc.reason || (err == nil) != (tc.reason == "") {
					t.Errorf("got %v, want reason %q", err, tc.reason)
				}
				if asked != tc.asked {
					t.Errorf("asked: got %v, want %v", asked, tc.asked)
				}
				hard := len(f.calls) > 0 && f.calls[len(f.calls)-1] == "hard_shutdown"
				if hard != tc.hard {
					t.Errorf("calls: %v", f.calls)
				}
				if took := time.Since(began); took < tc.takes || took > tc.takes+time.Minute {
					t.Errorf("took %s, want %s", took, tc.takes)
				}
			})
		})
	}
}

func TestStopCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeVM{state: running}
		f.shutdown = func(ctx context.Context) error { <-ctx.Done(); return xapi.ErrCancelled }
		p := &power{calls: f, timing: Defaults().Timing}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(errLeaseOver) })
		asked, err := p.stop(ctx, xapi.VM{Ref: "ref", PowerState: running}, stopOptions{Timeout: time.Hour, Force: true})
		if !errors.Is(err, errLeaseOver) || !asked || len(f.calls) != 1 {
			t.Errorf("got asked %v, %v, calls %v; want the lease's end and nothing forced", asked, err, f.calls)
		}
	})
}

func TestStart(t *testing.T) {
	for name, tc := range map[string]struct {
		fail  []error // of the first calls
		good  bool
		tries int
	}{
		"at once":       {nil, true, 1},
		"busy":          {[]error{failure("OTHER_OPERATION_IN_PROGRESS"), failure("OTHER_OPERATION_IN_PROGRESS")}, true, 3},
		"memory":        {[]error{failure("HOST_NOT_ENOUGH_FREE_MEMORY")}, true, 2},
		"HA plan":       {[]error{failure("HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN")}, true, 2},
		"XAPI away":     {[]error{xapi.ErrUnreachable, xapi.ErrUnreachable}, true, 3},
		"one odd error": {[]error{failure("INTERNAL_ERROR")}, true, 2},
		"blocked":       {[]error{failure("OPERATION_BLOCKED")}, false, 1},
		"gone":          {[]error{failure("HANDLE_INVALID")}, false, 1},
		"many odd errors": {[]error{failure("A"), failure("A"), failure("A"), failure("A"), failure("A"), failure("A")},
			false, 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeVM{state: halted}
				f.start = func(context.Context) error {
					if n := len(f.calls); n <= len(tc.fail) {
						return tc.fail[n-1]
					}
					f.state = running
					return nil
				}
				p := &power{calls: f, timing: Defaults().Timing}
				if err := p.start(t.Context(), "ref"); (err == nil) != tc.good || len(f.calls) != tc.tries {
					t.Errorf("got %v after %d calls, want good=%v after %d", err, len(f.calls), tc.good, tc.tries)
				}
			})
		})
	}
}

// A shortage is waited out for as long as the context says, and not longer.
func TestStartGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeVM{state: halted, start: func(context.Context) error { return failure("NO_HOSTS_AVAILABLE") }}
		p := &power{calls: f, timing: Defaults().Timing}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
		defer cancel()
		began := time.Now()
		err := p.start(ctx, "ref")
		if took := time.Since(began); err == nil || took != 30*time.Minute {
			t.Errorf("got %v after %s", err, took)
		}
	})
}
