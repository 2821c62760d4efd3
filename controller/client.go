package controller

import (
	"strings"

	"github.com/google/uuid"

	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// Wire messages are turned into this package's types here and nowhere else. What an agent says is not trusted: a UUID
// becomes part of file names, so what is none is dropped; texts are clipped, see clipText; sizes are not negative.

// canonicalUUID returns the UUID in lower case, or "" for what is none.
func canonicalUUID(s string) string {
	if len(s) != len(uuid.Nil.String()) {
		return ""
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return ""
	}
	return id.String()
}

func canonicalUUIDs(all []string) []string {
	out := make([]string, 0, len(all))
	for _, s := range all {
		if id := canonicalUUID(s); id != "" {
			out = append(out, id)
		}
	}
	return out
}

// PowerName returns XAPI's name of a power state.
func PowerName(p agentv1.PowerState) string {
	switch p {
	case agentv1.PowerState_POWER_STATE_HALTED:
		return PowerHalted
	case agentv1.PowerState_POWER_STATE_RUNNING:
		return PowerRunning
	case agentv1.PowerState_POWER_STATE_PAUSED:
		return PowerPaused
	case agentv1.PowerState_POWER_STATE_SUSPENDED:
		return PowerSuspended
	case agentv1.PowerState_POWER_STATE_UNSPECIFIED:
	}
	return PowerUnknown
}

// powerState is the reverse of PowerName.
func powerState(name string) agentv1.PowerState {
	switch name {
	case PowerHalted:
		return agentv1.PowerState_POWER_STATE_HALTED
	case PowerRunning:
		return agentv1.PowerState_POWER_STATE_RUNNING
	case PowerPaused:
		return agentv1.PowerState_POWER_STATE_PAUSED
	case PowerSuspended:
		return agentv1.PowerState_POWER_STATE_SUSPENDED
	}
	return agentv1.PowerState_POWER_STATE_UNSPECIFIED
}

// poolFrom makes a pool of what an agent's Check says.
func poolFrom(m *agentv1.CheckResponse) Pool {
	p := Pool{
		UUID:           canonicalUUID(m.GetPool().GetUuid()),
		Name:           clipText(m.GetPool().GetName()),
		MasterUUID:     canonicalUUID(m.GetPool().GetMasterUuid()),
		DefaultSR:      canonicalUUID(m.GetPool().GetDefaultSrUuid()),
		ProductBrand:   clipText(m.GetPool().GetProductBrand()),
		ProductVersion: clipText(m.GetPool().GetProductVersion()),
		APIVersion:     clipText(m.GetPool().GetApiVersion()),
		HA: HA{Enabled: m.GetPool().GetHaEnabled(), Overcommitted: m.GetPool().GetHaOvercommitted(),
			PlanFor: m.GetPool().GetHaPlanExistsFor(), Tolerate: m.GetPool().GetHaHostFailuresToTolerate()},
	}
	if m.GetServerTime().IsValid() {
		p.ServerTime = m.GetServerTime().AsTime()
	}
	for _, h := range m.GetHosts() {
		p.Hosts = append(p.Hosts, Host{UUID: canonicalUUID(h.GetUuid()), Name: clipText(h.GetName()), Address: clipText(h.GetAddress()),
			Live: h.GetLive(), Enabled: h.GetEnabled()})
	}
	for _, s := range m.GetSrs() {
		p.SRs = append(p.SRs, srFrom(s))
	}
	for _, n := range m.GetNetworks() {
		p.Networks = append(p.Networks, Network{UUID: canonicalUUID(n.GetUuid()), Name: clipText(n.GetName()), Bridge: clipText(n.GetBridge())})
	}
	if master := p.Host(p.MasterUUID); p.Name == "" && master != nil {
		p.Name = master.Name
	}
	return p
}

func srFrom(s *agentv1.SR) SR {
	return SR{UUID: canonicalUUID(s.GetUuid()), Name: clipText(s.GetName()), Type: clipText(s.GetType()), ContentType: clipText(s.GetContentType()),
		Shared: s.GetShared(), Size: s.GetPhysicalSize(), Used: s.GetPhysicalUtilisation(), Hosts: canonicalUUIDs(s.GetPluggedHostUuids())}
}

// vmFrom makes a VM of a message, within its pool; ok is false where it has no UUID.
func vmFrom(m *agentv1.VM, p *Pool) (vm VM, ok bool) {
	vm = VM{
		UUID:         canonicalUUID(m.GetUuid()),
		Name:         clipText(m.GetName()),
		Description:  clipText(m.GetDescription()),
		PoolUUID:     p.UUID,
		Pool:         p.Name,
		Power:        PowerName(m.GetPowerState()),
		HostUUID:     canonicalUUID(m.GetResidentHostUuid()),
		Tags:         clipped(m.GetTags(), maxTags),
		CleanStop:    m.GetCanShutDownCleanly(),
		Problem:      clipText(strings.TrimSpace(m.GetProblem())),
		CapableHosts: canonicalUUIDs(m.GetCapableHostUuids()),
		ClaimedBy:    clipText(m.GetClaimedBy()),
		Settings:     settingsFrom(m.GetSettings()),
		Replica:      clipText(strings.TrimSpace(m.GetReplica())),
		NoSnapshot:   clipText(strings.TrimSpace(m.GetSnapshotProblem())),
		MemoryImage:  max(0, m.GetMemoryImageBytes()),
	}
	if h := p.Host(vm.HostUUID); h != nil {
		vm.Host = h.Name
	}
	for _, d := range m.GetDisks() {
		vm.Disks = append(vm.Disks, DiskFrom(d))
	}
	for _, n := range m.GetNics() {
		vm.NICs = append(vm.NICs, NIC{Device: clipText(n.GetDevice()), MAC: clipText(n.GetMac()),
			NetworkUUID: canonicalUUID(n.GetNetworkUuid()), Network: clipText(n.GetNetworkName())})
	}
	return vm, vm.UUID != ""
}

// DiskFrom makes a disk of a message.
func DiskFrom(d *agentv1.Disk) Disk {
	return Disk{
		UserDevice: clipText(d.GetUserdevice()),
		Device:     clipText(d.GetDevice()),
		VDI:        canonicalUUID(d.GetVdiUuid()),
		Name:       clipText(d.GetName()),
		Size:       max(d.GetVirtualSize(), 0),
		Physical:   max(d.GetPhysicalBytes(), 0),
		SR:         canonicalUUID(d.GetSrUuid()),
		SRName:     clipText(d.GetSrName()),
		Type:       clipText(d.GetType()),
		Mode:       clipText(d.GetMode()),
		Bootable:   d.GetBootable(),
		Chain:      d.GetChainLength(),
		Tags:       clipped(d.GetTags(), maxTags),
	}
}
