package controller

import (
	"context"
	"slices"
)

// seat is a task's leave to work. The task may give it up while it only waits, and must exchange it where the VM is elsewhere
// or another host reads its disks: what is counted is what is used. It is one goroutine's at a time. A nil seat is unlimited.
type seat struct {
	s    *scheduler
	turn int
	held bool
	at   place
}

// leave gives the seat up. It may be repeated.
func (b *seat) leave() {
	if b == nil {
		return
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.free()
	b.s.serve()
}

func (b *seat) free() {
	if b.held {
		b.held = false
		b.s.take(b.at, -1)
	}
}

// move exchanges the seat for one at p, or takes one there where none is held. It waits until the limits allow it or ctx
// ends, which is its error; then no seat is held. waits is called once before the first wait.
func (b *seat) move(ctx context.Context, p place, waits func()) error {
	if b == nil {
		return ctx.Err()
	}
	w := b.apply(p)
	if w == nil {
		return nil
	}
	granted := w.granted
	select {
	case <-granted:
		return nil
	default:
		waits()
	}
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if b.held { // both came at once
		b.free()
	} else {
		b.s.remove(w.waiter)
	}
	b.s.serve()
	return ctx.Err()
}

// application is a waiter of a task that was begun before.
type application struct {
	*waiter
	granted chan struct{}
}

// apply gives up the seat that is held and queues for one at p; nil where it is held already.
func (b *seat) apply(p place) *application {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if b.held && b.at.same(p) {
		return nil
	}
	b.free()
	granted := make(chan struct{})
	w := &waiter{place: p, seat: b, turn: b.turn, begun: true}
	w.grant = func() {
		b.held, b.at = true, p
		close(granted)
	}
	queue := b.s.queues[p.pool]
	i, _ := slices.BinarySearchFunc(queue, w, compareWaiters)
	b.s.queues[p.pool] = slices.Insert(queue, i, w)
	b.s.serve()
	return &application{waiter: w, granted: granted}
}
