package agent

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
)

// A dead agent's last key may come to the journal after its work was taken over, finished and dropped: XAPI takes its time,
// and nobody can call the request back. Acted on it would be a lie: a late power note starts a VM that its user has stopped
// since. So whoever drops such work before its term is over leaves a mark, dpxen:take:NONCE with the data overData, until
// then. Keys of a marked nonce are removed and not acted on. A mark keeps nobody from the VM. So does an agent that lives and
// has asked for a key without an answer, see doubt: for as long as a claim stands after it gave up.

// What a dead agent's, or an unanswered, call for a snapshot makes is looked for and deleted for as long, too.

// overData is what a mark's data begin with; the UUID of the VM follows.
const overData = "over "

// isMark tells whether the entry is a mark.
func (e entry) isMark() bool { return e.Step == takeWord && strings.HasPrefix(e.Data, overData) }

// isOver tells whether a nonce is marked.
func (l *ledger) isOver(nonce string) bool {
	return slices.ContainsFunc(l.overs, func(e entry) bool { return e.Old == nonce })
}

// late are the keys of a nonce, whatever VM they are about, and those of take-overs of it.
func (l *ledger) late(nonce string) (keys []string) {
	for _, e := range l.entries {
		if e.Record.Nonce == nonce {
			keys = append(keys, e.Keys...)
		}
	}
	for _, e := range l.takesOf(nonce) {
		keys = append(keys, e.Keys...)
	}
	return keys
}

// markOver leaves the mark where c is a take-over and the term of what it took over is not out yet, or where a key may still
// come that this process asked for. The mark comes before the first key goes: everything is done by then, and whoever finds
// the rest after a death of ours has nothing to act on.
func (c *claim) markOver(ctx context.Context, l *ledger) error {
	doubtful := c.j.doubtful(c.work.Nonce)
	if c.term.IsZero() && doubtful <= 0 || l.isOver(c.work.Nonce) {
		return nil
	}
	now, err := c.j.now(ctx)
	if err != nil {
		return err
	}
	term := c.term
	if t := now.Add(doubtful); doubtful > 0 && t.After(term) {
		term = t
	}
	if !now.Before(term) {
		return nil
	}
	r := c.record(term)
	r.Nonce, r.Granted = c.nonce, now.Truncate(time.Millisecond)
	v, err := values(r, overData+c.vm)
	if err != nil {
		return err
	}
	return c.j.add(ctx, l.free(keyPrefix+takeWord+":"+c.work.Nonce), v[0])
}

// beginAgain removes the mark of a nonce, and what came late of it, for new work of the same nonce, and returns the journal
// as it is then.
func (j *journal) beginAgain(ctx context.Context, nonce string) (*ledger, error) {
	j.ending.Lock()
	defer j.ending.Unlock()
	l, err := j.read(ctx)
	if err != nil || !l.isOver(nonce) {
		return l, err
	}
	if err := j.remove(ctx, append(l.late(nonce), l.marks(nonce)...)...); err != nil {
		return nil, err
	}
	return j.read(ctx)
}

// marks are the keys of the marks of a nonce.
func (l *ledger) marks(nonce string) (keys []string) {
	for _, e := range l.overs {
		if e.Old == nonce {
			keys = append(keys, e.Keys...)
		}
	}
	return keys
}

// removeLate removes what came late of a marked nonce, and the mark too once its term is out, unless it is kept.
func (j *journal) removeLate(ctx context.Context, nonce string, keep bool) error {
	j.ending.Lock()
	defer j.ending.Unlock()
	l, err := j.read(ctx)
	if err != nil || !l.isOver(nonce) {
		return err // new work of this nonce has begun
	}
	now, err := j.now(ctx)
	if err != nil {
		return err
	}
	keys := l.late(nonce)
	if !keep && !now.Before(j.overUntil(l, nonce, now)) {
		keys = append(keys, l.marks(nonce)...)
	}
	return j.remove(ctx, keys...)
}

// overUntil is when the mark of a nonce is no longer wanted; zero where there is none.
func (j *journal) overUntil(l *ledger, nonce string, now time.Time) (until time.Time) {
	for _, e := range l.overs {
		if t := j.until(e.Record, now); e.Old == nonce && t.After(until) {
			until = t
		}
	}
	return until
}

// marked removes what came late, and marks whose time is over; those that stand are returned.
func (a *Agent) marked(ctx context.Context, l *ledger, now time.Time, dry bool) (actions []sweepAction, standing marks, err error) {
	standing = marks{}
	done := map[string]bool{}
	for _, e := range l.overs {
		if done[e.Old] {
			continue
		}
		done[e.Old] = true
		made, again := a.lateObjects(ctx, e, now, dry)
		actions = append(actions, made...)
		until := a.journal.overUntil(l, e.Old, now)
		over, late := !again && !now.Before(until), len(l.late(e.Old)) > 0
		if !dry && (over || late) {
			if err := a.journal.removeLate(ctx, e.Old, again); err != nil {
				return actions, standing, err
			}
		}
		if soon := now.Add(a.cfg.Timing.RetryMax); again && until.Before(soon) {
			until = soon
		}
		if late {
			actions = append(actions, sweepAction{Action: "remove what came late to the journal of finished work", Object: e.Old, Done: !dry})
		}
		if over {
			actions = append(actions, sweepAction{Action: "remove the mark of finished work", Object: e.Old, Done: !dry})
		} else {
			standing.note(e.Record.Session, until)
		}
	}
	return actions, standing, nil
}

// marks says until when marks of each session stand. There may be as many as a host had VMs.
type marks map[string]time.Time

func (m marks) note(session string, until time.Time) {
	if until.After(m[session]) {
		m[session] = until
	}
}

// actions tells of them, once for a session. They are about no VM: those are as they should be.
func (m marks) actions(now time.Time) (out []sweepAction) {
	for _, session := range slices.Sorted(maps.Keys(m)) {
		until := m[session]
		out = append(out, sweepAction{Action: "remove what comes late to the journal from session", Object: session, Again: until.Sub(now),
			Waiting: "all is cleaned up, and something that XAPI was asked for without an answer may still come until " + until.Format(time.RFC3339)})
	}
	return out
}
