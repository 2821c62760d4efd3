package agent

import (
	"context"
	"fmt"
	"strings"
)

// What a sweep does about an exchange of disks that was interrupted.

// exchange reads from the journal how far the exchange of disks got; false where there was none.
func (w work) exchange() (e exchangeState, found bool, err error) {
	if found, err = w.note(stepSwap, &e.swapNote); err != nil || !found {
		return e, found, err
	}
	e.Swapped = w.has(stepSwapped)
	var arrived arrivedNote
	if e.Arrived, err = w.note(stepArrived, &arrived); err == nil && e.Arrived {
		e.Steps = arrived.Steps
	}
	return e, true, err
}

// disks puts the VM wholly on its old or wholly on its new disks and lets it be started again. It is false where the VM
// must not be started or touched further. after deals with the replaced disks, once the VM is well.
func (s *sweeping) disks(ctx context.Context) (ok bool, after func()) {
	after = func() {}
	e, found, err := s.work.exchange()
	if err != nil {
		s.report("read the plan of the disk exchange", s.work.nonce, err)
		return false, after
	}
	if !found {
		return true, after
	}
	if s.dry {
		s.report("put the VM wholly on its former or its restored disks", s.vm.Name, nil)
		return true, after
	}
	sw := &swapper{xapi: s.a.xapi, vm: s.vm.Ref, session: s.work.session, check: s.check}
	m, err := s.a.mend(ctx, sw, e)
	if err != nil {
		s.report("put the VM wholly on its former or its restored disks", s.vm.Name, err)
		s.actions[len(s.actions)-1].PowerNotRestored = e.Start
		return false, after
	}
	switch {
	case len(m.lost) > 0:
		// Nothing is left that a later sweep could do better: the entries go, and the VM is not started without its disks.
		s.actions = append(s.actions, sweepAction{VM: s.work.vm, Name: s.vm.Name, Action: "restore again", Object: s.vm.Name,
			Lost: true, PowerNotRestored: e.Start, Err: fmt.Errorf("the disks at %s were deleted first, as asked, and the restored ones did not arrive",
				strings.Join(m.lost, ", "))})
		return false, after
	case m.forward:
		s.report("put the VM on its restored disks", s.vm.Name, nil)
	default:
		s.report("put the VM on its former disks", s.vm.Name, nil)
		return true, after
	}
	if e.DeleteFirst {
		return true, after
	}
	return true, func() {
		if err := s.check(ctx); err != nil {
			s.report("delete the replaced disks", s.vm.Name, err)
			return
		}
		if m.keepOld {
			_, err := s.a.keepReplaced(ctx, e.Steps, s.work.session)
			s.report("keep the replaced disks", s.vm.Name, err)
			return
		}
		_, err := s.a.deleteReplaced(ctx, e.Steps)
		s.report("delete the replaced disks", s.vm.Name, err)
	}
}
