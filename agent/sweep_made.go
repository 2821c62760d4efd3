package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// What a sweep does about that which was made for the work: imports under way, the snapshot, the carriers and their disks.

// imports ends the imports of an agent that died: a host whose sender is gone without a word waits for more bytes for hours.
// A task is the work's own when it bears the work's label, which the nonce is in.
func (s *sweeping) imports(ctx context.Context) {
	noted := map[string]bool{}
	for _, e := range s.work.steps {
		if !strings.HasPrefix(e.Step, stepImport) || !e.Complete {
			continue
		}
		var note importNote
		if err := e.decode(&note); err != nil {
			s.report("read the note of an import", s.work.nonce, err)
			continue
		}
		noted[note.Task] = true
		t, err := s.a.xapi.TaskByUUID(ctx, note.Task)
		switch {
		case gone(err):
		case err != nil:
			s.report("look for the task of an import", importLabel(s.work.nonce), err)
		case t.Name != importLabel(s.work.nonce):
			// XAPI has forgotten ours; a task of somebody else's is none of our business.
		case t.Final():
			s.do("remove the finished task of an import", importLabel(s.work.nonce), func() error { s.a.xapi.DestroyTask(ctx, t.Ref); return nil })
		default:
			s.cancels = s.dry
			s.do("cancel the import of a dead agent", importLabel(s.work.nonce), func() error { return s.a.endImport(ctx, t.Ref, s.work.nonce) })
		}
	}
	// Its agent may have died between making a task and noting it.
	tasks, err := s.a.pendingTasks(ctx, importLabel(s.work.nonce))
	if err != nil {
		s.report("look for the task of an import", importLabel(s.work.nonce), err)
		return
	}
	for _, t := range tasks {
		if !noted[t.UUID] {
			s.cancels = s.dry
			s.do("cancel the import of a dead agent", importLabel(s.work.nonce), func() error { return s.a.endImport(ctx, t.Ref, s.work.nonce) })
		}
	}
}

// pendingTasks are the tasks of a label that are not final.
func (a *Agent) pendingTasks(ctx context.Context, label string) ([]xapi.Task, error) {
	refs, err := a.xapi.TasksByName(ctx, label)
	if err != nil {
		return nil, err
	}
	var out []xapi.Task
	for _, ref := range refs {
		t, err := a.xapi.Task(ctx, ref)
		if err != nil && !gone(err) {
			return out, err
		}
		if err == nil && !t.Final() {
			out = append(out, t)
		}
	}
	return out, nil
}

// exports drops the exports of an agent that died: a task that it had made, and whose export had not begun, would be pending
// for a day.
func (s *sweeping) exports(ctx context.Context) {
	label := exportLabel(s.work.nonce)
	tasks, err := s.a.pendingTasks(ctx, label)
	if err != nil {
		s.report("look for the task of an export", label, err)
		return
	}
	for _, t := range tasks {
		s.do("cancel the export of a dead agent", label, func() error { return s.a.xapi.DropTask(ctx, t.Ref) })
		s.dropped = append(s.dropped, t.Ref)
		s.asked = s.asked || len(t.CurrentOperations) > 0
	}
}

// exportEnds is how long XAPI takes to end an export that was cancelled: it looks every 10 s at most.
const exportEnds = 15 * time.Second

// exportGoing says why a VM cannot be started yet.
const exportGoing = "XAPI still counts an export of it as going on; if the host of that has died, restart the toolstack on the pool's master"

// exportGoes waits until XAPI no longer counts an export that was cancelled, or whose task is gone, among the VM's operations, and
// says whether it does so still: nobody can start the VM then. It does not end where the host that served it has died. A dry run,
// which cancels nothing, waits for what was cancelled before.
func (s *sweeping) exportGoes(ctx context.Context) (bool, error) {
	if s.vm.Ref.Null() {
		return false, nil
	}
	limit := time.Now().Add(min(exportEnds, s.a.cfg.Timing.Settle))
	for vm := s.vm; ; {
		goes := false
		for task, op := range vm.CurrentOperations {
			if op != "export" {
				continue
			}
			_, err := s.a.xapi.Task(ctx, xapi.Ref(task))
			if err != nil && !gone(err) {
				return false, err
			}
			goes = goes || err != nil || slices.Contains(s.dropped, xapi.Ref(task)) && (!s.dry || s.asked)
		}
		if !goes || time.Now().After(limit) {
			return goes, nil
		}
		err := sleep(ctx, s.a.cfg.Timing.RetryMin)
		if err != nil {
			return false, err
		}
		if vm, err = s.a.xapi.VMByUUID(ctx, s.work.vm); err != nil && !gone(err) {
			return false, err
		}
	}
}

// exported holds the journal while a cancelled export has not ended.
func (s *sweeping) exported(ctx context.Context) {
	if s.failed {
		return
	}
	goes, err := s.exportGoes(ctx)
	switch {
	case err != nil:
		s.report("read the VM", s.work.vm, err)
	case goes:
		s.wait("end the export of a dead agent", exportLabel(s.work.nonce), exportGoing, s.soon())
	}
}

// endImport cancels an import's task and waits until XAPI has cleaned up after it. A task that XAPI never began on does not
// end by itself; it is removed where nothing of that import exists. What other imports of the work have made is no sign of it.
func (a *Agent) endImport(ctx context.Context, task xapi.Ref, nonce string) error {
	again := func(err error) bool { return passing(err) && !errors.Is(err, xapi.ErrTaskPending) }
	err := a.retry().do(ctx, again, func(ctx context.Context) error {
		err := a.xapi.EndTask(ctx, task)
		if errors.Is(err, xapi.ErrTaskGone) {
			return nil
		}
		return err
	})
	if errors.Is(err, xapi.ErrTaskPending) {
		m, findErr := findMade(ctx, a.xapi, nonce)
		if findErr != nil {
			return findErr
		}
		if m.of(task).empty() {
			return a.xapi.DropTask(ctx, task)
		}
	}
	if err != nil {
		return fmt.Errorf("cancel task %s: %w", task, err)
	}
	return nil
}

// snapshot deletes the snapshot of the nonce with its disks. It outlives a VM that its user has deleted.
func (s *sweeping) snapshot(ctx context.Context) {
	if s.vm.Ref.Null() {
		if err := s.readVM(ctx); err != nil {
			s.report("read the VM", s.work.vm, err)
			return
		}
	}
	name := snapshotPrefix + s.work.nonce
	snap, err := s.a.settledSnapshot(ctx, s.vm, name)
	switch {
	case err != nil:
		s.report("look for snapshot", name, err)
	case snap.Ref.Null():
		s.unsure = s.unsure || s.work.has(stepSnapshot) && !s.work.has(stepTaken) // it was there, and is gone
	case len(snap.CurrentOperations) > 0:
		s.wait("delete snapshot", name, "XAPI still works on it", s.soon())
	default:
		s.do("delete snapshot", name, func() error {
			_, err := s.a.deleteSnapshots(ctx, s.vm, name)
			return err
		})
	}
	if err == nil { // none while the record is there: it has them
		s.strays(ctx)
	}
}

// carriers removes the carriers of the nonce, what was made anew and is not complete, and their disks.
func (s *sweeping) carriers(ctx context.Context) {
	var note restoreNote
	noted, err := s.work.note(stepRestore, &note)
	var m made
	if err == nil {
		m, err = findMade(ctx, s.a.xapi, s.work.nonce)
	}
	if err != nil {
		s.report("look for carriers", s.work.nonce, err)
		return
	}
	of := ""
	if noted && note.Goal == goalInPlace {
		of = s.work.vm
	}
	m.exchanging(of)
	if s.dry {
		m.disks = slices.DeleteFunc(m.disks, func(vdi xapi.VDI) bool { return s.taken[vdi.UUID] })
	}
	if s.cancels {
		if m, err = s.a.beyondImports(ctx, m); err != nil {
			s.report("look for carriers", s.work.nonce, err)
			return
		}
	}
	if m.empty() {
		return
	}
	if why := m.busy(); why != "" {
		s.wait("remove what was imported", s.work.nonce, why, s.soon())
		return
	}
	fates, err := s.a.fates(ctx, m, s.leaving)
	if err == nil && !s.dry {
		_, err = s.a.discard(ctx, s.work.nonce, of)
	}
	if err != nil {
		s.report("remove what was imported", s.work.nonce, err)
		return
	}
	for _, f := range fates {
		s.report(f.action, f.object, nil)
	}
}

// madeWhole finds the VM that the work has made as new and whose mark it has taken off; the zero VM where there is none. Its
// user may have it by now, so it stays.
func (s *sweeping) madeWhole(ctx context.Context) (xapi.VM, error) {
	var note madeNote
	if found, err := s.work.note(stepMade, &note); err != nil || !found {
		return xapi.VM{}, err
	}
	vm, err := s.a.xapi.VMByUUID(ctx, note.UUID)
	if gone(err) {
		return xapi.VM{}, nil
	}
	if err != nil {
		return xapi.VM{}, fmt.Errorf("look for the VM that was made as new: %w", err)
	}
	if _, marked := vm.OtherConfig[xva.CarrierKey]; marked {
		return xapi.VM{}, nil
	}
	return vm, nil
}

// toldFor is how long a VM that was made as new is remembered until its controller hears of it: the next attempt may have to
// wait for a place for hours, and would make it a second time.
const toldFor = 24 * time.Hour

// untold is until when a sweep leaves the work alone, for its controller to hear of a VM that was made as new; the zero time
// where it does not.
func (s *sweeping) untold() time.Time {
	switch {
	case s.heard || !s.work.has(stepMade):
		return time.Time{}
	case slices.ContainsFunc(s.work.steps, func(e entry) bool { return e.Step != stepMade }):
		return s.work.expires.Add(s.a.journal.ttl) // all but that is cleaned up then
	}
	return s.work.expires.Add(toldFor)
}

func (s *sweeping) waitTold(ctx context.Context, until time.Time) {
	what := "it"
	if vm, err := s.madeWhole(ctx); err == nil && !vm.Ref.Null() {
		what = fmt.Sprintf("%q (%s)", vm.Name, vm.UUID)
	}
	s.wait(rpc.ActionTellMade, s.work.nonce, "its controller may come back to hear of "+what+" until "+until.Format(time.RFC3339), until.Sub(s.now))
}

// tellOfMade tells of the VM that was made as new, which no report may know of.
func (s *sweeping) tellOfMade(ctx context.Context) {
	vm, err := s.madeWhole(ctx)
	switch {
	case err != nil:
		s.report("look for the VM that was made as new", s.work.nonce, err)
	case !vm.Ref.Null() && !s.ended && s.heard:
	case !vm.Ref.Null():
		s.report(rpc.ActionKeepMade, vm.Name+" "+vm.UUID, nil)
		s.kept = !s.heard && s.now.Before(s.work.expires.Add(toldFor))
	}
}

// keepMade leaves of the journal's entries that alone which names the VM.
func (s *sweeping) keepMade(ctx context.Context) {
	for _, e := range s.work.steps {
		if s.dry || e.Step == stepMade {
			continue
		}
		if err := s.a.retry().do(ctx, passing, func(ctx context.Context) error { return s.claim.drop(ctx, e.Step) }); err != nil {
			s.report("remove the journal's entries", s.work.nonce, err)
			return
		}
	}
	s.waitTold(ctx, s.work.expires.Add(toldFor))
}

// beyondImports leaves away what XAPI itself removes when the imports under way are cancelled: it undoes an import that fails.
func (a *Agent) beyondImports(ctx context.Context, m made) (made, error) {
	undone := map[xapi.Ref]bool{}
	importing := func(vm xapi.VM) bool {
		for _, op := range vm.CurrentOperations {
			undone[vm.Ref] = undone[vm.Ref] || op == "import"
		}
		return undone[vm.Ref]
	}
	m.carriers, m.whole = slices.DeleteFunc(m.carriers, importing), slices.DeleteFunc(m.whole, importing)
	var disks []xapi.VDI
	for _, vdi := range m.disks {
		goes := len(vdi.VBDs) == 0
		for _, ref := range vdi.VBDs {
			vbd, err := a.xapi.VBD(ctx, ref)
			if err != nil && !gone(err) {
				return m, fmt.Errorf("read who has disk %s: %w", vdi.UUID, err)
			}
			goes = goes || err == nil && undone[vbd.VM]
		}
		if !goes {
			disks = append(disks, vdi)
		}
	}
	m.disks = disks
	return m, nil
}

// fate is what is done with a thing that a piece of work has made.
type fate struct{ action, object string }

// fates says what discard does with each of m. leaving are VBDs that will be gone by then.
func (a *Agent) fates(ctx context.Context, m made, leaving map[xapi.Ref]bool) ([]fate, error) {
	var out []fate
	for _, vdi := range m.disks {
		err := a.onlyOn(ctx, vdi, m.refs(), leaving)
		switch {
		case err == nil || errors.Is(err, xapi.ErrInUse):
			out = append(out, fate{"delete the imported disk", vdi.UUID})
		case errors.Is(err, errNotOurs):
			out = append(out, fate{"leave the disk to the VM that uses it", vdi.UUID})
		default:
			return nil, err
		}
	}
	for _, vm := range m.carriers {
		out = append(out, fate{"delete the carrier", vm.Name + " " + vm.UUID})
	}
	for _, vm := range m.whole {
		out = append(out, fate{"delete the VM that was not made completely", vm.Name + " " + vm.UUID})
	}
	return out, nil
}
