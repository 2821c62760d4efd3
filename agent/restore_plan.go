package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// A restore is planned from records that were read once, without changing anything: which disk of the file goes to
// which position and SR, and what of the VM stays as it is. Everything that can be refused is refused here.

// restoreGoal says what the VM will be.
type restoreGoal int

const (
	goalInPlace restoreGoal = iota // the VM exists: its disks are exchanged
	goalAbsent                     // the VM is made anew under its own UUID
	goalAsNew                      // another VM is made
)

// restoreOptions are the parts of a RestoreSpec that planning needs.
type restoreOptions struct {
	Goal        restoreGoal
	SRUUID      string            // all disks go there; "" = by the rules
	SRs         map[string]string // UUIDs of SRs, by name or UUID of the one that the file says
	HostUUID    string            // a host that has to see them
	Networks    map[string]string // from the file's networks to the pool's, by name or UUID
	DeleteFirst bool
	Lower       bool // the archive's version, where the host is older
}

// position is one disk of the file and where it goes.
type position struct {
	Disk   xva.Disk
	SR     xapi.SR
	Old    *xapi.VBD // what the VM has at this position; nil when nothing
	OldVDI *xapi.VDI // the disk behind Old
}

// restorePart is one archive that the controller sends, and one import.
type restorePart struct {
	SR    xapi.SR
	Disks []xva.Disk
	Whole bool // the VM itself; else a carrier
}

// restorePlan is what a restore will do.
type restorePlan struct {
	Goal      restoreGoal
	Positions []position
	Parts     []restorePart
	Untouched []xapi.VBD // the VM's disks that the file does not have
	Warnings  []string
	SHA1      bool    // the chunks' checksums must be
	Lowered   release // what the whole VM's ova.xml says instead of its version; zero: nothing else
}

// planInPlace plans the exchange of the VM's disks against those of the file.
func planInPlace(v *poolView, vm xapi.VM, ova *xva.OVA, o restoreOptions) (*restorePlan, error) {
	disks, err := ova.Disks()
	if err != nil {
		return nil, rpc.Errorf(rpc.Archive, "disks of the file: %w", err)
	}
	p := &restorePlan{Goal: goalInPlace, SHA1: v.wantsSHA1()}
	taken := map[string]bool{}
	for _, d := range disks {
		if d.Suspend {
			p.Warnings = append(p.Warnings, "the file's memory image is not restored in place")
			continue
		}
		if err := take(taken, d); err != nil {
			return nil, err
		}
		pos := position{Disk: d}
		if old := v.vbdAt(vm, d.UserDevice); old != nil {
			if err := pos.occupy(v, vm, old); err != nil {
				return nil, err
			}
		}
		if v.shared(pos.OldVDI, vm.Ref) {
			p.Warnings = append(p.Warnings, "another VM uses the disk at position "+d.UserDevice+" too: it keeps that disk, and this VM gets one of its own")
		}
		if pos.SR, err = v.targetSR(d, pos.OldVDI, o); err != nil {
			return nil, err
		}
		if err := fits(d, pos.SR); err != nil {
			return nil, err
		}
		p.Positions = append(p.Positions, pos)
	}
	if len(p.Positions) == 0 {
		return nil, rpc.Errorf(rpc.Conflict, "the file has no disk that could be restored in place")
	}
	for _, vbd := range v.disksOf(vm) {
		if !taken[vbd.UserDevice] {
			p.Untouched = append(p.Untouched, vbd)
		}
	}
	p.Parts = carrierParts(p.Positions)
	return p, v.checkRoom(p, o.DeleteFirst)
}

// vhdTypes are the SR types that keep disks as VHD whatever their release.
var vhdTypes = []string{"lvm", "lvmoiscsi", "lvmohba", "lvmofcoe", "ext", "nfs", "smb"}

// fits refuses a disk that is too large for the SR's format. Newer releases may keep disks as QCOW2 on SRs of the same types;
// where an SR says so, there is no such limit.
func fits(d xva.Disk, sr xapi.SR) error {
	if d.Size <= maxVHD || !slices.Contains(vhdTypes, sr.Type) || strings.Contains(sr.SMConfig["image-format"]+sr.SMConfig["preferred-image-formats"], "qcow2") {
		return nil
	}
	return rpc.Errorf(rpc.Conflict, "disk %q (position %s) has %d bytes, a disk on SR %q (%s) at most %d: choose another SR with --sr",
		d.Name, d.UserDevice, d.Size, sr.Name, sr.Type, int64(maxVHD))
}

// maxDevice is the highest VBD.userdevice that XAPI knows.
const maxDevice = 255

// take notes the position of a disk of the file; it must be a number, and nobody else's.
func take(taken map[string]bool, d xva.Disk) error {
	n, err := strconv.ParseUint(d.UserDevice, 10, 16)
	if err != nil || n > maxDevice || strconv.FormatUint(n, 10) != d.UserDevice {
		return rpc.Errorf(rpc.Archive, "the file has a disk at position %q, which is no position", d.UserDevice)
	}
	if taken[d.UserDevice] {
		return rpc.Errorf(rpc.Archive, "the file has two disks at position %s", d.UserDevice)
	}
	taken[d.UserDevice] = true
	return nil
}

// occupy checks that the file's disk may take the place of what the VM has there.
func (p *position) occupy(v *poolView, vm xapi.VM, old *xapi.VBD) error {
	where := fmt.Sprintf("position %s of VM %q", p.Disk.UserDevice, vm.Name)
	if old.Type != "Disk" {
		return rpc.Errorf(rpc.Conflict, "%s holds a %s drive, the file has a disk there", where, old.Type)
	}
	vdi, ok := v.vdis[old.VDI]
	if !ok {
		if !old.Empty && !old.VDI.Null() {
			return rpc.Errorf(rpc.Conflict, "%s: its disk %s is not in the pool's records", where, old.VDI)
		}
		p.Old = old
		return nil
	}
	if vdi.VirtualSize != p.Disk.Size {
		return rpc.Errorf(rpc.Conflict, "%s is %d bytes large, the file's disk %d: restore with --as-new instead",
			where, vdi.VirtualSize, p.Disk.Size)
	}
	p.Old, p.OldVDI = old, &vdi
	return nil
}

// planAnew plans a VM that is made from the file, under its own UUID or as another one.
func planAnew(v *poolView, ova *xva.OVA, o restoreOptions) (*restorePlan, error) {
	disks, err := ova.Disks()
	if err != nil {
		return nil, rpc.Errorf(rpc.Archive, "disks of the file: %w", err)
	}
	p := &restorePlan{Goal: o.Goal, SHA1: v.wantsSHA1()}
	taken := map[string]bool{}
	for _, d := range disks {
		if d.Suspend {
			p.Warnings = append(p.Warnings, "the file's memory image is not restored: the VM will be halted")
			continue
		}
		if err := take(taken, d); err != nil {
			return nil, err
		}
		pos := position{Disk: d}
		if pos.SR, err = v.targetSR(d, nil, o); err != nil {
			return nil, err
		}
		if err := fits(d, pos.SR); err != nil {
			return nil, err
		}
		p.Positions = append(p.Positions, pos)
	}
	p.Parts = wholeParts(p.Positions)
	if len(p.Positions) == 0 {
		sr, err := v.anySR(o)
		if err != nil {
			return nil, err
		}
		p.Parts = []restorePart{{SR: sr, Whole: true}}
	}
	p.Warnings = append(p.Warnings, v.missingNetworks(ova, o.Networks)...)
	if err := v.checkRelease(p, ova, o.Lower); err != nil {
		return nil, err
	}
	return p, v.checkRoom(p, false)
}

// carrierParts groups the disks by SR: XAPI puts every disk of an import on one SR.
func carrierParts(positions []position) []restorePart {
	bySR := map[string]*restorePart{}
	for _, pos := range positions {
		part := bySR[pos.SR.UUID]
		if part == nil {
			part = &restorePart{SR: pos.SR}
			bySR[pos.SR.UUID] = part
		}
		part.Disks = append(part.Disks, pos.Disk)
	}
	parts := make([]restorePart, 0, len(bySR))
	for _, part := range bySR {
		slices.SortFunc(part.Disks, func(a, b xva.Disk) int { return cmp.Compare(a.Dir, b.Dir) })
		parts = append(parts, *part)
	}
	slices.SortFunc(parts, func(a, b restorePart) int { return cmp.Compare(a.SR.UUID, b.SR.UUID) })
	return parts
}

// wholeParts is carrierParts with the VM itself in the archive of its first disk's SR. It comes last: while it is
// there, all other disks are too, and can be attached at once.
func wholeParts(positions []position) []restorePart {
	if len(positions) == 0 {
		return nil
	}
	first := slices.MinFunc(positions, func(a, b position) int { return compareDevices(a.Disk.UserDevice, b.Disk.UserDevice) })
	parts := carrierParts(positions)
	i := slices.IndexFunc(parts, func(p restorePart) bool { return p.SR.UUID == first.SR.UUID })
	parts[i].Whole = true
	whole := parts[i]
	return append(slices.Delete(parts, i, i+1), whole)
}

// compareDevices orders userdevice numbers: "2" before "10".
func compareDevices(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}
