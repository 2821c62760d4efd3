package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

func TestTakeOver(t *testing.T) {
	pool := newFakePool()
	dead := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	if err := dead.note(t.Context(), stepPower, powerNote{Before: running}); err != nil {
		t.Fatalf("note: %v", err)
	}
	two, three := newJournal(pool, "xs2", journalTiming()), newJournal(pool, "xs3", journalTiming())
	var claimed *errClaimed
	if _, err := two.takeOver(t.Context(), testVM, someWork("a").Nonce, false); !errors.As(err, &claimed) {
		t.Errorf("take-over of live work: got %v, want errClaimed", err)
	}
	pool.pass(testTTL + time.Second)
	c, err := two.takeOver(t.Context(), testVM, someWork("a").Nonce, false)
	if err != nil {
		t.Fatalf("take-over: %v", err)
	}
	if _, err := three.takeOver(t.Context(), testVM, someWork("a").Nonce, false); !errors.As(err, &claimed) || claimed.Agent != "xs2" {
		t.Errorf("second take-over: got %v, want errClaimed that names xs2", err)
	}
	// The dead one turns out to be alive: it stops before it changes anything.
	for what, err := range map[string]error{
		"renew": dead.renew(t.Context()), "note": dead.note(t.Context(), "x", 1), "drop": dead.drop(t.Context(), stepPower),
		"release": dead.release(t.Context()),
	} {
		if !errors.Is(err, errClaimLost) {
			t.Errorf("%s after the take-over: got %v, want errClaimLost", what, err)
		}
	}
	var p powerNote
	if ok, err := c.noted(t.Context(), stepPower, &p); !ok || err != nil || p.Before != running {
		t.Errorf("the taker's view of the note: got %v, %v, %+v", ok, err, p)
	}
	if err := c.renew(t.Context()); err != nil {
		t.Errorf("renew: %v", err)
	}
	if err := c.release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
	pool.wantClean(t)
}

// An agent that was thought dead has noted more, and has shut the VM down, between a sweep's look at the journal and its take-over:
// the sweep goes by what stands there then.
func TestTakeOverSeesLastSteps(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	vm, a := b.vm(running, 0), b.agent(nil)
	late := b.deadWork(x, vm.UUID, "0123456789abcdef", time.Minute)
	l, err := a.agent.journal.read(ctx)
	b.must(nil, err)
	now, err := a.agent.journal.now(ctx)
	b.must(nil, err)
	b.must(nil, late.note(ctx, stepPower, powerNote{Before: running}))
	b.must(x.CallAsync(ctx, "stop", "VM.clean_shutdown", b.ref(vm)))
	for _, w := range a.agent.journal.worksIn(l, now) {
		s := &sweeping{a: a.agent, work: w, now: now}
		s.run(ctx, sweepOptions{DeadSessions: []string{"session-dead"}})
		if s.failed {
			t.Errorf("%+v", s.actions)
		}
	}
	if got := b.vmNow(vm.UUID).PowerState; got != running {
		t.Errorf("the VM is %s", got)
	}
	wantSame(t, "journal", b.before.PoolOtherConfig, withoutMarks(b.dump().PoolOtherConfig))
}

func TestTakeOverOfTakeOver(t *testing.T) {
	pool := newFakePool()
	mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	pool.pass(testTTL + time.Second)
	first, err := newJournal(pool, "xs2", journalTiming()).takeOver(t.Context(), testVM, someWork("a").Nonce, false)
	if err != nil {
		t.Fatalf("first take-over: %v", err)
	}
	pool.pass(testTTL + time.Second)
	second, err := newJournal(pool, "xs3", journalTiming()).takeOver(t.Context(), testVM, someWork("a").Nonce, false)
	if err != nil {
		t.Fatalf("second take-over: %v", err)
	}
	if err := first.renew(t.Context()); !errors.Is(err, errClaimLost) {
		t.Errorf("first taker: got %v, want errClaimLost", err)
	}
	if err := second.release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
	pool.wantClean(t)
}

// The owner renews in the very moment of a take-over: at most one goes on.
func TestTakeOverMeetsRenewal(t *testing.T) {
	pool := newFakePool()
	c := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	pool.pass(testTTL + time.Second)
	var renewErr error
	pool.before = func(verb, key string) {
		if verb == "add" && strings.HasPrefix(key, "dpxen:take:") {
			pool.before = nil
			renewErr = c.renew(t.Context())
		}
	}
	_, err := newJournal(pool, "xs2", journalTiming()).takeOver(t.Context(), testVM, someWork("a").Nonce, false)
	if renewErr != nil || err == nil {
		t.Errorf("renewal %v, take-over %v: want the renewal to win", renewErr, err)
	}
	if len(parseLedger(pool.config).takes) != 0 {
		t.Errorf("the loser's key is still there: %v", pool.config)
	}
}

// slowStore is a pool at which something happens while a key is on its way there.
type slowStore struct {
	store
	meanwhile func()
}

func (s *slowStore) AddToPoolOtherConfig(ctx context.Context, key, value string) error {
	if f := s.meanwhile; f != nil {
		s.meanwhile = nil
		f()
	}
	return s.store.AddToPoolOtherConfig(ctx, key, value)
}

// A renewal comes to XAPI only after somebody has taken the work over and finished it: it is no claim any more, and leaves no
// key behind.
func TestRenewalAfterTakeOver(t *testing.T) {
	pool := newFakePool()
	slow := &slowStore{store: pool}
	c := mustClaim(t, newJournal(slow, "xs1", journalTiming()), someWork("a"))
	if err := c.note(t.Context(), stepPower, powerNote{Before: running}); err != nil {
		t.Fatal(err)
	}
	slow.meanwhile = func() {
		pool.pass(testTTL + time.Second)
		taken, err := newJournal(pool, "xs2", journalTiming()).takeOver(t.Context(), testVM, someWork("a").Nonce, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := taken.release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.renew(t.Context()); !errors.Is(err, errClaimLost) {
		t.Errorf("renew: got %v, want errClaimLost", err)
	}
	if _, err := c.check(t.Context()); !errors.Is(err, errClaimLost) {
		t.Errorf("check: got %v, want errClaimLost", err)
	}
	pool.wantClean(t)
}

// A take-over whose work is gone is that of an agent that died at the last of its steps: one of this agent's, or for a session that
// is over, goes at once; any other may be at them, and goes when its term is out.
func TestTakeOverOfWorkThatIsGone(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	a := b.agent(nil)
	for name, tc := range map[string]struct {
		agent string
		ended bool
		term  time.Duration
		goes  bool
	}{
		"its own":                        {agent: a.agent.cfg.Name, term: time.Hour, goes: true},
		"another's":                      {agent: "xs9", term: time.Hour},
		"another's that has run out":     {agent: "xs9", term: -time.Second, goes: true},
		"another's, its session is over": {agent: "xs9", ended: true, term: time.Hour, goes: true},
	} {
		j := newJournal(x, tc.agent, fastTiming())
		now, err := j.now(ctx)
		b.must(nil, err)
		key := keyPrefix + takeWord + ":0123456789abcdef"
		v, err := values(record{V: journalVersion, Agent: tc.agent, Session: "session-dead", Key: "key-00000", Nonce: "fedcba9876543210", ID: randomID(),
			Expires: now.Add(tc.term), Granted: now.Add(min(tc.term-time.Minute, 0))}, "")
		b.must(nil, err)
		b.must(nil, j.add(ctx, key, v[0]))
		o := sweepOptions{}
		if tc.ended {
			o.DeadSessions = []string{"session-dead"}
		}
		_, err = a.agent.sweep(ctx, o)
		b.must(nil, err)
		if _, there := b.dump().PoolOtherConfig[key]; there == tc.goes {
			t.Errorf("%s: there is %t", name, there)
		}
		b.must(nil, j.remove(ctx, key))
	}
}
