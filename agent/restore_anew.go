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

// importTaskKey is what XAPI leaves in the other_config of an imported VM.
const importTaskKey = "import_task"

// completeAnew attaches the disks that came on carriers to the VM that was made, gives it what was held back until it is
// whole, and takes our marks off.
func (r *restore) completeAnew(ctx context.Context, j *job) (*restoreResult, error) {
	j.setPhase(phaseSwapping, "attaching disks")
	for _, pos := range r.plan.Positions {
		vdi, onCarrier := r.arrived[pos.Disk.UserDevice]
		if !onCarrier {
			continue
		}
		err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.attach(ctx, pos.Disk, vdi) })
		if err != nil {
			return nil, fmt.Errorf("attach the disk at position %s: %w", pos.Disk.UserDevice, err)
		}
	}
	if err := failpoint.Hit("agent/restore/made"); err != nil {
		return nil, err
	}
	result := &restoreResult{Warnings: slices.Clone(r.plan.Warnings)}
	vm, err := r.a.xapi.VM(ctx, r.made.Ref)
	if err != nil {
		return nil, fmt.Errorf("read the VM that was made: %w", err)
	}
	// The mark goes last of what could fail: until then the VM is ours, and is removed if we do not get to the end.
	// Once it may be off there is no way back, so nobody's leaving may stop it half way; removing it again is no error.
	if _, err := r.claim.check(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := r.a.cleanupContext(ctx)
	defer cancel()
	if r.goal == goalAsNew { // without the mark only the journal knows it until the controller does
		if err := r.claim.note(ctx, stepMade, madeNote{UUID: vm.UUID}); err != nil {
			return nil, err
		}
	}
	if err := r.letGo(ctx); err != nil {
		return nil, err
	}
	for _, key := range []string{importTaskKey, xva.CarrierKey} {
		err := r.a.retry().do(ctx, passing, func(ctx context.Context) error {
			return r.a.xapi.RemoveFromVMMap(ctx, vm.Ref, "other_config", key)
		})
		if err != nil && key == xva.CarrierKey {
			return nil, fmt.Errorf("take the mark off the VM: %w", err)
		}
	}
	if _, err := r.a.discard(ctx, j.Nonce, r.exchanged()); err != nil {
		result.Warnings = append(result.Warnings, err.Error())
	}
	failpoint.Pass("agent/restore/made-unmarked")
	result.NotRestored = r.applyHeldBack(ctx, vm)
	if err := r.setAffinity(ctx, vm); err != nil {
		result.NotRestored = append(result.NotRestored, err.Error())
	}
	if r.spec.Start {
		j.setPhase(phaseStarting, "")
		if err := r.startMade(ctx); err != nil {
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	if made, err := r.a.xapi.VM(ctx, r.made.Ref); err != nil {
		result.Warnings = append(result.Warnings, fmt.Sprintf("read the restored VM: %v", err))
	} else {
		vm = made
	}
	result.VM, r.before = vm, vm.PowerState
	return result, nil
}

// madeBlocks are the operations that would use a VM which is being made, and whose other disks are still on their way.
var madeBlocks = []string{"start", "start_on", "snapshot", "clone", "copy"}

// holdMade keeps everybody from using a VM that lacks disks: it bears its name already, and the others may take hours.
func (r *restore) holdMade(ctx context.Context, j *job) error {
	text := "dpxen is still bringing disks of this VM (session " + j.Session + "); `dpxen repair` ends what was interrupted"
	for _, op := range madeBlocks {
		err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.a.xapi.AddBlockedOperation(ctx, r.made.Ref, op, text) })
		if err != nil && !errors.Is(err, xapi.ErrDuplicateKey) {
			return fmt.Errorf("block %s of the VM that is made: %w", op, err)
		}
	}
	return nil
}

// letGo takes the blocks of holdMade off.
func (r *restore) letGo(ctx context.Context) error {
	if len(r.plan.Parts) == 1 {
		return nil
	}
	for _, op := range madeBlocks {
		err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.a.xapi.RemoveBlockedOperation(ctx, r.made.Ref, op) })
		if err != nil {
			return fmt.Errorf("unblock %s of the VM that was made: %w", op, err)
		}
	}
	return nil
}

// notMade returns an error where an attempt before has made the VM of the nonce as new, and its agent did not come to say so:
// it may have been taken into use, and is not made a second time.
func (a *Agent) notMade(ctx context.Context, nonce string) error {
	l, err := a.journal.read(ctx)
	if err != nil {
		return err
	}
	s := &sweeping{a: a, work: work{vm: nonce, nonce: nonce, steps: l.steps(nonce, nonce)}}
	vm, err := s.madeWhole(ctx)
	if err != nil || vm.Ref.Null() {
		return err
	}
	return rpc.Errorf(rpc.Conflict, "an attempt before has made the VM, as %q (%s), and its agent did not come to say so: it is kept, "+
		"and not made a second time; look at its settings and power state", vm.Name, vm.UUID)
}

// attach joins a disk to the VM that was made, unless it is there already: the answer may have been lost.
func (r *restore) attach(ctx context.Context, d xva.Disk, vdi xapi.VDI) error {
	if _, err := r.claim.check(ctx); err != nil {
		return err
	}
	now, err := r.a.xapi.VDI(ctx, vdi.Ref)
	if err != nil {
		return err
	}
	for _, ref := range now.VBDs {
		if vbd, err := r.a.xapi.VBD(ctx, ref); err == nil && vbd.VM == r.made.Ref && vbd.UserDevice == d.UserDevice {
			return nil
		}
	}
	_, err = r.a.xapi.CreateVBD(ctx, xapi.VBDSpec{VM: r.made.Ref, VDI: vdi.Ref, UserDevice: d.UserDevice, Mode: d.Mode,
		Type: "Disk", Bootable: d.Bootable, Unpluggable: d.Unpluggable})
	return err
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
