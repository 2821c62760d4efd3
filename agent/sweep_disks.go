package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// What a sweep does about an exchange of disks that was interrupted.

// exchange reads from the journal how far the exchange of disks got; false where there was none.
func (w work) exchange() (e exchangeState, found bool, err error) {
	if found, err = w.note(stepSwap, &e.swapNote); err != nil || !found {
		return e, found, err
	}
	e.Swapped, e.Deletes = w.has(stepSwapped), w.has(stepDelete)
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
	if n := s.blocks(); !found && n > 0 {
		if n < len(swapBlocks) { // all stand from before the first disk is touched until after the last: the VM is whole
			sw := &swapper{xapi: s.a.xapi, vm: s.vm.Ref, session: s.work.session, check: s.check}
			s.do("let the VM be started again", s.vm.Name, func() error { return sw.unblock(ctx, nil) })
			return !s.failed, after
		}
		if e, err = s.rebuilt(ctx); err != nil {
			s.report("find out how the VM's disks were to be exchanged", s.vm.Name, err)
			return false, after
		}
		found = true
	}
	if !found {
		return true, after
	}
	// What removes a block of ours, when it comes late, would remove what its user has blocked himself.
	s.unsure = s.unsure || len(e.Blocked) > 0 || !e.Swapped && s.blocks() < len(swapBlocks)
	sw := &swapper{xapi: s.a.xapi, vm: s.vm.Ref, session: s.work.session, check: s.check}
	m, err := s.mend(ctx, sw, e)
	if errors.Is(err, rpc.PowerState) && s.blocks() < len(swapBlocks) {
		m, err = sw.asItIs(ctx, e)
	}
	if err != nil {
		s.report("put the VM wholly on its former or its restored disks", s.vm.Name, err)
		s.actions[len(s.actions)-1].PowerNotRestored = e.Start
		return false, after
	}
	for _, device := range m.foreign {
		s.report("leave the disk that somebody else has put at position", device, nil)
	}
	switch {
	case len(m.lost) > 0:
		// Nothing is left that a later sweep could do better: the entries go, and the VM is not started without its disks.
		s.actions = append(s.actions, sweepAction{VM: s.work.vm, Name: s.vm.Name, Action: "restore again", Object: s.vm.Name,
			Lost: true, PowerNotRestored: e.Start && s.vm.PowerState == halted, Err: errors.New(m.whyLost())})
		if m.forward {
			s.interfaces(ctx) // they may be half replaced
		}
		if e.pastReturn() || m.forward && !e.DeleteFirst {
			after = func() { s.replaced(ctx, e, m) }
		}
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
	return true, func() { s.replaced(ctx, e, m) }
}

// mend mends the exchange, or only finds out how that would be done.
func (s *sweeping) mend(ctx context.Context, sw *swapper, e exchangeState) (mended, error) {
	if !s.dry {
		return s.a.mend(ctx, sw, e)
	}
	m, err := sw.decide(ctx, e)
	if err == nil && e.pastReturn() {
		s.leaving, err = sw.leaving(ctx, e.Steps, true)
		return m, err
	}
	if err != nil || e.DeleteFirst && !e.Arrived {
		return m, err
	}
	s.taken = map[string]bool{}
	for _, step := range e.Steps {
		s.taken[step.New] = m.forward
	}
	s.leaving, err = sw.leaving(ctx, e.Steps, m.forward)
	return m, err
}

// replaced deletes the disks that were replaced, or keeps them.
func (s *sweeping) replaced(ctx context.Context, e exchangeState, m mended) {
	fates, err := s.a.replacedFates(ctx, e.Steps, m.keepOld, replacedSuffix(s.work.session, s.work.vm), s.leaving)
	switch {
	case err != nil || s.dry:
	case m.keepOld:
		_, err = s.a.keepReplaced(ctx, e.Steps, replacedSuffix(s.work.session, s.work.vm))
	default:
		if err = s.check(ctx); err == nil {
			_, err = s.a.deleteReplaced(ctx, e.Steps)
		}
	}
	if err != nil {
		s.report("deal with the replaced disks", s.vm.Name, err)
		return
	}
	for _, f := range fates {
		s.report(f.action, f.object, nil)
	}
}

// blocks counts the VM's operations that an exchange of the work's session has blocked.
func (s *sweeping) blocks() (n int) {
	for _, op := range swapBlocks {
		if strings.HasPrefix(s.vm.BlockedOperations[op], blockPrefix+"(session "+s.work.session+")") {
			n++
		}
	}
	return n
}

// rebuilt makes the plan anew from the carriers where the journal's was lost or damaged: the VM is blocked only when all
// disks have arrived, and each carrier still has its disks at the positions that they are meant for. The way is forward, and
// what the VM has there otherwise is kept: nobody knows any more what it is.
func (s *sweeping) rebuilt(ctx context.Context) (exchangeState, error) {
	e := exchangeState{swapNote: swapNote{KeepOld: true}, Swapped: true}
	for _, op := range swapBlocks {
		if strings.HasSuffix(s.vm.BlockedOperations[op], deletesFirst) {
			return e, fmt.Errorf("its plan is lost, and its old disks were to be deleted before the new ones came: restore it again, "+
				"after removing its blocked_operations that name session %s", s.work.session)
		}
	}
	m, err := findMade(ctx, s.a.xapi, s.work.nonce)
	if err != nil {
		return e, err
	}
	for _, carrier := range m.carriers {
		for _, ref := range carrier.VBDs {
			step, ok, err := s.stepFrom(ctx, ref)
			if err != nil {
				return e, fmt.Errorf("read the disks of %q: %w", carrier.Name, err)
			}
			if ok {
				e.Steps = append(e.Steps, step)
			}
		}
	}
	if len(e.Steps) == 0 || len(e.Steps) < len(m.disks) {
		return e, fmt.Errorf("its plan is lost, and so are carriers of session %s: the VM stays blocked; put its disks right by hand, "+
			"then remove its blocked_operations that name the session", s.work.session)
	}
	return e, nil
}

// stepFrom makes a step from a carrier's VBD and what the VM has at its position.
func (s *sweeping) stepFrom(ctx context.Context, ref xapi.Ref) (step swapStep, ok bool, err error) {
	vbd, err := s.a.xapi.VBD(ctx, ref)
	if err != nil || vbd.Type != "Disk" || vbd.Empty {
		return step, false, err
	}
	vdi, err := s.a.xapi.VDI(ctx, vbd.VDI)
	if err != nil {
		return step, false, err
	}
	step = swapStep{Device: vbd.UserDevice, New: vdi.UUID, Mode: vbd.Mode, Bootable: vbd.Bootable, Unpluggable: vbd.Unpluggable}
	for _, own := range s.vm.VBDs {
		has, err := s.a.xapi.VBD(ctx, own)
		if err != nil {
			return step, false, err
		}
		if has.UserDevice != vbd.UserDevice || has.Empty || has.VDI == vbd.VDI || has.VDI.Null() {
			continue
		}
		old, err := s.a.xapi.VDI(ctx, has.VDI)
		if err != nil {
			return step, false, err
		}
		step.Old = old.UUID
	}
	return step, true, nil
}
