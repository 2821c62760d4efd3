package controller

import (
	"context"
	"errors"
	"io"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// restorePreview is what an agent says that it would do with a file.
type restorePreview struct {
	restorePlan
	Disks []restoreDisk
	NICs  []restoreNIC
	Power string // the VM's power state; empty where it does not exist
}

// restoreDisk is a disk of the file and where it goes; bytes.
type restoreDisk struct {
	Disk
	ToSR, ToSRName string
	Need, Freed    int64
	Replaces       string // the VDI there now, or empty
}

// restoreNIC is an interface of the file and where it goes.
type restoreNIC struct {
	NIC
	ToUUID, To string // UUID is empty where the pool has no such network
	Made       bool   // or set, by the restore
}

// planRestore asks what a restore would do. What it would refuse is the error.
func (a *agentConn) planRestore(ctx context.Context, vm string, spec restoreSpec, ova []byte) (*restorePreview, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timing.CallTimeout)
	defer cancel()
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	st, err := client.PlanRestore(ctx)
	if err != nil {
		return nil, err
	}
	err = st.Send(&agentv1.PlanRestoreRequest{Kind: &agentv1.PlanRestoreRequest_Open{
		Open: &agentv1.PlanRestoreOpen{VmUuid: vm, Spec: spec.message(len(ova))}}})
	for rest := ova; err == nil && len(rest) > 0; {
		n := min(len(rest), documentPiece)
		doc := &agentv1.Document{Data: rest[:n], Last: n == len(rest)}
		err = st.Send(&agentv1.PlanRestoreRequest{Kind: &agentv1.PlanRestoreRequest_Ova{Ova: doc}})
		rest = rest[n:]
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	m, err := st.CloseAndRecv()
	if err != nil {
		return nil, err
	}
	return previewFrom(m), nil
}

func previewFrom(m *agentv1.PlanRestoreResponse) *restorePreview {
	plan := m.GetPlan()
	p := &restorePreview{restorePlan: restorePlan{InPlace: plan.GetInPlace(), Warnings: plan.GetWarnings()}}
	if m.GetPowerState() != agentv1.PowerState_POWER_STATE_UNSPECIFIED {
		p.Power = PowerName(m.GetPowerState())
	}
	for _, d := range plan.GetUntouched() {
		p.Untouched = append(p.Untouched, DiskFrom(d))
	}
	for _, d := range plan.GetDisks() {
		p.Disks = append(p.Disks, restoreDisk{Disk: DiskFrom(d.GetDisk()), ToSR: canonicalUUID(d.GetSrUuid()), ToSRName: d.GetSrName(),
			Need: max(d.GetNeed(), 0), Freed: max(d.GetFreed(), 0), Replaces: canonicalUUID(d.GetOldVdiUuid())})
	}
	for _, n := range plan.GetNics() {
		p.NICs = append(p.NICs, restoreNIC{NIC: NIC{Device: n.GetNic().GetDevice(), MAC: n.GetNic().GetMac(),
			NetworkUUID: canonicalUUID(n.GetNic().GetNetworkUuid()), Network: n.GetNic().GetNetworkName()},
			ToUUID: canonicalUUID(n.GetNetworkUuid()), To: n.GetNetworkName(), Made: n.GetMade()})
	}
	return p
}

// startVM has a restored VM started.
func (a *agentConn) startVM(ctx context.Context, vm, session string) (power string, err error) {
	client, err := a.client()
	if err != nil {
		return "", err
	}
	m, err := client.StartVM(ctx, &agentv1.StartVMRequest{VmUuid: vm, SessionId: session})
	if err != nil {
		return "", err
	}
	return PowerName(m.GetPowerState()), nil
}

// refusal tells of errors of agents that hold until somebody changes something: what else fails may pass, and is left to the
// session's attempts.
func refusal(err error) bool {
	switch rpc.ReasonOf(err) {
	case rpc.Conflict, rpc.SRFull, rpc.PowerState, rpc.VMAbsent, rpc.NewerArchive, rpc.Invalid:
		return true
	}
	return false
}

// anotherMay tells whether another agent of the pool may answer where this one did not.
func anotherMay(err error) bool {
	switch rpc.ReasonOf(err) {
	case rpc.Unreachable, rpc.XAPIUnreachable, rpc.HostAuth, rpc.Auth, rpc.Peer, rpc.UnsupportedVersion:
		return true
	}
	return false
}
