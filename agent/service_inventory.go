package agent

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// Check logs in to XAPI and tells about the pool.
func (s *service) Check(ctx context.Context, _ *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	p, err := s.agent.checkPool(ctx)
	if err != nil {
		return nil, wireError(err, rpc.XAPIUnreachable, "")
	}
	out := stateToWire(p)
	out.ServerTime = timestamppb.New(p.Time)
	return out, nil
}

func stateToWire(p *poolState) *agentv1.CheckResponse {
	out := &agentv1.CheckResponse{Pool: poolToWire(p.Pool), HostUuid: p.OwnHost, Warnings: p.Warnings}
	for _, h := range p.Hosts {
		out.Hosts = append(out.Hosts, hostToWire(h))
	}
	for _, sr := range p.SRs {
		out.Srs = append(out.Srs, srToWire(sr))
	}
	for _, n := range p.Networks {
		out.Networks = append(out.Networks, &agentv1.Network{Uuid: n.UUID, Name: n.Name, Bridge: n.Bridge})
	}
	return out
}

func srToWire(sr srInfo) *agentv1.SR {
	return &agentv1.SR{Uuid: sr.UUID, Name: sr.Name, Type: sr.Type, ContentType: sr.ContentType, Shared: sr.Shared,
		PhysicalSize: sr.Size, PhysicalUtilisation: sr.Used, PluggedHostUuids: sr.PluggedHosts}
}

// maxRefresh bounds how many SRs one call refreshes.
const maxRefresh = 256

// RefreshSRs has XAPI read SRs' sizes again.
func (s *service) RefreshSRs(ctx context.Context, req *agentv1.RefreshSRsRequest) (*agentv1.RefreshSRsResponse, error) {
	if n := len(req.GetSrUuids()); n > maxRefresh {
		return nil, rpc.Errorf(rpc.Invalid, "%d SRs at once, at most %d", n, maxRefresh)
	}
	srs, warnings, err := s.agent.refreshSRs(ctx, req.GetSrUuids())
	if err != nil {
		return nil, wireError(err, rpc.XAPIUnreachable, "")
	}
	out := &agentv1.RefreshSRsResponse{Warnings: warnings}
	for _, sr := range srs {
		out.Srs = append(out.Srs, srToWire(sr))
	}
	return out, nil
}

// A page of VMs stays far below the size limit of a message, whatever their owners have written into their records.
const (
	vmsPerPage  = 200
	bytesOfPage = 512 << 10
	bytesOfVM   = 512 << 10
)

// maxNamed bounds the VMs that one call may name.
const maxNamed = 1000

// ListVMs streams the users' VMs of the pool, or those of them that are asked for; after the pool itself
// where that is asked for.
func (s *service) ListVMs(req *agentv1.ListVMsRequest, st agentv1.AgentService_ListVMsServer) error {
	vms, pool, err := s.usersVMs(st.Context(), req)
	if err != nil {
		return wireError(err, rpc.XAPIUnreachable, "")
	}
	if pool != nil {
		if err := st.Send(&agentv1.ListVMsResponse{Pool: stateToWire(pool)}); err != nil {
			return err
		}
	}
	page, size := &agentv1.ListVMsResponse{}, 0
	for i := range vms {
		vm, bytes := boundedVM(&vms[i])
		if len(page.Vms) == vmsPerPage || size > 0 && size+bytes > bytesOfPage {
			if err := st.Send(page); err != nil {
				return err
			}
			page, size = &agentv1.ListVMsResponse{}, 0
		}
		page.Vms, size = append(page.Vms, vm), size+bytes
	}
	if len(page.Vms) == 0 {
		return nil
	}
	return st.Send(page)
}

// boundedVM is a VM as it goes over the wire, and its size there. Of one that is too large for any message only what names
// it is left, and why it is not backed up.
func boundedVM(v *vmInfo) (*agentv1.VM, int) {
	vm := vmToWire(v)
	size := proto.Size(vm)
	if size <= bytesOfVM {
		return vm, size
	}
	const most = 256
	vm = &agentv1.VM{Uuid: v.UUID, Name: strings.ToValidUTF8(v.Name[:min(len(v.Name), most)], ""), PowerState: vm.PowerState, ResidentHostUuid: v.ResidentHost,
		Problem: fmt.Sprintf("its record is too large: %d bytes of description, tags, disks and settings, at most %d", size, bytesOfVM)}
	return vm, proto.Size(vm)
}

func (s *service) usersVMs(ctx context.Context, req *agentv1.ListVMsRequest) ([]vmInfo, *poolState, error) {
	uuids := req.GetVmUuids()
	switch {
	case len(uuids) > 0:
		vms, err := s.namedVMs(ctx, uuids)
		return vms, nil, err
	case req.GetWithPool():
		inv, pool, err := s.agent.survey(ctx, !req.GetWithoutNics())
		if err != nil {
			return nil, nil, err
		}
		return inv.users(), pool, nil
	}
	inv, err := s.agent.loadInventory(ctx)
	if err != nil {
		return nil, nil, err
	}
	return inv.users(), nil, nil
}

func (s *service) namedVMs(ctx context.Context, uuids []string) ([]vmInfo, error) {
	if len(uuids) > maxNamed {
		return nil, rpc.Errorf(rpc.Invalid, "%d VMs named in one call", len(uuids))
	}
	var out []vmInfo
	for _, uuid := range uuids {
		vm, err := s.agent.xapi.VMByUUID(ctx, uuid)
		switch {
		case gone(err):
			continue
		case err != nil:
			return nil, fmt.Errorf("read VM %s: %w", uuid, err)
		case !isUsers(vm):
			continue
		}
		inv, err := s.agent.loadVM(ctx, vm)
		if err != nil {
			return nil, err
		}
		out = append(out, inv.vm(vm))
	}
	return out, nil
}

func vmToWire(v *vmInfo) *agentv1.VM {
	out := &agentv1.VM{Uuid: v.UUID, Name: v.Name, Description: v.Description, PowerState: powerToWire(v.Power),
		ResidentHostUuid: v.ResidentHost, Tags: v.Tags, Disks: disksToWire(v.Disks), CanShutDownCleanly: v.CanShutDown,
		Problem: v.Problem, CapableHostUuids: v.CapableHosts, ClaimedBy: v.ClaimedBy, Settings: v.Settings,
		Replica: v.Replica, SnapshotProblem: v.SnapshotProblem, MemoryImageBytes: v.MemoryImage}
	for _, n := range v.NICs {
		out.Nics = append(out.Nics, &agentv1.NIC{Device: n.Device, Mac: n.MAC, NetworkUuid: n.NetworkUUID, NetworkName: n.NetworkName})
	}
	return out
}

func disksToWire(disks []diskInfo) []*agentv1.Disk {
	var out []*agentv1.Disk
	for _, d := range disks {
		out = append(out, &agentv1.Disk{Userdevice: d.UserDevice, Device: d.Device, VdiUuid: d.VDIUUID, Name: d.Name,
			VirtualSize: d.VirtualSize, PhysicalBytes: d.PhysicalBytes, SrUuid: d.SRUUID, SrName: d.SRName, Type: d.Type,
			Mode: d.Mode, Bootable: d.Bootable, ChainLength: uint32(d.ChainLength), Tags: d.Tags})
	}
	return out
}

func poolToWire(p poolInfo) *agentv1.Pool {
	return &agentv1.Pool{Uuid: p.UUID, Name: p.Name, MasterUuid: p.MasterUUID, DefaultSrUuid: p.DefaultSRUUID,
		ProductBrand: p.ProductBrand, ProductVersion: p.ProductVersion, ApiVersion: p.APIVersion,
		HaEnabled: p.HAEnabled, HaOvercommitted: p.HAOvercommitted, HaPlanExistsFor: p.HAPlanFor, HaHostFailuresToTolerate: p.HATolerate}
}

func hostToWire(h hostInfo) *agentv1.Host {
	return &agentv1.Host{Uuid: h.UUID, Name: h.Name, Address: h.Address, Live: h.Live, Enabled: h.Enabled}
}
