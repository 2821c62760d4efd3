package controller

import (
	"fmt"
	"slices"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
)

// trouble is the class of a failed attempt. It decides whether, how long and by whom the VM is tried again.
type trouble int

const (
	troubleNone    trouble = iota
	troubleFinal           // the next attempt would come to the same
	troubleAgain           // the next attempt may be better: as often as timing.retries says
	troubleBusy            // XAPI has other operations on the VM or its disks, or the agent no room: timing.busy_wait
	troubleClaimed         // another session works on the VM: timing.claim_wait
	troubleOurs            // an agent of this session that is gone has it still: until its lease and claim are over
	troubleHost            // a host is down or boots: timing.xapi_outage
	troubleAway            // the pool's XAPI, or every agent of the pool, is away: timing.xapi_outage, of the pool as a whole
	troubleLost            // the agent is gone; another one takes over, else it counts as away
	troubleRefused         // the agent will never do; another one may
	troubleMoved           // the VM is elsewhere than planned; it is followed at once
)

// classify tells the class of an attempt's error by itself; worth is what the kind of session says of the rest.
func classify(err error, worth func(error) bool) trouble {
	switch rpc.ReasonOf(err) {
	case rpc.VMBusy, rpc.Busy:
		return troubleBusy
	case rpc.Claimed:
		return troubleClaimed
	case rpc.HostDown:
		return troubleHost
	case rpc.Moved:
		return troubleMoved
	case rpc.XAPIUnreachable:
		return troubleAway
	case rpc.Unreachable:
		return troubleLost
	case rpc.HostAuth, rpc.Auth, rpc.Peer, rpc.UnsupportedVersion:
		return troubleRefused
	}
	switch {
	case err == nil:
		return troubleNone
	case worth(err):
		return troubleAgain
	}
	return troubleFinal
}

// troubleOf is classify with what the session knows beside the error.
func (p *persistence) troubleOf(err error) trouble {
	t := classify(err, p.worth)
	switch {
	case t == troubleLost && !p.other(p.agents(), p.at):
		return troubleAway
	case t == troubleRefused && !p.other(p.agents(), p.at):
		return troubleFinal
	case t == troubleClaimed && (p.lostOne() || holds(p.s.id, err)):
		return troubleOurs
	}
	return t
}

// patience is how much trouble a VM has had. The zero value but for timing and agents is ready.
type patience struct {
	timing Timing
	agents int // of the VM's pool

	tries, losses, moves int
	since                map[trouble]time.Time // the first trouble of a class since the last attempt that got further
	wait                 time.Duration         // the next pause
}

// maxMoves is how often a VM is followed that is elsewhere at each attempt.
const maxMoves = 10

// allows tells whether the VM is tried again after trouble. away says that the pool as a whole is, since when.
func (p *patience) allows(t trouble, away bool, since time.Time) bool {
	if t == troubleAgain {
		p.since = nil // it got further than all that is waited for
	}
	if p.since == nil {
		p.since = map[trouble]time.Time{}
	}
	if p.since[t].IsZero() {
		p.since[t] = time.Now()
	}
	within := func(limit time.Duration) bool { return time.Since(p.since[t]) < limit }
	switch t {
	case troubleAgain:
		p.tries++
		return p.tries <= p.timing.Retries
	case troubleBusy:
		return within(p.timing.BusyWait)
	case troubleClaimed:
		return within(p.timing.ClaimWait)
	case troubleOurs: // a lease until the agent lets go, and as long again for its claim
		return within(2 * p.timing.Lease)
	case troubleHost:
		return within(p.timing.XAPIOutage)
	case troubleAway:
		return away && time.Since(since) < p.timing.XAPIOutage
	case troubleLost, troubleRefused:
		p.losses++
		return p.losses <= 2*p.agents+p.timing.Retries
	case troubleMoved:
		p.moves++
		return p.moves <= maxMoves
	case troubleNone, troubleFinal:
	}
	return false
}

// pause returns how long to wait before the next attempt.
func (p *patience) pause(t trouble) time.Duration {
	if t == troubleMoved {
		return 0
	}
	wait := max(p.wait, p.timing.BackoffMin)
	p.wait = min(2*wait, p.timing.BackoffMax)
	return wait
}

// outage keeps since when a pool is away as a whole: it is until an attempt at one of its VMs gets an answer.
func (r *runner) outage(pool string, t trouble) (away bool, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch t {
	case troubleAway:
	case troubleLost, troubleRefused, troubleHost:
		return false, since
	default:
		delete(r.outages, pool)
		return false, since
	}
	if r.outages == nil {
		r.outages = map[string]time.Time{}
	}
	if r.outages[pool].IsZero() {
		r.outages[pool] = time.Now()
	}
	return true, r.outages[pool]
}

// heard keeps which agents are gone: the others go first.
func (r *runner) heard(agent string, err error) {
	if agent == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch classify(err, func(error) bool { return true }) {
	case troubleLost, troubleAway, troubleRefused:
		if r.gone == nil {
			r.gone = map[string]time.Time{}
		}
		r.gone[agent] = time.Now()
	default:
		delete(r.gone, agent)
	}
}

// inTurn returns the agents in the order in which they are to be asked: those that were gone lately last, the longest gone
// of them first.
func (r *runner) inTurn(agents []string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(agents)
	slices.SortStableFunc(out, func(a, b string) int { return r.goneSince(a).Compare(r.goneSince(b)) })
	return out
}

// goneSince is when the agent was last found gone; the zero time where that is not known of it, or long ago.
func (r *runner) goneSince(agent string) time.Time {
	if at := r.gone[agent]; time.Since(at) < max(r.c.cfg.Timing.Lease, r.c.cfg.Timing.BackoffMax) {
		return at
	}
	return time.Time{}
}

// holds tells whether it is the session that has the VM which err says is claimed.
func holds(session string, err error) bool {
	h := rpc.HolderOf(err)
	return h != nil && h.Session == session
}

// lostOne tells whether an agent that is gone may still have work of this session on the VM.
func (p *persistence) lostOne() bool {
	return slices.ContainsFunc(p.s.snapshot().Intents, func(i Intent) bool {
		return !i.Done && i.VMUUID == p.vm.UUID && i.Agent != p.at
	})
}

// other tells whether an agent but the named one is not known to be gone.
func (r *runner) other(agents []string, but string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(agents, func(a string) bool { return a != but && r.goneSince(a).IsZero() })
}

// tellGone notes the agents that were lost in mid-session and have not been heard of since: where others took their VMs over
// nothing else would say so.
func (r *runner) tellGone() {
	r.mu.Lock()
	var notes []string
	for _, name := range sortedKeys(r.gone) {
		notes = append(notes, fmt.Sprintf("agent %s was lost during the session (last tried at %s), and others did its work where they could: see dpxen hosts",
			name, r.gone[name].UTC().Format(time.RFC3339)))
	}
	r.mu.Unlock()
	r.s.note(func(rep *Report) { rep.Notes = append(rep.Notes, notes...) })
}

// restoreAgain tells whether a restore that failed, and was undone, may succeed when it is begun anew, of errors without a
// class of trouble.
func restoreAgain(err error) bool {
	switch rpc.ReasonOf(err) {
	case rpc.SessionGone, rpc.Offset, rpc.Chunk, rpc.Superseded:
		return true
	}
	return false
}
