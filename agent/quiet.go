package agent

import (
	"sync"
	"time"
)

// quiet remembers when XAPI was last known to be away. Claims are renewed through XAPI, so one that ran out while it was
// away says nothing of its holder: expired is not dead (DESIGN section 11). An agent that has just started knows nothing
// of the time before, so its start counts as such a time too.
type quiet struct {
	mu   sync.Mutex
	last time.Time
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
