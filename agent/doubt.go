package agent

import (
	"context"
	"errors"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
)

// doubt is a value that XAPI was asked to add to the journal and gave no answer about, or "" for another call. It may do so yet.
type doubt struct {
	value string
	since time.Time // when the answer was given up, by this process's clock
}

// add adds a key of the claim's to the journal. One that may come later is remembered.
func (c *claim) add(ctx context.Context, key, value string) error {
	err := c.j.add(ctx, key, value)
	if answer := (*xapi.Error)(nil); err != nil && !errors.As(err, &answer) {
		c.j.noteDoubt(c.work.Nonce, value)
	}
	return err
}

// unanswered remembers that a call for the work's sake got no answer, other than for a key, and may be done later.
func (c *claim) unanswered() { c.j.noteDoubt(c.work.Nonce, "") }

func (j *journal) noteDoubt(nonce, value string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.doubts[nonce] = append(j.doubts[nonce], doubt{value: value, since: time.Now()})
}

// doubtful is for how long a key of the nonce may still come that this process has asked for; not positive: none.
func (j *journal) doubtful(nonce string) (left time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, d := range j.doubts[nonce] {
		left = max(left, j.ttl-time.Since(d.since))
	}
	return left
}

// settle forgets what is in the journal by now and what does not come any more. j.mu is held.
func (j *journal) settle(l *ledger) {
	if len(j.doubts) == 0 {
		return
	}
	there := map[string]bool{}
	for _, value := range l.raw {
		there[value] = true
	}
	for nonce, list := range j.doubts {
		var left []doubt
		for _, d := range list {
			if !there[d.value] && time.Since(d.since) < j.ttl {
				left = append(left, d)
			}
		}
		if j.doubts[nonce] = left; len(left) == 0 {
			delete(j.doubts, nonce)
		}
	}
}
