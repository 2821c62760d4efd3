package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/xapi"
)

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
	watch   time.Time         // the guest may still power off until then; zero = no
	taken   map[string]bool   // dry: arrived disks, by UUID, that will be the VM's
	leaving map[xapi.Ref]bool // dry: VBDs that will be gone
	cancels bool              // dry: imports that are under way will be cancelled
	dropped []xapi.Ref        // tasks of exports that were cancelled
	asked   bool              // one of them was before
	before  string            // the VM's power state by the controller's copy, which counts where the journal has none
	copied  []string          // UUIDs of the snapshot's disks by that copy
	// unsure says that a call of the agent that died may be on its way still: what it makes is not there yet.
	unsure bool
	ended  bool // its session is known to be over
	heard  bool // whoever the work was for knows what was made, or is told now
	kept   bool // a VM was made as new, and its controller is yet to hear of it
	marks  bool // what comes late of the work is looked for until its term is out
}

// run decides whether the work is dead, takes it over and cleans up after it.
func (s *sweeping) run(ctx context.Context, o sweepOptions) {
	if err := s.readVM(ctx); err != nil {
		s.report("read the VM", s.work.vm, err)
		return
	}
	own := o.AtStart && s.work.agent == s.a.cfg.Name && !s.a.journal.twin(s.work, s.now)
	ended := slices.Contains(o.DeadSessions, s.work.session)
	s.ended = ended
	s.heard = ended || slices.Contains(o.HeardSessions, s.work.session)
	if until := s.untold(); s.now.Before(until) && !s.a.journal.holds(s.work.vm) {
		s.waitTold(ctx, until)
		return
	}
	if why, again := s.alive(own, ended); why != "" {
		s.wait("clean up after session "+s.work.session, s.work.nonce, why, again)
		return
	}
	var c *claim
	var err error
	if s.dry {
		err = s.a.journal.mayTakeOver(ctx, s.work.vm, s.work.nonce, own || ended)
	} else {
		c, err = s.a.journal.takeOver(ctx, s.work.vm, s.work.nonce, own || ended)
	}
	if claimed := (*errClaimed)(nil); errors.As(err, &claimed) {
		s.wait("clean up after session "+s.work.session, s.work.nonce, claimed.Error(), claimed.Until.Sub(s.now))
		return
	}
	if errors.Is(err, errClaimLost) {
		return // somebody else was faster, and has finished
	}
	if err != nil {
		s.report("take over the work of session "+s.work.session, s.work.nonce, err)
		return
	}
	if s.dry {
		s.steps(ctx)
		s.end(ctx)
		return
	}
	s.under(ctx, c)
}

// runIntent cleans up after work that only the controller knows of: the pool's database has lost the journal's entries. Where
// nothing is left of it, nothing is written either.
func (s *sweeping) runIntent(ctx context.Context) {
	if s.a.journal.holds(s.work.vm) {
		s.wait("clean up after session "+s.work.session, s.work.nonce, "this agent is at work on the VM", s.soon())
		return
	}
	look := *s
	look.dry = true
	if err := look.readVM(ctx); err != nil {
		s.report("read the VM", s.work.vm, err)
		return
	}
	look.steps(ctx)
	if s.dry || len(look.actions) == 0 {
		s.actions, s.failed = look.actions, look.failed
		return
	}
	c, err := s.a.journal.claim(ctx, s.work.vm, owner{Session: s.work.session, Key: "sweep", Nonce: s.work.nonce})
	if err != nil {
		s.wait("clean up after session "+s.work.session, s.work.nonce, err.Error(), s.soon())
		return
	}
	s.under(ctx, c)
}

// under cleans up under the claim, which is renewed meanwhile, and removes the journal's entries when all is done.
func (s *sweeping) under(ctx context.Context, c *claim) {
	s.claim = c
	c.while(ctx, func(ctx context.Context) {
		// The VM may have changed before the claim was ours, and whose work it is may have noted more: a sweep reads the journal
		// once, and comes to its last works minutes later.
		l, err := c.check(ctx)
		if err == nil {
			s.work.steps = l.steps(s.work.vm, s.work.nonce)
			err = s.readVM(ctx)
		}
		if err != nil {
			s.report("read the VM", s.work.vm, err)
			return
		}
		failpoint.Pass("agent/sweep/claimed")
		s.steps(ctx)
		failpoint.Pass("agent/sweep/before-release")
		s.end(ctx)
	})
}

// end removes the journal's entries when all is done, or hands them over to the watch.
func (s *sweeping) end(ctx context.Context) {
	switch {
	case s.failed:
	case !s.watch.IsZero():
		if !s.dry {
			s.a.watchShutdown(s.claim.handOver(), s.vm, s.watch)
		}
		s.waitWatch()
	case s.kept:
		s.keepMade(ctx)
	case s.unsure && s.now.Before(s.work.expires):
		// Expired is not dead, and dead is not silent: by then whatever it asked XAPI for is there to be seen.
		s.wait("remove the journal's entries", s.work.nonce,
			"XAPI may still do what agent "+s.work.agent+" asked for last: it is looked for again after "+s.work.expires.Format(time.RFC3339),
			s.work.expires.Sub(s.now))
	case len(s.work.steps) == 0 && s.work.agent == "": // an intent: its claim is the sweep's own
		if !s.dry {
			if err := s.claim.release(ctx); err != nil {
				s.report("remove the journal's entries", s.work.nonce, err)
			}
		}
	default:
		begun := s.a.journal.begun(s.work.nonce)
		s.do("remove the journal's entries", s.work.nonce, func() error {
			if s.work.has(stepSnapshot) {
				s.a.syncDatabase(ctx) // after a crash it would be there again, and named by nothing
				back, err := s.a.isBack(ctx, s.vm, snapshotPrefix+s.work.nonce)
				if err != nil {
					return err
				}
				if back {
					return errIsBack // the next sweep deletes it
				}
			}
			return s.claim.release(ctx)
		})
		s.marks = !s.failed && !begun && s.now.Before(s.work.expires)
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
// unless this very process is at it; ended, that its session is known to be over. again is in how long to look again, where
// that is worth while.
func (s *sweeping) alive(own, ended bool) (why string, again time.Duration) {
	if s.a.journal.holds(s.work.vm) {
		if until, ok := s.a.watchedUntil(s.work.vm); ok {
			return watchedWhy(until), until.Sub(s.now)
		}
		if ended {
			again = s.soon()
		}
		return "this agent is at work on the VM", again
	}
	if s.now.Before(s.work.expires) && !ended {
		// A controller may come back to a snapshot that this agent made before its restart.
		if own && !s.urgent() {
			return "its controller may come back for the snapshot until " + s.work.expires.Format(time.RFC3339), 0
		}
		if !own {
			return fmt.Sprintf("agent %s has claimed the VM until %s", s.work.agent, s.work.expires.Format(time.RFC3339)), 0
		}
	}
	if until := s.a.quiet.until(s.a.journal.ttl); !own && !ended && time.Now().Before(until) {
		return "XAPI was away, or the pool master's clock was set: its agent gets one lease to come back", time.Until(until)
	}
	return "", 0
}

// soon is in how long to look again at what nobody knows the end of.
func (s *sweeping) soon() time.Duration { return s.a.cfg.Timing.RetryMax }

// urgent tells whether more than a snapshot is at stake.
func (s *sweeping) urgent() bool {
	return slices.ContainsFunc(s.work.steps, func(e entry) bool { return e.Step != stepSnapshot && e.Step != stepTaken })
}

// steps cleans up, the VM first: its disks, its interfaces, its power state, then what was made for it.
func (s *sweeping) steps(ctx context.Context) {
	s.exports(ctx) // a VM that is off does not start while it is exported
	after := func() {}
	if !s.vm.Ref.Null() {
		var ok bool
		if ok, after = s.disks(ctx); ok {
			s.interfaces(ctx)
			failpoint.Pass("agent/sweep/before-power")
			s.power(ctx)
		} else if s.failed {
			return // the carriers' disks may still be wanted
		}
	}
	if !s.failed {
		failpoint.Pass("agent/sweep/before-replaced")
		after()
	}
	failpoint.Pass("agent/sweep/before-orphans")
	s.imports(ctx)
	s.snapshot(ctx)
	s.carriers(ctx)
	s.exported(ctx)
	s.tellOfMade(ctx)
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
// again is in how long another sweep may find it ready, 0 where that is not known.
func (s *sweeping) wait(action, object, why string, again time.Duration) {
	s.failed = true
	s.actions = append(s.actions, sweepAction{VM: s.work.vm, Name: s.vm.Name, Action: action, Object: object, Waiting: why, Again: max(again, 0)})
}
