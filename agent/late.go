package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
)

// lateObjects removes what XAPI has made for marked work after it ended: the snapshot of a call that was on its way when its
// agent died, perhaps one of several. again says that the mark is wanted still.
func (a *Agent) lateObjects(ctx context.Context, mark entry, now time.Time, dry bool) (actions []sweepAction, again bool) {
	uuid := strings.TrimPrefix(mark.Data, overData)
	s := &sweeping{a: a, work: work{vm: uuid, nonce: mark.Old, session: mark.Record.Session}, dry: dry, now: now}
	// New work of the same name may have begun since the journal was read: what is there then is not late, but its own.
	l, err := a.journal.read(ctx)
	if err != nil {
		s.report("read the journal", mark.Old, err)
		return s.actions, true
	}
	if !l.isOver(mark.Old) {
		return nil, false
	}
	s.exports(ctx)
	s.lateImports(ctx)
	if err := s.readVM(ctx); err != nil {
		s.report("read the VM", uuid, err)
		return s.actions, true
	}
	name := snapshotPrefix + mark.Old
	snap, err := a.findSnapshot(ctx, s.vm, name)
	switch {
	case err != nil:
		s.report("look for snapshot", name, err)
	case snap.Ref.Null():
		// One that is being taken now may be it.
		return s.actions, s.failed || slices.Contains(slices.Collect(maps.Values(s.vm.CurrentOperations)), "snapshot")
	case dry:
		s.report("delete snapshot", name, nil)
	default:
		s.lateSnapshot(ctx, name)
	}
	return s.actions, s.failed || dry
}

// lateImports drops tasks of imports: none was handed to a host, since its agent had died.
func (s *sweeping) lateImports(ctx context.Context) {
	label := importLabel(s.work.nonce)
	tasks, err := s.a.pendingTasks(ctx, label)
	if err != nil {
		s.report("look for the task of an import", label, err)
		return
	}
	for _, t := range tasks {
		s.do("cancel the import of a dead agent", label, func() error { return s.a.xapi.DropTask(ctx, t.Ref) })
	}
}

// lateSnapshot deletes the snapshots of marked work under a claim: new work of the same name may begin at any moment, and
// takes a snapshot of the same name.
func (s *sweeping) lateSnapshot(ctx context.Context, name string) {
	c, err := s.a.journal.claim(ctx, s.work.vm, owner{Session: s.work.session, Key: "sweep", Nonce: randomID()})
	if err != nil {
		s.wait("delete snapshot", name, err.Error(), s.soon())
		return
	}
	c.while(ctx, func(ctx context.Context) {
		l, err := c.check(ctx)
		if err == nil && l.isOver(s.work.nonce) {
			_, err = s.a.deleteSnapshots(ctx, s.vm, name)
		}
		s.report("delete snapshot", name, err)
		if err := c.release(ctx); err != nil {
			s.report("remove the journal's entries", c.nonce, err)
		}
	})
}

// lateStrays deletes disks that the controller's copy names of marked work, and that XAPI's database had forgotten when it ended.
// Nothing else of a copy is acted on while the mark stands.
func (s *sweeping) lateStrays(ctx context.Context) {
	if err := s.readVM(ctx); err != nil {
		s.report("read the VM", s.work.vm, err)
		return
	}
	look := *s
	look.dry = true
	look.strays(ctx)
	if s.dry || len(look.actions) == 0 {
		s.actions = look.actions
		return
	}
	c, err := s.a.journal.claim(ctx, s.work.vm, owner{Session: s.work.session, Key: "sweep", Nonce: randomID()})
	if err != nil {
		s.wait("clean up after session "+s.work.session, s.work.nonce, err.Error(), s.soon())
		return
	}
	c.while(ctx, func(ctx context.Context) {
		s.strays(ctx)
		if err := c.release(ctx); err != nil {
			s.report("remove the journal's entries", c.nonce, err)
		}
	})
}

// maxSameName bounds how often one snapshot's name is met: each takes an agent that died in the call for it.
const maxSameName = 100

// deleteSnapshots deletes all snapshots of that name: calls of agents that died may have made more than one. It returns what
// is left, as deleteSnapshot does.
func (a *Agent) deleteSnapshots(ctx context.Context, vm xapi.VM, name string) (leftovers []string, err error) {
	for range maxSameName {
		snap, err := a.findSnapshot(ctx, vm, name)
		if err != nil {
			return []string{"snapshot " + name}, err
		}
		if snap.Ref.Null() {
			return nil, nil
		}
		if left, err := a.deleteSnapshot(ctx, vm.Ref, name, snap.Ref); err != nil {
			return left, err
		}
	}
	return []string{"snapshot " + name}, fmt.Errorf("there are more than %d snapshots %q", maxSameName, name)
}
