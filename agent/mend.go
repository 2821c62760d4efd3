package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// What becomes of an exchange of disks that was interrupted, whoever finds it: the restore itself in its cleanup, a sweep,
// or the next attempt.

// errNeitherWay means that neither the former nor the restored disks are all in the pool.
var errNeitherWay = errors.New("the VM stays blocked until their storage is back; --as-new restores it beside")

// exchangeState is how far an exchange got, by the journal.
type exchangeState struct {
	swapNote
	Deletes bool // with delete first: the deletion of the old disks has begun
	Arrived bool // with delete first: Steps name the new disks
	Swapped bool // it was complete
}

// pastReturn tells whether the old disks are given up although the new ones are not there: XAPI may come to a deletion that a
// dead agent asked for at any time, and nobody can tell, so that no VM may have such a disk again.
func (e exchangeState) pastReturn() bool {
	return e.DeleteFirst && e.Deletes && !e.Arrived && !e.Swapped
}

// mended is what mend came to.
type mended struct {
	forward bool     // the VM is on its restored disks; else on its former ones
	lost    []string // positions whose disk was deleted, or is given up for that, and whose restored one is not there
	deleted bool     // the restored disks of lost were there, and somebody has deleted them
	keepOld bool     // the replaced disks stay
	foreign []string // positions where somebody else has put a disk meanwhile: it stays
}

// notes tells of the positions that were left to somebody else.
func (m mended) notes() (out []string) {
	for _, device := range m.foreign {
		out = append(out, "the disk at position "+device+" is another one now: somebody has put it there, or moved it to other storage, during the restore; it stays")
	}
	return out
}

// mend puts the VM wholly on its former or wholly on its restored disks, and lets it be started again. It may be repeated
// from any point. While it fails the VM stays blocked.
func (a *Agent) mend(ctx context.Context, sw *swapper, e exchangeState) (mended, error) {
	var m mended
	err := a.retry().do(ctx, passing, func(ctx context.Context) error {
		var err error
		if m, err = a.mendOnce(ctx, sw, e); err != nil {
			return err
		}
		// Disks are deleted and the VM is started on what XAPI says now: it must not forget that in a crash. If it has
		// had one since we began, some of what was done is undone.
		a.syncDatabase(ctx)
		m, err = a.mendOnce(ctx, sw, e)
		return err
	})
	return m, err
}

func (a *Agent) mendOnce(ctx context.Context, sw *swapper, e exchangeState) (mended, error) {
	m, err := sw.decide(ctx, e)
	if err != nil {
		return m, err
	}
	switch {
	case e.pastReturn():
		if err := sw.empty(ctx, e.Steps); err != nil {
			return m, err
		}
	case e.DeleteFirst && !e.Arrived && !e.Swapped:
		if m.lost, err = sw.putBack(ctx, e.Steps); err != nil {
			return m, err
		}
	case e.DeleteFirst && !e.Arrived:
	case m.forward:
		if err := sw.empty(ctx, only(e.Steps, m.lost)); err != nil {
			return m, err
		}
		steps := besides(e.Steps, slices.Concat(m.foreign, m.lost))
		if err := sw.exchange(ctx, steps); err != nil {
			return m, err
		}
		if err := sw.unmark(ctx, steps); err != nil {
			return m, err
		}
	default:
		if err := sw.undo(ctx, e.Steps); err != nil {
			return m, err
		}
	}
	return m, sw.unblock(ctx, e.Blocked)
}

// decide finds out what mend is to do. It changes nothing.
func (s *swapper) decide(ctx context.Context, e exchangeState) (mended, error) {
	if e.pastReturn() {
		var m mended
		for _, step := range e.Steps {
			if step.Old != "" {
				m.lost = append(m.lost, step.Device)
			}
		}
		return m, nil
	}
	if e.DeleteFirst && !e.Arrived && !e.Swapped {
		lost, err := s.lost(ctx, e.Steps)
		return mended{lost: lost, keepOld: true}, err
	}
	if e.DeleteFirst && !e.Arrived {
		// Complete, and some of the journal's entries are removed already: the disks' names are not known any more.
		return mended{forward: true, keepOld: true}, nil
	}
	if err := failpoint.Hit("agent/mend/begun"); err != nil {
		return mended{}, err
	}
	foreign, err := s.foreign(ctx, e.Steps)
	if err != nil {
		return mended{}, err
	}
	wanted := e.Swapped || e.Arrived
	// A disk that its user has moved to other storage has another UUID there: the one that we knew is gone, and yet the VM has
	// it. So the others alone say where to go.
	rest := besides(e.Steps, foreign)
	forward, err := s.direction(ctx, rest, wanted)
	if errors.Is(err, errNeitherWay) {
		if lost, errLost := s.deleted(ctx, e, rest); errLost != nil || len(lost) > 0 {
			return mended{forward: true, keepOld: true, foreign: foreign, lost: lost, deleted: true}, errLost
		}
	}
	return mended{forward: forward, keepOld: e.KeepOld || forward != wanted, foreign: foreign}, err
}

// foreign names the positions that hold a disk which is neither their old nor their new one, or a drive.
func (s *swapper) foreign(ctx context.Context, steps []swapStep) (foreign []string, err error) {
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return nil, fmt.Errorf("read the VM: %w", err)
	}
	for _, step := range steps {
		_, err := s.at(ctx, vm, step)
		switch {
		case errors.Is(err, errDisksChanged):
			foreign = append(foreign, step.Device)
		case err != nil:
			return nil, err
		}
	}
	return foreign, nil
}

// besides are the steps of all positions but these.
func besides(steps []swapStep, positions []string) []swapStep {
	return slices.DeleteFunc(slices.Clone(steps), func(step swapStep) bool { return slices.Contains(positions, step.Device) })
}

// only are the steps of these positions.
func only(steps []swapStep, positions []string) []swapStep {
	return slices.DeleteFunc(slices.Clone(steps), func(step swapStep) bool { return !slices.Contains(positions, step.Device) })
}

// leaving are the VBDs that mend takes off when it goes that way.
func (s *swapper) leaving(ctx context.Context, steps []swapStep, forward bool) (map[xapi.Ref]bool, error) {
	vm, err := s.xapi.VM(ctx, s.vm)
	if err != nil {
		return nil, fmt.Errorf("read the VM: %w", err)
	}
	out := map[xapi.Ref]bool{}
	for _, step := range steps {
		want := step.Old
		if forward {
			want = step.New
		}
		found, err := s.at(ctx, vm, step)
		if errors.Is(err, errDisksChanged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, o := range found {
			if want == "" || o.disk != want {
				out[o.vbd] = true
			}
		}
	}
	return out, nil
}

// direction is wanted, unless only the other way has all its disks left. Where neither has, their storage may come back.
func (s *swapper) direction(ctx context.Context, steps []swapStep, wanted bool) (forward bool, err error) {
	var noOld, noNew []string
	for _, step := range steps {
		for uuid, missing := range map[string]*[]string{step.Old: &noOld, step.New: &noNew} {
			if uuid == "" {
				continue
			}
			if _, err := s.xapi.VDIByUUID(ctx, uuid); gone(err) {
				*missing = append(*missing, uuid)
			} else if err != nil {
				return wanted, fmt.Errorf("look for disk %s: %w", uuid, err)
			}
		}
	}
	switch {
	case len(noOld) > 0 && len(noNew) > 0:
		return wanted, fmt.Errorf("of its former disks %s are not in the pool any more, and of its restored ones %s: %w",
			strings.Join(noOld, ", "), strings.Join(noNew, ", "), errNeitherWay)
	case wanted && len(noNew) > 0:
		return false, nil
	case !wanted && len(noOld) > 0:
		return true, nil
	}
	return wanted, nil
}

// unmark takes our mark off the restored disks: from here on they are the VM's, and nobody takes them for a carrier's.
func (s *swapper) unmark(ctx context.Context, steps []swapStep) error {
	for _, step := range steps {
		vdi, err := s.xapi.VDIByUUID(ctx, step.New)
		if err != nil {
			return fmt.Errorf("read disk %s: %w", step.New, err)
		}
		if _, named := vdi.SMConfig[importTaskKey]; named { // first: what still has the mark is known to be ours
			if err := s.xapi.RemoveFromVDISMConfig(ctx, vdi.Ref, importTaskKey); err != nil && !gone(err) {
				return fmt.Errorf("take the import's task off disk %s: %w", step.New, err)
			}
		}
		if _, marked := vdi.OtherConfig[xva.CarrierKey]; !marked {
			continue
		}
		if err := failpoint.Hit("agent/swap/before-unmark"); err != nil {
			return err
		}
		if err := s.xapi.RemoveFromVDIOtherConfig(ctx, vdi.Ref, xva.CarrierKey); err != nil && !gone(err) {
			return fmt.Errorf("take the mark off disk %s: %w", step.New, err)
		}
	}
	return nil
}

// syncDatabase has XAPI write its database out: it does so lazily, and a master that crashes would find records of disks that
// the storage has no more, none of those that the VM runs on, and snapshots that were deleted. A host that cannot is no reason to
// stop: the risk is that of any change of XAPI's.
func (a *Agent) syncDatabase(ctx context.Context) {
	if err := a.xapi.SyncDatabase(ctx); err != nil {
		a.log.Warn("XAPI did not write its database out, and would forget its last changes in a crash", "err", err)
	}
}
