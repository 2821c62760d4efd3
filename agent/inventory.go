package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// vmInfo is a VM as manifests and reports know it.
type vmInfo struct {
	Ref                            xapi.Ref
	UUID, Name, Description, Power string
	ResidentHost                   string // UUID, or empty
	Tags                           []string
	Disks                          []diskInfo // by position
	NICs                           []nicInfo  // by position
	CanShutDown                    bool
	Problem, ClaimedBy             string
	Replica, SnapshotProblem       string
	CapableHosts                   []string // UUIDs
	MemoryImage                    int64    // bytes of a suspended VM's memory image, at most; 0 = none, or unknown
	Settings                       map[string]string
}

// diskInfo is a VBD with its VDI and SR.
type diskInfo struct {
	VBD, VDI, SR                             xapi.Ref
	UserDevice, Device, Mode, Type           string
	Bootable                                 bool
	VDIUUID, Name, SRUUID, SRName, SRContent string
	VirtualSize                              int64 // bytes
	PhysicalBytes                            int64 // along the chain; 0 = unknown
	ChainLength                              int   // 0 = unknown
	Tags                                     []string
}

// nicInfo is a VIF with its network.
type nicInfo struct {
	Device, MAC, NetworkUUID, NetworkName string
}

// inventory holds the records that infos are made from: all of the pool, or
// those around one VM.
type inventory struct {
	vms      map[xapi.Ref]xapi.VM
	vbds     map[xapi.Ref]xapi.VBD
	vdis     map[xapi.Ref]xapi.VDI
	vifs     map[xapi.Ref]xapi.VIF
	srs      map[xapi.Ref]xapi.SR
	hosts    map[xapi.Ref]xapi.Host
	alive    map[xapi.Ref]bool // by host metrics
	plugs    map[plug]bool     // which host has which SR plugged; false = known to it, and not plugged
	networks map[xapi.Ref]xapi.Network
	tools    map[xapi.Ref]xapi.GuestMetrics
	ledger   *ledger

	byUUID map[string]xapi.Ref // VDIs
}

// loadInventory reads the whole pool: a call for each class, whatever the number of VMs.
func (a *Agent) loadInventory(ctx context.Context) (*inventory, error) {
	inv := &inventory{}
	err := firstError(
		func() error { return a.loadMachines(ctx, inv) },
		func() (err error) { inv.vifs, err = a.xapi.VIFs(ctx); return },
		func() error { return a.loadPlaces(ctx, inv) },
		func() (err error) { inv.ledger, err = a.journal.read(ctx); return },
	)
	if err != nil {
		return nil, fmt.Errorf("read the pool: %w", err)
	}
	inv.index()
	return inv, nil
}

// loadMachines reads VMs and their disks.
func (a *Agent) loadMachines(ctx context.Context, inv *inventory) error {
	return firstError(
		func() (err error) { inv.vms, err = a.xapi.VMs(ctx); return },
		func() (err error) { inv.vbds, err = a.xapi.VBDs(ctx); return },
		func() (err error) { inv.vdis, err = a.xapi.VDIs(ctx); return },
		func() (err error) { inv.tools, err = a.xapi.GuestMetrics(ctx); return optional(err) },
	)
}

// loadPlaces reads what VMs use: SRs, hosts, networks.
func (a *Agent) loadPlaces(ctx context.Context, inv *inventory) error {
	return firstError(
		func() error { return a.loadStorage(ctx, inv) },
		func() (err error) { inv.networks, err = a.xapi.Networks(ctx); return },
	)
}

// loadStorage reads SRs, hosts, and which of them see each other.
func (a *Agent) loadStorage(ctx context.Context, inv *inventory) error {
	return firstError(
		func() (err error) { inv.srs, err = a.xapi.SRs(ctx); return },
		func() error { return a.loadPlugs(ctx, inv) },
		func() (err error) { inv.hosts, err = a.xapi.Hosts(ctx); return },
		func() (err error) { inv.alive, err = a.hostsAlive(ctx); return optional(err) },
	)
}

// plug is an SR on a host.
type plug struct{ sr, host xapi.Ref }

// loadPlugs reads which host has which SR plugged.
func (a *Agent) loadPlugs(ctx context.Context, inv *inventory) error {
	pbds, err := a.xapi.PBDs(ctx)
	if err != nil {
		return err
	}
	inv.plugs = make(map[plug]bool, len(pbds))
	for _, pbd := range pbds {
		inv.plugs[plug{pbd.SR, pbd.Host}] = pbd.CurrentlyAttached
	}
	return nil
}

// optional lets XAPI refuse what only adds to the picture, as metrics do.
func optional(err error) error {
	var refused *xapi.Error
	if errors.As(err, &refused) && !errors.Is(err, xapi.ErrAuth) {
		return nil
	}
	return err
}

// loadVM reads what is around one VM, object by object: a pool of a thousand
// VMs is not read for each of their backups. Sizes along the chains of its
// disks are not known then.
func (a *Agent) loadVM(ctx context.Context, vm xapi.VM) (*inventory, error) {
	inv := &inventory{vms: map[xapi.Ref]xapi.VM{vm.Ref: vm}, vbds: map[xapi.Ref]xapi.VBD{},
		vdis: map[xapi.Ref]xapi.VDI{}, vifs: map[xapi.Ref]xapi.VIF{}, ledger: &ledger{}}
	for _, ref := range vm.VBDs {
		vbd, err := a.xapi.VBD(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("read a disk of the VM: %w", err)
		}
		inv.vbds[ref] = vbd
		if vbd.Type == "CD" || vbd.Empty || vbd.VDI.Null() {
			continue
		}
		vdi, err := a.xapi.VDI(ctx, vbd.VDI)
		if err != nil {
			return nil, fmt.Errorf("read disk %s of the VM: %w", vbd.UserDevice, err)
		}
		inv.vdis[vbd.VDI] = vdi
	}
	for _, ref := range vm.VIFs {
		vif, err := a.xapi.VIF(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("read a network interface of the VM: %w", err)
		}
		inv.vifs[ref] = vif
	}
	if err := a.loadPlaces(ctx, inv); err != nil {
		return nil, fmt.Errorf("read the pool: %w", err)
	}
	inv.index()
	return inv, nil
}

func (inv *inventory) index() {
	inv.byUUID = make(map[string]xapi.Ref, len(inv.vdis))
	for ref, vdi := range inv.vdis {
		inv.byUUID[vdi.UUID] = ref
	}
}

func firstError(fs ...func() error) error {
	for _, f := range fs {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// isUsers tells whether a VM record is a user's VM: no template, snapshot,
// control domain or carrier.
func isUsers(vm xapi.VM) bool {
	if vm.IsTemplate || vm.IsDefaultTemplate || vm.IsSnapshot || vm.IsControlDomain {
		return false
	}
	if vm.OtherConfig["default_template"] == "true" {
		return false
	}
	_, marked := vm.OtherConfig[xva.CarrierKey]
	return !marked && !strings.HasPrefix(vm.Name, xva.CarrierName(""))
}

// users returns the users' VMs, by name and UUID.
func (inv *inventory) users() []vmInfo {
	var out []vmInfo
	for _, vm := range inv.vms {
		if isUsers(vm) {
			out = append(out, inv.vm(vm))
		}
	}
	slices.SortFunc(out, func(a, b vmInfo) int {
		return strings.Compare(a.Name+"\x00"+a.UUID, b.Name+"\x00"+b.UUID)
	})
	return out
}

// vm describes a VM.
func (inv *inventory) vm(vm xapi.VM) vmInfo {
	out := vmInfo{Ref: vm.Ref, UUID: vm.UUID, Name: vm.Name, Description: vm.Description, Power: vm.PowerState,
		ResidentHost: inv.hosts[vm.ResidentOn].UUID, Tags: slices.Sorted(slices.Values(vm.Tags)), Settings: settingsOf(vm)}
	for _, ref := range vm.VBDs {
		vbd, ok := inv.vbds[ref]
		if !ok || vbd.Type == "CD" || vbd.Empty || vbd.VDI.Null() {
			continue
		}
		out.Disks = append(out.Disks, inv.disk(vbd))
	}
	slices.SortFunc(out.Disks, func(a, b diskInfo) int { return comparePositions(a.UserDevice, b.UserDevice) })
	for _, ref := range vm.VIFs {
		if vif, ok := inv.vifs[ref]; ok {
			network := inv.networks[vif.Network]
			out.NICs = append(out.NICs, nicInfo{vif.Device, vif.MAC, network.UUID, network.Name})
		}
	}
	slices.SortFunc(out.NICs, func(a, b nicInfo) int { return comparePositions(a.Device, b.Device) })
	out.CanShutDown = vm.PowerState != running || slices.Contains(vm.AllowedOperations, "clean_shutdown") ||
		inv.tools[vm.GuestMetrics].PVDriversDetected
	out.CapableHosts = inv.capableHosts(out.Disks)
	if vm.PowerState == suspended {
		out.MemoryImage = inv.vdis[vm.SuspendVDI].VirtualSize
	}
	out.Problem = inv.problem(out)
	out.Replica, out.SnapshotProblem = replica(vm), inv.snapshotProblem(vm, out.Disks)
	for _, e := range inv.ledger.claims(vm.UUID) {
		out.ClaimedBy = holding(e.Record.Agent, e.Record.Controller, e.Record.Session, e.Record.Since)
	}
	return out
}

// comparePositions orders device numbers as numbers.
func comparePositions(a, b string) int {
	x, errX := strconv.Atoi(a)
	y, errY := strconv.Atoi(b)
	if errX == nil && errY == nil {
		return x - y
	}
	return strings.Compare(a, b)
}

// disk describes a VBD that is a disk.
func (inv *inventory) disk(vbd xapi.VBD) diskInfo {
	vdi := inv.vdis[vbd.VDI]
	sr := inv.srs[vdi.SR]
	d := diskInfo{VBD: vbd.Ref, VDI: vbd.VDI, SR: vdi.SR, UserDevice: vbd.UserDevice, Device: vbd.Device, Mode: vbd.Mode,
		Type: vdi.Type, Bootable: vbd.Bootable, VDIUUID: vdi.UUID, Name: vdi.Name, SRUUID: sr.UUID, SRName: sr.Name,
		SRContent: sr.ContentType, VirtualSize: vdi.VirtualSize, Tags: slices.Sorted(slices.Values(vdi.Tags))}
	d.PhysicalBytes, d.ChainLength = inv.chain(vdi)
	return d
}

// chain sums physical_utilisation along sm_config's vhd-parent: the leaf alone
// misses its base copies (reference section 8). Zeros where a link is not known.
func (inv *inventory) chain(vdi xapi.VDI) (bytes int64, length int) {
	seen := map[string]bool{}
	for {
		if vdi.PhysicalUtilisation <= 0 || seen[vdi.UUID] {
			return 0, 0
		}
		seen[vdi.UUID] = true
		bytes += vdi.PhysicalUtilisation
		length++
		parent := vdi.SMConfig["vhd-parent"]
		if parent == "" {
			return bytes, length
		}
		ref, ok := inv.byUUID[parent]
		if !ok {
			return 0, 0
		}
		vdi = inv.vdis[ref]
	}
}

// capableHosts returns the UUIDs of the live hosts that have the SRs of all
// these disks plugged. One that is disabled exports all the same (reference
// section 3.1).
func (inv *inventory) capableHosts(disks []diskInfo) []string {
	var out []string
	for ref, host := range inv.hosts {
		sees := func(d diskInfo) bool { return inv.plugged(d.SR, ref) }
		if inv.live(host) && !slices.ContainsFunc(disks, func(d diskInfo) bool { return !sees(d) }) {
			out = append(out, host.UUID)
		}
	}
	slices.Sort(out)
	return out
}

// plugged tells whether the host has the SR plugged.
func (inv *inventory) plugged(sr, host xapi.Ref) bool {
	return inv.plugs[plug{sr, host}]
}

// pluggedHosts returns the UUIDs of the hosts that have the SR plugged.
func (inv *inventory) pluggedHosts(sr xapi.Ref) []string {
	var out []string
	for ref, host := range inv.hosts {
		if inv.plugged(sr, ref) {
			out = append(out, host.UUID)
		}
	}
	slices.Sort(out)
	return out
}

// problem says why any backup of the VM would be refused, or is empty.
func (inv *inventory) problem(vm vmInfo) string {
	for _, d := range vm.Disks {
		vdi, known := inv.vdis[d.VDI]
		switch {
		case !known:
			return fmt.Sprintf("disk %s has no record", d.UserDevice)
		case vdi.Missing:
			return fmt.Sprintf("disk %s (%q) is missing from its storage repository", d.UserDevice, d.Name)
		case inv.deadHome(d.SR) != "":
			return fmt.Sprintf("storage repository %q of disk %s is local to host %s, which is not live", d.SRName, d.UserDevice, inv.deadHome(d.SR))
		case len(inv.pluggedHosts(d.SR)) == 0:
			return fmt.Sprintf("storage repository %q of disk %s is not plugged into any host", d.SRName, d.UserDevice)
		}
	}
	if len(vm.CapableHosts) == 0 {
		return "no live host sees all its storage repositories"
	}
	return ""
}

// settingsOf returns, under their names in XAPI, the settings that a snapshot
// does not take over, so that a restore can bring them back.
func settingsOf(vm xapi.VM) map[string]string {
	out := map[string]string{
		"order":          strconv.FormatInt(vm.Order, 10),
		"start_delay":    strconv.FormatInt(vm.StartDelay, 10),
		"shutdown_delay": strconv.FormatInt(vm.ShutdownDelay, 10),
	}
	if vm.HARestartPriority != "" {
		out["ha_restart_priority"] = vm.HARestartPriority
	}
	for _, op := range slices.Sorted(maps.Keys(vm.BlockedOperations)) {
		out["blocked_operations:"+op] = vm.BlockedOperations[op]
	}
	return out
}
