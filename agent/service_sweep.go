package agent

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// Sweep finishes or undoes what earlier work left in the pool.
func (s *service) Sweep(ctx context.Context, req *agentv1.SweepRequest) (*agentv1.SweepResponse, error) {
	o := sweepOptions{DryRun: req.GetDryRun(), AtStart: true, DeadSessions: req.GetDeadSessions(), HeardSessions: req.GetHeardSessions()}
	for _, in := range req.GetIntents() {
		if !validNonce(in.GetNonce()) || !validUUID(in.GetVmUuid()) {
			return nil, rpc.Errorf(rpc.Invalid, "an intent without a usable nonce or VM")
		}
		if disks := in.GetSnapshotDiskUuids(); len(disks) > maxExcluded || slices.ContainsFunc(disks, func(uuid string) bool { return !validUUID(uuid) }) {
			return nil, rpc.Errorf(rpc.Invalid, "an intent with unusable disks")
		}
		o.Intents = append(o.Intents, sweepIntent{VM: in.GetVmUuid(), Nonce: in.GetNonce(), Session: in.GetSessionId(),
			Before: before(in), Disks: in.GetSnapshotDiskUuids()})
	}
	if o.DryRun {
		peer, _ := rpc.PeerIdentity(ctx)
		o.Ending = s.agent.ending(peer.Name, o.DeadSessions)
	} else {
		// Whoever asked may leave: what was begun is better finished, and is bounded.
		var cancel context.CancelFunc
		ctx, cancel = s.agent.cleanupContext(ctx)
		defer cancel()
		peer, _ := rpc.PeerIdentity(ctx)
		by := actor{Controller: peer.Name}
		s.agent.audit.called("sweep", by, "intents", len(o.Intents), "dead_sessions", len(o.DeadSessions))
		ctx = by.on(ctx)
		s.agent.endSessions(ctx, peer.Name, o.DeadSessions)
	}
	actions, err := s.agent.sweeper.sweep(ctx, o)
	if err != nil {
		return nil, wireError(err, rpc.Internal, "")
	}
	out := &agentv1.SweepResponse{}
	for _, a := range actions {
		m := &agentv1.SweepAction{VmUuid: a.VM, VmName: a.Name, Action: a.Action, Object: a.Object, Done: a.Done || a.Lost && !o.DryRun,
			Waiting: a.Waiting, PowerNotRestored: a.PowerNotRestored}
		if a.Err != nil {
			m.Error = a.Err.Error()
		}
		if a.Again > 0 {
			m.AgainIn = durationpb.New(a.Again)
		}
		out.Actions = append(out.Actions, m)
	}
	return out, nil
}

// before is an intent's former power state, where that is one that a sweep brings back.
func before(in *agentv1.Intent) string {
	if in.GetPowerBefore() == agentv1.PowerState_POWER_STATE_RUNNING {
		return running
	}
	return ""
}
