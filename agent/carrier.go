package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// Restored disks arrive on carriers: templates that cannot be started and are recognisable from birth, by their name and
// by a mark that they and their disks carry (DESIGN section 7). A VM that is made anew carries the same mark until it is
// complete. What has the mark and the nonce of a piece of work is ours; nothing else ever is.

// isCarrier tells whether a VM record was made by a restore of anybody's: such VMs are nobody's business.
func isCarrier(vm xapi.VM) bool {
	nonce, marked := vm.OtherConfig[xva.CarrierKey]
	return marked && vm.IsTemplate && vm.Name == xva.CarrierName(nonce)
}

// made is what a piece of work has made in the pool, by its mark.
type made struct {
	carriers []xapi.VM  // templates
	whole    []xapi.VM  // VMs made anew that are not complete yet
	disks    []xapi.VDI // all disks with the mark
}

func (m made) empty() bool { return len(m.carriers)+len(m.whole)+len(m.disks) == 0 }

// of is that part of it which the import of a task has made: XAPI leaves the task's reference in all that it makes.
func (m made) of(task xapi.Ref) made {
	vm := func(vm xapi.VM) bool { return vm.OtherConfig[importTaskKey] != string(task) }
	return made{carriers: slices.DeleteFunc(slices.Clone(m.carriers), vm), whole: slices.DeleteFunc(slices.Clone(m.whole), vm),
		disks: slices.DeleteFunc(slices.Clone(m.disks), func(vdi xapi.VDI) bool { return vdi.SMConfig[importTaskKey] != string(task) })}
}

// vms are the VM records of it.
func (m made) vms() []xapi.VM { return slices.Concat(m.carriers, m.whole) }

// refs are those of its VM records.
func (m made) refs() []xapi.Ref {
	var out []xapi.Ref
	for _, vm := range m.vms() {
		out = append(out, vm.Ref)
	}
	return out
}

// names lists all of it, by what and UUID.
func (m made) names() []string {
	var out []string
	for _, vm := range m.vms() {
		out = append(out, "VM record "+vm.UUID)
	}
	for _, vdi := range m.disks {
		out = append(out, "disk "+vdi.UUID)
	}
	return out
}

// busy returns the reason why nothing can be removed yet: XAPI still works on one of them.
func (m made) busy() string {
	for _, vm := range m.vms() {
		for _, op := range vm.CurrentOperations {
			return fmt.Sprintf("VM %q has the operation %s", vm.Name, op)
		}
	}
	for _, vm := range m.whole {
		if vm.PowerState != halted {
			return fmt.Sprintf("VM %q, which is not complete, is %s", vm.Name, vm.PowerState)
		}
	}
	for _, vdi := range m.disks {
		for _, op := range vdi.CurrentOperations {
			return fmt.Sprintf("disk %s has the operation %s", vdi.UUID, op)
		}
	}
	return ""
}

// findMade looks for what carries the nonce.
func findMade(ctx context.Context, c *xapi.Client, nonce string) (made, error) {
	var m made
	if !validNonce(nonce) {
		return m, fmt.Errorf("look for carriers: %q is no nonce", nonce)
	}
	vms, err := c.VMs(ctx)
	if err != nil {
		return m, fmt.Errorf("look for carriers: %w", err)
	}
	for _, vm := range vms {
		switch {
		case vm.OtherConfig[xva.CarrierKey] != nonce || vm.IsControlDomain:
		case isCarrier(vm):
			m.carriers = append(m.carriers, vm)
		case !vm.IsSnapshot && !vm.IsTemplate:
			m.whole = append(m.whole, vm)
		}
	}
	vdis, err := c.VDIs(ctx)
	if err != nil {
		return m, fmt.Errorf("look for carriers' disks: %w", err)
	}
	for _, vdi := range vdis {
		// A snapshot of such a disk inherits the mark; it is its maker's.
		if vdi.OtherConfig[xva.CarrierKey] == nonce && !vdi.IsSnapshot {
			m.disks = append(m.disks, vdi)
		}
	}
	if err := m.leaveCopies(ctx, c); err != nil {
		return m, fmt.Errorf("look for copies of what was made: %w", err)
	}
	byUUID := func(a, b xapi.VM) int { return compareDevices(a.UUID, b.UUID) }
	slices.SortFunc(m.carriers, byUUID)
	slices.SortFunc(m.whole, byUUID)
	slices.SortFunc(m.disks, func(a, b xapi.VDI) int { return compareDevices(a.UUID, b.UUID) })
	return m, nil
}

// leaveCopies leaves away what a user has cloned or copied of ours meanwhile. Such VMs and disks inherit the mark, but not what
// an import leaves in the sm_config of each disk. Where no disk has that, nothing can be told by it.
func (m *made) leaveCopies(ctx context.Context, c *xapi.Client) error {
	imported := map[xapi.Ref]bool{}
	for _, vdi := range m.disks {
		if _, named := vdi.SMConfig[importTaskKey]; named {
			imported[vdi.Ref] = true
		}
	}
	if len(imported) == 0 || len(imported) == len(m.disks) && len(m.whole) == 0 {
		return nil
	}
	var failed error
	m.whole = slices.DeleteFunc(m.whole, func(vm xapi.VM) bool {
		disks, own := 0, false
		for _, ref := range vm.VBDs {
			vbd, err := c.VBD(ctx, ref)
			if err != nil && !gone(err) {
				failed = err
			}
			if err == nil && vbd.Type == "Disk" && !vbd.Empty {
				disks++
				own = own || imported[vbd.VDI]
			}
		}
		return disks > 0 && !own // one without disks may be ours, whose disks are removed already
	})
	// What hangs on a VM is looked at before it is deleted.
	m.disks = slices.DeleteFunc(m.disks, func(vdi xapi.VDI) bool { return !imported[vdi.Ref] && len(vdi.VBDs) == 0 })
	return failed
}

// exchanging leaves VMs away but that one, by UUID, where there is one: a restore in place makes none, so another one with its
// mark is a user's, made of a carrier.
func (m *made) exchanging(uuid string) {
	if uuid != "" {
		m.whole = slices.DeleteFunc(m.whole, func(vm xapi.VM) bool { return vm.UUID != uuid })
	}
}

// discard removes everything that a piece of work made: disks that hang on nothing but its own VMs, then those VMs.
// of is the VM, by UUID, where its disks alone were to be exchanged; else empty.
// Disks that somebody else uses, the restored VM for one, lose the mark and stay. It returns what is left, by what and
// UUID. It may be repeated; while XAPI still works on something of it, the error is xapi.ErrBusy.
func (a *Agent) discard(ctx context.Context, nonce, of string) (leftovers []string, err error) {
	m, err := findMade(ctx, a.xapi, nonce)
	m.exchanging(of)
	if err != nil || m.empty() {
		return nil, err
	}
	if why := m.busy(); why != "" {
		return m.names(), fmt.Errorf("remove what restore %s made: %s: %w", nonce, why, xapi.ErrBusy)
	}
	if err := failpoint.Hit("agent/carrier/before-disks"); err != nil {
		return nil, err
	}
	var errs []error
	for _, vdi := range m.disks {
		err := a.destroyDisk(ctx, vdi.Ref, m.refs()...)
		if errors.Is(err, errNotOurs) {
			err = a.unmarkDisk(ctx, vdi.Ref)
		}
		if err != nil {
			leftovers = append(leftovers, "disk "+vdi.UUID)
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return leftovers, errors.Join(errs...) // the VM records stay: they name the disks
	}
	if err := failpoint.Hit("agent/carrier/before-records"); err != nil {
		return m.names(), err
	}
	for _, vm := range m.vms() {
		err := a.retry().do(ctx, passing, func(ctx context.Context) error { return a.xapi.DestroyVM(ctx, vm.Ref) })
		if err != nil && !gone(err) {
			leftovers = append(leftovers, "VM record "+vm.UUID)
			errs = append(errs, fmt.Errorf("delete %q: %w", vm.Name, err))
		}
	}
	return leftovers, errors.Join(errs...)
}

func (a *Agent) unmarkDisk(ctx context.Context, ref xapi.Ref) error {
	if err := a.xapi.RemoveFromVDIOtherConfig(ctx, ref, xva.CarrierKey); err != nil && !gone(err) {
		return fmt.Errorf("take the mark off disk %s: %w", ref, err)
	}
	return nil
}

// arrivedOn returns the disks of a VM that an import made, by position, and checks them against what was sent.
func arrivedOn(ctx context.Context, c *xapi.Client, vm xapi.Ref, part restorePart) (map[string]xapi.VDI, error) {
	rec, err := c.VM(ctx, vm)
	if err != nil {
		return nil, fmt.Errorf("read the imported VM: %w", err)
	}
	got := map[string]xapi.VDI{}
	for _, ref := range rec.VBDs {
		vbd, err := c.VBD(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("read an imported VBD: %w", err)
		}
		if vbd.Type != "Disk" || vbd.Empty {
			continue
		}
		vdi, err := c.VDI(ctx, vbd.VDI)
		if err != nil {
			return nil, fmt.Errorf("read the imported disk at position %s: %w", vbd.UserDevice, err)
		}
		got[vbd.UserDevice] = vdi
	}
	for _, d := range part.Disks {
		vdi, ok := got[d.UserDevice]
		switch {
		case !ok:
			return nil, rpc.Errorf(rpc.ImportFailed, "the import has no disk at position %s", d.UserDevice)
		case vdi.VirtualSize < d.Size:
			return nil, rpc.Errorf(rpc.ImportFailed, "the imported disk at position %s has %d bytes instead of %d",
				d.UserDevice, vdi.VirtualSize, d.Size)
		case vdi.SR != part.SR.Ref:
			return nil, rpc.Errorf(rpc.ImportFailed, "the imported disk at position %s is on another SR than %q", d.UserDevice, part.SR.Name)
		}
	}
	return got, nil
}
