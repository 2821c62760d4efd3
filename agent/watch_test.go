package agent

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// giveUp runs an offline backup whose guest ignores the shutdown, so that the VM is watched afterwards.
func giveUp(t *testing.T, b *bench, a *runningAgent, vm string) {
	t.Helper()
	if err := b.pool.SetGuest(vm, true, 0); err != nil {
		t.Fatal(err)
	}
	spec := offline()
	spec.ShutdownTimeout = durationpb.New(100 * time.Millisecond)
	b.untilAsked(vm, func() {
		p := newPuller(t, a, vm, spec)
		if err := p.pull(); rpc.ReasonOf(err) != rpc.ShutdownTimeout {
			t.Fatalf("backup: got %v, want SHUTDOWN_TIMEOUT", err)
		}
		if out := a.release(t, p.opening.GetKey()); !out.GetPowerRestored() {
			t.Fatalf("outcome: got %v", out)
		}
	})
	if len(parseLedger(b.dump().PoolOtherConfig).raw) == 0 {
		t.Fatal("the VM is not watched")
	}
}

// untilAsked does work whose shutdown the guest ignores, and again where the limit was over before the guest was asked, as a short
// one may be on a busy machine.
func (b *bench) untilAsked(vm string, work func()) {
	b.t.Helper()
	b.inject(xensim.Fault{Name: "shutdown-ignored", Object: vm, Times: 1})
	for len(b.pool.Faults()) > 0 {
		work()
	}
}

// While a VM is watched after a given-up shutdown it can be backed up, and is brought back in any case.
func TestBackupOfWatchedVM(t *testing.T) {
	forced := offline()
	forced.ForceOff = true
	forced.ShutdownTimeout = durationpb.New(100 * time.Millisecond)
	for name, spec := range map[string]*agentv1.BackupSpec{"online": online(), "offline, forced": forced} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2})
			a := b.agent(func(c *Config) { c.Timing.Late = time.Hour })
			vm := b.vm(running, 0)
			giveUp(t, b, a, vm.UUID)
			p := newPuller(t, a, vm.UUID, spec)
			if err := p.pull(); err != nil {
				t.Fatalf("backup: %v", err)
			}
			p.wantArchive(vm.Disks)
			wantGood(t, a.release(t, p.opening.GetKey()))
			steps := parseLedger(b.dump().PoolOtherConfig).steps(vm.UUID, "")
			if spec.GetForceOff() {
				b.wantClean() // it was off and on again: nothing late can happen
			} else if len(steps) != 2 || steps[0].Record.Nonce != p.opening.GetNonce() {
				t.Errorf("after an online backup the watch goes on: got %+v", steps)
			}
		})
	}
}

// Another agent's watch does not keep a VM from its next backup: it is taken over, and the watch goes on after it.
func TestBackupOfVMWatchedByAnother(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	late := func(c *Config) { c.Timing.Late, c.Timing.Claim = time.Hour, 2*time.Second }
	first, second := b.agent(late), b.agent(late)
	vm := b.vm(running, 0)
	giveUp(t, b, first, vm.UUID)
	p := newPuller(t, second, vm.UUID, online())
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	p.wantArchive(vm.Disks)
	wantGood(t, second.release(t, p.opening.GetKey()))
	l := parseLedger(b.dump().PoolOtherConfig)
	if !l.watched(vm.UUID, p.opening.GetNonce()) || len(l.takes) > 0 || len(l.claims(vm.UUID)) != 1 {
		t.Errorf("after the backup: got %v, want a watch of the second agent", l.raw)
	}
	for first.agent.journal.holds(vm.UUID) { // until the first has noticed
		if err := sleep(t.Context(), 5*time.Millisecond); err != nil {
			t.Fatal("the first agent watches on")
		}
	}
	if err := second.agent.xapi.HardShutdown(t.Context(), xapi.Ref(vm.Ref)); err != nil {
		t.Fatal(err)
	}
	second.awaitWatches(t, b)
	b.wantClean()
}

// The guest powers off between the given-up shutdown and the next backup, or during it.
func TestWatchedVMGoesOffDuringBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(func(c *Config) {
		c.Timing.Late = time.Hour
		c.Timing.Watch = time.Hour // the watch looks once
	})
	vm := b.vm(running, 0)
	giveUp(t, b, a, vm.UUID)
	p := newPuller(t, a, vm.UUID, online())
	off := false
	p.onFrame = func() error {
		if !off {
			off = true
			return a.agent.xapi.HardShutdown(t.Context(), xapi.Ref(vm.Ref))
		}
		return nil
	}
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	out := a.release(t, p.opening.GetKey())
	wantGood(t, out)
	b.wantClean()
}

// An agent dies while a guest shuts down for it; the next one starts the VM when it is off at last.
func TestAgentDiesDuringShutdown(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Late = time.Hour
	vm := b.vm(running, 0)
	old, _, record := b.diedAsking(cfg, vm, time.Minute)
	a := b.start(cfg)
	a.awaitWatch(t)
	if err := old.xapi.HardShutdown(t.Context(), record.Ref); err != nil {
		t.Fatal(err)
	}
	a.awaitWatches(t, b)
	b.wantClean()
}

// The agent died after it had started the VM again: nothing is left to wait for.
func TestAgentDiesAfterStart(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Late = time.Hour
	vm := b.vm(running, 0)
	old, _, record := b.diedAsking(cfg, vm, time.Minute)
	if err := old.xapi.HardShutdown(t.Context(), record.Ref); err != nil {
		t.Fatal(err)
	}
	if err := old.xapi.Start(t.Context(), record.Ref); err != nil {
		t.Fatal(err)
	}
	a := b.start(cfg)
	a.awaitWatches(t, b)
	b.wantClean()
}

// A watch that another agent has taken over, unnoticed until the next renewal, does not keep the VM from its next backup.
func TestBackupAfterWatchWasTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	late := func(c *Config) { c.Timing.Late, c.Timing.Claim = time.Hour, time.Hour }
	first, second := b.agent(late), b.agent(late)
	vm := b.vm(running, 0)
	giveUp(t, b, first, vm.UUID)
	for _, a := range []*runningAgent{second, first} {
		p := newPuller(t, a, vm.UUID, online())
		if err := p.pull(); err != nil {
			t.Fatalf("backup: %v", err)
		}
		p.wantArchive(vm.Disks)
		wantGood(t, a.release(t, p.opening.GetKey()))
	}
}
