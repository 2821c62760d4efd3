package controller

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
)

// Restored VMs that are to be started are started in their order, as XAPI starts an appliance: all VMs of one order at the
// same time, once every one of them is restored; then the longest of their delays is waited, and the next order comes. A VM
// whose disks were exchanged while it ran is started right after the exchange, whatever its order: to wait would be downtime.

// arrange finds out which VMs the session starts itself. Where order and delays mean nothing, each agent starts its VM as
// soon as it is restored.
func arrange(req *RestoreRequest, targets []*target) {
	var all []*target
	ordered := false
	for _, t := range targets {
		if t.Refused != "" || !t.wish.start || t.preview == nil || t.vm != nil && t.vm.Power == PowerRunning && !req.AsNew {
			continue
		}
		all = append(all, t)
		ordered = ordered || t.order != all[0].order || t.delay > 0
	}
	if len(all) < 2 || !ordered {
		return
	}
	for _, t := range all {
		t.starts = true
	}
}

// starter starts the restored VMs of a session in their order.
type starter struct {
	*restore
	mu   sync.Mutex
	cond *sync.Cond
	over map[*target]bool // it is restored, or failed
	good map[*target]bool
}

func newStarter(r *restore) *starter {
	s := &starter{restore: r, over: map[*target]bool{}, good: map[*target]bool{}}
	s.cond = sync.NewCond(&s.mu)
	return s
}

// done notes that a VM's restore is over.
func (s *starter) done(t *target, good bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over[t], s.good[t] = true, good
	s.cond.Broadcast()
}

// await returns once the restores of all these VMs are over, or none is begun any more, with those that are good.
func (s *starter) await(ctx context.Context, group []*target) (good []*target) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range group {
		for !s.over[t] && ctx.Err() == nil {
			s.cond.Wait()
		}
		if s.good[t] {
			good = append(good, t)
		}
	}
	return good
}

// run starts everything that arrange has marked. It ends with ctx.
func (s *starter) run(ctx context.Context, targets []*target) {
	var marked []*target
	for _, t := range inStartOrder(targets) {
		if t.starts {
			marked = append(marked, t)
		}
	}
	for len(marked) > 0 {
		n := slices.IndexFunc(marked, func(t *target) bool { return t.order != marked[0].order })
		if n < 0 {
			n = len(marked)
		}
		group := marked[:n]
		marked = marked[n:]
		delay := s.group(ctx, group)
		if len(marked) == 0 || delay == 0 {
			continue
		}
		s.emit(Event{Type: EventNote, Message: fmt.Sprintf("start order %d is started; the next one after its start delay of %s", group[0].order, delay)})
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
}

// group starts the VMs of one order and returns the longest of their delays.
func (s *starter) group(ctx context.Context, group []*target) (delay time.Duration) {
	good := s.await(ctx, group)
	var g sync.WaitGroup
	for _, t := range good {
		delay = max(delay, t.delay)
		g.Go(func() { s.start(ctx, t) })
	}
	g.Wait()
	return delay
}

// start starts a restored VM by an agent of its pool.
func (s *starter) start(ctx context.Context, t *target) {
	if ctx.Err() != nil {
		s.result(t.slot, func(r *VMResult) {
			r.StartDue = false
			r.Warnings = appendNew(r.Warnings, "it is restored and not started: the session was cancelled before its turn")
		})
		return
	}
	uuid := t.UUID
	if made := s.s.snapshot().VMs[t.slot].NewUUID; made != "" {
		uuid = made
	}
	s.phase(t.ref(), "starting", fmt.Sprintf("in start order %d", t.order))
	var power string
	var err error
	for _, name := range t.agents {
		if power, err = s.c.agent(name).startVM(ctx, uuid, s.s.id); err == nil || !anotherMay(err) {
			break
		}
	}
	s.result(t.slot, func(r *VMResult) {
		r.StartDue = false
		if err != nil {
			r.Warnings = appendNew(r.Warnings, fmt.Sprintf("it is restored, but could not be started: %s (%s)", err, rpc.ReasonOf(err)))
			return
		}
		r.PowerAfter = power
		r.Notes = appendNew(r.Notes, fmt.Sprintf("started in start order %d", t.order))
	})
}

// rank has the VMs restored in the order in which they are started; those that the session does not start come as they like.
func (t *target) rank() int {
	if t.starts {
		return t.order
	}
	return 0
}

// neverStarted says of every VM that was restored by a session which died, and waited for its turn, that nobody starts it: what
// repair undoes or finishes is restores, and of this one nothing is left to do. It returns their names.
func (r *Report) neverStarted() (names []string) {
	for i := range r.VMs {
		vm := &r.VMs[i]
		if vm.Status != StatusGood || !vm.StartDue {
			continue
		}
		uuid := vm.UUID
		if vm.NewUUID != "" {
			uuid = vm.NewUUID
		}
		names = append(names, fmt.Sprintf("%s (%s)", vm.Name, uuid))
		vm.Warnings = appendNew(vm.Warnings, "it is restored and not started: the session died before its turn; start it")
	}
	return names
}
