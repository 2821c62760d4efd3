package agent

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// lostShutdowns loses the first clean shutdown on its way to XAPI.
type lostShutdowns struct {
	powerCalls
	lost atomic.Bool
}

func (l *lostShutdowns) CleanShutdown(ctx context.Context, vm xapi.Ref) error {
	if !l.lost.Swap(true) {
		return fmt.Errorf("clean shutdown: %w: EOF", xapi.ErrUnreachable)
	}
	return l.powerCalls.CleanShutdown(ctx, vm)
}

// A call that shuts the VM down got no answer, another one did it, and the VM was started again: if the first comes after that,
// the VM is started once more.
func TestShutdownThatComesAfterTheBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(func(c *Config) { c.Timing.Claim = 8 * time.Second })
	a.agent.power.calls = &lostShutdowns{powerCalls: a.agent.power.calls}
	vm := b.vm(running, 0)
	p := newPuller(t, a, vm.UUID, offline())
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	p.wantArchive(vm.Disks)
	out := a.release(t, p.opening.GetKey())
	if !out.GetSucceeded() || !out.GetPowerRestored() || !strings.Contains(fmt.Sprint(out.GetWarnings()), "may still do it") {
		t.Errorf("outcome: got %v", out)
	}
	b.shutDownLate(a, vm.UUID)
	a.awaitWatches(t, b)
	b.wantClean()
}

// The VM is backed up again while it is watched for such a call, by the same agent: the call may come after that, too.
func TestShutdownThatComesAfterTheNextBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	a := b.agent(func(c *Config) { c.Timing.Claim = 8 * time.Second })
	a.agent.power.calls = &lostShutdowns{powerCalls: a.agent.power.calls}
	vm := b.vm(running, 0)
	for range 2 {
		p := newPuller(t, a, vm.UUID, offline())
		b.must(nil, p.pull())
		if out := a.release(t, p.opening.GetKey()); !out.GetSucceeded() || !strings.Contains(fmt.Sprint(out.GetWarnings()), "may still do it") {
			t.Errorf("outcome: got %v", out)
		}
	}
	b.shutDownLate(a, vm.UUID)
	a.awaitWatches(t, b)
	b.wantClean()
}

// The same in a restore: the VM runs on its restored disks, and does so after the late call, too. Or the VM is restored while the
// same agent watches it, after a backup, for such a call.
func TestShutdownThatComesAfterTheRestore(t *testing.T) {
	for name, watched := range map[string]bool{"asked for by the restore": false, "asked for by a backup": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
			vm := b.vm(running, 0)
			archive := b.backUp(vm.UUID, online())
			b.scribble(vm)
			a := b.agent(func(c *Config) { c.Timing.Claim = 8 * time.Second })
			a.agent.power.calls = &lostShutdowns{powerCalls: a.agent.power.calls}
			if watched {
				backup := newPuller(t, a, vm.UUID, offline())
				b.must(nil, backup.pull())
				a.release(t, backup.opening.GetKey())
			}
			p := newPusher(t, a, vm.UUID, archive, kindOnline)
			b.must(nil, p.push(t.Context()))
			out := a.release(t, p.opening.GetKey())
			if !out.GetSucceeded() || !out.GetPowerRestored() || !strings.Contains(fmt.Sprint(out.GetWarnings()), "may still do it") {
				t.Errorf("outcome: got %v", out)
			}
			b.shutDownLate(a, vm.UUID)
			a.awaitWatches(t, b)
			wantSame(t, "the disks", digests(vm), digests(b.vmNow(vm.UUID)))
			b.wantUnmarked()
		})
	}
}

// shutDownLate shuts a VM down as a call does that comes late, and wants it started again.
func (b *bench) shutDownLate(a *runningAgent, vm string) {
	b.t.Helper()
	record, err := a.agent.xapi.VMByUUID(b.t.Context(), vm)
	if err == nil && record.PowerState != running {
		b.t.Fatalf("the VM is %s after its backup", record.PowerState)
	}
	if err == nil {
		err = a.agent.xapi.HardShutdown(b.t.Context(), record.Ref)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !a.agent.power.is(b.t.Context(), record.Ref, running); {
		if time.Now().After(deadline) {
			b.t.Fatal("the VM stays off")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// An agent dies in the call for a shutdown. The next attempt of the same session need not wait until the watch on the guest is
// over, and the VM is watched after it, since the call may still come.
func TestNextAttemptAfterDeathInShutdown(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Late, cfg.Timing.Claim = time.Hour, 8*time.Second
	vm := b.vm(running, 0)
	work := someWork("a")
	b.diedAsking(cfg, vm, time.Minute)
	a := b.start(cfg)
	a.awaitWatch(t)
	if actions, err := a.agent.sweep(t.Context(), sweepOptions{DryRun: true}); err != nil || len(actions) != 1 || !strings.Contains(actions[0].Waiting, "is watched until") {
		t.Errorf("a dry sweep tells: %+v, %v", actions, err)
	}
	p := newPuller(t, a, vm.UUID, offline())
	p.opening.Nonce, p.opening.SessionId = work.Nonce, work.Session
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	p.wantArchive(vm.Disks)
	if out := a.release(t, p.opening.GetKey()); !out.GetSucceeded() || !out.GetPowerRestored() {
		t.Errorf("outcome: got %v", out)
	}
	b.shutDownLate(a, vm.UUID)
	a.awaitWatches(t, b)
	b.wantClean()
}

// The same where a VM is restored after that, by another session.
func TestRestoreAfterDeathInShutdown(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Late, cfg.Timing.Claim = time.Hour, 8*time.Second
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	b.scribble(vm)
	b.diedAsking(cfg, vm, time.Minute)
	a := b.start(cfg)
	a.awaitWatch(t)
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	if err := p.push(t.Context()); err != nil {
		t.Fatalf("restore: %v", err)
	}
	if out := a.release(t, p.opening.GetKey()); !out.GetSucceeded() || !out.GetPowerRestored() || !strings.Contains(fmt.Sprint(out.GetWarnings()), "may still do it") {
		t.Errorf("outcome: got %v", out)
	}
	b.shutDownLate(a, vm.UUID)
	a.awaitWatches(t, b)
	wantSame(t, "the disks", digests(vm), digests(b.vmNow(vm.UUID)))
	b.wantUnmarked()
}

// awaitWatch waits until a sweep has begun to watch a VM.
func (a *runningAgent) awaitWatch(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		a.agent.watchMu.Lock()
		n := len(a.agent.watches)
		a.agent.watchMu.Unlock()
		if n == 1 {
			return
		}
		if err := sleep(t.Context(), 5*time.Millisecond); err != nil || time.Now().After(deadline) {
			t.Fatal("the VM is never watched")
		}
	}
}
