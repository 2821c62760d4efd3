package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// VM.power_state as XAPI spells it.
const (
	halted    = "Halted"
	running   = "Running"
	paused    = "Paused"
	suspended = "Suspended"
)

// powerNote is the journal's power entry: the VM was in state Before and is
// brought back to it by whoever finds the entry. It is written before the
// shutdown and dropped once the VM is seen in that state again.
type powerNote struct {
	Before string        `json:"before"`
	Limit  time.Duration `json:"limit"` // of the shutdown, in nanoseconds
	// Domain is VM.domid when it was noted: each start gives another one.
	Domain int64 `json:"domain,omitempty"`
}

// notePower returns the note for a VM that is about to be shut down.
func notePower(vm xapi.VM, before string, limit time.Duration) powerNote {
	return powerNote{Before: before, Limit: limit, Domain: domainOf(vm)}
}

// startedSince tells whether the VM, which runs, was started after the note: no
// shutdown from before can reach it then.
func (n powerNote) startedSince(vm xapi.VM) bool {
	d := domainOf(vm)
	return n.Domain > 0 && d > 0 && d != n.Domain
}

// domainOf returns VM.domid; 0 where the record has none.
func domainOf(vm xapi.VM) int64 {
	d, err := vm.Fields.Get("domid").Int()
	if err != nil {
		return 0
	}
	return d
}

// downtime measures how long a VM is down for a piece of work. The zero value is ready.
type downtime struct {
	began  time.Time
	lasted time.Duration // until it was started again for the first time; 0 before
}

// begin is called when the guest is about to be asked to shut down; a second call changes nothing.
func (d *downtime) begin() {
	if d.began.IsZero() {
		d.began = time.Now() // with its monotonic part
	}
}

// end is called when the VM was seen running again.
func (d *downtime) end() {
	if !d.began.IsZero() && d.lasted == 0 {
		d.lasted = max(time.Since(d.began), 1)
	}
}

// watchNote is the journal's watch entry: the shutdown was given up, but the
// guest may still power off. Until then, by the master's clock, whoever finds
// the entry starts the VM when it is seen Halted.
type watchNote struct {
	Until time.Time `json:"until"`
	// Call says that it is a call that may come late: it reaches a VM that was started since, too.
	Call bool `json:"call,omitempty"`
}

// The journal's again entry says that XAPI was asked for a shutdown while an earlier call for one, of the same work, may have
// been on its way still. XAPI lets the second wait behind the first, and asks itself every 1 to 20 s whether it may begin
// (helpers.ml): the VM is off because of one of them, somebody starts it, and the other shuts it down again. Nobody can tell
// how many there are, so that a VM which is started for such work is watched for a claim's time from then on. The entry is
// written before the call and goes with the power entry.

// powerCalls are the calls that change power states; *xapi.Client has them.
// Each is one XAPI call without retries.
type powerCalls interface {
	VM(ctx context.Context, ref xapi.Ref) (xapi.VM, error)
	CleanShutdown(ctx context.Context, vm xapi.Ref) error
	HardShutdown(ctx context.Context, vm xapi.Ref) error
	Start(ctx context.Context, vm xapi.Ref) error
}

// power stops and starts VMs: by clean_shutdown, hard_shutdown and start alone
// (DESIGN section 1).
type power struct {
	calls  powerCalls
	timing Timing
}

// stopOptions say how far stopping may go.
type stopOptions struct {
	Timeout       time.Duration // of the clean shutdown
	Force         bool          // power off hard when the clean shutdown fails
	DiscardMemory bool          // stop a suspended VM, which discards its memory image
	// Earlier says that a call may be on its way from before.
	Earlier bool
	// Again is called before XAPI is asked while an earlier call may be on its way still. An error keeps from asking.
	Again func(ctx context.Context) error
	// Unanswered is called where a call got no answer and has done nothing so far: it may do so late.
	Unanswered func()
}

// stop brings a VM to Halted. asked says that the guest may have been asked to
// shut down: after an error it may then still power off, and has to be watched.
// Refusals are *rpc.Error with reason POWER_STATE, LACKS_FEATURE or
// SHUTDOWN_TIMEOUT. vm is the record as it is now.
func (p *power) stop(ctx context.Context, vm xapi.VM, o stopOptions) (asked bool, err error) {
	switch vm.PowerState {
	case halted:
		return false, nil
	case running:
	case suspended:
		if !o.DiscardMemory {
			return false, rpc.Errorf(rpc.PowerState, "the VM is suspended; its memory image would be lost")
		}
		return true, p.hard(ctx, vm, &o)
	default:
		return false, rpc.Errorf(rpc.PowerState, "the VM is %s", vm.PowerState)
	}
	asked, err = p.clean(ctx, vm, &o)
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return asked, context.Cause(ctx)
	case o.Force:
		if hardErr := p.hard(ctx, vm, &o); hardErr != nil {
			return asked || !unasked(hardErr), errors.Join(hardErr, err)
		}
		return true, nil
	}
	return asked, err
}

// unasked tells whether XAPI has refused a call before it turned to the guest.
func unasked(err error) bool {
	for _, e := range []error{xapi.ErrLacksFeature, xapi.ErrBlocked, xapi.ErrPowerState, xapi.ErrAuth, xapi.ErrUnsupported} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// look sees to a call that got no answer.
func (o *stopOptions) look(err error) {
	o.Earlier = o.Earlier || xapi.Unanswered(err) || errors.Is(err, xapi.ErrTaskPending)
	if o.Unanswered != nil && xapi.Unanswered(err) {
		o.Unanswered()
	}
}

// ask is called before a call.
func (o *stopOptions) ask(ctx context.Context) error {
	if !o.Earlier || o.Again == nil {
		return nil
	}
	return o.Again(ctx)
}

// clean shuts the guest down in time. asked is false where XAPI has refused every call for it before it turned to the guest.
func (p *power) clean(ctx context.Context, vm xapi.VM, o *stopOptions) (asked bool, err error) {
	limited, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	again := func(err error) bool { return passing(err) || timedOut(err) }
	err = p.retry().do(limited, again, func(c context.Context) error {
		if err := o.ask(c); err != nil {
			return err
		}
		if err := failpoint.Hit("agent/power/before-shutdown"); err != nil {
			return err
		}
		err := p.calls.CleanShutdown(c, vm.Ref)
		asked = asked || !unasked(err)
		// The state is the truth: the answer may be lost, or the guest faster than our giving up.
		if err != nil && p.is(ctx, vm.Ref, halted) {
			return nil
		}
		o.look(err)
		return err
	})
	switch {
	case err == nil:
		return asked, nil
	case errors.Is(err, xapi.ErrLacksFeature):
		return asked, rpc.Errorf(rpc.LacksFeature,
			"the guest has no tools to be shut down with; nothing was forced: %w", err)
	case errors.Is(err, xapi.ErrBlocked):
		return asked, rpc.Errorf(rpc.PowerState, "the VM is protected from being shut down; nothing was forced: %w", err)
	case limited.Err() != nil && ctx.Err() == nil:
		return asked, rpc.Errorf(rpc.ShutdownTimeout,
			"the guest did not shut down within %s; nothing was forced: %w", o.Timeout, err)
	default:
		return asked, fmt.Errorf("shut the VM down: %w", err)
	}
}

// timedOut tells whether XAPI has given a shutdown up: it waits for a guest for 20 minutes (reference section 8), and a limit may
// be longer.
func timedOut(err error) bool {
	var e *xapi.Error
	return errors.As(err, &e) && e.Code == "VM_SHUTDOWN_TIMEOUT"
}

func (p *power) hard(ctx context.Context, vm xapi.VM, o *stopOptions) error {
	err := p.retry().do(ctx, passing, func(c context.Context) error {
		if err := o.ask(c); err != nil {
			return err
		}
		if err := failpoint.Hit("agent/power/before-hard-shutdown"); err != nil {
			return err
		}
		err := p.calls.HardShutdown(c, vm.Ref)
		if err != nil && p.is(ctx, vm.Ref, halted) {
			return nil
		}
		o.look(err)
		return err
	})
	if err != nil {
		return fmt.Errorf("power the VM off: %w", err)
	}
	return nil
}

// start starts a halted VM and returns once it is seen Running; one that runs
// already is as good. Objects in use, refusals for lack of memory or of an HA
// plan, and an unreachable XAPI are waited out until ctx ends; any other
// failure is tried again a few times.
func (p *power) start(ctx context.Context, vm xapi.Ref) error {
	tries := 5
	again := func(err error) bool {
		if passing(err) || startLater(err) {
			return true
		}
		tries--
		return tries > 0 && !gone(err) && !errors.Is(err, xapi.ErrBlocked) && !errors.Is(err, errClaimLost)
	}
	err := p.retry().do(ctx, again, func(c context.Context) error {
		if err := failpoint.Hit("agent/power/before-start"); err != nil {
			return err
		}
		err := p.calls.Start(c, vm)
		if err != nil && p.is(c, vm, running) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("start the VM: %w", err)
	}
	return nil
}

// startLater tells whether a start was refused for a shortage that may pass.
func startLater(err error) bool {
	var e *xapi.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case "HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN", "HOST_NOT_ENOUGH_FREE_MEMORY", "NO_HOSTS_AVAILABLE",
		"NOT_ENOUGH_FREE_MEMORY", "HOST_DISABLED", "HOST_NOT_LIVE", "HOST_OFFLINE":
		return true
	}
	return false
}

// state reads the VM's power state, waiting out an XAPI that is away.
func (p *power) state(ctx context.Context, vm xapi.Ref) (string, error) {
	var state string
	err := p.retry().do(ctx, passing, func(c context.Context) error {
		rec, err := p.calls.VM(c, vm)
		state = rec.PowerState
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the VM's power state: %w", err)
	}
	return state, nil
}

// is tells whether the VM is now in a state; false where that cannot be read.
func (p *power) is(ctx context.Context, vm xapi.Ref, state string) bool {
	rec, err := p.calls.VM(ctx, vm)
	return err == nil && rec.PowerState == state
}

func (p *power) retry() backoff { return backoff{Min: p.timing.RetryMin, Max: p.timing.RetryMax} }
