package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// journalSweeper runs sweeps: at start, at an interval, when a claim finds dead work in its way, and when asked.
type journalSweeper struct {
	a  *Agent
	mu sync.Mutex // one sweep at a time
}

func newSweeper(a *Agent) *journalSweeper {
	a.quiet.away()
	return &journalSweeper{a: a}
}

// atStart is sweeper's.
func (s *journalSweeper) atStart(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, s.a.cfg.Timing.Settle)
	defer cancel()
	s.log(s.sweep(limited, sweepOptions{AtStart: true}))
}

// loop is sweeper's.
func (s *journalSweeper) loop(ctx context.Context) {
	for sleep(ctx, s.a.cfg.Timing.Sweep) == nil {
		s.log(s.sweep(ctx, sweepOptions{AtStart: true}))
	}
}

// sweepVM is sweeper's.
func (s *journalSweeper) sweepVM(ctx context.Context, vm string) error {
	actions, err := s.sweep(ctx, sweepOptions{AtStart: true})
	if err != nil {
		return fmt.Errorf("clean up after earlier work on the VM: %w", err)
	}
	var errs []error
	for _, action := range actions {
		switch {
		case action.VM != vm || action.Lost:
		case action.Err != nil:
			errs = append(errs, fmt.Errorf("%s %s: %w", action.Action, action.Object, action.Err))
		case action.Waiting != "":
			errs = append(errs, fmt.Errorf("%s %s: %s", action.Action, action.Object, action.Waiting))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("earlier work on the VM is not cleaned up yet: %w", errors.Join(errs...))
	}
	return nil
}

// sweep runs one sweep, whole, bounded by the time that a cleanup may take.
func (s *journalSweeper) sweep(ctx context.Context, o sweepOptions) ([]sweepAction, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.a.cfg.Timing.Cleanup)
	defer cancel()
	actions, err := s.a.sweep(ctx, o)
	for _, action := range actions {
		if action.Done {
			s.a.metrics.swept.Inc()
		}
	}
	return actions, err
}

// log tells of what a sweep on the agent's own account did.
func (s *journalSweeper) log(actions []sweepAction, err error) {
	log := s.a.log.Named("sweep")
	if err != nil {
		log.Warn("sweep failed; it is tried again", "err", err)
		return
	}
	removed := 0
	for _, action := range actions {
		kv := []any{"vm", action.VM, "action", action.Action, "object", action.Object}
		switch {
		case action.Err != nil:
			log.Warn("sweep action failed", append(kv, "err", action.Err)...)
		case action.Waiting != "":
			log.Debug("sweep action left for later", append(kv, "why", action.Waiting)...)
		default:
			removed++
			log.Info("sweep action done", kv...)
		}
	}
	if removed > 0 {
		log.Info("sweep finished", "actions", removed, "at", time.Now().UTC().Format(time.RFC3339))
	}
}
