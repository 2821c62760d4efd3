package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
)

// A sweep finishes or undoes what the journal says and touches nothing else. Work that is alive is left alone: its claim
// stands. Work is dead when its claim has run out by the master's clock, when this agent did it before it was started
// anew, or when the caller knows its session to be dead.

// sweepOptions say what a sweep may take for dead.
type sweepOptions struct {
	DryRun       bool          // only tell
	AtStart      bool          // records of this agent's own name are from before the start
	DeadSessions []string      // sessions that the caller knows to be dead
	Intents      []sweepIntent // unfinished work by the controller's own state
}

// sweepIntent is the controller's copy of an intent: it counts where the pool's database has lost its own.
type sweepIntent struct {
	VM, Nonce, Session string
}

// sweepAction is one thing that a sweep did, would do, or leaves for later.
type sweepAction struct {
	VM, Name       string // UUID and name of the VM
	Action, Object string
	Done           bool
	Err            error
	Waiting        string // why it is left for later
	Lost           bool   // Err is the last word: nothing is left to be done
	// PowerNotRestored says that the VM is known not to be in its former power state.
	PowerNotRestored bool
}

// sweep goes through the journal once.
func (a *Agent) sweep(ctx context.Context, o sweepOptions) ([]sweepAction, error) {
	l, err := a.journal.read(ctx)
	if err != nil {
		a.quiet.away()
		return nil, err
	}
	now, err := a.journal.now(ctx)
	if err != nil {
		return nil, err
	}
	var actions []sweepAction
	known := map[string]bool{}
	for _, w := range worksIn(l) {
		known[w.nonce] = true
		s := &sweeping{a: a, work: w, dry: o.DryRun, now: now}
		s.run(ctx, o)
		actions = append(actions, s.actions...)
	}
	for _, in := range o.Intents {
		if known[in.Nonce] || !validNonce(in.Nonce) {
			continue
		}
		s := &sweeping{a: a, work: work{vm: in.VM, nonce: in.Nonce, session: in.Session}, dry: o.DryRun, now: now}
		s.runIntent(ctx)
		actions = append(actions, s.actions...)
	}
	if !o.DryRun {
		if err := a.dropTakes(ctx, l, now); err != nil {
			return actions, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(l.unknown)) {
		actions = append(actions, sweepAction{Action: "leave journal key alone", Object: key, Waiting: l.unknown[key]})
	}
	return actions, nil
}

// dropTakes removes take-overs that have run out and whose work is gone: whoever took over died at its very last steps.
func (a *Agent) dropTakes(ctx context.Context, l *ledger, now time.Time) error {
	needed := map[string]bool{}
	var need func(nonce string)
	need = func(nonce string) {
		if needed[nonce] {
			return
		}
		needed[nonce] = true
		for _, t := range l.takesOf(nonce) {
			need(t.Record.Nonce)
		}
	}
	for _, e := range l.entries {
		need(e.Record.Nonce)
	}
	for _, t := range l.takes {
		if needed[t.Old] || now.Before(t.Record.Expires) {
			continue
		}
		if err := a.journal.remove(ctx, t.Keys...); err != nil {
			return err
		}
	}
	return nil
}

// work is everything that the journal says of one piece of work.
type work struct {
	vm, nonce, session, agent string
	expires                   time.Time
	steps                     []entry
}

// worksIn groups the journal by VM and nonce.
func worksIn(l *ledger) []work {
	byID := map[string]*work{}
	for _, e := range l.entries {
		id := e.VM + ":" + e.Record.Nonce
		w := byID[id]
		if w == nil {
			w = &work{vm: e.VM, nonce: e.Record.Nonce, session: e.Record.Session, agent: e.Record.Agent}
			byID[id] = w
		}
		if e.Record.Expires.After(w.expires) {
			w.expires = e.Record.Expires
		}
		if e.Step != stepClaim {
			w.steps = append(w.steps, e)
		}
	}
	out := make([]work, 0, len(byID))
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		out = append(out, *byID[id])
	}
	return out
}

// note decodes a step's data into v and tells whether the step is there, and whole.
func (w work) note(step string, v any) (bool, error) {
	for _, e := range w.steps {
		if e.Step != step || !e.Complete {
			continue
		}
		if v == nil {
			return true, nil
		}
		return true, e.decode(v)
	}
	return false, nil
}

// has tells whether the step is there.
func (w work) has(step string) bool {
	return slices.ContainsFunc(w.steps, func(e entry) bool { return e.Step == step && e.Complete })
}

// sweeping is a sweep of one piece of work.
type sweeping struct {
	a       *Agent
	work    work
	dry     bool
	now     time.Time // by the master's clock
	claim   *claim    // nil in a dry run
	vm      xapi.VM   // zero when the VM does not exist
	actions []sweepAction
	failed  bool
	watch   time.Time // the guest may still power off until then; zero = no
}

// run decides whether the work is dead, takes it over and cleans up after it.
func (s *sweeping) run(ctx context.Context, o sweepOptions) {
	if err := s.readVM(ctx); err != nil {
		s.report("read the VM", s.work.vm, err)
		return
	}
	own := o.AtStart && s.work.agent == s.a.cfg.Name
	ended := slices.Contains(o.DeadSessions, s.work.session)
	if why := s.alive(own, ended); why != "" {
		s.wait("clean up after session "+s.work.session, s.work.nonce, why)
		return
	}
	if s.dry {
		s.steps(ctx)
		return
	}
	c, err := s.a.journal.takeOver(ctx, s.work.vm, s.work.nonce, own || ended)
	if claimed := (*errClaimed)(nil); errors.As(err, &claimed) {
		s.wait("clean up after session "+s.work.session, s.work.nonce, claimed.Error())
		return
	}
	if errors.Is(err, errClaimLost) {
		return // somebody else was faster, and has finished
	}
	if err != nil {
		s.report("take over the work of session "+s.work.session, s.work.nonce, err)
		return
	}
	s.under(ctx, c)
}

// runIntent cleans up after work that only the controller knows of: the pool's database has lost the journal's entries.
func (s *sweeping) runIntent(ctx context.Context) {
	if s.dry {
		s.steps(ctx)
		return
	}
	c, err := s.a.journal.claim(ctx, s.work.vm, owner{Session: s.work.session, Key: "sweep", Nonce: s.work.nonce})
	if err != nil {
		s.wait("clean up after session "+s.work.session, s.work.nonce, err.Error())
		return
	}
	s.under(ctx, c)
}

// under cleans up under the claim, which is renewed meanwhile, and removes the journal's entries when all is done.
func (s *sweeping) under(ctx context.Context, c *claim) {
	defer c.abandon()
	ctx, cancel := context.WithCancelCause(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { c.keep(ctx, cancel) })
	defer keeping.Wait()
	defer cancel(nil)
	s.claim = c
	// The VM may have changed before the claim was ours.
	if err := s.readVM(ctx); err != nil {
		s.report("read the VM", s.work.vm, err)
		return
	}
	s.steps(ctx)
	switch {
	case s.failed:
	case s.watch.IsZero():
		s.report("remove the journal's entries", s.work.nonce, c.release(ctx))
	default:
		s.a.watchShutdown(c.handOver(), s.vm, s.watch)
		s.waitWatch()
	}
}

func (s *sweeping) readVM(ctx context.Context) error {
	vm, err := s.a.xapi.VMByUUID(ctx, s.work.vm)
	if err != nil && !gone(err) {
		return err
	}
	s.vm = vm
	return nil
}

// check returns an error unless the claim still stands.
func (s *sweeping) check(ctx context.Context) error {
	_, err := s.claim.check(ctx)
	return err
}

// alive says why the work must be left alone for now, or nothing. own says that it is this agent's, from before its start
// unless this very process is at it; ended, that its session is known to be over.
func (s *sweeping) alive(own, ended bool) string {
	if s.a.journal.holds(s.work.vm) {
		return "this agent is at work on the VM"
	}
	if s.now.Before(s.work.expires) && !ended {
		// A controller may come back to a snapshot that this agent made before its restart.
		if own && !s.urgent() {
			return "its controller may come back for the snapshot until " + s.work.expires.Format(time.RFC3339)
		}
		if !own {
			return fmt.Sprintf("agent %s has claimed the VM until %s", s.work.agent, s.work.expires.Format(time.RFC3339))
		}
	}
	if until := s.a.quiet.until(s.a.journal.ttl); !own && !ended && time.Now().Before(until) {
		return "XAPI was away: its agent gets one lease to come back"
	}
	return ""
}

// urgent tells whether more than a snapshot is at stake.
func (s *sweeping) urgent() bool {
	return slices.ContainsFunc(s.work.steps, func(e entry) bool { return e.Step != stepSnapshot })
}

// steps cleans up, the VM first: its disks, its power state, then what was made for it.
func (s *sweeping) steps(ctx context.Context) {
	after := func() {}
	if !s.vm.Ref.Null() {
		var ok bool
		if ok, after = s.disks(ctx); ok {
			s.power(ctx)
		} else if s.failed {
			return // the carriers' disks may still be wanted
		}
	}
	if !s.failed {
		after()
	}
	s.orphans(ctx)
}

// orphans deletes the snapshot and the carriers of the nonce.
func (s *sweeping) orphans(ctx context.Context) {
	a := s.a
	if s.vm.Ref.Null() {
		if err := s.readVM(ctx); err != nil {
			s.report("read the VM", s.work.vm, err)
			return
		}
	}
	if !s.vm.Ref.Null() {
		name := snapshotPrefix + s.work.nonce
		snap, err := a.settledSnapshot(ctx, s.vm, name)
		switch {
		case err != nil:
			s.report("look for snapshot", name, err)
		case !snap.Ref.Null() && len(snap.CurrentOperations) > 0:
			s.wait("delete snapshot", name, "XAPI still works on it")
		case !snap.Ref.Null():
			s.do("delete snapshot", name, func() error {
				_, err := a.deleteSnapshot(ctx, s.vm.Ref, name, snap.Ref)
				return err
			})
		}
	}
	m, err := findMade(ctx, a.xapi, s.work.nonce)
	switch {
	case err != nil:
		s.report("look for carriers", s.work.nonce, err)
	case m.empty():
	case m.busy() != "":
		s.wait("delete carriers", s.work.nonce, m.busy())
	default:
		for _, what := range m.names() {
			if s.dry {
				s.report("delete or release", what, nil)
			}
		}
		s.do("delete carriers of restore", s.work.nonce, func() error {
			_, err := a.discard(ctx, s.work.nonce)
			return err
		})
	}
}

// do performs an action, or only tells it in a dry run.
func (s *sweeping) do(action, object string, f func() error) {
	if s.dry {
		s.report(action, object, nil)
		return
	}
	s.report(action, object, f())
}

// report tells of an action that was done, has failed, or would be done.
func (s *sweeping) report(action, object string, err error) {
	s.failed = s.failed || err != nil
	s.actions = append(s.actions, sweepAction{VM: s.work.vm, Name: s.vm.Name, Action: action, Object: object,
		Done: err == nil && !s.dry, Err: err})
}

// wait tells of an action that is left for later; the journal keeps its entries.
func (s *sweeping) wait(action, object, why string) {
	s.failed = true
	s.actions = append(s.actions, sweepAction{VM: s.work.vm, Name: s.vm.Name, Action: action, Object: object, Waiting: why})
}
