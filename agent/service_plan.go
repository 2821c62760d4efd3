package agent

import (
	"context"
	"crypto/sha256"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// PlanRestore says what a restore would do, and changes nothing.
func (s *service) PlanRestore(st agentv1.AgentService_PlanRestoreServer) error {
	first, err := st.Recv()
	if err != nil {
		return err
	}
	uuid := first.GetOpen().GetVmUuid()
	if !validUUID(uuid) {
		return rpc.Errorf(rpc.Invalid, "a plan without a VM's UUID")
	}
	spec, err := restoreSpecOf(first.GetOpen().GetSpec())
	if err != nil {
		return err
	}
	receive := func() (*agentv1.Document, error) {
		m, err := st.Recv()
		return m.GetOva(), err
	}
	if err := receiveOVA(receive, first.GetOpen().GetSpec(), &spec); err != nil {
		return err
	}
	r, err := s.agent.planRestore(st.Context(), uuid, spec)
	if err != nil {
		return wireError(err, rpc.Internal, uuid)
	}
	out := &agentv1.PlanRestoreResponse{Plan: planToWire(r)}
	if r.before != "" {
		out.PowerState = powerToWire(r.before)
	}
	return st.SendAndClose(out)
}

// StartVM starts a halted VM for a controller.
func (s *service) StartVM(ctx context.Context, req *agentv1.StartVMRequest) (*agentv1.StartVMResponse, error) {
	uuid := req.GetVmUuid()
	if !validUUID(uuid) {
		return nil, rpc.Errorf(rpc.Invalid, "a start without a VM's UUID")
	}
	peer, _ := rpc.PeerIdentity(ctx)
	by := actor{Controller: peer.Name, Session: req.GetSessionId(), VM: uuid}
	s.agent.audit.called("start", by)
	state, err := s.agent.startVM(by.on(ctx), uuid)
	if err != nil {
		return nil, wireError(err, rpc.Internal, uuid)
	}
	return &agentv1.StartVMResponse{PowerState: powerToWire(state)}, nil
}

// receiveOVA receives the file's ova.xml behind its opening, into spec.
func receiveOVA(receive func() (*agentv1.Document, error), m *agentv1.RestoreSpec, spec *restoreSpec) error {
	raw, err := receiveDocument(receive, m.GetOvaBytes())
	if err != nil {
		return err
	}
	if spec.OVA, err = xva.ParseOVA(raw); err != nil {
		return rpc.Errorf(rpc.Archive, "the file's ova.xml: %w", err)
	}
	spec.sum = sumOf(raw, m.GetOwnRecord())
	if spec.OVA, err = spec.OVA.WithOwn(m.GetOwnRecord()); err != nil {
		return rpc.Errorf(rpc.Invalid, "the VM's own record: %w", err)
	}
	return nil
}

// planDetails puts the disks and interfaces of a plan into its message.
func planDetails(m *agentv1.RestorePlan, r *restore) {
	for _, pos := range r.plan.Positions {
		d := &agentv1.RestoreDisk{SrUuid: pos.SR.UUID, SrName: pos.SR.Name, Need: pos.needs(),
			Disk: &agentv1.Disk{Userdevice: pos.Disk.UserDevice, VdiUuid: pos.Disk.VDIUUID, Name: pos.Disk.Name,
				VirtualSize: pos.Disk.Size, SrUuid: pos.Disk.SRUUID, SrName: pos.Disk.SRName}}
		if pos.OldVDI != nil {
			d.OldVdiUuid = pos.OldVDI.UUID
			if r.spec.DeleteFirst {
				d.Freed = pos.frees()
			}
		}
		m.Disks = append(m.Disks, d)
	}
	for _, n := range r.planNICs() {
		m.Nics = append(m.Nics, &agentv1.RestoreNIC{
			Nic:         &agentv1.NIC{Device: n.VIF.Device, Mac: n.VIF.MAC, NetworkUuid: n.VIF.NetworkUUID, NetworkName: n.VIF.NetworkName},
			NetworkUuid: n.Network.UUID, NetworkName: networkLabel(n), Made: n.Made})
	}
}

// networkLabel is the name of the network that was found, or of the one that was looked for.
func networkLabel(n nicPlan) string {
	if n.Network.UUID != "" {
		return n.Network.Name
	}
	return n.Wanted
}

// sumOf tells files and records apart.
func sumOf(ova, own []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(ova)
	h.Write(own)
	return [sha256.Size]byte(h.Sum(nil))
}
