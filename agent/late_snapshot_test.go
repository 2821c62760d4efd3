package agent

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// An agent has died twice in the call for a snapshot, comes back and makes the backup. One of the two snapshots comes while it
// does, the other one when all is done: both go, and those of the same name that are of another VM stay.
func TestLateSnapshotsAfterRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	const nonce, term = "0123456789abcdef", 5 * time.Second
	name := snapshotPrefix + nonce
	vm, other := b.vm(halted, 0), b.vm(halted, 1)
	alike, _, err := x.Snapshot(ctx, xapi.Ref(other.Ref), name, nil)
	b.must(nil, err)
	cfg := b.config("gone", 0) // the name of deadWork's
	cfg.Timing.Claim = term
	b.must(nil, b.deadWork(x, vm.UUID, nonce, term).note(ctx, stepSnapshot, snapshotNote{Name: name}))
	late := func() {
		_, _, err := x.Snapshot(ctx, xapi.Ref(vm.Ref), name, nil)
		b.must(nil, err)
	}
	left := func() (n int) {
		refs, err := x.VMsByName(ctx, name)
		b.must(nil, err)
		return len(refs)
	}

	a := b.start(cfg)
	p := newPuller(t, a, vm.UUID, online())
	p.opening.Nonce, p.opening.SessionId = nonce, "session-dead"
	p.onFrame = sync.OnceValue(func() error { late(); return nil })
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	p.wantArchive(vm.Disks)
	wantGood(t, a.release(t, p.opening.GetKey()))
	if n := left(); n != 1 {
		t.Errorf("after the backup there are %d snapshots of that name, want the other VM's", n)
	}

	late()
	rival, err := newJournal(x, "rival", cfg.Timing).claim(ctx, vm.UUID, owner{Session: "session-2", Key: "key-00002", Nonce: "fedcba9876543210"})
	b.must(nil, err)
	sweep := func(dry bool) []sweepAction {
		actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DryRun: dry})
		b.must(nil, err)
		return slices.DeleteFunc(actions, func(s sweepAction) bool { return s.Object != name })
	}
	if actions := sweep(false); len(actions) != 1 || actions[0].Waiting == "" || left() != 2 {
		t.Errorf("while the VM is another's: got %+v", actions)
	}
	b.must(nil, rival.release(ctx))
	if actions := sweep(true); len(actions) != 1 || actions[0].Done || actions[0].Waiting != "" || left() != 2 {
		t.Errorf("dry run: got %+v", actions)
	}
	if actions := sweep(false); len(actions) != 1 || !actions[0].Done || left() != 1 {
		t.Errorf("got %+v", actions)
	}
	b.must(nil, x.DestroyVM(ctx, alike))
	for end := time.Now().Add(20 * term); len(b.dump().PoolOtherConfig) > len(b.before.PoolOtherConfig); {
		if time.Now().After(end) {
			t.Fatalf("the journal keeps %v", b.dump().PoolOtherConfig)
		}
		b.must(nil, sleep(ctx, 50*time.Millisecond))
		sweep(false)
	}
}

// XAPI gives no answer to the call for a snapshot, and takes it when the backup has failed and is cleaned up.
func TestLateSnapshotOfLiving(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	vm := b.vm(running, 0)
	a := b.agent(func(cfg *Config) {
		cfg.Timing.XAPI.Call, cfg.Timing.XAPI.Outage, cfg.Timing.Settle = 500*time.Millisecond, 500*time.Millisecond, time.Second
	})
	b.inject(xensim.Fault{Name: "call-slow", Method: "VM.snapshot", Times: 1, Delay: 8000 * time.Second}) // 8 s here
	p := newPuller(t, a, vm.UUID, online())
	began := time.Now()
	err := p.pull()
	a.awaitDone(t, p.opening.GetKey())
	a.release(t, p.opening.GetKey())
	name := snapshotPrefix + p.opening.GetNonce()
	refs, findErr := x.VMsByName(ctx, name)
	b.must(nil, findErr)
	t.Logf("after %s the backup ended: %v; %d snapshots", time.Since(began), err, len(refs))
	a.wantLateSnapshotGone(b, x, name)
}

// A backup is released, by a repair or a controller that was cancelled, while XAPI is slow to answer the call for its snapshot, and
// the agent does not wait for that any longer: the snapshot that is taken then goes as well.
func TestLateSnapshotOfReleased(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(running, 0)
	a := b.agent(func(cfg *Config) { cfg.Timing.XAPI.Cancel = 200 * time.Millisecond })
	b.inject(xensim.Fault{Name: "call-slow", Method: "VM.snapshot", Times: 1, Delay: 5000 * time.Second}) // 5 s here
	p := newPuller(t, a, vm.UUID, online())
	ended := make(chan error, 1)
	go func() { ended <- p.pull() }()
	for len(b.pool.Faults()) > 0 { // until the call is under way
		b.must(nil, sleep(t.Context(), time.Millisecond))
	}
	out := a.release(t, p.opening.GetKey())
	t.Logf("the backup ended: %v: %v", <-ended, out)
	a.wantLateSnapshotGone(b, b.client(), snapshotPrefix+p.opening.GetNonce())
}

// wantLateSnapshotGone waits until a snapshot of that name has come, and has it swept.
func (a *runningAgent) wantLateSnapshotGone(b *bench, x *xapi.Client, name string) {
	t, ctx := b.t, b.t.Context()
	t.Helper()
	refs, err := x.VMsByName(ctx, name)
	b.must(nil, err)
	for end := time.Now().Add(30 * time.Second); len(refs) == 0; {
		if time.Now().After(end) {
			t.Fatal("the snapshot does not come")
		}
		b.must(nil, sleep(ctx, 10*time.Millisecond))
		refs, err = x.VMsByName(ctx, name)
		b.must(nil, err)
	}
	for end := time.Now().Add(30 * time.Second); len(refs) > 0; {
		if time.Now().After(end) {
			t.Fatal("the snapshot stays")
		}
		_, err := a.agent.sweeper.sweep(ctx, sweepOptions{})
		b.must(nil, err)
		refs, err = x.VMsByName(ctx, name)
		b.must(nil, err)
	}
}
