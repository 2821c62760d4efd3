package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// service adapts wire messages to the agent and back. Only the service*.go
// files know them.
type service struct {
	agentv1.UnimplementedAgentServiceServer
	agent *Agent
}

// Abilities that controllers ask for before they use them.
const (
	featurePlanRestore     = "plan-restore"
	featureStartVM         = "start-vm"
	featureOfflineSnapshot = "offline-snapshot"
	featureWireZstd        = "wire-zstd" // packed frames, both ways
)

// features are optional abilities that controllers may ask for by name.
func features() []string {
	return []string{"backup", "restore", "sweep", "exclude-disks", "compression", featurePlanRestore, featureStartVM, featureOfflineSnapshot,
		"survey", featureWireZstd}
}

// GetHost tells what the agent is. It answers in any state; a controller that
// gives its protocol range is refused where none is common.
func (s *service) GetHost(_ context.Context, req *agentv1.GetHostRequest) (*agentv1.GetHostResponse, error) {
	if req.GetProtocol() != nil {
		if _, err := rpc.Negotiate(s.agent.protocol, req.GetProtocol()); err != nil {
			return nil, err
		}
	}
	a := s.agent
	at := a.place.known()
	return &agentv1.GetHostResponse{Agent: a.cfg.Name, Version: a.version, Protocol: a.protocol,
		Features: features(), Time: timestamppb.Now(), XapiTransport: a.transport(),
		OpenTransfers: uint32(a.jobs.Len()), PoolUuid: at.pool, HostUuid: at.host}, nil
}

// openingOf validates an Opening.
func openingOf(ctx context.Context, m *agentv1.Opening) (opening, error) {
	peer, ok := rpc.PeerIdentity(ctx)
	if !ok {
		return opening{}, rpc.Errorf(rpc.Peer, "caller without identity")
	}
	lease, err := durationOf("lease", m.GetLease())
	if err != nil {
		return opening{}, err
	}
	o := opening{Key: m.GetKey(), Session: m.GetSessionId(), Nonce: m.GetNonce(), VM: m.GetVmUuid(), Peer: peer.Name,
		Attempt: m.GetAttempt(), Offset: int64(m.GetOffset()), Lease: lease, Window: int64(m.GetWindow())}
	switch {
	case !validNonce(o.Key):
		return opening{}, rpc.Errorf(rpc.Invalid, "opening without a usable key")
	case !validNonce(o.Nonce):
		return opening{}, rpc.Errorf(rpc.Invalid, "opening without a usable nonce")
	case !validNonce(o.Session):
		return opening{}, rpc.Errorf(rpc.Invalid, "opening without a usable session")
	case !validUUID(o.VM):
		return opening{}, rpc.Errorf(rpc.Invalid, "opening without a VM's UUID")
	case o.Attempt < 1:
		return opening{}, rpc.Errorf(rpc.Invalid, "attempts count from 1")
	case o.Offset < 0 || o.Window < 0:
		return opening{}, rpc.Errorf(rpc.Invalid, "opening with an impossible offset or window")
	}
	return o, nil
}

// durationOf reads an optional duration, which must not be negative.
func durationOf(what string, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
		return 0, rpc.Errorf(rpc.Invalid, "%s is not a duration", what)
	}
	return d.AsDuration(), nil
}

// validUUID tells whether s is written as XAPI writes a UUID; it becomes part of journal keys.
func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if r != '-' {
				return false
			}
		} else if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return true
}

// LookupTransfer tells the state of a transfer.
func (s *service) LookupTransfer(ctx context.Context, req *agentv1.LookupTransferRequest) (*agentv1.LookupTransferResponse, error) {
	peer, _ := rpc.PeerIdentity(ctx)
	j, ok := s.agent.lookup(req.GetKey(), peer.Name)
	if !ok {
		return &agentv1.LookupTransferResponse{}, nil
	}
	p, _ := j.progress()
	out := &agentv1.LookupTransferResponse{Found: true, Phase: phaseToWire(p.Phase), Bytes: uint64(p.Bytes),
		Attached: j.lease.Attached()}
	if end, running := j.lease.End(); running {
		out.LeaseEnd = timestamppb.New(end)
	}
	if o, ok := j.result(); ok {
		out.Outcome = outcomeToWire(o)
	}
	return out, nil
}

// answerEarly is how long before the caller's deadline an answer is sent that has not waited for all.
const answerEarly = 500 * time.Millisecond

// ReleaseTransfer ends a transfer and waits for its cleanup.
func (s *service) ReleaseTransfer(ctx context.Context, req *agentv1.ReleaseTransferRequest) (*agentv1.ReleaseTransferResponse, error) {
	peer, _ := rpc.PeerIdentity(ctx)
	j, ok := s.agent.lookup(req.GetKey(), peer.Name)
	if !ok {
		return &agentv1.ReleaseTransferResponse{}, nil
	}
	s.agent.audit.called("release", actor{Controller: peer.Name, Session: j.Session, VM: j.VM}, "key", j.Key)
	j.hearing(true)
	j.release()
	asked := ctx
	defer context.AfterFunc(asked, func() { j.hearing(!errors.Is(asked.Err(), context.Canceled)) })() // it died, or was cut off
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left-min(answerEarly, left/5))
		defer cancel()
	}
	out := &agentv1.ReleaseTransferResponse{Found: true}
	if o, ok := j.awaitResult(ctx); ok {
		out.Outcome = outcomeToWire(o)
	}
	return out, nil
}

func outcomeToWire(o outcome) *agentv1.Outcome {
	out := &agentv1.Outcome{Succeeded: o.Succeeded, PowerBefore: powerToWire(o.Before), PowerAfter: powerToWire(o.After),
		PowerRestored: o.PowerRestored, Leftovers: o.Leftovers, Warnings: o.Warnings}
	if o.Downtime > 0 {
		out.Downtime = durationpb.New(o.Downtime)
	}
	if o.Err != nil {
		out.Error, out.Reason = o.Err.Error(), string(rpc.ReasonOf(o.Err))
	}
	return out
}

func phaseToWire(p phase) agentv1.Phase {
	switch p {
	case phasePreparing:
		return agentv1.Phase_PHASE_PREPARING
	case phaseStopping:
		return agentv1.Phase_PHASE_STOPPING
	case phaseSnapshot:
		return agentv1.Phase_PHASE_SNAPSHOT
	case phaseTransfer:
		return agentv1.Phase_PHASE_TRANSFER
	case phaseFinishing:
		return agentv1.Phase_PHASE_FINISHING
	case phaseSwapping:
		return agentv1.Phase_PHASE_SWAPPING
	case phaseStarting:
		return agentv1.Phase_PHASE_STARTING
	case phaseCleaning:
		return agentv1.Phase_PHASE_CLEANING
	case phaseDone:
		return agentv1.Phase_PHASE_DONE
	}
	return agentv1.Phase_PHASE_UNSPECIFIED
}

func powerToWire(state string) agentv1.PowerState {
	switch state {
	case halted:
		return agentv1.PowerState_POWER_STATE_HALTED
	case running:
		return agentv1.PowerState_POWER_STATE_RUNNING
	case paused:
		return agentv1.PowerState_POWER_STATE_PAUSED
	case suspended:
		return agentv1.PowerState_POWER_STATE_SUSPENDED
	}
	return agentv1.PowerState_POWER_STATE_UNSPECIFIED
}

func progressToWire(p progress) *agentv1.Progress {
	return &agentv1.Progress{Phase: phaseToWire(p.Phase), Bytes: uint64(p.Bytes), TaskProgress: p.Task, Message: p.Message}
}

// outlet sends on a stream from several goroutines, one message at a time, and
// nothing more once it is closed.
type outlet struct {
	turn   chan struct{} // 1: whoever holds it sends
	closed atomic.Bool
	send   func(m any) error
}

func newOutlet(send func(m any) error) *outlet {
	return &outlet{turn: make(chan struct{}, 1), send: send}
}

// put sends m; ctx bounds the wait for the turn.
func (o *outlet) put(ctx context.Context, m any) error {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-o.turn }()
	if o.closed.Load() {
		return context.Canceled
	}
	return o.send(m)
}

// last sends m and closes the outlet behind it.
func (o *outlet) last(ctx context.Context, m any) error {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-o.turn }()
	o.closed.Store(true)
	return o.send(m)
}

// reportProgress sends the job's progress at every change of phase, and at the
// interval, until ctx ends; put wraps it in the stream's own message.
func (s *service) reportProgress(ctx context.Context, j *job, put func(*agentv1.Progress) error) {
	tick := time.NewTicker(s.agent.cfg.Timing.Progress)
	defer tick.Stop()
	for {
		p, changed := j.progress()
		if put(progressToWire(p)) != nil {
			return
		}
		select {
		case <-tick.C:
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
