package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/xapi"
)

// What becomes of the disks that an exchange has replaced: they are deleted, or kept under another name.

// replacedFates says what keepReplaced or deleteReplaced does with each disk. leaving are VBDs that will be gone by then.
func (a *Agent) replacedFates(ctx context.Context, steps []swapStep, keep bool, suffix string, leaving map[xapi.Ref]bool) ([]fate, error) {
	var out []fate
	for _, step := range steps {
		if step.Old == "" || step.Old == step.New {
			continue
		}
		vdi, err := a.replaced(ctx, step)
		if gone(err) {
			continue
		}
		if err == nil {
			err = a.onlyOn(ctx, vdi, nil, leaving)
		}
		switch {
		case keep && strings.HasSuffix(vdi.Name, suffix):
		case keep && (err == nil || errors.Is(err, errNotOurs) || errors.Is(err, xapi.ErrInUse)):
			out = append(out, fate{"keep the replaced disk, renamed", step.Old})
		case errors.Is(err, errNotOurs):
			out = append(out, fate{"leave the replaced disk to the VM that uses it", step.Old})
		case err == nil || errors.Is(err, xapi.ErrInUse):
			out = append(out, fate{"delete the replaced disk", step.Old})
		default:
			return nil, err
		}
	}
	return out, nil
}

// replacedSuffix ends the name of a disk that was replaced and kept.
func replacedSuffix(session, vm string) string {
	return " (replaced in dpxen session " + session + ", VM " + vm + ")"
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
		if err := failpoint.Hit("agent/restore/before-replaced-disk-destroy"); err != nil {
			return kept, err
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
func (a *Agent) keepReplaced(ctx context.Context, steps []swapStep, suffix string) (kept []string, err error) {
	var errs []error
	for _, step := range steps {
		if step.Old == "" || step.Old == step.New {
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

// keptBefore are the disks that attempts before this one have kept: what they put in their place was replaced in turn.
func (a *Agent) keptBefore(ctx context.Context, suffix string, now []string) (kept []string, err error) {
	var vdis map[xapi.Ref]xapi.VDI
	err = a.retry().do(ctx, passing, func(ctx context.Context) error {
		vdis, err = a.xapi.VDIs(ctx)
		return err
	})
	for _, vdi := range vdis {
		if strings.HasSuffix(vdi.Name, suffix) && !vdi.IsSnapshot && !slices.Contains(now, vdi.UUID) {
			kept = append(kept, vdi.UUID)
		}
	}
	slices.Sort(kept)
	return kept, err
}

func (a *Agent) replaced(ctx context.Context, step swapStep) (vdi xapi.VDI, err error) {
	err = a.retry().do(ctx, passing, func(ctx context.Context) error {
		vdi, err = a.xapi.VDIByUUID(ctx, step.Old)
		return err
	})
	return vdi, err
}
