package agent

import (
	"context"
	"errors"
	"fmt"
)

// What a sweep does about an exchange of disks that was interrupted.

// disks puts the VM wholly on its old or wholly on its new disks and lets it be started again. It is false where the VM
// must not be touched further.
func (s *sweeping) disks(ctx context.Context) bool {
	var note swapNote
	found, err := s.work.note(stepSwap, &note)
	if err != nil {
		s.report("read the plan of the disk exchange", s.work.nonce, err)
		return false
	}
	if !found {
		return true
	}
	sw := &swapper{xapi: s.a.xapi, vm: s.vm.Ref, session: s.work.session}
	forward := s.work.has(stepSwapped)
	var arrived arrivedNote
	if note.DeleteFirst && !forward {
		has, err := s.work.note(stepArrived, &arrived)
		if err != nil {
			s.report("read what has arrived", s.work.nonce, err)
			return false
		}
		if !has {
			return s.lost(ctx, sw, note)
		}
		note.Steps, forward = arrived.Steps, true
	}
	if forward {
		s.do("put the VM on its restored disks", s.vm.Name, func() error { return sw.exchange(ctx, note.Steps) })
	} else {
		s.do("put the VM back on its former disks", s.vm.Name, func() error { return sw.undo(ctx, note.Steps) })
	}
	if s.failed {
		s.actions[len(s.actions)-1].PowerNotRestored = note.Start
		return false
	}
	s.do("let the VM be started again", s.vm.Name, func() error { return sw.unblock(ctx, note.Blocked) })
	if s.failed {
		return false
	}
	if forward && !note.KeepOld && !note.DeleteFirst && !s.dry {
		s.report("delete the replaced disks", s.vm.Name, s.a.deleteReplaced(ctx, note.Steps))
	}
	return true
}

// lost ends a restore with --delete-first whose disks did not arrive: neither the old nor the new ones are there.
func (s *sweeping) lost(ctx context.Context, sw *swapper, note swapNote) bool {
	s.do("let the VM be restored again", s.vm.Name, func() error { return sw.unblock(ctx, note.Blocked) })
	for _, step := range note.Steps {
		if s.vdiExists(ctx, step.Old) {
			s.do("put back the disk at position "+step.Device, step.Old, func() error {
				return sw.setPosition(ctx, step, step.Old)
			})
			continue
		}
		s.actions = append(s.actions, sweepAction{VM: s.vm.UUID, Name: s.vm.Name, Action: "restore again",
			Object: "position " + step.Device, PowerNotRestored: note.Start,
			Err: fmt.Errorf("its disk %s was deleted first, as asked, and the restored one did not arrive: restore the VM again", step.Old)})
	}
	// Nothing is left that a later sweep could do better: the entries go, and the VM is not started without its disks.
	s.orphans(ctx)
	return false
}

func (s *sweeping) vdiExists(ctx context.Context, uuid string) bool {
	if uuid == "" {
		return false
	}
	_, err := s.a.xapi.VDIByUUID(ctx, uuid)
	return err == nil
}

// deleteReplaced deletes the disks that a restore has replaced, where nothing else uses them.
func (a *Agent) deleteReplaced(ctx context.Context, steps []swapStep) error {
	var errs []error
	for _, step := range steps {
		if step.Old == "" || step.Old == step.New {
			continue
		}
		vdi, err := a.xapi.VDIByUUID(ctx, step.Old)
		if gone(err) {
			continue
		}
		if err == nil {
			err = a.destroyDisk(ctx, vdi.Ref)
		}
		if errors.Is(err, errNotOurs) {
			continue // another VM uses it: it is not ours to delete
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("delete the replaced disk %s: %w", step.Old, err))
		}
	}
	return errors.Join(errs...)
}
