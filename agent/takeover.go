package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// takeOver takes dead work over, with its notes, to finish or undo it. dead
// says that the caller knows it to be dead; otherwise its claim must have run
// out. Of several that try one wins; the others get *errClaimed, as they do
// when it turns out to be alive.
func (j *journal) takeOver(ctx context.Context, vm, oldNonce string, dead bool) (_ *claim, err error) {
	if !j.hold(vm) {
		return nil, &errClaimed{VM: vm}
	}
	defer func() {
		if err != nil {
			j.unhold(vm)
		}
	}()
	l, err := j.read(ctx)
	if err != nil {
		return nil, err
	}
	now, err := j.now(ctx)
	if err != nil {
		return nil, err
	}
	c := &claim{j: j, vm: vm, nonce: randomID()}
	c.work, err = j.deadWork(l, vm, oldNonce, now, dead)
	if err != nil {
		return nil, err
	}
	if err := c.aim(l, now, oldNonce, dead); err != nil {
		return nil, err
	}
	if !j.begun(oldNonce) {
		c.term = j.termOf(l, vm, oldNonce, now)
	}
	if err := c.extend(ctx, l, now); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("agent/takeover/after-add"); err != nil {
		return nil, err
	}
	// The owner may have renewed meanwhile; it looks for our key after adding its own, so one of us sees the other.
	if l, err = j.read(ctx); err == nil {
		_, err = j.deadWork(l, vm, oldNonce, now, dead)
	}
	if err == nil {
		err = c.alone(l)
	}
	if err != nil {
		return nil, errors.Join(err, c.withdraw(ctx))
	}
	return c, nil
}

// alone returns an error where somebody else has taken the same over: it may have renewed between our reading and adding, so
// that the key was free for a moment. It was first, and sees only its own.
func (c *claim) alone(l *ledger) error {
	for _, t := range l.takes {
		if keyPrefix+takeWord+":"+t.Old == c.stem && t.Record.Nonce != c.nonce {
			return claimedBy(c.vm, t.Record, t.Record.Expires)
		}
	}
	return nil
}

// unrivalled returns errClaimLost where somebody else has got hold of c, or of what c was taken over from, while it was
// turned into next. Whoever adds later sees the other; where both see each other, both let go.
func (c *claim) unrivalled(ctx context.Context, next *claim) error {
	l, err := c.check(ctx)
	if err != nil {
		return err
	}
	for _, e := range l.claims(c.vm) {
		if n := e.Record.Nonce; n != next.nonce && n != c.nonce && n != c.work.Nonce {
			return fmt.Errorf("VM %s: %w", c.vm, errClaimLost)
		}
	}
	return nil
}

// mayTakeOver returns the error that takeOver would refuse with, and changes nothing.
func (j *journal) mayTakeOver(ctx context.Context, vm, oldNonce string, dead bool) error {
	if j.holds(vm) {
		return &errClaimed{VM: vm}
	}
	l, err := j.read(ctx)
	if err != nil {
		return err
	}
	now, err := j.now(ctx)
	if err != nil {
		return err
	}
	if _, err := j.deadWork(l, vm, oldNonce, now, dead); err != nil {
		return err
	}
	return (&claim{j: j, vm: vm}).aim(l, now, oldNonce, dead)
}

// deadWork returns whose work the nonce names, or an error where it lives or
// is not in the journal.
func (j *journal) deadWork(l *ledger, vm, nonce string, now time.Time, dead bool) (owner, error) {
	steps := l.steps(vm, nonce)
	claims := filter(l.claims(vm), func(e entry) bool { return e.Record.Nonce == nonce })
	if len(claims) == 0 && len(steps) == 0 || l.isOver(nonce) {
		return owner{}, fmt.Errorf("VM %s has no work %s in the journal: %w", vm, nonce, errClaimLost)
	}
	// A note carries the expiry that its claim had; it counts where the claim itself is gone.
	relevant := claims
	if len(relevant) == 0 {
		relevant = steps
	}
	for _, e := range relevant {
		if until := j.until(e.Record, now); !dead && now.Before(until) {
			return owner{}, claimedBy(vm, e.Record, until)
		}
	}
	r := relevant[0].Record
	return owner{Session: r.Session, Key: r.Key, Nonce: nonce, Controller: r.Controller, Since: r.Since}, nil
}

// termOf is when the term of a piece of work is out.
func (j *journal) termOf(l *ledger, vm, nonce string, now time.Time) (term time.Time) {
	for _, e := range append(l.claims(vm), l.steps(vm, nonce)...) {
		if until := j.until(e.Record, now); e.Record.Nonce == nonce && until.After(term) {
			term = until
		}
	}
	return term
}

// aim finds the key to add: the take-over of the work, or, where somebody took
// it over and died, the take-over of that take-over, and so on.
func (c *claim) aim(l *ledger, now time.Time, nonce string, dead bool) error {
	seen := map[string]bool{}
	for !seen[nonce] {
		seen[nonce] = true
		c.stem = keyPrefix + takeWord + ":" + nonce
		takes := l.takesOf(nonce)
		if len(takes) == 0 {
			return nil
		}
		// One of our own name is from before a restart, or of a sweep that could not finish: nobody is at it, since the
		// VM is held. It is renewed; another on top would make the journal grow with every sweep.
		if last := takes[len(takes)-1].Record; last.Agent == c.j.agent && len(l.takesOf(last.Nonce)) == 0 {
			c.nonce = last.Nonce
			return nil
		}
		for _, e := range takes {
			if until := c.j.until(e.Record, now); now.Before(until) && (!dead || e.Record.Agent != c.j.agent) {
				return claimedBy(c.vm, e.Record, until)
			}
		}
		c.chain = append(c.chain, c.stem)
		nonce = takes[len(takes)-1].Record.Nonce
	}
	return fmt.Errorf("take-overs of VM %s form a circle in the journal", c.vm)
}

// handOver returns the claim for somebody who goes on with it after the job;
// release and abandon of the old one then do nothing.
func (c *claim) handOver() *claim {
	c.renewing.Lock()
	defer c.renewing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	return &claim{j: c.j, vm: c.vm, work: c.work, nonce: c.nonce, stem: c.stem, chain: c.chain, term: c.term, heir: c.heir, expires: c.expires}
}

// goOn returns the claim, which a sweep took over from the dead agent of an earlier attempt, for another attempt at the same
// work, with all its notes but the watch.
func (c *claim) goOn(ctx context.Context, who owner) (*claim, error) {
	if err := c.drop(ctx, stepWatch); err != nil {
		return nil, err
	}
	next := c.handOver()
	who.Since = next.work.Since
	next.work = who
	return next, nil
}

// passOn turns the claim into one for other work on the same VM, at no moment
// without a claim in the journal. What is noted about its power state goes along:
// whoever works on the VM next brings it back. After an error the claim is what it was.
func (c *claim) passOn(ctx context.Context, who owner) (*claim, error) {
	if who.Nonce == c.work.Nonce {
		return c.goOn(ctx, who)
	}
	c.renewing.Lock()
	defer c.renewing.Unlock()
	l, err := c.check(ctx)
	if err != nil {
		return nil, err
	}
	now, err := c.j.now(ctx)
	if err != nil {
		return nil, err
	}
	next := &claim{j: c.j, vm: c.vm, work: who, nonce: who.Nonce, stem: keyPrefix + c.vm + ":" + stepClaim, heir: c.inherited(), beside: true}
	next.begin(l, now)
	if err := next.extend(ctx, l, now); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("agent/takeover/between-claims"); err != nil {
		return nil, err
	}
	if err := c.unrivalled(ctx, next); err != nil {
		return nil, errors.Join(err, next.withdraw(ctx))
	}
	for _, e := range l.steps(c.vm, c.work.Nonce) {
		if !aboutPower(e.Step) || !e.Complete {
			continue
		}
		if err := next.note(ctx, e.Step, json.RawMessage(e.Data)); err != nil {
			return nil, err
		}
	}
	if err := c.markOver(ctx, l); err != nil {
		return nil, err
	}
	if err := c.j.remove(ctx, c.everything(l)...); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	return next, nil
}
