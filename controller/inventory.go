package controller

import (
	"cmp"
	"slices"
	"time"
)

// Inventory is what the agents said exists, in a fixed order whatever order they answered in: pools by name and UUID, hosts
// and SRs likewise, VMs by pool, name and UUID.
type Inventory struct {
	Agents []AgentStatus `json:"agents"`
	Pools  []Pool        `json:"pools"`
	VMs    []VM          `json:"vms"`

	ofFiles bool // made of a folder's files, see RestoreSet
	limited bool // and these are what somebody chose: what else is selected need not be there
}

// Pool is a XenServer pool with the agents beside its hosts; a host alone is a pool of one.
type Pool struct {
	UUID           string    `json:"uuid"`
	Name           string    `json:"name"` // the master's name where the pool has none
	MasterUUID     string    `json:"master_uuid"`
	DefaultSR      string    `json:"default_sr_uuid,omitempty"`
	ProductBrand   string    `json:"product_brand,omitempty"`
	ProductVersion string    `json:"product_version,omitempty"`
	APIVersion     string    `json:"api_version,omitempty"`
	ServerTime     time.Time `json:"server_time,omitzero"` // the master's clock when it was asked
	HA             HA        `json:"ha"`
	Hosts          []Host    `json:"hosts"`
	SRs            []SR      `json:"srs"`
	Networks       []Network `json:"networks"`
	Agents         []string  `json:"agents"` // names of those that answered, in the order of the configuration
	Warnings       []string  `json:"warnings,omitempty"`
	Error          string    `json:"error,omitempty"` // why its VMs could not be listed
}

// HA is what a pool's high availability has promised.
type HA struct {
	Enabled       bool  `json:"enabled"`
	Overcommitted bool  `json:"overcommitted,omitempty"` // more than its hosts can hold
	PlanFor       int64 `json:"plan_exists_for"`         // failing hosts for which there is a plan
	Tolerate      int64 `json:"host_failures_to_tolerate"`
}

// Host is a member of a pool.
type Host struct {
	UUID    string `json:"uuid"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Live    bool   `json:"live"`
	Enabled bool   `json:"enabled"`
	Agent   string `json:"agent,omitempty"` // the agent beside it, where one answered
}

// SR is a storage repository; sizes are in bytes.
type SR struct {
	UUID        string   `json:"uuid"`
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	ContentType string   `json:"content_type,omitempty"`
	Shared      bool     `json:"shared"`
	Size        int64    `json:"physical_size"`
	Used        int64    `json:"physical_utilisation"`
	Hosts       []string `json:"plugged_host_uuids"`
}

// Network is a pool's network.
type Network struct {
	UUID   string `json:"uuid"`
	Name   string `json:"name"`
	Bridge string `json:"bridge,omitempty"`
}

// VM is a virtual machine of a user: never a template, snapshot, control domain or carrier.
type VM struct {
	UUID         string            `json:"uuid"`
	Name         string            `json:"name"`
	Description  string            `json:"description,omitempty"`
	PoolUUID     string            `json:"pool_uuid"`
	Pool         string            `json:"pool"` // the pool's name
	Power        string            `json:"power_state"`
	HostUUID     string            `json:"host_uuid,omitempty"` // where it runs
	Host         string            `json:"host,omitempty"`      // that host's name
	Tags         []string          `json:"tags,omitempty"`
	Disks        []Disk            `json:"disks"`
	NICs         []NIC             `json:"nics,omitempty"`
	CleanStop    bool              `json:"can_shut_down_cleanly"`
	Problem      string            `json:"problem,omitempty"` // why a backup would be refused
	CapableHosts []string          `json:"capable_host_uuids,omitempty"`
	ClaimedBy    string            `json:"claimed_by,omitempty"`
	Replica      string            `json:"replica,omitempty"`            // why it is taken for a copy that another tool keeps
	NoSnapshot   string            `json:"snapshot_problem,omitempty"`   // why XAPI would refuse a snapshot
	MemoryImage  int64             `json:"memory_image_bytes,omitempty"` // of a suspended VM, at most
	Settings     map[string]string `json:"settings,omitempty"`
	// Agents are the names of those that can work on it, the best first; a session falls back along the list.
	Agents []string `json:"agents"`
}

// Ref returns the VM's reference for events.
func (v *VM) Ref() *VMRef { return &VMRef{UUID: v.UUID, Name: v.Name, Pool: v.Pool} }

// Power states, as XAPI names them. One that is newer than dpxen is "Unknown".
const (
	PowerHalted    = "Halted"
	PowerRunning   = "Running"
	PowerPaused    = "Paused"
	PowerSuspended = "Suspended"
	PowerUnknown   = "Unknown"
)

// Disk is a disk of a VM.
type Disk struct {
	UserDevice string   `json:"userdevice"`
	Device     string   `json:"device,omitempty"`
	VDI        string   `json:"vdi_uuid"`
	Name       string   `json:"name,omitempty"`
	Size       int64    `json:"virtual_size"`             // bytes
	Physical   int64    `json:"physical_bytes,omitempty"` // bytes along the chain, 0 when unknown
	SR         string   `json:"sr_uuid"`
	SRName     string   `json:"sr_name,omitempty"`
	Type       string   `json:"type,omitempty"`
	Mode       string   `json:"mode,omitempty"`
	Bootable   bool     `json:"bootable,omitempty"`
	Chain      uint32   `json:"chain_length,omitempty"`
	Tags       []string `json:"tags,omitempty"`
}

// NIC is a virtual network interface of a VM.
type NIC struct {
	Device      string `json:"device"`
	MAC         string `json:"mac"`
	NetworkUUID string `json:"network_uuid"`
	Network     string `json:"network,omitempty"`
}

// PoolByUUID returns the pool, or nil.
func (inv *Inventory) PoolByUUID(uuid string) *Pool {
	for i := range inv.Pools {
		if inv.Pools[i].UUID == uuid {
			return &inv.Pools[i]
		}
	}
	return nil
}

// FindVMs returns the VMs with that UUID, one a pool at most.
func (inv *Inventory) FindVMs(uuid string) []*VM {
	var found []*VM
	for i := range inv.VMs {
		if inv.VMs[i].UUID == uuid {
			found = append(found, &inv.VMs[i])
		}
	}
	return found
}

// agentHosts returns the UUID of the host beside each agent that answered, where it is known.
func (inv *Inventory) agentHosts() map[string]string {
	hosts := map[string]string{}
	for _, a := range inv.Agents {
		if a.OK && a.HostUUID != "" {
			hosts[a.Name] = a.HostUUID
		}
	}
	return hosts
}

// SR returns the pool's SR of that UUID, or nil.
func (p *Pool) SR(uuid string) *SR {
	for i := range p.SRs {
		if p.SRs[i].UUID == uuid {
			return &p.SRs[i]
		}
	}
	return nil
}

// Host returns the pool's host of that UUID, or nil.
func (p *Pool) Host(uuid string) *Host {
	for i := range p.Hosts {
		if p.Hosts[i].UUID == uuid {
			return &p.Hosts[i]
		}
	}
	return nil
}

// Free returns the free bytes of the SR, and whether they are known.
func (s *SR) Free() (int64, bool) {
	if s.Size <= 0 || s.Used < 0 {
		return 0, false
	}
	return max(s.Size-s.Used, 0), true
}

// sort brings everything into its fixed order.
func (inv *Inventory) sort() {
	slices.SortFunc(inv.Pools, func(a, b Pool) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
	slices.SortFunc(inv.VMs, compareVMs)
	for i := range inv.Pools {
		p := &inv.Pools[i]
		slices.SortFunc(p.Hosts, func(a, b Host) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
		slices.SortFunc(p.SRs, func(a, b SR) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
		slices.SortFunc(p.Networks, func(a, b Network) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
	}
}

func compareVMs(a, b VM) int {
	return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.PoolUUID, b.PoolUUID), cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.UUID, b.UUID))
}
