package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// diedAsking is an agent that has noted that it shuts the VM down, and has died.
func (b *bench) diedAsking(cfg Config, vm xensim.VMState, limit time.Duration) (*Agent, *claim, xapi.VM) {
	b.t.Helper()
	old, err := New(cfg, nil)
	b.must(nil, err)
	c, err := old.journal.claim(b.t.Context(), vm.UUID, someWork("a"))
	b.must(nil, err)
	record, err := old.xapi.VMByUUID(b.t.Context(), vm.UUID)
	b.must(nil, err)
	b.must(nil, c.note(b.t.Context(), stepPower, notePower(record, running, limit)))
	return old, c, record
}

// twiceAsked is the journal of work whose agent died, was started again, took it up, asked for another shutdown and died again.
func (b *bench) twiceAsked(cfg Config, vm xensim.VMState) (*Agent, xapi.VM) {
	b.t.Helper()
	old, c, record := b.diedAsking(cfg, vm, cfg.Timing.Shutdown)
	b.must(nil, c.noteAgain(b.t.Context()))
	b.must(nil, c.noteAgain(b.t.Context()))
	l := parseLedger(b.dump().PoolOtherConfig)
	if n := len(filter(l.steps(vm.UUID, ""), func(e entry) bool { return e.Step == stepAgain })); n != 1 {
		b.t.Errorf("%d entries, want the last one alone", n)
	}
	return old, record
}

// A shutdown was asked for twice when the agent died, and one has shut the VM down: whoever starts it watches it, since the other
// waits in XAPI for its turn. There may be more than two.
func TestSweepStartsVMThatSeveralShutdownsWaitFor(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Late, cfg.Timing.Claim = time.Hour, 8*time.Second
	vm := b.vm(running, 0)
	old, record := b.twiceAsked(cfg, vm)
	b.must(nil, old.xapi.HardShutdown(t.Context(), record.Ref))
	a := b.start(cfg)
	a.awaitWatch(t)
	b.shutDownLate(a, vm.UUID)
	actions, err := a.agent.sweep(t.Context(), sweepOptions{})
	if err != nil || !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.VM == vm.UUID && s.Waiting != "" && s.Again > 0 }) {
		t.Errorf("a sweep tells %+v, %v; want that the VM is watched on", actions, err)
	}
	b.shutDownLate(a, vm.UUID)
	a.awaitWatches(t, b)
	b.wantClean()
}

// The agent that has started such a VM dies before its watch is over, or another shuts the VM down meanwhile: so does the next.
func TestNextLifeWatchesOn(t *testing.T) {
	for name, off := range map[string]bool{"it runs": false, "it is off again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2})
			cfg := b.config("xs1", 0)
			cfg.Timing.Late, cfg.Timing.Claim = time.Hour, 8*time.Second
			vm := b.vm(running, 0)
			old, record := b.twiceAsked(cfg, vm)
			b.must(nil, old.xapi.HardShutdown(t.Context(), record.Ref))
			b.must(nil, old.xapi.Start(t.Context(), record.Ref))
			if off {
				b.must(nil, old.xapi.HardShutdown(t.Context(), record.Ref))
			}
			a := b.start(cfg)
			a.awaitWatch(t)
			b.shutDownLate(a, vm.UUID)
			a.awaitWatches(t, b)
			b.wantClean()
		})
	}
}

// Several calls wait for a guest that ignores them: XAPI comes to one after the other, and nothing is to be seen between two. The
// watch does not end there.
func TestWatchOutlastsShutdownsInARow(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Late, cfg.Timing.Claim, cfg.Timing.Shutdown = time.Millisecond, 1500*time.Millisecond, time.Millisecond
	vm := b.vm(running, 0)
	b.must(nil, b.pool.SetGuest(vm.UUID, true, 0))
	old, record := b.twiceAsked(cfg, vm)
	for range 4 {
		b.must(old.xapi.Call(t.Context(), "Async.VM.clean_shutdown", record.Ref))
	}
	waits := func() (n int) {
		refs, err := old.xapi.TasksByName(t.Context(), "Async.VM.clean_shutdown")
		b.must(nil, err)
		for _, ref := range refs {
			if task, err := old.xapi.Task(t.Context(), ref); err == nil && !task.Final() {
				n++
			}
		}
		return n
	}
	a := b.start(cfg)
	a.awaitWatch(t)
	for waits() > 0 {
		if !a.agent.journal.holds(vm.UUID) && waits() > 0 {
			t.Fatal("the watch is over, and a shutdown waits")
		}
		time.Sleep(5 * time.Millisecond)
	}
	a.awaitWatches(t, b)
}

// The agent comes back when the time of the watch is over, and XAPI is still at one of the calls: the guest may heed it yet.
func TestSweepWatchesVMThatXAPIShutsDownStill(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Speedup: 100})
	cfg := b.config("xs1", 0)
	cfg.Timing.Late, cfg.Timing.Claim, cfg.Timing.Shutdown = time.Millisecond, 1500*time.Millisecond, time.Millisecond
	vm := b.vm(running, 0)
	b.must(nil, b.pool.SetGuest(vm.UUID, true, 0))
	old, record := b.twiceAsked(cfg, vm)
	b.must(old.xapi.Call(t.Context(), "Async.VM.clean_shutdown", record.Ref))
	for busy := false; !busy; {
		rec, err := old.xapi.VM(t.Context(), record.Ref)
		b.must(nil, err)
		busy = shuttingDown(rec)
	}
	b.must(nil, sleep(t.Context(), 2*time.Second))
	b.start(cfg).awaitWatch(t)
}

// A dry sweep tells of the start and of the watch, as the real one does.
func TestDrySweepTellsOfTheWatchAfterAStart(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Claim = time.Hour
	vm := b.vm(running, 0)
	old, record := b.twiceAsked(cfg, vm)
	b.must(nil, old.xapi.HardShutdown(t.Context(), record.Ref))
	other, err := New(b.config("xs1", 0), nil)
	b.must(nil, err)
	told := map[bool][]string{}
	for _, dry := range []bool{true, false} {
		actions, err := other.sweep(t.Context(), sweepOptions{DryRun: dry, DeadSessions: []string{someWork("a").Session}})
		b.must(nil, err)
		for _, s := range actions {
			told[dry] = append(told[dry], fmt.Sprint(s.Action, ", waits: ", s.Waiting != ""))
		}
	}
	want := []string{"start VM, waits: false", "watch the VM, waits: true"}
	wantSame(t, "dry", want, told[true])
	wantSame(t, "real", want, told[false])
}

// The time for which a VM is watched begins with the last call: an agent may have asked again long after its former life had.
func TestWatchBeginsWithTheLastCall(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	vm := b.vm(running, 0)
	record, err := x.VMByUUID(ctx, vm.UUID)
	b.must(nil, err)
	c := b.deadWork(x, vm.UUID, "0123456789abcdef", 50*time.Millisecond)
	b.must(nil, c.note(ctx, stepPower, notePower(record, running, time.Millisecond)))
	c.j.ttl, c.expires = time.Hour, c.expires.Add(time.Hour) // as a later term would be
	b.must(nil, c.noteAgain(ctx))
	cfg := b.config("xs1", 0)
	cfg.Timing.Late = time.Millisecond
	a, err := New(cfg, nil)
	b.must(nil, err)
	actions, err := a.sweep(ctx, sweepOptions{DryRun: true, DeadSessions: []string{"session-dead"}})
	b.must(nil, err)
	if len(actions) != 1 || actions[0].Again < 50*time.Minute {
		t.Errorf("got %+v, want that the VM is watched for an hour", actions)
	}
}

// noticing notes what the journal says when a clean shutdown is asked for.
type noticing struct {
	powerCalls
	journal *journal
	mu      sync.Mutex
	again   []bool
}

func (n *noticing) CleanShutdown(ctx context.Context, vm xapi.Ref) error {
	l, err := n.journal.read(ctx)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.again = append(n.again, slices.ContainsFunc(l.entries, func(e entry) bool { return e.Step == stepAgain && e.Complete }))
	n.mu.Unlock()
	return n.powerCalls.CleanShutdown(ctx, vm)
}

// An agent that goes on after its own death says so in the journal before it asks for a shutdown once more, in backups and in
// restores; one that asks for the first time does not.
func TestAskedAgainIsInTheJournal(t *testing.T) {
	for name, tc := range map[string]struct{ restore, died bool }{
		"backup":                {},
		"backup after a death":  {died: true},
		"restore after a death": {restore: true, died: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
			cfg := b.config("xs1", 0)
			cfg.Timing.Late, cfg.Timing.Claim = time.Hour, 4*time.Second
			vm := b.vm(running, 0)
			archive := b.backUp(vm.UUID, online())
			work := someWork("a")
			if tc.died {
				b.diedAsking(cfg, vm, time.Minute)
			}
			a := b.start(cfg)
			if tc.died {
				a.awaitWatch(t)
			}
			n := &noticing{powerCalls: a.agent.power.calls, journal: a.agent.journal}
			a.agent.power.calls = n
			if tc.restore {
				p := newPusher(t, a, vm.UUID, archive, kindOnline)
				b.must(nil, p.push(t.Context()))
				a.release(t, p.opening.GetKey())
			} else {
				p := newPuller(t, a, vm.UUID, offline())
				p.opening.Nonce, p.opening.SessionId = work.Nonce, work.Session
				b.must(nil, p.pull())
				a.release(t, p.opening.GetKey())
			}
			if len(n.again) != 1 || n.again[0] != tc.died {
				t.Errorf("asked %v, want once, and %v", n.again, tc.died)
			}
			a.awaitWatches(t, b)
			b.wantUnmarked()
		})
	}
}

// A call that got no answer may be on its way when the next is made; one that XAPI has refused is not.
func TestAgainAfterNoAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		earlier bool
		first   error
		want    int
	}{
		"refused for now": {first: failure("OTHER_OPERATION_IN_PROGRESS")},
		"no answer":       {first: fmt.Errorf("%w: EOF", xapi.ErrUnreachable), want: 1},
		"from before":     {first: failure("OTHER_OPERATION_IN_PROGRESS"), earlier: true, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeVM{state: running}
				f.shutdown = func(context.Context) error {
					if len(f.calls) < 2 {
						return tc.first
					}
					f.state = halted
					return nil
				}
				p, n := &power{calls: f, timing: Defaults().Timing}, 0
				o := stopOptions{Timeout: time.Hour, Earlier: tc.earlier, Again: func(context.Context) error { n++; return nil }}
				if _, err := p.stop(t.Context(), xapi.VM{Ref: "ref", PowerState: running}, o); err != nil || n != tc.want {
					t.Errorf("noted %d times, want %d; %v", n, tc.want, err)
				}
			})
		})
	}
}
