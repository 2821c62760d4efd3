package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/xapi"
)

// The positions of an exchange for which there is no disk any more.

// whyLost says what became of the disks at the lost positions.
func (m mended) whyLost() string {
	what := "the disks at " + strings.Join(m.lost, ", ") + " were "
	if m.deleted {
		return what + "replaced and deleted, and somebody has deleted the restored ones since"
	}
	return what + "deleted first, as asked, and the restored ones did not arrive"
}

// deleted names the positions whose restored disk is gone, where the former ones are gone because the restore has deleted
// them: first, as asked, or after the VM was whole and free again. No storage that comes back has such a position's disk; there
// are none where an SR of restored ones is not in the pool.
func (s *swapper) deleted(ctx context.Context, e exchangeState, steps []swapStep) (lost []string, err error) {
	if !e.DeleteFirst || !e.Deletes {
		vm, err := s.xapi.VM(ctx, s.vm)
		if err != nil {
			return nil, fmt.Errorf("read the VM: %w", err)
		}
		if !e.Swapped || slices.ContainsFunc(swapBlocks, func(op string) bool { return isOurBlock(vm.BlockedOperations[op]) }) {
			return nil, nil
		}
	}
	srs, err := s.xapi.SRs(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the SRs: %w", err)
	}
	for _, step := range steps {
		_, err := s.xapi.VDIByUUID(ctx, step.New)
		switch {
		case err == nil:
		case !gone(err):
			return nil, fmt.Errorf("look for disk %s: %w", step.New, err)
		case step.SR != "" && !slices.ContainsFunc(slices.Collect(maps.Values(srs)), func(sr xapi.SR) bool { return sr.UUID == step.SR }):
			return nil, nil
		default:
			lost = append(lost, step.Device)
		}
	}
	return lost, nil
}

// lost names the positions that cannot have their old disk back: it was deleted.
func (s *swapper) lost(ctx context.Context, steps []swapStep) (lost []string, err error) {
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return nil, fmt.Errorf("read the VM: %w", err)
	}
	for _, step := range steps {
		found, err := s.at(ctx, vm, step)
		switch {
		case errors.Is(err, errDisksChanged) || step.Old == "":
			continue
		case err != nil:
			return nil, err
		case slices.ContainsFunc(found, func(o occupant) bool { return o.disk == step.Old }):
			continue
		}
		_, err = s.xapi.VDIByUUID(ctx, step.Old)
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("look for disk %s: %w", step.Old, err)
		}
		if err != nil {
			lost = append(lost, step.Device)
		}
	}
	return lost, nil
}

// putBack gives the positions those of their old disks back that exist, and names the positions of the others.
func (s *swapper) putBack(ctx context.Context, steps []swapStep) (lost []string, err error) {
	for _, step := range steps {
		if step.Old == "" {
			continue
		}
		err := s.former(ctx, step)
		switch {
		case err == nil || errors.Is(err, errDisksChanged):
		case gone(err):
			lost = append(lost, step.Device)
		default:
			return nil, fmt.Errorf("give position %s its former disk %s back: %w", step.Device, step.Old, err)
		}
	}
	return lost, nil
}

// empty takes the old disks off that are given up. They are off already, unless XAPI's database has fallen back.
func (s *swapper) empty(ctx context.Context, steps []swapStep) error {
	for _, step := range steps {
		if step.Old == "" {
			continue
		}
		if err := s.setPosition(ctx, step, ""); err != nil && !errors.Is(err, errDisksChanged) {
			return fmt.Errorf("take the old disk at position %s off: %w", step.Device, err)
		}
	}
	return nil
}

// asItIs lets a VM be as it is that somebody has started while not all blocks of the exchange stood: it was whole then, and what its
// positions lack its user has taken off since. Nobody could give it back to a VM that runs.
func (s *swapper) asItIs(ctx context.Context, e exchangeState) (mended, error) {
	m := mended{forward: e.Swapped || e.Arrived, keepOld: e.KeepOld}
	if err := s.check(ctx); err != nil {
		return m, err
	}
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return m, fmt.Errorf("read the VM: %w", err)
	}
	for _, step := range e.Steps {
		found, err := s.at(ctx, vm, step)
		switch {
		case errors.Is(err, errDisksChanged):
			m.foreign = append(m.foreign, step.Device)
		case err != nil:
			return m, err
		case slices.ContainsFunc(found, func(o occupant) bool { return o.disk != "" && o.disk == step.Old }):
			m.forward = false
		}
	}
	return m, s.unblock(ctx, e.Blocked)
}
