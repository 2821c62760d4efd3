package agent

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dpxen/dpxen/internal/xapi"
)

const (
	testVM  = "11111111-2222-3333-4444-555555555555"
	testTTL = time.Minute
)

func journalTiming() Timing {
	return Timing{Claim: testTTL, RetryMin: time.Millisecond, RetryMax: 10 * time.Millisecond}
}

// fakePool is a pool.other_config with a clock.
type fakePool struct {
	mu     sync.Mutex
	config map[string]string
	now    time.Time
	// before is called before every change, without the lock: what others do meanwhile.
	before func(verb, key string)
	// loseAnswer makes the next add succeed without an answer.
	loseAnswer bool
	idempotent bool // db_idempotent_map
}

func newFakePool() *fakePool {
	return &fakePool{config: map[string]string{"other": "tool's"}, now: time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)}
}

func (p *fakePool) PoolOtherConfig(context.Context) (map[string]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.config), nil
}

func (p *fakePool) AddToPoolOtherConfig(_ context.Context, key, value string) error {
	if p.before != nil {
		p.before("add", key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, used := p.config[key]; used && (!p.idempotent || old != value) {
		return &xapi.Error{Code: "MAP_DUPLICATE_KEY", Params: []string{"pool", "other_config", "ref", key}}
	}
	p.config[key] = value
	if p.loseAnswer {
		p.loseAnswer = false
		return xapi.ErrUnreachable
	}
	return nil
}

func (p *fakePool) RemoveFromPoolOtherConfig(_ context.Context, key string) error {
	if p.before != nil {
		p.before("remove", key)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.config, key)
	return nil
}

func (p *fakePool) ServerTime(context.Context) (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now, nil
}

func (p *fakePool) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

func (p *fakePool) wantClean(t *testing.T) {
	t.Helper()
	if diff := cmp.Diff(map[string]string{"other": "tool's"}, p.config); diff != "" {
		t.Errorf("pool.other_config (-want +got):\n%s", diff)
	}
}

func someWork(n string) owner {
	return owner{Session: "session-" + n, Key: "key-000-" + n, Nonce: "nonce-00-" + n}
}

func mustClaim(t *testing.T, j *journal, who owner) *claim {
	t.Helper()
	c, err := j.claim(t.Context(), testVM, who)
	if err != nil {
		t.Fatalf("claim: %v", err)
	}
	return c
}

func TestClaimIsExclusive(t *testing.T) {
	pool := newFakePool()
	one, two := newJournal(pool, "xs1", journalTiming()), newJournal(pool, "xs2", journalTiming())
	c := mustClaim(t, one, someWork("a"))

	_, err := two.claim(t.Context(), testVM, someWork("b"))
	var claimed *errClaimed
	if !errors.As(err, &claimed) || claimed.Agent != "xs1" || claimed.Session != "session-a" {
		t.Errorf("second claim: got %v, want errClaimed that names xs1 and session-a", err)
	}
	// The same agent, even for the same work, while it runs in this process.
	if _, err := one.claim(t.Context(), testVM, someWork("a")); !errors.As(err, &claimed) || claimed.Agent != "" {
		t.Errorf("claim again in the same process: got %v, want errClaimed without a name", err)
	}
	if err := c.release(t.Context()); err != nil {
		t.Fatalf("release: %v", err)
	}
	pool.wantClean(t)
	if err := mustClaim(t, two, someWork("b")).release(t.Context()); err != nil {
		t.Fatalf("release: %v", err)
	}
	pool.wantClean(t)
}

// Of many that claim at the same time one wins, whatever the host's map semantics.
func TestClaimRace(t *testing.T) {
	for _, idempotent := range []bool{false, true} {
		pool := newFakePool()
		pool.idempotent = idempotent
		var wg sync.WaitGroup
		wins := make(chan string, 16)
		for i := range 16 {
			wg.Go(func() {
				name := string(rune('a' + i))
				if _, err := newJournal(pool, "xs"+name, journalTiming()).claim(t.Context(), testVM, someWork("same")); err == nil {
					wins <- name
				}
			})
		}
		wg.Wait()
		if len(wins) != 1 {
			t.Errorf("idempotent=%v: %d claims won, want 1", idempotent, len(wins))
		}
	}
}

// A renewal between another's reading and adding frees the key for a moment.
func TestClaimDuringRenewal(t *testing.T) {
	pool := newFakePool()
	one, two := newJournal(pool, "xs1", journalTiming()), newJournal(pool, "xs2", journalTiming())
	var c *claim
	pool.before = func(verb, key string) {
		pool.before = nil
		if verb != "add" || !strings.HasSuffix(key, ":claim") {
			t.Errorf("first change: %s %s", verb, key)
		}
		c = mustClaim(t, one, someWork("a"))
		if err := c.renew(t.Context()); err != nil {
			t.Errorf("renew: %v", err)
		}
	}
	var claimed *errClaimed
	if _, err := two.claim(t.Context(), testVM, someWork("b")); !errors.As(err, &claimed) {
		t.Errorf("claim: got %v, want errClaimed", err)
	}
	if _, err := c.check(t.Context()); err != nil {
		t.Errorf("holder's claim: %v", err)
	}
	if err := c.release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
	pool.wantClean(t)
}

func TestRenewAddsThenRemoves(t *testing.T) {
	pool := newFakePool()
	c := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	var seen []string
	pool.before = func(verb, key string) { seen = append(seen, verb+" "+strings.TrimPrefix(key, "dpxen:"+testVM+":")) }
	for range 2 {
		pool.pass(testTTL / 2)
		if err := c.renew(t.Context()); err != nil {
			t.Fatalf("renew: %v", err)
		}
	}
	want := []string{"add claim.1", "remove claim", "add claim.2", "remove claim.1"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// A release waits for a renewal that is under way, and none follows it.
func TestReleaseMeetsRenewal(t *testing.T) {
	pool := newFakePool()
	c := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	var wg sync.WaitGroup
	pool.before = func(verb, _ string) {
		if verb == "add" {
			pool.before = nil
			started := make(chan struct{})
			wg.Go(func() {
				close(started)
				if err := c.release(t.Context()); err != nil {
					t.Errorf("release: %v", err)
				}
			})
			<-started
		}
	}
	if err := c.renew(t.Context()); err != nil {
		t.Errorf("renew: %v", err)
	}
	wg.Wait()
	if err := c.renew(t.Context()); err != nil {
		t.Errorf("renew after the release: %v", err)
	}
	pool.wantClean(t)
}

func TestLostAnswerOfAdd(t *testing.T) {
	pool := newFakePool()
	pool.loseAnswer = true
	c := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	pool.loseAnswer = true
	if err := c.note(t.Context(), stepPower, powerNote{Before: running}); err != nil {
		t.Errorf("note: %v", err)
	}
}

func TestNotes(t *testing.T) {
	pool := newFakePool()
	j := newJournal(pool, "xs1", journalTiming())
	c := mustClaim(t, j, someWork("a"))
	long := strings.Repeat(`wörld "quoted" `, 400)
	if err := c.note(t.Context(), "swap", long); err != nil {
		t.Fatalf("note: %v", err)
	}
	for key, value := range pool.config {
		if len(value) > maxValue {
			t.Errorf("%s has %d bytes", key, len(value))
		}
	}
	var got string
	if ok, err := c.noted(t.Context(), "swap", &got); err != nil || !ok || got != long {
		t.Errorf("noted: got %v, %v, %d bytes; want %d", ok, err, len(got), len(long))
	}
	// A part that is missing makes the whole unusable.
	key := "dpxen:" + testVM + ":swap.1"
	saved := pool.config[key]
	delete(pool.config, key)
	if ok, err := c.noted(t.Context(), "swap", &got); ok || err != nil {
		t.Errorf("with a part missing: got %v, %v; want false", ok, err)
	}
	pool.config[key] = saved
	if err := c.drop(t.Context(), "swap"); err != nil {
		t.Errorf("drop: %v", err)
	}
	if ok, _ := c.noted(t.Context(), "swap", nil); ok {
		t.Error("noted after drop")
	}
	if err := c.release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
	pool.wantClean(t)
}

func TestClaimGoesOnAfterRestart(t *testing.T) {
	pool := newFakePool()
	old := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	if err := old.note(t.Context(), stepPower, powerNote{Before: running, Limit: time.Hour}); err != nil {
		t.Fatalf("note: %v", err)
	}
	c := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a")) // another process
	var p powerNote
	if ok, err := c.noted(t.Context(), stepPower, &p); !ok || err != nil || p.Before != running || p.Limit != time.Hour {
		t.Errorf("noted: got %v, %v, %+v", ok, err, p)
	}
	if err := c.release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
	if marksIn(pool.config) != 1 || len(pool.config) != 2 {
		t.Errorf("want a mark, since the first process may have asked for more, and nothing else: %v", pool.config)
	}
}

func TestExpiredClaimIsStale(t *testing.T) {
	pool := newFakePool()
	mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	pool.pass(testTTL + time.Second)
	_, err := newJournal(pool, "xs2", journalTiming()).claim(t.Context(), testVM, someWork("b"))
	var stale *errStale
	if !errors.As(err, &stale) || stale.Nonce != someWork("a").Nonce {
		t.Errorf("claim: got %v, want errStale of the first work", err)
	}
}

func TestForeignKeysAreLeftAlone(t *testing.T) {
	pool := newFakePool()
	strange := map[string]string{
		"dpxen:": "x", "dpxen:nothing": "x", "dpxen:" + testVM + ":claim.x": "{}", "dpxen:" + testVM + ":power": "not json",
		"dpxen:" + testVM + ":swap": `{"v":2,"agent":"a","nonce":"12345678"}`, "dpxen:take:abc": strings.Repeat("x", 2000),
	}
	maps.Copy(pool.config, strange)
	c := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
	if err := c.note(t.Context(), stepPower, powerNote{}); err != nil {
		t.Errorf("note: %v", err)
	}
	if err := c.release(t.Context()); err != nil {
		t.Errorf("release: %v", err)
	}
	strange["other"] = "tool's"
	if diff := cmp.Diff(strange, pool.config); diff != "" {
		t.Errorf("pool.other_config (-want +got):\n%s", diff)
	}
	if l := parseLedger(pool.config); len(l.unknown) != len(strange)-1 {
		t.Errorf("unknown keys: got %v", l.unknown)
	}
}

// What is written is read back, whatever the text, and no value is too long.
func TestValuesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 3000, 6000).Draw(t, "text")
		data, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		r := record{V: journalVersion, Agent: strings.Repeat("a", 63), Session: strings.Repeat("s", 64),
			Key: strings.Repeat("k", 64), Nonce: strings.Repeat("n", 64), ID: randomID(), Expires: time.Now()}
		vs, err := values(r, string(data))
		if err != nil {
			t.Fatal(err)
		}
		config := map[string]string{}
		for _, v := range vs {
			if len(v) > maxValue {
				t.Fatalf("value of %d bytes", len(v))
			}
			config[parseLedger(config).free("dpxen:"+testVM+":swap")] = v
		}
		l := parseLedger(config)
		var got string
		if len(l.entries) != 1 || l.entries[0].decode(&got) != nil || got != text {
			t.Fatalf("got %d entries, %d bytes, unknown %v; want %d bytes", len(l.entries), len(got), l.unknown, len(text))
		}
	})
}
