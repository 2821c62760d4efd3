package agent

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// While a VM is watched after a given-up shutdown it can be restored, by the agent that watches it and by any other, and runs
// afterwards, also where its guest has powered off meanwhile.
func TestRestoreOfWatchedVM(t *testing.T) {
	for name, tt := range map[string]struct{ another, off bool }{
		"the agent that watches": {}, "another agent": {another: true},
		"the guest has powered off": {off: true}, "another agent, the guest has powered off": {another: true, off: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
			late := func(c *Config) { c.Timing.Late, c.Timing.Claim, c.Timing.Watch = time.Hour, 2*time.Second, time.Hour }
			a := b.agent(late) // its watch looks once
			vm := b.vm(running, 0)
			archive := b.backUp(vm.UUID, online())
			giveUp(t, b, a, vm.UUID)
			if err := b.pool.SetGuest(vm.UUID, false, 0); err != nil {
				t.Fatal(err)
			}
			first := a
			if tt.another {
				a = b.agent(late)
			}
			p := newPusher(t, a, vm.UUID, archive, kindOnline)
			p.breakAt = 1 << 19
			if err := p.push(t.Context()); !errors.Is(err, errBreak) {
				t.Fatalf("restore: %v", err)
			}
			if tt.off {
				b.must(nil, b.client().HardShutdown(t.Context(), xapi.Ref(vm.Ref)))
			}
			p.opening.Attempt = 2
			if err := p.push(t.Context()); err != nil {
				t.Fatalf("restore: %v", err)
			}
			wantGood(t, a.release(t, p.opening.GetKey()))
			wantSame(t, "disks", digests(vm), digests(b.vmNow(vm.UUID)))
			b.wantClean()
			for first.agent.journal.holds(vm.UUID) { // until it has noticed
				if err := sleep(t.Context(), 5*time.Millisecond); err != nil {
					t.Fatal("the first agent watches on")
				}
			}
		})
	}
}

// A restore that took a watch over and comes to nothing watches on: the guest that powers off late is started.
func TestRestoreOfWatchedVMFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	late := func(c *Config) { c.Timing.Late, c.Timing.Claim = time.Hour, 2*time.Second }
	first, second := b.agent(late), b.agent(late)
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	giveUp(t, b, first, vm.UUID)
	p := newPusher(t, second, vm.UUID, archive, kindOnline)
	p.spec.ShutdownTimeout = durationpb.New(100 * time.Millisecond) // which the guest ignores again
	if err := p.push(t.Context()); rpc.ReasonOf(err) != rpc.ShutdownTimeout {
		t.Errorf("restore: got %v, want SHUTDOWN_TIMEOUT", err)
	}
	second.release(t, p.opening.GetKey())
	if l := parseLedger(b.dump().PoolOtherConfig); !l.watched(vm.UUID, p.opening.GetNonce()) {
		t.Errorf("after the restore: got %v, want a watch of the second agent", l.raw)
	}
	b.must(nil, b.client().HardShutdown(t.Context(), xapi.Ref(vm.Ref)))
	second.awaitWatches(t, b)
	b.wantClean()
	wantSame(t, "disks", digests(vm), digests(b.vmNow(vm.UUID)))
}
