package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// inFlight is a claim's next key, as its agent has sent it and died.
func inFlight(t *testing.T, c *claim, step string, data any) (arrive func()) {
	t.Helper()
	s := &lostStore{store: c.j.store}
	c.j.store = s
	if err := c.note(t.Context(), step, data); err == nil {
		t.Fatal("the note is in the journal")
	}
	return func() {
		t.Helper()
		if err := s.store.AddToPoolOtherConfig(t.Context(), s.key, s.value); err != nil {
			t.Fatal(err)
		}
	}
}

// lostStore keeps what is to be added back.
type lostStore struct {
	store
	key, value string
}

func (s *lostStore) AddToPoolOtherConfig(_ context.Context, key, value string) error {
	s.key, s.value = key, value
	return xapi.ErrUnreachable
}

func marksIn(pool map[string]string) (n int) {
	for key := range pool {
		if strings.HasPrefix(key, "dpxen:take:") {
			n++
		}
	}
	return n
}

// Work that is taken over and dropped before its term is out leaves a mark until then; what its own agent drops, and what is
// dropped after its term, leaves none.
func TestMark(t *testing.T) {
	for name, tt := range map[string]struct {
		passed     time.Duration
		own, again bool
		want       int
	}{
		"dropped by its own agent":          {own: true},
		"by its own agent, started again":   {own: true, again: true, want: 1},
		"started again, after its term":     {own: true, again: true, passed: testTTL + time.Second},
		"taken over, after its term":        {passed: testTTL + time.Second},
		"taken over before its term is out": {passed: time.Second, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			pool := newFakePool()
			c := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
			pool.pass(tt.passed)
			if tt.again {
				c = mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
			}
			if !tt.own {
				var err error
				if c, err = newJournal(pool, "xs2", journalTiming()).takeOver(t.Context(), testVM, someWork("a").Nonce, true); err != nil {
					t.Fatal(err)
				}
			}
			pool.loseAnswer = true // a release that is tried again leaves one mark, too
			if err := c.release(t.Context()); err != nil {
				if err = c.release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if n := marksIn(pool.config); n != tt.want || len(pool.config) != tt.want+1 {
				t.Errorf("want %d marks and nothing else: %v", tt.want, pool.config)
			}
		})
	}
}

// A late key of marked work keeps nobody from the VM for its term, and work of the same nonce begins without it.
func TestClaimMeetsMark(t *testing.T) {
	for _, again := range []string{"a", "b"} {
		pool := newFakePool()
		dead := mustClaim(t, newJournal(pool, "xs1", journalTiming()), someWork("a"))
		arrive := inFlight(t, dead, stepPower, powerNote{Before: running})
		j := newJournal(pool, "xs2", journalTiming())
		c, err := j.takeOver(t.Context(), testVM, someWork("a").Nonce, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.release(t.Context()); err != nil {
			t.Fatal(err)
		}
		arrive()
		if _, err := j.takeOver(t.Context(), testVM, someWork("a").Nonce, true); !errors.Is(err, errClaimLost) {
			t.Errorf("take-over of what came late: got %v, want that there is no such work", err)
		}
		c, err = j.claim(t.Context(), testVM, someWork(again))
		if again == "b" { // a sweep comes first
			if stale := (*errStale)(nil); !errors.As(err, &stale) {
				t.Errorf("another's claim: got %v, want errStale", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if found, err := c.noted(t.Context(), stepPower, nil); found || err != nil {
			t.Errorf("the late note: found %v, %v", found, err)
		}
		if err := c.release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if marksIn(pool.config) != 1 || len(pool.config) != 2 {
			t.Errorf("want the mark until the first term is out, and nothing else: %v", pool.config)
		}
	}
}

// A power note comes to the journal only after the work is repaired and the user has stopped the VM: it stays off, another
// session may have it, and repair tells of the wait until no key of ours can come any more.
func TestLatePowerNote(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	const nonce, term = "0123456789abcdef", 8 * time.Second
	vm := b.vm(running, 0)
	record, err := x.VMByUUID(ctx, vm.UUID)
	b.must(nil, err)
	dead := b.deadWork(x, vm.UUID, nonce, term)
	arrive := inFlight(t, dead, stepPower, notePower(record, running, time.Millisecond))
	a := b.agent(nil)
	in := sweepIntent{VM: vm.UUID, Nonce: nonce, Session: "session-dead", Before: running}
	repair := func(dry bool) (waits bool) {
		t.Helper()
		actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DryRun: dry, DeadSessions: []string{in.Session}, Intents: []sweepIntent{in}})
		b.must(nil, err)
		for _, action := range actions {
			if action.Action == "start VM" || action.Err != nil {
				t.Errorf("dry run %v: %+v", dry, action)
			}
			waits = waits || action.Waiting != "" && action.Again > 0 && action.VM == "" && action.Object == in.Session
		}
		return waits
	}
	for _, dry := range []bool{true, false} {
		if !repair(dry) {
			t.Errorf("dry run %v: nothing waits", dry)
		}
	}
	b.must(nil, x.HardShutdown(ctx, record.Ref)) // by its user
	arrive()
	for _, dry := range []bool{true, false, true} {
		if !repair(dry) {
			t.Errorf("after the late note, dry run %v: nothing waits", dry)
		}
	}
	arrive()
	p := newPuller(t, a, vm.UUID, online())
	if err := p.pull(); err != nil {
		t.Errorf("a backup meanwhile: %v", err)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	in.Before = "" // its controller has settled it meanwhile
	for end := time.Now().Add(20 * term); repair(false); {
		if time.Now().After(end) {
			t.Fatal("it waits for ever")
		}
		b.must(nil, sleep(ctx, 50*time.Millisecond))
	}
	if now := b.vmNow(vm.UUID); now.PowerState != halted {
		t.Errorf("the VM that its user has stopped is %s", now.PowerState)
	}
	keys := b.dump().PoolOtherConfig
	if slices.ContainsFunc(slices.Collect(maps.Keys(keys)), func(k string) bool { return strings.HasPrefix(k, keyPrefix) }) {
		t.Errorf("keys are left: %v", keys)
	}
}

// XAPI makes the task of an export or import only after its agent has died and the work is repaired: it is cancelled, and
// repair is not done before, nor is a task of somebody else's touched.
func TestLateTask(t *testing.T) {
	t.Parallel()
	for _, label := range []func(string) string{exportLabel, importLabel} {
		b := newBench(t, xensim.Config{VMs: 2})
		ctx, x := t.Context(), b.client()
		const nonce, term = "0123456789abcdef", 8 * time.Second
		b.deadWork(x, b.vm(running, 0).UUID, nonce, term)
		a := b.agent(nil)
		repair := func(dry bool) (waits bool) {
			t.Helper()
			actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DryRun: dry, DeadSessions: []string{"session-dead"}})
			b.must(nil, err)
			return slices.ContainsFunc(actions, func(a sweepAction) bool { return a.Waiting != "" && a.Again > 0 })
		}
		if !repair(false) {
			t.Fatalf("%s: repair does not wait for what may come late", label(nonce))
		}
		for _, name := range []string{label(nonce), "a user's task"} {
			if _, err := x.Call(ctx, "task.create", name, ""); err != nil {
				t.Fatal(err)
			}
		}
		for _, dry := range []bool{true, false} {
			if !repair(dry) {
				t.Errorf("%s, dry run %v: nothing waits", label(nonce), dry)
			}
		}
		if tasks := b.dump().Tasks; len(tasks) != 1 || !strings.HasPrefix(tasks[0], "a user's task") {
			t.Errorf("%s: want the user's task alone: %v", label(nonce), tasks)
		}
		// One that comes at the very end of the term goes with the mark.
		if _, err := x.Call(ctx, "task.create", label(nonce), ""); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * term); repair(false); b.must(nil, sleep(ctx, 50*time.Millisecond)) {
			if time.Now().After(end) {
				t.Fatal("it waits for ever")
			}
		}
		if tasks := b.dump().Tasks; len(tasks) != 1 {
			t.Errorf("%s: tasks are left: %v", label(nonce), tasks)
		}
	}
}
