package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// What becomes of an exchange of disks that was interrupted, whoever finds it: the restore itself in its cleanup, a sweep,
// or the next attempt.

// exchangeState is how far an exchange got, by the journal.
type exchangeState struct {
	swapNote
	Arrived bool // with delete first: Steps name the new disks
	Swapped bool // it was complete
}

// mended is what mend came to.
type mended struct {
	forward bool     // the VM is on its restored disks; else on its former ones
	lost    []string // positions whose disk was deleted first and whose restored one did not arrive
	keepOld bool     // the replaced disks stay
}

// mend puts the VM wholly on its former or wholly on its restored disks, and lets it be started again. It may be repeated
// from any point. While it fails the VM stays blocked.
func (a *Agent) mend(ctx context.Context, sw *swapper, e exchangeState) (mended, error) {
	var m mended
	err := a.retry().do(ctx, passing, func(ctx context.Context) error {
		var err error
		m, err = a.mendOnce(ctx, sw, e)
		return err
	})
	return m, err
}

func (a *Agent) mendOnce(ctx context.Context, sw *swapper, e exchangeState) (mended, error) {
	if e.DeleteFirst && !e.Arrived && !e.Swapped {
		lost, err := sw.putBack(ctx, e.Steps)
		if err != nil {
			return mended{}, err
		}
		return mended{lost: lost, keepOld: true}, sw.unblock(ctx, e.Blocked)
	}
	if e.DeleteFirst && !e.Arrived {
		// Complete, and some of the journal's entries are removed already: the disks' names are not known any more.
		return mended{forward: true, keepOld: true}, sw.unblock(ctx, e.Blocked)
	}
	wanted := e.Swapped || e.Arrived
	forward, err := sw.direction(ctx, e.Steps, wanted)
	if err != nil {
		return mended{}, err
	}
	m := mended{forward: forward, keepOld: e.KeepOld || forward != wanted}
	if forward {
		if err := sw.exchange(ctx, e.Steps); err != nil {
			return m, err
		}
		if err := sw.unmark(ctx, e.Steps); err != nil {
			return m, err
		}
	} else if err := sw.undo(ctx, e.Steps); err != nil {
		return m, err
	}
	return m, sw.unblock(ctx, e.Blocked)
}

// direction is wanted, unless only the other way has all its disks left.
func (s *swapper) direction(ctx context.Context, steps []swapStep, wanted bool) (forward bool, err error) {
	var noOld, noNew bool
	for _, step := range steps {
		for uuid, missing := range map[string]*bool{step.Old: &noOld, step.New: &noNew} {
			if uuid == "" {
				continue
			}
			_, err := s.xapi.VDIByUUID(ctx, uuid)
			if err != nil && !gone(err) {
				return wanted, fmt.Errorf("look for disk %s: %w", uuid, err)
			}
			*missing = *missing || err != nil
		}
	}
	switch {
	case wanted && noNew && !noOld:
		return false, nil
	case !wanted && noOld && !noNew:
		return true, nil
	}
	return wanted, nil
}

// putBack gives the positions those of their old disks back that exist, and names the positions of the others.
func (s *swapper) putBack(ctx context.Context, steps []swapStep) (lost []string, err error) {
	for _, step := range steps {
		if step.Old == "" {
			continue
		}
		err := s.setPosition(ctx, step, step.Old)
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

// unmark takes our mark off the restored disks: from here on they are the VM's, and nobody takes them for a carrier's.
func (s *swapper) unmark(ctx context.Context, steps []swapStep) error {
	for _, step := range steps {
		vdi, err := s.xapi.VDIByUUID(ctx, step.New)
		if err != nil {
			return fmt.Errorf("read disk %s: %w", step.New, err)
		}
		if _, marked := vdi.OtherConfig[xva.CarrierKey]; !marked {
			continue
		}
		if err := s.xapi.RemoveFromVDIOtherConfig(ctx, vdi.Ref, xva.CarrierKey); err != nil && !gone(err) {
			return fmt.Errorf("take the mark off disk %s: %w", step.New, err)
		}
	}
	return nil
}

// deleteReplaced deletes the disks that a restore has replaced. Those that something else uses stay, and are returned.
func (a *Agent) deleteReplaced(ctx context.Context, steps []swapStep) (kept []string, err error) {
	var errs []error
	for _, step := range steps {
		if step.Old == "" || step.Old == step.New {
			continue
		}
		vdi, err := a.replaced(ctx, step)
		if gone(err) {
			continue
		}
		if err == nil {
			err = a.destroyDisk(ctx, vdi.Ref)
		}
		if errors.Is(err, errNotOurs) {
			kept = append(kept, step.Old) // another VM uses it, or another position of this one
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delete the replaced disk %s: %w", step.Old, err))
		}
	}
	return kept, errors.Join(errs...)
}

// keepReplaced renames the disks that were replaced, so that their owner finds them.
func (a *Agent) keepReplaced(ctx context.Context, steps []swapStep, session string) (kept []string, err error) {
	var errs []error
	suffix := " (replaced in dpxen session " + session + ")"
	for _, step := range steps {
		if step.Old == "" {
			continue
		}
		vdi, err := a.replaced(ctx, step)
		if gone(err) {
			continue
		}
		kept = append(kept, step.Old)
		if err == nil && !strings.HasSuffix(vdi.Name, suffix) {
			err = a.xapi.SetVDIName(ctx, vdi.Ref, vdi.Name+suffix)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rename the replaced disk %s: %w", step.Old, err))
		}
	}
	return kept, errors.Join(errs...)
}

func (a *Agent) replaced(ctx context.Context, step swapStep) (vdi xapi.VDI, err error) {
	err = a.retry().do(ctx, passing, func(ctx context.Context) error {
		vdi, err = a.xapi.VDIByUUID(ctx, step.Old)
		return err
	})
	return vdi, err
}
