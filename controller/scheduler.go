package controller

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// task is one VM's work as the scheduler sees it.
type task struct {
	place
	rank   int    // the lowest go first
	weight int64  // how long it takes, about: the longest go first within a rank
	name   string // orders equals
	run    func(context.Context, *seat)
}

// place is what a VM takes up while it is worked on. UUIDs all.
type place struct {
	pool      string
	hosts     []string // where it runs, and where its disks are read; none where that is not known
	srs       []string
	snapshots bool // a snapshot is taken at the beginning: beginnings are kept apart on each SR
}

// same tells whether the same is taken up at both.
func (p place) same(o place) bool {
	return p.pool == o.pool && slices.Equal(p.hosts, o.hosts) && slices.Equal(p.srs, o.srs)
}

// shares tells whether two places are wanted by both for a host or an SR.
func (p place) shares(o place) bool {
	has := func(list []string) func(string) bool {
		return func(s string) bool { return slices.Contains(list, s) }
	}
	return slices.ContainsFunc(p.hosts, has(o.hosts)) || slices.ContainsFunc(p.srs, has(o.srs))
}

// schedule runs the tasks, each once, and returns when all that were begun are over; after ctx has ended none is begun.
//
// At every moment the next seat goes to the pool with the fewest VMs at work (of equals the one that had the fewest so far),
// and in it to the longest task that the limits allow, so that a slow SR or host holds up nobody who does not need it. Tasks
// that had a seat before and wait for another go first. One that others have passed over maxPassed times gets the next free
// place on everything it needs kept: it may need several SRs, which else might never be free at the same time.
func schedule(ctx context.Context, limits caps, tasks []task) {
	s := newScheduler(limits)
	stop := context.AfterFunc(ctx, s.dismiss)
	defer stop()
	order := inOrder(tasks)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.stopTimer()
	for i := range order {
		t := &order[i]
		st := &seat{s: s, turn: i}
		s.queues[t.pool] = append(s.queues[t.pool], &waiter{seat: st, place: t.place, turn: i, grant: func() { s.begin(ctx, t, st) }})
	}
	if ctx.Err() == nil {
		s.serve()
	}
	for s.atWork > 0 || ctx.Err() == nil && s.fresh() {
		s.changed.Wait()
	}
}

// inOrder returns the tasks in the order in which they are begun where no limit changes it.
func inOrder(tasks []task) []task {
	order := slices.Clone(tasks)
	slices.SortStableFunc(order, func(a, b task) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), -cmp.Compare(a.weight, b.weight), cmp.Compare(a.pool, b.pool), cmp.Compare(a.name, b.name))
	})
	return order
}

// dismiss drops the tasks that were not begun.
func (s *scheduler) dismiss() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pool, q := range s.queues {
		s.queues[pool] = slices.DeleteFunc(q, func(w *waiter) bool { return !w.begun })
		if f := s.favoured[pool]; f != nil && !f.begun {
			delete(s.favoured, pool)
		}
	}
	s.serve()
	s.changed.Broadcast()
}

// waiter is a task that waits for a seat.
type waiter struct {
	place
	seat   *seat
	turn   int
	begun  bool   // it had a seat before
	passed int    // how often others were preferred that want what it wants
	grant  func() // called with the lock held once the place is taken
}

// compareWaiters is the order in which seats of a pool are given.
func compareWaiters(a, b *waiter) int {
	return cmp.Or(-boolCompare(a.begun, b.begun), cmp.Compare(a.turn, b.turn))
}

// maxPassed is how often a task may be passed over before places are kept for it.
const maxPassed = 8

// scheduler gives out seats. Its maps count what is taken, by UUID.
type scheduler struct {
	caps caps

	mu      sync.Mutex
	changed *sync.Cond // a task has ended, or the context has
	atWork  int        // tasks that were begun and have not returned

	queues   map[string][]*waiter // by pool, each in its order
	favoured map[string]*waiter   // by pool: the one that places are kept for
	total    int
	hosts    map[string]int
	pools    map[string]int
	srs      map[string]int
	given    map[string]int       // seats so far, by pool
	last     map[string]time.Time // the last beginning with a snapshot, by SR
	timer    *time.Timer          // for the next beginning that waits for time alone
}

func newScheduler(limits caps) *scheduler {
	s := &scheduler{caps: limits, queues: map[string][]*waiter{}, favoured: map[string]*waiter{}, hosts: map[string]int{},
		pools: map[string]int{}, srs: map[string]int{}, given: map[string]int{}, last: map[string]time.Time{}}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// fresh tells whether tasks wait that were never begun.
func (s *scheduler) fresh() bool {
	for _, q := range s.queues {
		if slices.ContainsFunc(q, func(w *waiter) bool { return !w.begun }) {
			return true
		}
	}
	return false
}

// begin runs a task that has got its first seat.
func (s *scheduler) begin(ctx context.Context, t *task, st *seat) {
	st.held, st.at = true, t.place
	s.atWork++
	go func() {
		defer func() {
			st.leave()
			s.mu.Lock()
			defer s.mu.Unlock()
			s.atWork--
			s.changed.Broadcast()
		}()
		t.run(ctx, st)
	}()
}

// serve gives all seats that can be given now.
func (s *scheduler) serve() {
	for {
		w, soonest := s.next()
		if w == nil {
			s.wakeAt(soonest)
			return
		}
		s.remove(w)
		s.passOver(w)
		s.take(w.place, 1)
		s.given[w.pool]++
		if w.snapshots {
			for _, sr := range w.srs {
				s.last[sr] = time.Now()
			}
		}
		w.grant()
	}
}

// next returns who gets the next seat, or nil; then soonest is when one may get it without anything else happening, if ever.
func (s *scheduler) next() (_ *waiter, soonest time.Time) {
	if s.total >= s.caps.Total {
		return nil, soonest
	}
	for _, pool := range s.poolsByNeed() {
		if s.pools[pool] >= s.caps.pool(pool) {
			continue
		}
		for _, w := range s.queues[pool] {
			if !s.allowed(w) {
				continue
			}
			at := s.notBefore(w)
			if !at.After(time.Now()) {
				return w, time.Time{}
			}
			if soonest.IsZero() || at.Before(soonest) {
				soonest = at
			}
		}
	}
	return nil, soonest
}

// poolsByNeed returns the pools in which somebody waits, in the order in which they are served.
func (s *scheduler) poolsByNeed() []string {
	var pools []string
	for _, pool := range sortedKeys(s.queues) {
		if len(s.queues[pool]) > 0 {
			pools = append(pools, pool)
		}
	}
	slices.SortStableFunc(pools, func(a, b string) int {
		return cmp.Or(cmp.Compare(s.pools[a], s.pools[b]), cmp.Compare(s.given[a], s.given[b]),
			cmp.Compare(s.queues[a][0].turn, s.queues[b][0].turn))
	})
	return pools
}

// allowed tells whether hosts and SRs have room for the waiter, beside what is kept for another.
func (s *scheduler) allowed(w *waiter) bool {
	f := s.favoured[w.pool]
	if f == w {
		f = nil
	}
	for _, h := range w.hosts {
		kept := 0
		if f != nil && slices.Contains(f.hosts, h) {
			kept = 1
		}
		if s.hosts[h]+kept >= s.caps.host(h) {
			return false
		}
	}
	for _, sr := range w.srs {
		kept := 0
		if f != nil && slices.Contains(f.srs, sr) {
			kept = 1
		}
		if s.srs[sr]+kept >= s.caps.sr(sr) {
			return false
		}
	}
	return true
}

// notBefore is when the waiter may begin by the SRs' last beginnings.
func (s *scheduler) notBefore(w *waiter) (at time.Time) {
	if !w.snapshots {
		return at
	}
	for _, sr := range w.srs {
		if last, ok := s.last[sr]; ok && last.Add(s.caps.Stagger).After(at) {
			at = last.Add(s.caps.Stagger)
		}
	}
	return at
}

// wakeAt lets seats be given again at a time; zero = not by time.
func (s *scheduler) wakeAt(at time.Time) {
	s.stopTimer()
	if at.IsZero() {
		return
	}
	s.timer = time.AfterFunc(time.Until(at), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.serve()
	})
}

func (s *scheduler) stopTimer() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// passOver notes who was before w and wants what w gets.
func (s *scheduler) passOver(w *waiter) {
	for _, other := range s.queues[w.pool] {
		if compareWaiters(other, w) > 0 {
			return
		}
		if other.shares(w.place) {
			if other.passed++; other.passed >= maxPassed && s.favoured[w.pool] == nil {
				s.favoured[w.pool] = other
			}
		}
	}
}

// remove takes a waiter out of its queue.
func (s *scheduler) remove(w *waiter) {
	s.queues[w.pool] = slices.DeleteFunc(s.queues[w.pool], func(o *waiter) bool { return o == w })
	if s.favoured[w.pool] == w {
		delete(s.favoured, w.pool)
	}
}

func (s *scheduler) take(p place, n int) {
	s.total += n
	s.pools[p.pool] += n
	for _, h := range p.hosts {
		s.hosts[h] += n
	}
	for _, sr := range p.srs {
		s.srs[sr] += n
	}
}
