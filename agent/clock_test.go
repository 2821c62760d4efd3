package agent

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// The pool master's clock is set forward or back by hours in the midst of a backup, while another agent sweeps all the time:
// the work is not taken for dead, and goes on to its end.
func TestMasterClockJumps(t *testing.T) {
	for _, by := range []time.Duration{6 * time.Hour, -6 * time.Hour} {
		for _, spec := range []*agentv1.BackupSpec{online(), offline()} {
			t.Run(by.String()+" "+spec.GetKind().String(), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, xensim.Config{VMs: 2, Speedup: 50})
				const claim = 4 * time.Second
				quick := func(c *Config) { c.Timing.Claim, c.Timing.Sweep = claim, 20*time.Millisecond }
				a := b.agent(quick)
				b.agent(quick)
				vm := b.vm(running, 0)
				if err := sleep(t.Context(), claim+100*time.Millisecond); err != nil { // a sweeper's start is a reason of its own to wait
					t.Fatal(err)
				}
				b.inject(xensim.Fault{Name: "export-stall", After: 1 << 20, Delay: 50 * 3 * claim / 2, Times: 1})
				p := newPuller(t, a, vm.UUID, spec)
				p.onFrame = func() error {
					if p.data.Len() == 1<<20 {
						b.pool.ShiftClock(by)
					}
					return nil
				}
				if err := p.pull(); err != nil {
					t.Errorf("backup: %v", err)
				}
				p.wantArchive(vm.Disks)
				wantGood(t, a.release(t, p.opening.GetKey()))
				b.wantClean()
			})
		}
	}
}

// The master's clock is set forward while a VM is watched after a shutdown that was given up: the guest powers off late, and
// is started all the same.
func TestMasterClockJumpsDuringWatch(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Speedup: 1})
	a := b.agent(func(c *Config) { c.Timing.Late = 10 * time.Second })
	vm := b.vm(running, 0)
	if err := b.pool.SetGuest(vm.UUID, false, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	spec := offline()
	spec.ShutdownTimeout = durationpb.New(200 * time.Millisecond)
	p := newPuller(t, a, vm.UUID, spec)
	if err := p.pull(); rpc.ReasonOf(err) != rpc.ShutdownTimeout {
		t.Errorf("backup: got %v, want SHUTDOWN_TIMEOUT", err)
	}
	a.release(t, p.opening.GetKey())
	if err := sleep(t.Context(), 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	b.pool.ShiftClock(6 * time.Hour)
	if err := sleep(t.Context(), 3500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	a.awaitWatches(t, b)
	b.wantClean()
}

func TestQuietClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q quiet
		master := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
		for _, look := range []struct {
			here, there time.Duration // since the last look
			jumped      time.Duration
		}{
			{0, 0, 0},
			{time.Minute, time.Minute + 900*time.Millisecond, 0}, // it is read in seconds
			{time.Minute, 58 * time.Second, 0},
			{time.Minute, time.Hour, 59 * time.Minute},
			{time.Minute, time.Minute, 0},
			{time.Minute, -time.Hour, -61 * time.Minute},
			{time.Hour, time.Hour, 0},
		} {
			time.Sleep(look.here)
			master = master.Add(look.there)
			if got := q.clock(master); got != look.jumped {
				t.Errorf("%s here and %s there: jumped %s, want %s", look.here, look.there, got, look.jumped)
			}
			if waits := time.Now().Before(q.until(time.Minute)); waits != (look.jumped != 0) {
				t.Errorf("%s here and %s there: waits %v", look.here, look.there, waits)
			}
		}
	})
}

// The master's clock is set back by hours after an agent has died: its claim stands for one term more, as long as others have
// seen it unrenewed, and not until the clock has come to its end again. A guest that may still power off is not watched for
// hours either.
func TestMasterClockGoesBackAfterDeath(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4})
	ctx, x := t.Context(), b.client()
	const term = 500 * time.Millisecond
	vm, other := b.vm(running, 0), b.vm(halted, 0)
	record, err := x.VMByUUID(ctx, vm.UUID)
	b.must(nil, err)
	c := b.deadWork(x, vm.UUID, "0123456789abcdef", term)
	b.must(nil, c.note(ctx, stepPower, notePower(record, running, time.Millisecond)))
	b.must(nil, c.note(ctx, stepWatch, watchNote{Until: time.Now().Add(time.Second)}))
	c = b.deadWork(x, other.UUID, "fedcba9876543210", term)
	b.must(nil, c.note(ctx, stepRestore, restoreNote{}))
	b.pool.ShiftClock(-6 * time.Hour)
	a := b.agent(func(c *Config) { c.Timing.Claim = term })
	_, err = a.agent.journal.claim(ctx, other.UUID, someWork("a"))
	if claimed := (*errClaimed)(nil); !errors.As(err, &claimed) {
		t.Errorf("at once: got %v, want that the dead agent's claim stands", err)
	}
	for end := time.Now().Add(time.Minute); len(b.dump().PoolOtherConfig) > len(b.before.PoolOtherConfig); {
		if time.Now().After(end) {
			t.Fatalf("the journal keeps %v", b.dump().PoolOtherConfig)
		}
		b.must(nil, sleep(ctx, 50*time.Millisecond))
		_, err := a.agent.sweeper.sweep(ctx, sweepOptions{AtStart: true})
		b.must(nil, err)
	}
	b.wantClean()
}
