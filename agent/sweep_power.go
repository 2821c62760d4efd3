package agent

import (
	"context"
	"errors"
	"slices"

	"github.com/dpxen/dpxen/internal/rpc"
)

// What a sweep does about a VM that is not in its former power state.

// power brings the VM back to its former power state.
func (s *sweeping) power(ctx context.Context) {
	var note powerNote
	found, err := s.work.note(stepPower, &note)
	if err != nil {
		s.report("read the power note", s.work.nonce, err)
		return
	}
	if !found && s.before == running && s.vm.PowerState == halted {
		// The journal has lost it, or never had it: the controller's copy counts.
		found, note.Before = true, running
	}
	if !found || note.Before != running {
		return
	}
	switch s.vm.PowerState {
	case halted:
	case running:
		if err := s.watchLate(ctx, note); err != nil {
			s.report("read the watch note", s.work.nonce, err)
		}
		return
	default:
		return // suspended or paused by somebody: we do neither
	}
	if s.vm.IsTemplate { // whoever did that knew that it was off, and it is not ours to undo
		s.actions = append(s.actions, sweepAction{VM: s.work.vm, Name: s.vm.Name, Action: rpc.ActionStartVM, Object: s.vm.Name,
			Lost: true, PowerNotRestored: true, Err: errors.New("somebody has made it a template meanwhile, and a template does not start")})
		return
	}
	before := len(s.actions)
	// What its users have blocked, and not an exchange of disks whose blocks are lifted before.
	if text, blocked := s.vm.BlockedOperations["start"]; s.dry && blocked && !s.work.has(stepSwap) {
		s.report(rpc.ActionStartVM, s.vm.Name, rpc.Errorf(rpc.Conflict, "start the VM: its start is blocked (%s)", text))
		s.actions[before].PowerNotRestored = true
		return
	}
	goes, err := s.exportGoes(ctx)
	if err == nil && goes { // it would be refused, and only after a while
		s.report(rpc.ActionStartVM, s.vm.Name, errors.New(exportGoing))
		s.actions[before].PowerNotRestored = true
		return
	}
	s.do(rpc.ActionStartVM, s.vm.Name, func() error {
		ctx, cancel := context.WithTimeout(ctx, s.a.cfg.Timing.Start)
		defer cancel()
		return s.a.power.start(ctx, s.vm.Ref)
	})
	for i := before; i < len(s.actions); i++ {
		s.actions[i].PowerNotRestored = s.actions[i].Err != nil
	}
	if s.work.has(stepAgain) && !s.failed { // one of the calls has shut it down, and another may be waiting in XAPI for its turn
		s.watchFromNow(ctx)
	}
}

// watchFromNow has a VM watched for a claim's time, since a call for a shutdown may reach it that XAPI has let wait.
func (s *sweeping) watchFromNow(ctx context.Context) {
	now, err := s.a.journal.now(ctx) // the start may have taken its time
	if err != nil {
		s.report("watch the VM", s.vm.Name, err)
		return
	}
	s.watch = now.Add(s.a.journal.ttl)
}

// watchLate finds out how long the guest may still power off because of a shutdown that nobody waits for any more: as long
// as the watch note says, or, where the agent died before it gave the shutdown up, for the shutdown's limit and some more
// since the power note, which was written before its claim's term was over, or since the last call was noted. A VM that was
// started since is out of reach, and an exchange of disks begins only after the VM was seen Halted: of one call for a shutdown
// only.
func (s *sweeping) watchLate(ctx context.Context, note powerNote) error {
	var noted watchNote
	if _, err := s.work.note(stepWatch, &noted); err != nil {
		return err
	}
	if s.work.has(stepAgain) && (note.startedSince(s.vm) || s.work.has(stepSwap)) {
		s.watchFromNow(ctx)
		return nil
	}
	if note.startedSince(s.vm) && !noted.Call || s.work.has(stepSwap) {
		return nil
	}
	until := s.now
	for _, e := range s.work.steps {
		if t := s.a.journal.until(e.Record, s.now).Add(note.Limit + s.a.cfg.Timing.Late); aboutPower(e.Step) && e.Complete && t.After(until) {
			until = t
		}
	}
	watch := watchNote{Until: until}
	if !noted.Until.IsZero() {
		watch = noted
	}
	if watch.Until.After(until) && s.jumped(stepWatch) {
		watch.Until = until // by a clock that was set back since
	}
	if s.work.has(stepAgain) && shuttingDown(s.vm) && s.now.Add(s.a.journal.ttl).After(watch.Until) {
		s.watchFromNow(ctx) // as a watch that was under way would: of the calls that wait, XAPI is at one, and not in a hurry
		return nil
	}
	if s.now.Before(watch.Until) {
		s.watch = watch.Until
		if s.dry {
			s.waitWatch()
		}
	}
	return nil
}

func (s *sweeping) waitWatch() {
	s.wait("watch the VM", s.vm.Name, watchedWhy(s.watch), s.watch.Sub(s.now))
}

// jumped tells whether the master's clock was set back since a step was noted.
func (s *sweeping) jumped(step string) bool {
	return slices.ContainsFunc(s.work.steps, func(e entry) bool {
		return e.Step == step && e.Record.Granted.After(s.now.Add(steadyClock))
	})
}
