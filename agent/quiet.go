package agent

import (
	"sync"
	"time"
)

// quiet remembers when XAPI was last known to be away. Claims are renewed through XAPI, so one that ran out while it was
// away says nothing of its holder: expired is not dead (DESIGN section 11). An agent that has just started knows nothing
// of the time before, so its start counts as such a time too, and so does a jump of the master's clock, by which claims run
// out that nobody could renew.
type quiet struct {
	mu            sync.Mutex
	last          time.Time
	master, local time.Time // at the last look at the master's clock
}

// steadyClock is how far the master's clock may be off what has passed here and still be taken for steady: it is read in
// seconds, and XAPI may be slow.
const steadyClock = 5 * time.Second

// clock compares the master's clock with this process's own, and tells whether it has jumped since the last look.
func (q *quiet) clock(master time.Time) (jumped time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if off := master.Sub(q.master) - now.Sub(q.local); !q.local.IsZero() && off.Abs() > steadyClock {
		jumped, q.last = off, now
	}
	q.master, q.local = master, now
	return jumped
}

// away notes that XAPI does not answer now.
func (q *quiet) away() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = time.Now()
}

// until is the end of one lease after that.
func (q *quiet) until(lease time.Duration) time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.last.Add(lease)
}
