package agent

import (
	"context"
	"fmt"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// startable returns an error where a running VM could not be started again once it is off: a disk of its that is not plugged in
// now, and that a start plugs in, is in use by another VM.
func (a *Agent) startable(ctx context.Context, vm xapi.VM) error {
	for _, ref := range vm.VBDs {
		vbd, err := a.xapi.VBD(ctx, ref)
		if gone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the disks of the VM: %w", err)
		}
		if vbd.Type == "CD" || vbd.Empty || vbd.CurrentlyAttached || vbd.VDI.Null() {
			continue
		}
		if err := a.free(ctx, vbd); err != nil {
			return err
		}
	}
	return nil
}

// free returns an error where another VM has the VBD's disk plugged in, so that this one cannot have it.
func (a *Agent) free(ctx context.Context, own xapi.VBD) error {
	vdi, err := a.xapi.VDI(ctx, own.VDI)
	if gone(err) || err == nil && vdi.Sharable {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the disk at position %s: %w", own.UserDevice, err)
	}
	for _, ref := range vdi.VBDs {
		vbd, err := a.xapi.VBD(ctx, ref)
		if gone(err) || err == nil && (!vbd.CurrentlyAttached || vbd.VM == own.VM || vbd.Mode == "RO" && own.Mode == "RO") {
			continue
		}
		if err != nil {
			return fmt.Errorf("read who has disk %q: %w", vdi.Name, err)
		}
		vm, err := a.xapi.VM(ctx, vbd.VM)
		if err == nil && vm.IsControlDomain {
			continue // for the length of an export
		}
		return rpc.Errorf(rpc.Conflict, "disk %q (%s) at position %s is not plugged in, and VM %q has it: the VM could not be started again, so it is "+
			"not shut down; take the disk off one of them", vdi.Name, vdi.UUID, own.UserDevice, vm.Name)
	}
	return nil
}
