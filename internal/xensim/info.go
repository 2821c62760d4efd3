package xensim

import (
	"context"
	"fmt"
	"slices"
)

// Info is what a client must know to use the pool; xensim prints it as one line
// of JSON.
type Info struct {
	Hosts    []HostInfo `json:"hosts"`
	VMs      []VMInfo   `json:"vms"`
	Username string     `json:"username"`
	Password string     `json:"password"`
	// Control is the URL of the control endpoint, if there is one.
	Control string `json:"control,omitempty"`
}

// HostInfo tells of a host. HTTP and HTTPS have the same port.
type HostInfo struct {
	Name        string `json:"name"`
	UUID        string `json:"uuid"`
	HTTP        string `json:"http"`
	HTTPS       string `json:"https"`
	Fingerprint string `json:"fingerprint"`
	Master      bool   `json:"master"`
	Socket      string `json:"socket,omitempty"`
}

// VMInfo tells of a VM.
type VMInfo struct {
	UUID       string `json:"uuid"`
	Name       string `json:"name"`
	PowerState string `json:"power_state"`
}

// Info gives the pool's addresses and VMs as they are now.
func (p *Pool) Info() Info {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	info := Info{Username: p.cfg.User, Password: p.cfg.Password, Control: p.ctlAddr, VMs: []VMInfo{}}
	for i, h := range p.hosts {
		addr := h.ln.Addr().String()
		info.Hosts = append(info.Hosts, HostInfo{
			Name: h.name, UUID: h.uuid, HTTP: "http://" + addr, HTTPS: "https://" + addr, Fingerprint: h.fingerprint,
			Master: i == p.current, Socket: h.sockPath,
		})
	}
	for _, vm := range p.db.all("VM") {
		if isPlainVM(vm) {
			info.VMs = append(info.VMs, VMInfo{UUID: vm.uuid(), Name: vm.name(), PowerState: vm.str("power_state")})
		}
	}
	return info
}

func isPlainVM(vm *object) bool {
	return !vm.is("is_a_template") && !vm.is("is_a_snapshot") && !vm.is("is_control_domain")
}

// State is the pool as assertions want it.
type State struct {
	VMs []VMState `json:"vms"`
	// Snapshots and Templates leave default templates out. Carriers are templates
	// whose other_config names one (dpxen:carrier); they are among Templates too.
	Snapshots []VMState `json:"snapshots"`
	Templates []VMState `json:"templates"`
	Carriers  []VMState `json:"carriers"`
	// Orphans are managed VDIs that no VBD names, ISOs left out.
	Orphans         []VDIState        `json:"orphans"`
	PoolOtherConfig map[string]string `json:"pool_other_config"`
	// Tasks are those that are not finished.
	Tasks    []string  `json:"tasks"`
	Sessions int       `json:"sessions"`
	SRs      []SRState `json:"srs"`
}

// VMState tells of a VM, snapshot or template.
type VMState struct {
	Ref        string            `json:"ref"`
	UUID       string            `json:"uuid"`
	Name       string            `json:"name"`
	PowerState string            `json:"power_state"`
	Host       string            `json:"host,omitempty"`
	SnapshotOf string            `json:"snapshot_of,omitempty"`
	Disks      []DiskState       `json:"disks"`
	VIFs       []VIFState        `json:"vifs"`
	Blocked    map[string]string `json:"blocked_operations"`
	Config     map[string]string `json:"other_config"`
	Tags       []string          `json:"tags"`
	Memory     int64             `json:"memory_static_max"`
	Current    []string          `json:"current_operations"`
}

// DiskState tells of a VBD and what is in it.
type DiskState struct {
	UserDevice string   `json:"userdevice"`
	Type       string   `json:"type"`
	Mode       string   `json:"mode"`
	Bootable   bool     `json:"bootable"`
	Attached   bool     `json:"attached"`
	Empty      bool     `json:"empty"`
	VDI        VDIState `json:"vdi"`
}

// VDIState tells of a disk; SHA256 is that of its whole contents, in hex.
type VDIState struct {
	UUID   string            `json:"uuid"`
	Name   string            `json:"name"`
	Size   int64             `json:"size"`
	SHA256 string            `json:"sha256,omitempty"`
	SR     string            `json:"sr"`
	Config map[string]string `json:"other_config,omitempty"`
}

// VIFState tells of a network interface.
type VIFState struct {
	Device  string `json:"device"`
	MAC     string `json:"mac"`
	Network string `json:"network"`
}

// SRState tells of a storage repository, in bytes.
type SRState struct {
	UUID string `json:"uuid"`
	Name string `json:"name"`
	Size int64  `json:"size"`
	Used int64  `json:"used"`
	VDIs int    `json:"vdis"`
}

// Dump gives the pool's state with the digests of all disks that a VM, snapshot
// or template has. It ends early with ctx.
func (p *Pool) Dump(ctx context.Context) (State, error) {
	s, images := p.dump()
	for _, list := range [][]VMState{s.VMs, s.Snapshots, s.Templates, s.Carriers} {
		for _, vm := range list {
			for i := range vm.Disks {
				if err := p.digest(ctx, &vm.Disks[i].VDI, images); err != nil {
					return State{}, err
				}
			}
		}
	}
	for i := range s.Orphans {
		if err := p.digest(ctx, &s.Orphans[i], images); err != nil {
			return State{}, err
		}
	}
	return s, nil
}

func (p *Pool) digest(ctx context.Context, vdi *VDIState, images map[string]*volume) error {
	v := images[vdi.UUID]
	if v == nil || v.image == nil {
		return nil
	}
	sum, err := v.image.Digest(ctx)
	if err != nil {
		return fmt.Errorf("xensim: digest of VDI %s: %w", vdi.UUID, err)
	}
	vdi.SHA256 = sum
	return nil
}

func (p *Pool) dump() (State, map[string]*volume) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	s := State{
		VMs: []VMState{}, Snapshots: []VMState{}, Templates: []VMState{}, Carriers: []VMState{}, Orphans: []VDIState{},
		Tasks: []string{}, PoolOtherConfig: p.poolObject().m("other_config"), Sessions: len(p.db.tables["session"]),
	}
	images := map[string]*volume{}
	for _, vdi := range p.db.all("VDI") {
		images[vdi.uuid()] = p.volumes[vdi.ref]
		sr := p.db.find("SR", vdi.str("SR"))
		if vdi.is("managed") && len(vdi.refs("VBDs")) == 0 && vdi.str("type") != "suspend" && sr.str("content_type") != "iso" {
			s.Orphans = append(s.Orphans, p.vdiState(vdi))
		}
	}
	for _, vm := range p.db.all("VM") {
		if vm.is("is_control_domain") || isDefaultTemplate(vm) {
			continue
		}
		v := p.vmState(vm)
		switch {
		case vm.is("is_a_snapshot"):
			s.Snapshots = append(s.Snapshots, v)
		case vm.is("is_a_template"):
			s.Templates = append(s.Templates, v)
			if _, ok := vm.m("other_config")["dpxen:carrier"]; ok {
				s.Carriers = append(s.Carriers, v)
			}
		default:
			s.VMs = append(s.VMs, v)
		}
	}
	for _, t := range p.db.all("task") {
		if t.str("status") == "pending" {
			s.Tasks = append(s.Tasks, t.name()+" "+t.ref)
		}
	}
	for _, sr := range p.db.all("SR") {
		s.SRs = append(s.SRs, SRState{
			UUID: sr.uuid(), Name: sr.name(), Size: sr.num("physical_size"), Used: sr.num("physical_utilisation"), VDIs: len(sr.refs("VDIs")),
		})
	}
	return s, images
}

func (p *Pool) vdiState(vdi *object) VDIState {
	s := VDIState{UUID: vdi.uuid(), Name: vdi.name(), Size: vdi.num("virtual_size"), Config: vdi.m("other_config")}
	if sr := p.db.find("SR", vdi.str("SR")); sr != nil {
		s.SR = sr.uuid()
	}
	return s
}

func (p *Pool) vmState(vm *object) VMState {
	v := VMState{
		Ref: vm.ref, UUID: vm.uuid(), Name: vm.name(), PowerState: vm.str("power_state"), Disks: []DiskState{}, VIFs: []VIFState{},
		Blocked: vm.m("blocked_operations"), Config: vm.m("other_config"), Tags: vm.refs("tags"), Memory: vm.num("memory_static_max"),
		Current: []string{},
	}
	for _, op := range vm.m("current_operations") {
		v.Current = append(v.Current, op)
	}
	slices.Sort(v.Current)
	if h := p.db.find("host", vm.str("resident_on")); h != nil {
		v.Host = h.name()
	}
	if o := p.db.find("VM", vm.str("snapshot_of")); o != nil {
		v.SnapshotOf = o.uuid()
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		d := DiskState{
			UserDevice: vbd.str("userdevice"), Type: vbd.str("type"), Mode: vbd.str("mode"), Bootable: vbd.is("bootable"),
			Attached: vbd.is("currently_attached"), Empty: vbd.is("empty"),
		}
		if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil {
			d.VDI = p.vdiState(vdi)
		}
		v.Disks = append(v.Disks, d)
	}
	slices.SortFunc(v.Disks, func(a, b DiskState) int { return compareDevices(a.UserDevice, b.UserDevice) })
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		f := VIFState{Device: vif.str("device"), MAC: vif.str("MAC")}
		if n := p.db.find("network", vif.str("network")); n != nil {
			f.Network = n.name()
		}
		v.VIFs = append(v.VIFs, f)
	}
	slices.SortFunc(v.VIFs, func(a, b VIFState) int { return compareDevices(a.Device, b.Device) })
	return v
}

func compareDevices(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}
