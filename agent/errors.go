package agent

import (
	"context"
	"errors"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// Why a job ends before its time.
var (
	// errLeaseOver: no stream was attached for as long as the lease says.
	errLeaseOver = rpc.Errorf(rpc.SessionGone, "nobody was attached for the length of the lease")
	// errReleased: the controller released the transfer before it was complete.
	errReleased = rpc.Errorf(rpc.Cancelled, "released before it was complete")
	// errStopping: the agent is being stopped. The controller may try again on another agent, or here later.
	errStopping = rpc.Errorf(rpc.SessionGone, "the agent is being stopped")
)

// reasons maps what XAPI, the journal and the context say to the reasons that
// controllers decide on, the first match first.
var reasons = []struct {
	err    error
	reason rpc.Reason
}{
	{errClaimLost, rpc.Claimed},
	{xapi.ErrBlocked, rpc.Conflict},
	{xapi.ErrPowerState, rpc.PowerState},
	{xapi.ErrNoSpace, rpc.SRFull},
	{xapi.ErrLacksFeature, rpc.LacksFeature},
	{xapi.ErrAuth, rpc.HostAuth},
	{xapi.ErrCertificate, rpc.HostAuth},
	{xapi.ErrHostDown, rpc.HostDown},
	{xapi.ErrSession, rpc.XAPIUnreachable},
	{xapi.ErrBusy, rpc.VMBusy},
	{xapi.ErrInUse, rpc.VMBusy},
	{xapi.ErrNotFound, rpc.VMNotFound},
	{xapi.ErrUnreachable, rpc.XAPIUnreachable},
	{xapi.ErrProtocol, rpc.XAPIUnreachable},
	{xapi.ErrCancelled, rpc.Cancelled},
	{context.Canceled, rpc.Cancelled},
	{context.DeadlineExceeded, rpc.Cancelled},
}

// wireError gives err the reason that crosses the wire, in this one place; the
// text stays, VM and host are added. One that has a reason keeps it. otherwise
// is the reason where nothing else is known. nil stays nil.
func wireError(err error, otherwise rpc.Reason, vm string) error {
	if err == nil {
		return nil
	}
	var typed *rpc.Error
	if errors.As(err, &typed) {
		if typed.VM != "" || vm == "" {
			return err
		}
		out := rpc.Errorf(typed.Reason, "%w", err) // the outer text says what was tried
		out.RetryAfter, out.Holder = typed.RetryAfter, holderOf(err)
		return out.About(vm, typed.Host)
	}
	if rpc.ReasonOf(err) != "" { // of package transfer
		return err
	}
	out := rpc.Errorf(reasonOf(err, otherwise), "%w", err)
	out.Holder = holderOf(err)
	return out.About(vm, "")
}

// holderOf returns who holds the VM that err says is claimed; nil where it says nothing of that.
func holderOf(err error) *rpc.Holder {
	var c *errClaimed
	if !errors.As(err, &c) || c.Agent == "" {
		return nil
	}
	return &rpc.Holder{Agent: c.Agent, Controller: c.Controller, Session: c.Session, Since: c.Since, Until: c.Until}
}

func reasonOf(err error, otherwise rpc.Reason) rpc.Reason {
	var claimed *errClaimed
	var stale *errStale
	if errors.As(err, &claimed) && claimed.Agent == "" {
		return rpc.VMBusy // this agent's own sweep or cleanup, which ends soon
	}
	if errors.As(err, &claimed) || errors.As(err, &stale) {
		return rpc.Claimed
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return otherwise
}
