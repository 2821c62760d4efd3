package agent

import (
	"context"
	"fmt"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// completeAnew attaches the disks that came on carriers to the VM that was made, gives it what was held back until it is
// whole, and takes our marks off.
func (r *restore) completeAnew(ctx context.Context, j *job) (*restoreResult, error) {
	j.setPhase(phaseSwapping, "attaching disks")
	for _, pos := range r.plan.Positions {
		vdi, onCarrier := r.arrived[pos.Disk.UserDevice]
		if !onCarrier {
			continue
		}
		_, err := r.a.xapi.CreateVBD(ctx, xapi.VBDSpec{VM: r.made.Ref, VDI: vdi.Ref, UserDevice: pos.Disk.UserDevice, Mode: pos.Disk.Mode,
			Type: "Disk", Bootable: pos.Disk.Bootable, Unpluggable: pos.Disk.Unpluggable})
		if err != nil {
			return nil, fmt.Errorf("attach the disk at position %s: %w", pos.Disk.UserDevice, err)
		}
	}
	result := &restoreResult{Warnings: r.plan.Warnings}
	vm, err := r.a.xapi.VM(ctx, r.made.Ref)
	if err != nil {
		return nil, fmt.Errorf("read the VM that was made: %w", err)
	}
	// The mark goes last of what could fail: until then the VM is ours, and is removed if we do not get to the end.
	if err := r.a.xapi.RemoveFromVMMap(ctx, vm.Ref, "other_config", xva.CarrierKey); err != nil {
		return nil, fmt.Errorf("take the mark off the VM: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.a.cfg.Timing.Cleanup)
	defer cancel()
	if _, err := r.a.discard(ctx, j.Nonce); err != nil {
		result.Warnings = append(result.Warnings, err.Error())
	}
	result.NotRestored = r.applyHeldBack(ctx, vm)
	if r.spec.Start {
		j.setPhase(phaseStarting, "")
		if err := r.startMade(ctx); err != nil {
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	if vm, err = r.a.xapi.VM(ctx, r.made.Ref); err != nil {
		return nil, fmt.Errorf("read the restored VM: %w", err)
	}
	result.VM, r.before = vm, vm.PowerState
	return result, nil
}

// applyHeldBack sets what would have let others start the VM before it was whole, and what a snapshot had lost.
func (r *restore) applyHeldBack(ctx context.Context, vm xapi.VM) (missed []string) {
	for _, field := range snapshotResets {
		if err := setReset(ctx, r.a.xapi, vm, r.spec.OVA, field, r.spec.Settings); err != nil {
			missed = append(missed, fmt.Sprintf("%s: %v", field, err))
		}
	}
	if r.goal == goalAsNew {
		return missed // a copy does not start by itself
	}
	if config, ok := r.spec.OVA.VMField("other_config"); ok {
		if auto, ok := config.Map()["auto_poweron"]; ok {
			if err := r.a.xapi.AddToVMMap(ctx, vm.Ref, "other_config", "auto_poweron", auto); err != nil {
				missed = append(missed, fmt.Sprintf("auto_poweron: %v", err))
			}
		}
	}
	return missed
}

func (r *restore) startMade(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.a.cfg.Timing.Start)
	defer cancel()
	return r.a.power.start(ctx, r.made.Ref)
}
