package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// poolView is what planning a restore needs of the pool's records, read once.
type poolView struct {
	pool     xapi.Pool
	srs      map[xapi.Ref]xapi.SR
	pbds     map[xapi.Ref]xapi.PBD
	vbds     map[xapi.Ref]xapi.VBD
	vdis     map[xapi.Ref]xapi.VDI
	networks map[xapi.Ref]xapi.Network
	hosts    map[xapi.Ref]xapi.Host
}

// readPoolView reads the records: one call a class, whatever the number of VMs.
func readPoolView(ctx context.Context, c *xapi.Client) (*poolView, error) {
	v := &poolView{}
	var err error
	for _, read := range []struct {
		what string
		call func() error
	}{
		{"pool", func() error { v.pool, err = c.Pool(ctx); return err }},
		{"SRs", func() error { v.srs, err = c.SRs(ctx); return err }},
		{"PBDs", func() error { v.pbds, err = c.PBDs(ctx); return err }},
		{"VBDs", func() error { v.vbds, err = c.VBDs(ctx); return err }},
		{"VDIs", func() error { v.vdis, err = c.VDIs(ctx); return err }},
		{"networks", func() error { v.networks, err = c.Networks(ctx); return err }},
		{"hosts", func() error { v.hosts, err = c.Hosts(ctx); return err }},
	} {
		if err := read.call(); err != nil {
			return nil, fmt.Errorf("read the pool's %s: %w", read.what, err)
		}
	}
	return v, nil
}

// vbdAt returns the VM's VBD at a position, of any type, or nil.
func (v *poolView) vbdAt(vm xapi.VM, userDevice string) *xapi.VBD {
	for _, ref := range vm.VBDs {
		if vbd, ok := v.vbds[ref]; ok && vbd.UserDevice == userDevice {
			return &vbd
		}
	}
	return nil
}

// shared tells whether another VM has the disk, nil for none, too.
func (v *poolView) shared(vdi *xapi.VDI, vm xapi.Ref) bool {
	return vdi != nil && slices.ContainsFunc(vdi.VBDs, func(ref xapi.Ref) bool {
		vbd, ok := v.vbds[ref]
		return ok && vbd.VM != vm
	})
}

// disksOf returns the VM's VBDs that hold a disk, by position.
func (v *poolView) disksOf(vm xapi.VM) []xapi.VBD {
	var out []xapi.VBD
	for _, ref := range vm.VBDs {
		if vbd, ok := v.vbds[ref]; ok && vbd.Type == "Disk" && !vbd.Empty {
			out = append(out, vbd)
		}
	}
	slices.SortFunc(out, func(a, b xapi.VBD) int { return compareDevices(a.UserDevice, b.UserDevice) })
	return out
}

// targetSR is where a disk of the file goes: where the caller says, else where the disk is that it replaces, else where
// the file says, if a host has that SR plugged.
func (v *poolView) targetSR(d xva.Disk, old *xapi.VDI, o restoreOptions) (xapi.SR, error) {
	disk := fmt.Sprintf("disk %q (position %s)", d.Name, d.UserDevice)
	if wanted := o.srFor(d); wanted != "" {
		sr, ok := v.srByUUID(wanted)
		if !ok {
			return xapi.SR{}, rpc.Errorf(rpc.Conflict, "%s: no SR %s in the pool", disk, wanted)
		}
		return sr, v.usable(sr, disk, o.HostUUID)
	}
	if old != nil {
		sr, ok := v.srs[old.SR]
		if !ok {
			return xapi.SR{}, rpc.Errorf(rpc.Conflict, "%s: the SR of the disk to replace is not in the pool's records", disk)
		}
		return sr, v.usable(sr, disk, o.HostUUID)
	}
	sr, ok := v.srByUUID(d.SRUUID)
	switch {
	case !ok:
		return xapi.SR{}, rpc.Errorf(rpc.Conflict, "%s: its SR %q (%s) is not in this pool: choose one with --sr, or --sr %q=NEW",
			disk, d.SRName, d.SRUUID, d.SRName)
	case v.usable(sr, disk, o.HostUUID) != nil:
		return xapi.SR{}, rpc.Errorf(rpc.Conflict, "%w: choose another with --sr, or --sr %q=NEW", v.usable(sr, disk, o.HostUUID), d.SRName)
	}
	return sr, nil
}

// srFor is the SR that the caller has chosen for a disk, or empty.
func (o restoreOptions) srFor(d xva.Disk) string {
	return cmp.Or(o.SRs[d.SRUUID], o.SRs[d.SRName], o.SRUUID)
}

// maxVHD is the largest virtual disk that a VHD can be, in bytes: 2040 GiB.
const maxVHD = 2040 << 30

// usable says why disks cannot be put on the SR, or not seen from the host where one is given.
func (v *poolView) usable(sr xapi.SR, disk, host string) error {
	switch {
	case sr.ContentType == "iso":
		return rpc.Errorf(rpc.Conflict, "%s: SR %q holds ISO images only", disk, sr.Name)
	case sr.Type == "udev":
		return rpc.Errorf(rpc.Conflict, "%s: SR %q is of removable devices, on which no disk can be made", disk, sr.Name)
	case !v.plugged(sr):
		return rpc.Errorf(rpc.Conflict, "%s: no host has SR %q plugged", disk, sr.Name)
	case host == "":
		return nil
	}
	for ref, h := range v.hosts {
		if strings.EqualFold(h.UUID, host) {
			if v.pluggedOn(sr, ref) {
				return nil
			}
			return rpc.Errorf(rpc.Conflict, "%s: host %q does not see SR %q", disk, h.Name, sr.Name)
		}
	}
	return rpc.Errorf(rpc.Conflict, "%s: no host %s in the pool", disk, host)
}

func (v *poolView) plugged(sr xapi.SR) bool {
	return slices.ContainsFunc(sr.PBDs, func(ref xapi.Ref) bool { return v.pbds[ref].CurrentlyAttached })
}

func (v *poolView) pluggedOn(sr xapi.SR, host xapi.Ref) bool {
	return slices.ContainsFunc(sr.PBDs, func(ref xapi.Ref) bool { return v.pbds[ref].CurrentlyAttached && v.pbds[ref].Host == host })
}

func (v *poolView) srByUUID(uuid string) (xapi.SR, bool) {
	for _, sr := range v.srs {
		if sr.UUID == uuid {
			return sr, true
		}
	}
	return xapi.SR{}, false
}

// anySR is for a VM without disks: XAPI wants an SR all the same.
func (v *poolView) anySR(o restoreOptions) (xapi.SR, error) {
	if wanted := o.SRUUID; wanted != "" {
		sr, ok := v.srByUUID(wanted)
		if !ok {
			return xapi.SR{}, rpc.Errorf(rpc.Conflict, "no SR %s in the pool", wanted)
		}
		return sr, v.usable(sr, "the VM", o.HostUUID)
	}
	if sr, ok := v.srs[v.pool.DefaultSR]; ok && v.usable(sr, "", o.HostUUID) == nil {
		return sr, nil
	}
	return xapi.SR{}, rpc.Errorf(rpc.Conflict, "the pool has no usable default SR: choose one with --sr")
}

// thinTypes are the SR types whose disks take only what was written to them.
var thinTypes = []string{"ext", "nfs", "smb", "file", "xfs", "zfs", "cephfs", "moosefs", "glusterfs", "linstor", "largeblock"}

func thin(sr xapi.SR) bool { return slices.Contains(thinTypes, sr.Type) }

// checkRoom refuses a plan whose disks do not fit.
func (v *poolView) checkRoom(p *restorePlan, deleteFirst bool) error {
	for _, part := range p.Parts {
		if part.SR.PhysicalSize <= 0 {
			continue // some SR types do not tell
		}
		need, free := int64(0), part.SR.PhysicalSize-part.SR.PhysicalUtilisation
		for _, pos := range p.Positions {
			if pos.SR.UUID == part.SR.UUID {
				need += pos.needs()
				if deleteFirst {
					free += pos.frees()
				}
			}
		}
		if need > free {
			hint := "choose another SR with --sr"
			if p.Goal == goalInPlace && !deleteFirst {
				hint += ", or give up the old disks' safety with --delete-first"
			}
			return rpc.Errorf(rpc.SRFull, "SR %q has %d bytes free, the restore needs %d: %s", part.SR.Name, free, need, hint)
		}
	}
	return nil
}

// missingNetworks names the file's networks that the pool does not have: XAPI would make them, unconnected.
func (v *poolView) missingNetworks(ova *xva.OVA, mapped map[string]string) []string {
	var out []string
	for _, vif := range ova.VM().VIFs {
		name := vif.NetworkName
		if to := cmp.Or(mapped[vif.NetworkName], mapped[vif.NetworkUUID]); to != "" {
			name = to
		}
		if name == "" || v.hasNetwork(name) {
			continue
		}
		text := fmt.Sprintf("network %q of interface %s is not in this pool; XenServer makes one of that name, connected to nothing: give --network %q=NEW", name, vif.Device, vif.NetworkName)
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

func (v *poolView) hasNetwork(nameOrUUID string) bool {
	for _, n := range v.networks {
		if n.Name == nameOrUUID || strings.EqualFold(n.UUID, nameOrUUID) {
			return true
		}
	}
	return false
}

// networkNames turns the UUIDs that a caller's map leads to into names, which is what an import goes by.
func (v *poolView) networkNames(mapped map[string]string) map[string]string {
	out := maps.Clone(mapped)
	for from, to := range mapped {
		for _, n := range v.networks {
			if strings.EqualFold(n.UUID, to) {
				out[from] = n.Name
			}
		}
	}
	return out
}

// inFile drops from a map of networks what the file does not have: the same map may be for many VMs.
func inFile(ova *xva.OVA, mapped map[string]string) map[string]string {
	out := map[string]string{}
	for _, vif := range ova.VM().VIFs {
		for _, key := range []string{vif.NetworkName, vif.NetworkUUID} {
			if to, ok := mapped[key]; ok && key != "" {
				out[key] = to
			}
		}
	}
	return out
}
