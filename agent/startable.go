package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// startable returns an error where a running VM must not be shut down, or could not be started again once it is off: what would
// switch it off is blocked, hard where that may be forced, or its start, no host would take it, or a disk of its that is not plugged in now, and that a start plugs in, is in use by another VM.
func (a *Agent) startable(ctx context.Context, vm xapi.VM, force bool) error {
	if err := stoppable(vm, force); err != nil {
		return err
	}
	if text, blocked := vm.BlockedOperations["start"]; blocked && !isOurBlock(text) {
		return rpc.Errorf(rpc.Conflict, "the VM could not be started again, so it is not shut down: its start is blocked (%s)", text)
	}
	if err := a.disksFree(ctx, vm); err != nil {
		return err
	}
	return a.hostFor(ctx, vm)
}

// stoppable returns an error where a running VM's user has blocked what would switch it off.
func stoppable(vm xapi.VM, force bool) error {
	text, blocked := vm.BlockedOperations["clean_shutdown"]
	if !blocked {
		return nil
	}
	if _, hard := vm.BlockedOperations["hard_shutdown"]; force && !hard {
		return nil
	}
	return rpc.Errorf(rpc.PowerState, "the VM is protected from being shut down: its clean_shutdown is blocked (%s)", text)
}

// noBoot are the answers of VM.assert_can_boot_here that stand as long as nobody does something about them. What others say,
// of a device that the VM itself has now for one, tells nothing of the moment when it is off.
var noBoot = map[string]bool{"HOST_DISABLED": true, "HOST_DISABLED_UNTIL_REBOOT": true, "HOST_NOT_LIVE": true, "HOST_OFFLINE": true,
	"HOST_NOT_ENOUGH_FREE_MEMORY": true, "VM_REQUIRES_SR": true, "VM_REQUIRES_NETWORK": true, "VM_HOST_INCOMPATIBLE_VERSION": true,
	"VM_INCOMPATIBLE_WITH_THIS_HOST": true}

// hostFor returns an error where every host says that it could not start the VM. That the host where it runs is short of memory
// is no hindrance: what it takes is the VM's own.
func (a *Agent) hostFor(ctx context.Context, vm xapi.VM) error {
	hosts, err := a.xapi.Hosts(ctx)
	if err != nil {
		return fmt.Errorf("read which hosts could start the VM again: %w", err)
	}
	var whys []string
	for ref, host := range hosts {
		var why *xapi.Error
		err := a.xapi.AssertCanBootHere(ctx, vm.Ref, ref)
		if passing(err) && !errors.As(err, &why) {
			return fmt.Errorf("ask whether host %q could start the VM again: %w", host.Name, err)
		}
		if !errors.As(err, &why) || !noBoot[why.Code] || ref == vm.ResidentOn && why.Code == "HOST_NOT_ENOUGH_FREE_MEMORY" {
			return nil
		}
		whys = append(whys, fmt.Sprintf("host %q says %s", host.Name, why.Code))
	}
	slices.Sort(whys)
	return rpc.Errorf(rpc.Conflict, "the VM could not be started again, so it is not shut down: %s", strings.Join(whys, ", "))
}

// disksFree returns an error where another VM has a disk plugged in that a start would plug in.
func (a *Agent) disksFree(ctx context.Context, vm xapi.VM) error {
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
