package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// claim is the right to work on one VM, for as long as it is renewed. Its
// methods may be called from several goroutines.
type claim struct {
	j  *journal
	vm string
	// work is what notes are written for. Its nonce is the claim's own, or, after a take-over, that of the dead work.
	work owner
	// nonce is that of the claim itself; stem is its key without number.
	nonce, stem string
	chain       []string  // after a take-over: stems of the take-overs of take-overs, nearest last
	term        time.Time // after a take-over, or a restart of the agent: when the term of the dead work is out
	heir        bool      // the power note is from such dead work, by way of a watch
	beside      bool      // the first key need not be the stem itself: the claim before is the same process's

	renewing sync.Mutex // held while the claim's own keys change

	// removing says that release has begun: from then on the claim's own keys may be gone. Under renewing.
	removing bool

	mu      sync.Mutex
	expires time.Time
	done    bool
}

// claim claims a VM for a piece of work, exclusively in the pool: the key can
// be added once only. A claim of the same agent and nonce is continued with all
// its notes: it is from before a restart of the agent. Errors: *errClaimed,
// *errStale, and XAPI's.
func (j *journal) claim(ctx context.Context, vm string, who owner) (_ *claim, err error) {
	if !j.hold(vm) {
		return nil, &errClaimed{VM: vm}
	}
	defer func() {
		if err != nil {
			j.unhold(vm)
		}
	}()
	c := &claim{j: j, vm: vm, work: who, nonce: who.Nonce, stem: keyPrefix + vm + ":" + stepClaim}
	l, err := j.read(ctx)
	if err != nil {
		return nil, err
	}
	now, err := j.now(ctx)
	if err != nil {
		return nil, err
	}
	if l.isOver(c.nonce) {
		c.term = j.overUntil(l, c.nonce, now)
		if l, err = j.beginAgain(ctx, c.nonce); err != nil {
			return nil, err
		}
	}
	if err := c.admissible(l, now); err != nil {
		return nil, err
	}
	if len(l.takesOf(c.nonce)) > 0 {
		return nil, &errStale{VM: vm, Nonce: c.nonce}
	}
	before := len(c.own(l)) > 0 // a restart of the agent
	if before && !j.begun(c.nonce) {
		c.term = j.termOf(l, vm, c.nonce, now)
	}
	c.begin(l, now)
	if err := c.extend(ctx, l, now); err != nil {
		if l, readErr := j.read(ctx); readErr == nil {
			if e := c.admissible(l, now); e != nil {
				err = e // tells who was faster
			}
		}
		return nil, err
	}
	// A holder may have renewed between reading and adding, so that the key was free for a moment.
	if l, err = j.read(ctx); err == nil {
		err = c.admissible(l, now)
	}
	if err != nil {
		return nil, errors.Join(err, c.withdraw(ctx))
	}
	if !before {
		j.setBegun(c.nonce, true)
	}
	return c, nil
}

// inherited tells whether notes may be from an agent that died.
func (c *claim) inherited() bool { return c.heir || !c.term.IsZero() }

// begin sets since when the work goes on: now, or since the claim before a restart of the agent.
func (c *claim) begin(l *ledger, now time.Time) {
	c.j.inHand(c.nonce)
	c.work.Since = now.Truncate(time.Second)
	for _, e := range c.own(l) {
		if since := e.Record.Since; !since.IsZero() && since.Before(c.work.Since) {
			c.work.Since = since
		}
	}
}

// withdraw removes the claim's own keys, also when ctx is over: a claim that
// nobody holds would keep others from the VM until it runs out.
func (c *claim) withdraw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.j.ttl)
	defer cancel()
	return c.j.retry.do(ctx, passing, func(ctx context.Context) error {
		l, err := c.j.read(ctx)
		if err != nil {
			return err
		}
		return c.j.remove(ctx, c.keys(l)...)
	})
}

// admissible returns an error where entries of others are in the way.
func (c *claim) admissible(l *ledger, now time.Time) error {
	mine := func(e entry) bool { return e.Record.Nonce == c.nonce && e.Record.Agent == c.j.agent }
	for _, e := range l.claims(c.vm) {
		// One of our own name is dead: this process holds the VM, and there is no other of that name.
		// That of work that is over has come late, and is swept like the rest of it.
		if until := c.j.until(e.Record, now); !mine(e) && now.Before(until) && e.Record.Agent != c.j.agent && !l.isOver(e.Record.Nonce) {
			claimed := claimedBy(c.vm, e.Record, until)
			if l.watched(c.vm, e.Record.Nonce) {
				claimed.Watched = e.Record.Nonce
			}
			return claimed
		}
	}
	for _, e := range append(l.claims(c.vm), l.steps(c.vm, "")...) {
		if !mine(e) {
			return &errStale{VM: c.vm, Nonce: e.Record.Nonce}
		}
	}
	return nil
}

// keys are the claim's own keys in l.
func (c *claim) keys(l *ledger) []string {
	var out []string
	for _, e := range c.own(l) {
		out = append(out, e.Keys...)
	}
	return out
}

// own are the claim's own entries in l.
func (c *claim) own(l *ledger) []entry {
	return filter(append(l.claims(c.vm), l.takes...), func(e entry) bool {
		if e.Record.Nonce != c.nonce || e.Record.Agent != c.j.agent {
			return false
		}
		return e.Step == stepClaim || keyPrefix+takeWord+":"+e.Old == c.stem
	})
}

// extend adds the claim's next key and removes the former ones.
func (c *claim) extend(ctx context.Context, l *ledger, now time.Time) error {
	former := c.own(l)
	key := l.readable(c.stem)
	if c.beside || len(former) > 0 {
		key = l.freeAfter(c.stem, former)
	}
	if err := failpoint.Hit("agent/claim/before-add"); err != nil {
		return err
	}
	expires := now.Add(c.j.ttl).Truncate(time.Millisecond)
	r := c.record(expires)
	r.Nonce = c.nonce
	v, err := values(r, "")
	if err != nil {
		return err
	}
	if err := c.add(ctx, key, v[0]); err != nil {
		return err
	}
	c.mu.Lock()
	c.expires = expires
	c.mu.Unlock()
	if err := failpoint.Hit("agent/claim/between-add-and-remove"); err != nil {
		return err
	}
	if len(former) > 0 {
		if err := c.stillOurs(ctx, former); err != nil {
			return err
		}
	}
	for _, e := range former {
		if err := c.j.remove(ctx, e.Keys...); err != nil {
			return err
		}
	}
	return nil
}

// stillOurs returns errClaimLost where the former keys were removed by others while the next one was on its way: whoever took
// the work over has finished it, and the next key would only seem to be a claim. It is removed then.
func (c *claim) stillOurs(ctx context.Context, former []entry) error {
	l, err := c.j.read(ctx)
	if err != nil {
		return err
	}
	for _, e := range former {
		for _, key := range e.Keys {
			if _, there := l.raw[key]; there {
				return nil
			}
		}
	}
	return errors.Join(fmt.Errorf("VM %s: %w", c.vm, errClaimLost), c.withdraw(ctx))
}

func (c *claim) record(expires time.Time) record {
	return record{V: journalVersion, Agent: c.j.agent, Session: c.work.Session, Key: c.work.Key,
		Nonce: c.work.Nonce, ID: randomID(), Expires: expires, Granted: expires.Add(-c.j.ttl),
		Controller: c.work.Controller, Since: c.work.Since}
}

// check reads the journal and returns errClaimLost unless the claim stands.
func (c *claim) check(ctx context.Context) (*ledger, error) {
	l, err := c.j.read(ctx)
	if err != nil {
		return nil, err
	}
	if len(c.own(l)) == 0 || len(l.takesOf(c.nonce)) > 0 || l.isOver(c.nonce) {
		return nil, fmt.Errorf("VM %s: %w", c.vm, errClaimLost)
	}
	return l, nil
}

// renew lets the claim stand for another term; one that was given up meanwhile
// is left alone. errClaimLost: stop.
func (c *claim) renew(ctx context.Context) error {
	c.renewing.Lock()
	defer c.renewing.Unlock()
	if c.ended() || c.removing {
		return nil // released meanwhile
	}
	l, err := c.check(ctx)
	if err != nil {
		return err
	}
	now, err := c.j.now(ctx)
	if err != nil {
		return err
	}
	if err := c.extend(ctx, l, now); err != nil {
		return err
	}
	_, err = c.check(ctx) // somebody may have begun to take over while the former term was out
	return err
}

// release removes all entries of the work, the claim itself last, and lets the
// process touch the VM again. After errClaimLost nothing is removed.
func (c *claim) release(ctx context.Context) error {
	c.renewing.Lock() // a renewal under way would add a key that nobody removes
	defer c.renewing.Unlock()
	if c.ended() {
		return nil
	}
	l, err := c.check(ctx)
	if errors.Is(err, errClaimLost) && c.removing { // by ourselves, in a call whose answer was lost
		l, err = c.j.read(ctx)
	}
	if err != nil {
		if errors.Is(err, errClaimLost) {
			c.abandon()
		}
		return err
	}
	c.removing = true
	if err := failpoint.Hit("agent/claim/before-release"); err != nil {
		return err
	}
	if err := c.markOver(ctx, l); err != nil {
		return err
	}
	if err := failpoint.Hit("agent/claim/after-mark"); err != nil {
		return err
	}
	if err := c.j.remove(ctx, c.everything(l)...); err != nil {
		return err
	}
	c.j.setBegun(c.work.Nonce, false)
	c.abandon()
	failpoint.Pass("agent/claim/after-release")
	return nil
}

// everything returns the keys of the work and, last, the claim's own.
func (c *claim) everything(l *ledger) []string {
	var keys []string
	for _, e := range l.steps(c.vm, c.work.Nonce) {
		keys = append(keys, e.Keys...)
	}
	for _, e := range l.claims(c.vm) {
		if e.Record.Nonce == c.work.Nonce {
			keys = append(keys, e.Keys...)
		}
	}
	for _, stem := range c.chain { // the work first, then whoever had taken it over
		for _, e := range l.takes {
			if keyPrefix+takeWord+":"+e.Old == stem {
				keys = append(keys, e.Keys...)
			}
		}
	}
	return append(keys, c.keys(l)...)
}

// abandon leaves the journal as it is and lets the process touch the VM again:
// a sweep goes on from here. It may be called after release.
func (c *claim) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.done {
		c.done = true
		c.j.unhold(c.vm)
	}
}

// ended tells whether the claim was released, abandoned or handed over.
func (c *claim) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// keep renews the claim until ctx ends or the claim is given up, and calls lost
// once when it has gone.
// XAPI being away is no loss: the claim may expire meanwhile, but stands until
// somebody takes it over.
func (c *claim) keep(ctx context.Context, lost func(error)) {
	for sleep(ctx, c.j.ttl/3) == nil && !c.ended() {
		if err := c.renew(ctx); errors.Is(err, errClaimLost) {
			lost(err)
			return
		}
	}
}

// while runs f under the claim, which is renewed meanwhile and abandoned afterwards. f's context ends when the claim is lost.
func (c *claim) while(ctx context.Context, f func(context.Context)) {
	defer c.abandon()
	ctx, cancel := context.WithCancelCause(c.on(ctx))
	var keeping sync.WaitGroup
	keeping.Go(func() { c.keep(ctx, cancel) })
	defer keeping.Wait()
	defer cancel(nil)
	f(ctx)
}
