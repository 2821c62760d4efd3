package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
)

// errClaimed says that somebody else works on the VM.
type errClaimed struct {
	VM         string
	Agent      string    // who holds it; empty when this very process does
	Controller string    // for which controller; empty where an older agent holds it
	Session    string    // for which session
	Since      time.Time // since when, by the master's clock; zero where an older agent holds it
	Until      time.Time // when the claim runs out unless renewed, by the master's clock
	// Watched is the nonce of work of which nothing is left but the watch on a shutdown that was given up; else empty. Other
	// work on the VM, which brings it back in any case, may take such work over.
	Watched string
}

// Error names the holder.
func (e *errClaimed) Error() string {
	if e.Agent == "" {
		return fmt.Sprintf("VM %s is being worked on by this agent", e.VM)
	}
	what := "is being worked on by"
	if e.Watched != "" {
		what = "is watched, because its guest may still power off after a shutdown that was given up, by"
	}
	return fmt.Sprintf("VM %s %s %s; the claim stands until %s and may be renewed",
		e.VM, what, holding(e.Agent, e.Controller, e.Session, e.Since), e.Until.Format(time.RFC3339))
}

// holding says who works on a VM, for whom and since when.
func holding(agent, controller, session string, since time.Time) string {
	text := fmt.Sprintf("agent %s for session %s", agent, session)
	if controller != "" {
		text += " of controller " + controller
	}
	if !since.IsZero() {
		text += " since " + since.Format(time.RFC3339)
	}
	return text
}

// claimedBy is the error that names the holder by a record of the claim, which stands until then.
func claimedBy(vm string, r record, until time.Time) *errClaimed {
	return &errClaimed{VM: vm, Agent: r.Agent, Controller: r.Controller, Session: r.Session, Since: r.Since, Until: until}
}

// errStale says that the VM has entries of work that died: a sweep of this VM
// has to finish or undo it before anybody claims the VM anew.
type errStale struct {
	VM    string
	Nonce string // of the dead work
}

// Error says what is in the way.
func (e *errStale) Error() string {
	return fmt.Sprintf("VM %s has unfinished work %s in the journal", e.VM, e.Nonce)
}

// errClaimLost says that the claim has gone: removed, or taken over by
// somebody. The work stops and touches nothing more.
var errClaimLost = errors.New("the claim on the VM was lost")

// heldHere turns the error that this very process works on the subject into one that names the session which it does so for,
// where that is another one than j's.
func (a *Agent) heldHere(j *job, subject string, err error) error {
	var claimed *errClaimed
	if !errors.As(err, &claimed) || claimed.Agent != "" {
		return err
	}
	for _, other := range a.jobs.All() {
		c := other.claim.get()
		if other == j || c == nil || c.vm != subject || c.ended() || c.work.Session == j.Session {
			continue
		}
		c.mu.Lock()
		until := c.expires
		c.mu.Unlock()
		return &errClaimed{VM: subject, Agent: a.cfg.Name, Controller: c.work.Controller, Session: c.work.Session,
			Since: c.work.Since, Until: until}
	}
	return err
}

// orLost makes errClaimLost of a failure that comes of others having taken the work over, and having undone it, before the
// next renewal of the claim would have told: an object is gone, or the VM in another power state. The next attempt may be
// better then.
func (j *job) orLost(err error) error {
	c := j.claim.get()
	if c == nil || errors.Is(err, errClaimLost) || !errors.Is(err, xapi.ErrNotFound) && !errors.Is(err, xapi.ErrPowerState) {
		return err
	}
	ctx, cancel := j.agent.cleanupContext(j.ctx)
	defer cancel()
	if _, lost := c.check(ctx); errors.Is(lost, errClaimLost) {
		return fmt.Errorf("%w, and then: %w", lost, err)
	}
	return err
}
