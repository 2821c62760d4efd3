package transfer

import (
	"sync"
	"time"
)

// Lease bounds how long a transfer lives without a stream. It runs while nothing is attached.
type Lease struct {
	length  time.Duration
	expired chan struct{}

	mu       sync.Mutex
	timer    *time.Timer
	end      time.Time
	attached int
	over     bool // expired or stopped
}

// NewLease returns a lease of d that is running: DefaultLease when d is not positive, MaxLease when it is longer.
func NewLease(d time.Duration) *Lease {
	if d <= 0 {
		d = DefaultLease
	}
	l := &Lease{length: min(d, MaxLease), expired: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start()
	return l
}

// start begins the lease anew. The lock is held.
func (l *Lease) start() {
	l.stop()
	end := time.Now().Add(l.length)
	l.end = end
	l.timer = time.AfterFunc(l.length, func() { l.expire(end) })
}

// stop ends the running timer. The lock is held.
func (l *Lease) stop() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// expire ends the lease unless it was renewed since the timer was set.
func (l *Lease) expire(end time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.attached > 0 || !l.end.Equal(end) {
		return
	}
	l.over = true
	close(l.expired)
}

// Attach says that a stream is attached, which holds the lease. It returns false when the lease is over. Every Attach
// that returned true needs one Detach; a stream may attach before the one that it evicts has detached.
func (l *Lease) Attach() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.attached++
	l.stop()
	return true
}

// Detach ends one attachment; after the last one the lease runs, from its full length.
func (l *Lease) Detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attached == 0 {
		return
	}
	l.attached--
	if l.attached == 0 && !l.over {
		l.start()
	}
}

// Renew begins a running lease anew.
func (l *Lease) Renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attached == 0 && !l.over {
		l.start()
	}
}

// Expired is closed when the lease has run out; never after Stop.
func (l *Lease) Expired() <-chan struct{} { return l.expired }

// End returns when the lease runs out; false while a stream is attached or when it is over.
func (l *Lease) End() (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end, l.attached == 0 && !l.over
}

// Attached tells whether a stream is attached.
func (l *Lease) Attached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.attached > 0
}

// Stop ends the lease for good without expiring it: the transfer is over.
func (l *Lease) Stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.stop()
}
