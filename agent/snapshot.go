package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// snapshotPrefix begins the name of every snapshot of ours; the nonce follows.
const snapshotPrefix = xva.SnapshotPrefix

// snapshotNote is the journal's snapshot entry, written before the snapshot is
// taken: a snapshot of the VM with exactly this name is ours.
type snapshotNote struct {
	Name string `json:"name"`
}

// errNotOurs says that an object is not, or no longer, one that we may delete.
var errNotOurs = errors.New("not made by dpxen, or in use by another VM")

// takeSnapshot returns a snapshot of vm by name, without the disks in leaveOut:
// the one that an earlier attempt made, or a new one. The name is unique and in
// the journal already. Where the call's answer is lost the snapshot is looked
// for. An existing one is trusted with the disks that it has.
func (a *Agent) takeSnapshot(ctx context.Context, vm xapi.VM, name string, leaveOut []xapi.Ref) (xapi.VM, error) {
	snap, err := a.findSnapshot(ctx, vm, name)
	if err != nil {
		return xapi.VM{}, err
	}
	if snap.Ref.Null() {
		if snap, err = a.newSnapshot(ctx, vm, name, leaveOut); err != nil {
			return xapi.VM{}, err
		}
	}
	// Where the host does not understand the argument, or the attempt before died in between.
	if err := a.dropFromSnapshot(ctx, snap, leaveOut); err != nil {
		return xapi.VM{}, err
	}
	// Otherwise an import of the file would make a template of it.
	if err := a.xapi.SetIsATemplate(ctx, snap.Ref, false); err != nil {
		var refused *xapi.Error
		if !errors.As(err, &refused) || refused.Code != "LICENCE_RESTRICTION" {
			return xapi.VM{}, fmt.Errorf("make snapshot %s a VM: %w", snap.UUID, err)
		}
	}
	return a.xapi.VM(ctx, snap.Ref)
}

func (a *Agent) newSnapshot(ctx context.Context, vm xapi.VM, name string, leaveOut []xapi.Ref) (xapi.VM, error) {
	if err := failpoint.Hit("agent/snapshot/before-call"); err != nil {
		return xapi.VM{}, err
	}
	ref, _, err := a.xapi.Snapshot(ctx, vm.Ref, name, leaveOut)
	if err != nil {
		// Looked for also when ctx is over: what was made in spite of that is the cleanup's to know, not ours.
		if found, findErr := a.lostSnapshot(ctx, vm, name, err); findErr == nil && !found.Ref.Null() {
			return found, nil
		}
		return xapi.VM{}, fmt.Errorf("take a snapshot: %w", err)
	}
	if err := failpoint.Hit("agent/snapshot/after-call"); err != nil {
		return xapi.VM{}, err
	}
	snap, err := a.xapi.VM(ctx, ref)
	if err != nil {
		return xapi.VM{}, fmt.Errorf("read the new snapshot: %w", err)
	}
	return snap, nil
}

// lostSnapshot looks for a snapshot whose call failed without a verdict.
func (a *Agent) lostSnapshot(ctx context.Context, vm xapi.VM, name string, cause error) (xapi.VM, error) {
	if !noVerdict(cause) {
		return xapi.VM{}, nil // XAPI said no
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timing.Settle)
	defer cancel()
	return a.settledSnapshot(ctx, vm, name)
}

// settledSnapshot finds the snapshot by name once no snapshot of the VM is
// being taken any more; an XAPI that is away is waited for until ctx ends. The
// zero VM says that there is none.
func (a *Agent) settledSnapshot(ctx context.Context, vm xapi.VM, name string) (xapi.VM, error) {
	var snap xapi.VM
	again := func(err error) bool { return passing(err) || errors.Is(err, errBeingTaken) }
	err := a.retry().do(ctx, again, func(ctx context.Context) error {
		var rec xapi.VM
		var err error
		if !vm.Ref.Null() { // it is, where the VM was deleted
			rec, err = a.xapi.VM(ctx, vm.Ref)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("read the VM: %w", err)
		}
		if snap, err = a.findSnapshot(ctx, vm, name); err != nil || !snap.Ref.Null() {
			return err
		}
		for _, op := range rec.CurrentOperations {
			if op == "snapshot" {
				return errBeingTaken
			}
		}
		return nil
	})
	return snap, err
}

// errIsBack: XAPI has crashed before the deletion of a snapshot was on its disk.
var errIsBack = errors.New("a snapshot that was deleted is there again after a crash of XAPI")

// isBack tells whether a snapshot that was deleted is there again; an XAPI that is away is waited for until ctx ends.
func (a *Agent) isBack(ctx context.Context, vm xapi.VM, name string) (back bool, err error) {
	err = a.retry().do(ctx, passing, func(ctx context.Context) error {
		snap, err := a.findSnapshot(ctx, vm, name)
		back = !snap.Ref.Null()
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look whether snapshot %s stays deleted: %w", name, err)
	}
	return back, nil
}

var errBeingTaken = errors.New("a snapshot is being taken")

// findSnapshot returns the snapshot of vm by that name, or the zero VM.
func (a *Agent) findSnapshot(ctx context.Context, vm xapi.VM, name string) (xapi.VM, error) {
	refs, err := a.xapi.VMsByName(ctx, name)
	if err != nil {
		return xapi.VM{}, fmt.Errorf("look for %q: %w", name, err)
	}
	for _, ref := range refs {
		snap, err := a.xapi.VM(ctx, ref)
		if gone(err) {
			continue
		}
		if err != nil {
			return xapi.VM{}, fmt.Errorf("look for %q: %w", name, err)
		}
		ours, err := a.isSnapshotOf(ctx, snap, vm.Ref, name)
		if err != nil {
			return xapi.VM{}, fmt.Errorf("look for %q: %w", name, err)
		}
		if ours {
			return snap, nil
		}
	}
	return xapi.VM{}, nil
}

// isSnapshotOf recognises a snapshot of ours by what it is of and its name. One whose VM was deleted, and perhaps made
// anew, is of nothing any more: then the nonce in its name has to do.
func (a *Agent) isSnapshotOf(ctx context.Context, snap xapi.VM, vm xapi.Ref, name string) (bool, error) {
	if !snap.IsSnapshot || snap.Name != name {
		return false, nil
	}
	if snap.SnapshotOf == vm || snap.SnapshotOf.Null() {
		return true, nil
	}
	_, err := a.xapi.VM(ctx, snap.SnapshotOf)
	if gone(err) {
		return true, nil
	}
	return false, err
}

// dropFromSnapshot deletes those disks of a snapshot of ours that are snapshots
// of the given VDIs.
func (a *Agent) dropFromSnapshot(ctx context.Context, snap xapi.VM, leaveOut []xapi.Ref) error {
	if len(leaveOut) == 0 {
		return nil
	}
	disks, err := a.snapshotDisks(ctx, snap)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if !slices.Contains(leaveOut, d.vdi.SnapshotOf) {
			continue
		}
		// The VBD goes with the disk; the other way round a crash in between would leave a disk that nobody knows.
		if err := a.destroyDisk(ctx, d.vdi.Ref, snap.Ref); err != nil {
			return fmt.Errorf("leave disk %q out of the snapshot: %w", d.vdi.Name, err)
		}
		if err := a.xapi.DestroyVBD(ctx, d.vbd.Ref); err != nil && !gone(err) {
			return fmt.Errorf("leave disk %q out of the snapshot: %w", d.vdi.Name, err)
		}
	}
	return nil
}

// attachedDisk is a VBD of type Disk with its VDI.
type attachedDisk struct {
	vbd xapi.VBD
	vdi xapi.VDI
}

// snapshotDisks returns the disks of a snapshot that are snapshots themselves.
func (a *Agent) snapshotDisks(ctx context.Context, snap xapi.VM) ([]attachedDisk, error) {
	var out []attachedDisk
	for _, ref := range snap.VBDs {
		vbd, err := a.xapi.VBD(ctx, ref)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a disk of snapshot %s: %w", snap.UUID, err)
		}
		if vbd.Type == "CD" || vbd.Empty || vbd.VDI.Null() {
			continue
		}
		vdi, err := a.xapi.VDI(ctx, vbd.VDI)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a disk of snapshot %s: %w", snap.UUID, err)
		}
		if vdi.IsSnapshot {
			out = append(out, attachedDisk{vbd, vdi})
		}
	}
	return out, nil
}

// deleteSnapshot deletes a snapshot of ours with its disks (DESIGN section 3):
// the disks first, so that the record still names them if we die in between. It
// returns what is left, by what and UUID, with the reasons. XAPI's passing
// troubles are waited out until ctx ends.
func (a *Agent) deleteSnapshot(ctx context.Context, vm xapi.Ref, name string, ref xapi.Ref) (leftovers []string, err error) {
	err = a.retry().do(ctx, passing, func(ctx context.Context) (err error) {
		leftovers, err = a.tryDeleteSnapshot(ctx, vm, name, ref)
		return err
	})
	return leftovers, err
}

func (a *Agent) tryDeleteSnapshot(ctx context.Context, vm xapi.Ref, name string, ref xapi.Ref) (leftovers []string, err error) {
	snap, err := a.xapi.VM(ctx, ref)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return []string{"snapshot " + name}, fmt.Errorf("read snapshot %q: %w", name, err)
	}
	left := []string{"snapshot " + snap.UUID}
	if ours, err := a.isSnapshotOf(ctx, snap, vm, name); err != nil {
		return left, err
	} else if !ours {
		return nil, fmt.Errorf("snapshot %s: %w", snap.UUID, errNotOurs)
	}
	disks, err := a.snapshotDisks(ctx, snap)
	if err != nil {
		return left, err
	}
	if memory, ok, err := a.snapshotMemory(ctx, snap); err != nil {
		return left, err
	} else if ok {
		disks = append(disks, attachedDisk{vdi: memory})
	}
	var errs []error
	for _, d := range disks {
		err := a.destroyDisk(ctx, d.vdi.Ref, snap.Ref)
		if errors.Is(err, errNotOurs) {
			continue // hangs on another VM: no longer a disk of this snapshot alone
		}
		if err != nil {
			left = append(left, "disk "+d.vdi.UUID)
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return left, errors.Join(errs...)
	}
	if err := failpoint.Hit("agent/snapshot/between-disks-and-record"); err != nil {
		return left, err
	}
	if err := a.xapi.DestroyVM(ctx, snap.Ref); err != nil && !gone(err) {
		return left, fmt.Errorf("delete snapshot %s: %w", snap.UUID, err)
	}
	return nil, nil
}

// snapshotMemory returns the memory image that a snapshot of a suspended VM has
// for itself.
func (a *Agent) snapshotMemory(ctx context.Context, snap xapi.VM) (xapi.VDI, bool, error) {
	if snap.SuspendVDI.Null() {
		return xapi.VDI{}, false, nil
	}
	vdi, err := a.xapi.VDI(ctx, snap.SuspendVDI)
	if gone(err) {
		return xapi.VDI{}, false, nil
	}
	if err != nil {
		return xapi.VDI{}, false, fmt.Errorf("read the memory image of snapshot %s: %w", snap.UUID, err)
	}
	all, err := a.xapi.VMs(ctx)
	if err != nil {
		return xapi.VDI{}, false, fmt.Errorf("read who else has that memory image: %w", err)
	}
	for ref, vm := range all {
		if ref != snap.Ref && vm.SuspendVDI == snap.SuspendVDI {
			return xapi.VDI{}, false, nil
		}
	}
	return vdi, vdi.IsSnapshot, nil
}

// destroyDisk deletes a VDI after reading it again: every VBD on it must belong
// to one of the VMs in owners, which are snapshots or carriers of ours, or to
// none, otherwise the error is errNotOurs (DESIGN section 7). One that the
// control domain still has plugged after an export is waited for until ctx
// ends. One that is gone already is as good.
func (a *Agent) destroyDisk(ctx context.Context, vdi xapi.Ref, owners ...xapi.Ref) error {
	return a.destroyDiskTelling(ctx, vdi, func(error) {}, owners...)
}

// destroyDiskTelling is destroyDisk; answered is told how each call for the disk's destruction ended, nil for success.
func (a *Agent) destroyDiskTelling(ctx context.Context, vdi xapi.Ref, answered func(error), owners ...xapi.Ref) error {
	return a.retry().do(ctx, passing, func(ctx context.Context) error {
		rec, err := a.xapi.VDI(ctx, vdi)
		if gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read disk %s: %w", vdi, err)
		}
		if err := a.onlyOn(ctx, rec, owners, nil); err != nil {
			return err
		}
		if err := failpoint.Hit("agent/disk/before-destroy"); err != nil {
			return err
		}
		err = a.xapi.DestroyVDI(ctx, vdi)
		if answered(err); err != nil && !gone(err) {
			return fmt.Errorf("delete disk %s: %w", rec.UUID, err)
		}
		if err := failpoint.Hit("agent/disk/after-destroy"); err != nil {
			return err
		}
		if _, err := a.xapi.VDI(ctx, vdi); err == nil {
			return fmt.Errorf("disk %s is still there after its deletion: %w", rec.UUID, xapi.ErrInUse)
		}
		return nil
	})
}

// onlyOn returns errNotOurs where the disk hangs on a VM that is not in owners,
// and xapi.ErrInUse where that is the control domain, which lets go of it soon.
// VBDs in leaving do not count.
func (a *Agent) onlyOn(ctx context.Context, vdi xapi.VDI, owners []xapi.Ref, leaving map[xapi.Ref]bool) error {
	for _, ref := range vdi.VBDs {
		if leaving[ref] {
			continue
		}
		vbd, err := a.xapi.VBD(ctx, ref)
		if gone(err) || (err == nil && slices.Contains(owners, vbd.VM)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read who has disk %s: %w", vdi.UUID, err)
		}
		vm, err := a.xapi.VM(ctx, vbd.VM)
		switch {
		case gone(err):
		case err != nil:
			return fmt.Errorf("read who has disk %s: %w", vdi.UUID, err)
		case vm.IsControlDomain:
			return fmt.Errorf("disk %s is plugged into the control domain: %w", vdi.UUID, xapi.ErrInUse)
		default:
			return fmt.Errorf("disk %s hangs on VM %s: %w", vdi.UUID, vm.UUID, errNotOurs)
		}
	}
	return nil
}
