package agent

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// A key that XAPI gave no answer about may come after the work is done: a mark stands for as long as a claim does, unless the
// key has come by then, and none where XAPI refused it.
func TestMarkOfLiving(t *testing.T) {
	for name, tt := range map[string]struct {
		arrives bool
		refused bool
		passed  time.Duration
		want    int
	}{
		"it may come":          {want: 1},
		"it may come still":    {passed: testTTL / 2, want: 1},
		"it has come":          {arrives: true},
		"a term has passed":    {passed: testTTL},
		"it was refused":       {refused: true},
		"it came, a term past": {arrives: true, passed: testTTL},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool := newFakePool()
				j := newJournal(pool, "xs1", journalTiming())
				c := mustClaim(t, j, someWork("a"))
				if tt.refused {
					pool.config["dpxen:"+testVM+":power"] = "somebody's"
					pool.before = func(string, string) { pool.config["dpxen:"+testVM+":power.1"] = "his, too" }
					var refusal *xapi.Error
					if err := c.note(t.Context(), stepPower, powerNote{Before: running}); !errors.As(err, &refusal) {
						t.Fatalf("got %v, want XAPI's refusal", err)
					}
					pool.before = nil
				} else {
					arrive := inFlight(t, c, stepPower, powerNote{Before: running})
					j.store = pool
					if tt.arrives {
						arrive()
					}
				}
				time.Sleep(tt.passed)
				pool.pass(tt.passed)
				if err := c.release(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := marksIn(pool.config); n != tt.want {
					t.Errorf("want %d marks: %v", tt.want, pool.config)
				}
			})
		})
	}
}

// A claim that is passed on leaves the mark of the work before.
func TestMarkWhenPassedOn(t *testing.T) {
	pool := newFakePool()
	j := newJournal(pool, "xs1", journalTiming())
	c := mustClaim(t, j, someWork("a"))
	arrive := inFlight(t, c, stepPower, powerNote{Before: running})
	j.store = pool
	next, err := c.passOn(t.Context(), someWork("b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := next.release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if marksIn(pool.config) != 1 {
		t.Errorf("want one mark: %v", pool.config)
	}
	arrive()
	if _, err := j.takeOver(t.Context(), testVM, someWork("a").Nonce, true); !errors.Is(err, errClaimLost) {
		t.Errorf("take-over of what came late: got %v, want that there is no such work", err)
	}
}

// XAPI is slow to add an agent's power note. The agent gives up waiting, the backup ends one way or the other, and the user
// stops the VM; the note that comes then starts nothing.
func TestLatePowerNoteOfLiving(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	vm := b.vm(running, 0)
	a := b.agent(func(cfg *Config) { cfg.Timing.XAPI.Call = 500 * time.Millisecond })
	b.inject(xensim.Fault{Name: "call-slow", Method: "pool.add_to_other_config", Skip: 1, Times: 1, Delay: 5000 * time.Second}) // 5 s here
	p := newPuller(t, a, vm.UUID, offline())
	began := time.Now()
	err := p.pull()
	a.awaitDone(t, p.opening.GetKey())
	a.release(t, p.opening.GetKey())
	t.Logf("after %s the backup ended: %v", time.Since(began), err)
	if now := b.vmNow(vm.UUID); now.PowerState != running {
		t.Fatalf("after the backup the VM is %s", now.PowerState)
	}
	record, err := x.VMByUUID(ctx, vm.UUID)
	b.must(nil, err)
	b.must(nil, x.HardShutdown(ctx, record.Ref)) // by its user
	late := func() bool {
		for key := range b.dump().PoolOtherConfig {
			if strings.HasPrefix(key, keyPrefix+vm.UUID+":"+stepPower) {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(30 * time.Second); !late(); {
		if time.Now().After(end) {
			t.Fatal("the note does not come")
		}
		b.must(nil, sleep(ctx, 10*time.Millisecond))
	}
	actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{p.opening.GetSessionId()}})
	b.must(nil, err)
	if now := b.vmNow(vm.UUID); now.PowerState != halted || late() {
		t.Errorf("after the late note the VM is %s, the note there: %v; %+v", now.PowerState, late(), actions)
	}
}
