package agent

import (
	"context"
	"maps"
	"slices"
	"time"
)

// A sweep finishes or undoes what the journal says and touches nothing else. Work that is alive is left alone: its claim
// stands. Work is dead when its claim has run out by the master's clock, when this agent did it before it was started
// anew, or when the caller knows its session to be dead.

// sweepOptions say what a sweep may take for dead.
type sweepOptions struct {
	DryRun       bool     // only tell
	AtStart      bool     // records of this agent's own name are from before the start
	DeadSessions []string // sessions that the caller knows to be dead
	// HeardSessions are over, and their reports tell of all that was made for them.
	HeardSessions []string
	Intents       []sweepIntent // unfinished work by the controller's own state
	// Ending are the VMs of transfers that would be ended before the sweep: their own cleanup takes care of them. Of dry
	// runs alone.
	Ending map[string]bool
}

// sweepIntent is the controller's copy of an intent: it counts where the pool's database has lost its own.
type sweepIntent struct {
	VM, Nonce, Session string
	// Before is the VM's power state before the work, where the work may have changed it; else empty.
	Before string
	// Disks are the UUIDs of the snapshot's disks.
	Disks []string
}

// sweepAction is one thing that a sweep did, would do, or leaves for later.
type sweepAction struct {
	VM, Name       string // UUID and name of the VM
	Action, Object string
	Done           bool
	Err            error
	Waiting        string // why it is left for later
	// Again is in how long another sweep may find it ready; 0 = not known.
	Again time.Duration
	Lost  bool // Err is the last word: nothing is left to be done
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
	if off := a.quiet.clock(now); off != 0 {
		a.log.Warn("the pool master's clock has jumped; what claims say of their end does not count for one lease", "by", off.Round(time.Second).String())
	}
	actions, marked, err := a.marked(ctx, l, now, o.DryRun)
	if err != nil {
		return actions, err
	}
	known := map[string]bool{}
	for _, e := range l.overs {
		known[e.Old] = true
	}
	for _, w := range a.journal.worksIn(l, now) {
		known[w.nonce] = true
		if o.Ending[w.vm] || l.isOver(w.nonce) {
			continue
		}
		s := &sweeping{a: a, work: w, dry: o.DryRun, now: now, before: o.before(w.nonce), copied: o.disks(w.nonce)}
		s.run(ctx, o)
		actions = append(actions, s.actions...)
		if s.marks {
			marked.note(w.session, w.expires)
		}
	}
	strayed := map[string]bool{}
	for _, in := range o.Intents {
		if l.isOver(in.Nonce) && len(in.Disks) > 0 && !strayed[in.Nonce] && !o.Ending[in.VM] {
			strayed[in.Nonce] = true
			s := &sweeping{a: a, work: work{vm: in.VM, nonce: in.Nonce, session: in.Session}, dry: o.DryRun, now: now, copied: o.disks(in.Nonce)}
			s.lateStrays(ctx)
			actions = append(actions, s.actions...)
		}
		if known[in.Nonce] || !validNonce(in.Nonce) || o.Ending[in.VM] {
			continue
		}
		s := &sweeping{a: a, work: work{vm: in.VM, nonce: in.Nonce, session: in.Session}, dry: o.DryRun, now: now, before: in.Before, copied: in.Disks}
		s.runIntent(ctx)
		actions = append(actions, s.actions...)
	}
	taken, err := a.dropTakes(ctx, l, now, o)
	actions = append(actions, taken...)
	if err != nil {
		return actions, err
	}
	actions = append(actions, marked.actions(now)...)
	for _, key := range slices.Sorted(maps.Keys(l.unknown)) {
		actions = append(actions, sweepAction{Action: "leave journal key alone", Object: key, Waiting: l.unknown[key]})
	}
	return actions, nil
}

// before is what the controller's copy says of the VM's power state before a piece of work.
func (o sweepOptions) before(nonce string) string {
	for _, in := range o.Intents {
		if in.Nonce == nonce {
			return in.Before
		}
	}
	return ""
}

// disks are those that the controller's copies name as the snapshots' of a piece of work: each attempt at it has one.
func (o sweepOptions) disks(nonce string) (all []string) {
	for _, in := range o.Intents {
		if in.Nonce == nonce {
			all = append(all, in.Disks...)
		}
	}
	return all
}

// dropTakes removes take-overs whose work is gone: whoever took over died at its very last steps, or is at them, where nobody
// minds that the key is gone already. Those of other agents, for sessions that may live, have run out before.
func (a *Agent) dropTakes(ctx context.Context, l *ledger, now time.Time, o sweepOptions) (actions []sweepAction, err error) {
	dry := o.DryRun
	for _, t := range a.journal.uselessTakes(l) {
		own := t.Record.Agent == a.cfg.Name || slices.Contains(o.DeadSessions, t.Record.Session)
		if until := a.journal.until(t.Record, now); !own && now.Before(until) {
			continue
		}
		if !dry {
			if err := a.journal.remove(ctx, t.Keys...); err != nil {
				return actions, err
			}
		}
		actions = append(actions, sweepAction{Action: "remove the take-over of work that is gone", Object: t.Old, Done: !dry})
	}
	return actions, nil
}

// uselessTakes are the take-overs that lead to no work that is still in the journal.
func (j *journal) uselessTakes(l *ledger) []entry {
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
	return filter(l.takes, func(t entry) bool { return !needed[t.Old] })
}

// work is everything that the journal says of one piece of work.
type work struct {
	vm, nonce, session, agent string
	expires, granted          time.Time // of the last term
	steps                     []entry
}

// worksIn groups the journal by VM and nonce.
func (j *journal) worksIn(l *ledger, now time.Time) []work {
	byID := map[string]*work{}
	for _, e := range l.entries {
		id := e.VM + ":" + e.Record.Nonce
		w := byID[id]
		if w == nil {
			w = &work{vm: e.VM, nonce: e.Record.Nonce, session: e.Record.Session, agent: e.Record.Agent}
			byID[id] = w
		}
		if until := j.until(e.Record, now); until.After(w.expires) {
			w.expires = until
		}
		if e.Record.Granted.After(w.granted) {
			w.granted = e.Record.Granted
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
