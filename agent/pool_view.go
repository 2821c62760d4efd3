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
func (v *poolView) targetSR(d xva.Disk, old *xapi.VDI, wanted string) (xapi.SR, error) {
	disk := fmt.Sprintf("disk %q (position %s)", d.Name, d.UserDevice)
	if wanted != "" {
		sr, ok := v.srByUUID(wanted)
		if !ok {
			return xapi.SR{}, rpc.Errorf(rpc.Conflict, "%s: no SR %s in the pool", disk, wanted)
		}
		return sr, v.usable(sr, disk)
	}
	if old != nil {
		sr, ok := v.srs[old.SR]
		if !ok {
			return xapi.SR{}, rpc.Errorf(rpc.Conflict, "%s: the SR of the disk to replace is not in the pool's records", disk)
		}
		return sr, v.usable(sr, disk)
	}
	sr, ok := v.srByUUID(d.SRUUID)
	if !ok || v.usable(sr, disk) != nil {
		return xapi.SR{}, rpc.Errorf(rpc.Conflict,
			"%s: its SR %q (%s) is not in this pool or not plugged: choose one with --sr", disk, d.SRName, d.SRUUID)
	}
	return sr, nil
}

// usable says why disks cannot be put on the SR.
func (v *poolView) usable(sr xapi.SR, disk string) error {
	if sr.ContentType == "iso" {
		return rpc.Errorf(rpc.Conflict, "%s: SR %q holds ISO images only", disk, sr.Name)
	}
	if !v.plugged(sr) {
		return rpc.Errorf(rpc.Conflict, "%s: no host has SR %q plugged", disk, sr.Name)
	}
	return nil
}

func (v *poolView) plugged(sr xapi.SR) bool {
	return slices.ContainsFunc(sr.PBDs, func(ref xapi.Ref) bool { return v.pbds[ref].CurrentlyAttached })
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
func (v *poolView) anySR(wanted string) (xapi.SR, error) {
	if wanted != "" {
		sr, ok := v.srByUUID(wanted)
		if !ok {
			return xapi.SR{}, rpc.Errorf(rpc.Conflict, "no SR %s in the pool", wanted)
		}
		return sr, v.usable(sr, "the VM")
	}
	if sr, ok := v.srs[v.pool.DefaultSR]; ok && v.usable(sr, "") == nil {
		return sr, nil
	}
	return xapi.SR{}, rpc.Errorf(rpc.Conflict, "the pool has no usable default SR: choose one with --sr")
}

// thinTypes are the SR types whose disks take only what was written to them.
var thinTypes = []string{"ext", "nfs", "smb", "file", "xfs", "zfs", "cephfs", "moosefs", "glusterfs", "linstor", "largeblock"}

// checkRoom refuses a plan whose disks do not fit: fully on thick SRs; on thin ones a tenth must be free at least, since
// nobody knows how much of a disk is zero before it was sent.
func (v *poolView) checkRoom(p *restorePlan, deleteFirst bool) error {
	for _, part := range p.Parts {
		need, free := p.bytesFor(part.SR.UUID), part.SR.PhysicalSize-part.SR.PhysicalUtilisation
		if part.SR.PhysicalSize <= 0 {
			continue // some SR types do not tell
		}
		if slices.Contains(thinTypes, part.SR.Type) {
			need /= 10
		}
		if deleteFirst {
			for _, pos := range p.Positions {
				if pos.SR.UUID == part.SR.UUID && pos.OldVDI != nil {
					free += pos.OldVDI.PhysicalUtilisation
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
