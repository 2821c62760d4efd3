package controller

import (
	"context"
	"sync"
)

// task is one VM's work as the scheduler sees it: what it takes up while it runs.
type task struct {
	host, pool string   // UUIDs; an empty host counts against nothing
	srs        []string // UUIDs
	run        func(context.Context)
}

// schedule runs the tasks, each once, in their order as far as the limits let them: one that has to wait does not hold up
// those behind it. It returns when all that were begun are over; after ctx has ended none is begun.
func schedule(ctx context.Context, limits Limits, tasks []task) {
	s := &scheduler{limits: limits, hosts: map[string]int{}, pools: map[string]int{}, srs: map[string]int{}}
	s.changed = sync.NewCond(&s.mu)
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(tasks) > 0 && ctx.Err() == nil {
		i := s.next(tasks)
		if i < 0 {
			s.changed.Wait()
			continue
		}
		t := tasks[i]
		tasks = append(tasks[:i:i], tasks[i+1:]...)
		s.take(t, 1)
		go func() {
			defer func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.take(t, -1)
				s.changed.Broadcast()
			}()
			t.run(ctx)
		}()
	}
	for s.running > 0 {
		s.changed.Wait()
	}
}

// scheduler counts what runs.
type scheduler struct {
	limits  Limits
	mu      sync.Mutex
	changed *sync.Cond
	running int
	hosts   map[string]int
	pools   map[string]int
	srs     map[string]int
}

// next returns the first task that the limits allow now, or -1.
func (s *scheduler) next(tasks []task) int {
	if s.running >= s.limits.Total {
		return -1
	}
	for i, t := range tasks {
		if s.allowed(t) {
			return i
		}
	}
	return -1
}

func (s *scheduler) allowed(t task) bool {
	if t.host != "" && s.hosts[t.host] >= s.limits.PerHost || s.pools[t.pool] >= s.limits.PerPool {
		return false
	}
	for _, sr := range t.srs {
		if s.srs[sr] >= s.limits.PerSR {
			return false
		}
	}
	return true
}

func (s *scheduler) take(t task, n int) {
	s.running += n
	s.pools[t.pool] += n
	if t.host != "" {
		s.hosts[t.host] += n
	}
	for _, sr := range t.srs {
		s.srs[sr] += n
	}
}
