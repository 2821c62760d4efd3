package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// The exchange of a halted VM's disks. XAPI has no setter for VBD.VDI: a disk is moved by VBD.destroy and VBD.create,
// one at a time, so for a moment the VM has disks of two generations. During that moment it is kept from starting, and
// what to do is in the journal: setPosition may be repeated, in either direction, from any point where a crash left it.

// swapStep is one position of the exchange.
type swapStep struct {
	Device      string            `json:"d"`           // VBD.userdevice
	Old         string            `json:"o,omitempty"` // UUID of the VDI before; "" = the position was free
	New         string            `json:"n"`           // UUID of the VDI that arrived
	SR          string            `json:"r,omitempty"` // UUID of the SR that it arrived on; "" = from an older agent
	Mode        string            `json:"m"`
	Bootable    bool              `json:"b,omitempty"`
	Unpluggable bool              `json:"u,omitempty"`
	QOSType     string            `json:"qt,omitempty"`
	QOSParams   map[string]string `json:"qp,omitempty"`
	OtherConfig map[string]string `json:"oc,omitempty"`
}

// swapNote is the exchange as it stands in the journal before the first VBD is touched.
type swapNote struct {
	Steps       []swapStep        `json:"p"`
	Start       bool              `json:"s,omitempty"` // the VM was running and is to be started at the end
	Blocked     map[string]string `json:"bl,omitempty"`
	DeleteFirst bool              `json:"df,omitempty"`
	KeepOld     bool              `json:"k,omitempty"`
}

// swapBlocks are the operations that could run the VM on mixed disks, or copy or destroy it meanwhile.
var swapBlocks = []string{"start", "start_on", "resume", "revert", "destroy", "snapshot", "clone", "copy"}

// errDisksChanged means that somebody else changed the VM's disks while the restore was under way.
var errDisksChanged = errors.New("the VM's disks were changed by somebody else")

// swapper exchanges the disks of one VM.
type swapper struct {
	xapi    *xapi.Client
	vm      xapi.Ref
	session string
	// first says that the old disks are deleted before the new ones arrive; it is told in the blocks.
	first bool
	check func(context.Context) error // that the claim still stands; asked before every change of the VM's disks
	made  map[xapi.Ref]bool           // VBDs that undo and putBack have made
}

// stepsFor makes the steps from the plan and the disks that arrived, by position.
func stepsFor(plan *restorePlan, arrived map[string]xapi.VDI) ([]swapStep, error) {
	var steps []swapStep
	for _, pos := range plan.Positions {
		vdi, ok := arrived[pos.Disk.UserDevice]
		if !ok {
			return nil, rpc.Errorf(rpc.ImportFailed, "the disk for position %s did not arrive", pos.Disk.UserDevice)
		}
		step := swapStep{Device: pos.Disk.UserDevice, New: vdi.UUID, SR: pos.SR.UUID, Mode: pos.Disk.Mode,
			Bootable: pos.Disk.Bootable, Unpluggable: pos.Disk.Unpluggable}
		if pos.OldVDI != nil {
			step.Old = pos.OldVDI.UUID
		}
		if old := pos.Old; old != nil {
			step.Mode, step.Bootable, step.Unpluggable = old.Mode, old.Bootable, old.Unpluggable
			step.QOSType, step.QOSParams, step.OtherConfig = old.QOSAlgorithmType, old.QOSAlgorithmParams, old.OtherConfig
		}
		steps = append(steps, step)
	}
	slices.SortFunc(steps, func(a, b swapStep) int { return compareDevices(a.Device, b.Device) })
	return steps, nil
}

// prior returns the VM's own values of the operations that block will block.
func prior(vm xapi.VM) map[string]string {
	blocked := map[string]string{}
	for _, op := range swapBlocks {
		if text, ok := vm.BlockedOperations[op]; ok && !isOurBlock(text) {
			blocked[op] = text
		}
	}
	return blocked
}

// blockPrefix begins the text of every block of ours.
const blockPrefix = "dpxen is exchanging this VM's disks "

func isOurBlock(text string) bool { return strings.HasPrefix(text, blockPrefix) }

// deletesFirst ends the text of the blocks where the old disks are deleted before the new ones arrive.
const deletesFirst = "; its old disks are deleted first"

func (s *swapper) message() string {
	text := blockPrefix + "(session " + s.session + "); `dpxen repair` ends what was interrupted"
	if s.first {
		text += deletesFirst
	}
	return text
}

// block keeps everybody from starting, copying or destroying the VM. It may be repeated.
func (s *swapper) block(ctx context.Context) error {
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return fmt.Errorf("read the VM before blocking it: %w", err)
	}
	text := s.message()
	for _, op := range swapBlocks {
		if vm.BlockedOperations[op] == text {
			continue
		}
		if _, other := vm.BlockedOperations[op]; other {
			if err := s.xapi.RemoveBlockedOperation(ctx, s.vm, op); err != nil {
				return fmt.Errorf("block %s: %w", op, err)
			}
		}
		if err := failpoint.Hit("agent/swap/blocking"); err != nil {
			return err
		}
		if err := s.xapi.AddBlockedOperation(ctx, s.vm, op, text); err != nil && !errors.Is(err, xapi.ErrDuplicateKey) {
			return fmt.Errorf("block %s: %w", op, err)
		}
	}
	return nil
}

// unblock gives the VM its own blocked operations back, those too that a crash between two calls left away. It may be
// repeated, and leaves alone what others set since.
func (s *swapper) unblock(ctx context.Context, before map[string]string) error {
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return fmt.Errorf("read the VM before unblocking it: %w", err)
	}
	for _, op := range swapBlocks {
		text, blocked := vm.BlockedOperations[op]
		if blocked && !isOurBlock(text) {
			continue
		}
		if blocked {
			if err := s.xapi.RemoveBlockedOperation(ctx, s.vm, op); err != nil {
				return fmt.Errorf("unblock %s: %w", op, err)
			}
		}
		if err := failpoint.Hit("agent/swap/unblocking"); err != nil {
			return err
		}
		if own, ok := before[op]; ok {
			if err := s.xapi.AddBlockedOperation(ctx, s.vm, op, own); err != nil && !errors.Is(err, xapi.ErrDuplicateKey) {
				return fmt.Errorf("block %s as it was: %w", op, err)
			}
		}
	}
	return nil
}

// unchanged returns an error unless every position holds what it held when the exchange was planned, or already its new
// disk. Nothing has been changed then.
func (s *swapper) unchanged(ctx context.Context, steps []swapStep) error {
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return fmt.Errorf("read the VM: %w", err)
	}
	for _, step := range steps {
		found, err := s.at(ctx, vm, step)
		if err != nil {
			return err
		}
		has := ""
		for _, o := range found {
			has = cmp.Or(o.disk, has)
		}
		if has != step.Old && (has == "" || has != step.New) {
			return fmt.Errorf("%w: position %s holds disk %s instead of %s", errDisksChanged, step.Device,
				cmp.Or(has, "(none)"), cmp.Or(step.Old, "(none)"))
		}
	}
	return nil
}

// exchange puts every position on its new disk; undo puts every position back.
func (s *swapper) exchange(ctx context.Context, steps []swapStep) error {
	for _, step := range steps {
		if err := s.setPosition(ctx, step, step.New); err != nil {
			return fmt.Errorf("give position %s its restored disk %s: %w", step.Device, step.New, err)
		}
		failpoint.Pass("agent/swap/after-position")
	}
	return nil
}

// undo leaves alone a position where somebody else has put a disk meanwhile.
func (s *swapper) undo(ctx context.Context, steps []swapStep) error {
	var errs []error
	for _, step := range steps {
		if err := s.former(ctx, step); err != nil && !errors.Is(err, errDisksChanged) {
			errs = append(errs, fmt.Errorf("give position %s its former disk %s back: %w", step.Device, cmp.Or(step.Old, "(none)"), err))
		}
	}
	return errors.Join(errs...)
}

// setPosition makes the position hold the disk want ("" = nothing), whatever of the step was done before. A disk that is
// neither the step's old nor its new one is somebody else's change, and an error. Where nothing has to be done the VM may
// be in any power state.
func (s *swapper) setPosition(ctx context.Context, step swapStep, want string) error {
	return s.set(ctx, step, want, false)
}

// former makes the position hold its former disk, on a VBD of this process's making where the exchange may have begun:
// whoever died at it may have asked XAPI for the destruction of the VBD that is there, and XAPI may yet come to it.
func (s *swapper) former(ctx context.Context, step swapStep) error {
	return s.set(ctx, step, step.Old, true)
}

// set is setPosition, and with afresh, former.
func (s *swapper) set(ctx context.Context, step swapStep, want string, afresh bool) error {
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return err
	}
	found, err := s.at(ctx, vm, step)
	if err != nil {
		return err
	}
	// Not all blocks: no VBD was touched yet. Not halted: XAPI destroys no VBD that is plugged.
	afresh = afresh && vm.PowerState == halted && s.blocked(vm) && !slices.ContainsFunc(found, func(o occupant) bool { return s.made[o.vbd] })
	if len(found) == 0 && want == "" || len(found) == 1 && want != "" && found[0].disk == want && !afresh {
		return nil
	}
	if vm.PowerState != halted {
		return rpc.Errorf(rpc.PowerState, "VM %q is %s, not halted", vm.Name, vm.PowerState)
	}
	var vdi xapi.VDI
	if want != "" { // before anything is taken off: what does not exist cannot take its place
		if vdi, err = s.xapi.VDIByUUID(ctx, want); err != nil {
			return err
		}
	}
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := failpoint.Hit("agent/swap/before-vbd-destroy"); err != nil {
		return err
	}
	there := false
	for _, o := range found {
		if want != "" && o.disk == want && !afresh {
			there = true
			continue
		}
		if err := s.xapi.DestroyVBD(ctx, o.vbd); err != nil && !gone(err) {
			return fmt.Errorf("take disk %s off: %w", cmp.Or(o.disk, "(none)"), err)
		}
	}
	if want == "" || there {
		return nil
	}
	if err := failpoint.Hit("agent/swap/between-vbd-destroy-and-create"); err != nil {
		return err
	}
	vbd, err := s.xapi.CreateVBD(ctx, xapi.VBDSpec{VM: s.vm, VDI: vdi.Ref, UserDevice: step.Device, Mode: step.Mode, Type: "Disk",
		Bootable: step.Bootable, Unpluggable: step.Unpluggable, QOSAlgorithmType: step.QOSType,
		QOSAlgorithmParams: step.QOSParams, OtherConfig: step.OtherConfig})
	if err == nil {
		if s.made == nil {
			s.made = map[xapi.Ref]bool{}
		}
		s.made[vbd] = true
	}
	return err
}

// blocked tells whether all blocks of an exchange stand: only then VBDs are touched.
func (s *swapper) blocked(vm xapi.VM) bool {
	return !slices.ContainsFunc(swapBlocks, func(op string) bool { return !isOurBlock(vm.BlockedOperations[op]) })
}

// occupant is a VBD at a position, and the UUID of the disk behind it, "" for none.
type occupant struct {
	vbd  xapi.Ref
	disk string
}

// at returns what is at the step's position; errDisksChanged where that is neither its old nor its new disk.
func (s *swapper) at(ctx context.Context, vm xapi.VM, step swapStep) ([]occupant, error) {
	var out []occupant
	for _, ref := range vm.VBDs {
		vbd, err := s.xapi.VBD(ctx, ref)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if vbd.UserDevice != step.Device {
			continue
		}
		if vbd.Type != "Disk" {
			return nil, fmt.Errorf("%w: position %s holds a %s drive", errDisksChanged, step.Device, vbd.Type)
		}
		has, err := s.diskOf(ctx, vbd)
		if err != nil {
			return nil, err
		}
		if has != "" && has != step.Old && has != step.New {
			return nil, fmt.Errorf("%w: position %s holds disk %s", errDisksChanged, step.Device, has)
		}
		out = append(out, occupant{ref, has})
	}
	return out, nil
}

// diskOf returns the UUID of the VDI behind a VBD, "" for none.
func (s *swapper) diskOf(ctx context.Context, vbd xapi.VBD) (string, error) {
	if vbd.Empty || vbd.VDI.Null() {
		return "", nil
	}
	vdi, err := s.xapi.VDI(ctx, vbd.VDI)
	if gone(err) {
		return "", nil
	}
	return vdi.UUID, err
}
