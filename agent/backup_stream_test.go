package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestReattach(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	p := newPuller(t, a, vm.UUID, online())
	cuts := 0
	p.onFrame = func() error {
		if frames := p.data.Len() >> 20; cuts < 3 && frames >= 5*(cuts+1) {
			cuts++
			return errBreak
		}
		return nil
	}
	for {
		err := p.pull()
		if err == nil {
			break
		}
		if !errors.Is(err, errBreak) {
			t.Fatalf("attempt %d: %v", p.opening.GetAttempt(), err)
		}
		p.opening.Attempt++
		p.facts = nil // repeated on each stream
	}
	if cuts != 3 || !p.opened.GetResumed() {
		t.Errorf("%d cuts, opened %v", cuts, p.opened)
	}
	p.wantArchive(vm.Disks)
	wantGood(t, a.release(t, p.opening.GetKey()))
	wantGood(t, a.release(t, p.opening.GetKey())) // repeatable
	b.wantClean()
}

// A newer stream evicts the older one, which hears of it.
func TestEviction(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	old := newPuller(t, a, vm.UUID, online())
	old.noAck = true // the ring fills, the stream stays
	got := make(chan error, 1)
	full := make(chan struct{})
	old.onFrame = func() error {
		if old.data.Len() == 16<<20 {
			close(full)
		}
		return nil
	}
	go func() { got <- old.pull() }()
	<-full
	p := newPuller(t, a, vm.UUID, online())
	p.opening.Key, p.opening.Nonce, p.opening.SessionId, p.opening.Attempt = old.opening.GetKey(), old.opening.GetNonce(),
		old.opening.GetSessionId(), 2
	if err := p.pull(); err != nil {
		t.Errorf("new stream: %v", err)
	}
	if err := <-got; rpc.ReasonOf(err) != rpc.Superseded {
		t.Errorf("old stream: got %v, want SUPERSEDED", err)
	}
	p.wantArchive(vm.Disks)
	wantGood(t, a.release(t, p.opening.GetKey()))
	b.wantClean()
}

// The controller goes away and never comes back: the lease ends, and the agent cleans up alone.
func TestLeaseEnds(t *testing.T) {
	for _, spec := range []*agentv1.BackupSpec{online(), offline()} {
		t.Run(spec.GetKind().String(), func(t *testing.T) { leaseEnds(t, spec) })
	}
}

func leaseEnds(t *testing.T, spec *agentv1.BackupSpec) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	a := b.agent(nil)
	p := newPuller(t, a, b.vm(running, 0).UUID, spec)
	p.opening.Lease = durationpb.New(100 * time.Millisecond)
	p.onFrame = func() error { return errBreak }
	if err := p.pull(); !errors.Is(err, errBreak) {
		t.Fatalf("backup: %v", err)
	}
	out := a.awaitDone(t, p.opening.GetKey())
	if out.Succeeded || rpc.ReasonOf(out.Err) != rpc.SessionGone || !out.PowerRestored {
		t.Errorf("outcome: got %+v", out)
	}
	b.wantClean()
	p.opening.Attempt++
	p.onFrame = nil
	if err := p.pull(); rpc.ReasonOf(err) != rpc.SessionGone {
		t.Errorf("attach after the end: got %v, want SESSION_GONE", err)
	}
}

func TestReleaseEarlyCancels(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	a := b.agent(nil)
	p := newPuller(t, a, b.vm(running, 0).UUID, offline())
	p.onFrame = func() error { return errBreak }
	if err := p.pull(); !errors.Is(err, errBreak) {
		t.Fatalf("backup: %v", err)
	}
	out := a.release(t, p.opening.GetKey())
	if out.GetSucceeded() || out.GetReason() != string(rpc.Cancelled) || !out.GetPowerRestored() {
		t.Errorf("outcome: got %v", out)
	}
	b.wantClean()
}

// Neither bytes nor progress for as long as the limit says.
func TestExportStalls(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Speedup: 1})
	a := b.agent(func(c *Config) {
		c.Timing.Stall = 300 * time.Millisecond
		c.Timing.XAPI.StreamIdle = time.Minute // package xapi has a limit of its own
	})
	b.inject(xensim.Fault{Name: "export-stall", After: 1 << 20, Delay: 2 * time.Second})
	p := newPuller(t, a, b.vm(halted, 0).UUID, offline())
	if err := p.pull(); rpc.ReasonOf(err) != rpc.ExportFailed || !strings.Contains(err.Error(), "stalled") {
		t.Errorf("backup: got %v, want EXPORT_FAILED that tells of a stall", err)
	}
	if out := a.release(t, p.opening.GetKey()); out.GetSucceeded() || !out.GetPowerRestored() {
		t.Errorf("outcome: got %v", out)
	}
	b.wantClean()
}

func TestTwoClaims(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	one, two := b.agent(nil), b.agent(nil)
	vm := b.vm(running, 0)
	first := newPuller(t, one, vm.UUID, online())
	first.onFrame = func() error { return errBreak }
	if err := first.pull(); !errors.Is(err, errBreak) {
		t.Fatalf("first: %v", err)
	}
	second := newPuller(t, two, vm.UUID, online())
	if err := second.pull(); rpc.ReasonOf(err) != rpc.Claimed || !strings.Contains(err.Error(), first.opening.GetSessionId()) {
		t.Errorf("second: got %v, want CLAIMED with the other session", err)
	}
	if out := two.release(t, second.opening.GetKey()); !out.GetPowerRestored() || out.GetSucceeded() {
		t.Errorf("outcome of the second: got %v", out)
	}
	first.opening.Attempt++
	first.onFrame = nil
	if err := first.pull(); err != nil {
		t.Errorf("first goes on: %v", err)
	}
	wantGood(t, one.release(t, first.opening.GetKey()))
	b.wantClean()
}

// An agent that is stopped in mid-transfer starts the VM and removes what is ours.
func TestStopInMidTransfer(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	a := b.agent(nil)
	p := newPuller(t, a, b.vm(running, 0).UUID, offline())
	p.onFrame = func() error { return errBreak }
	if err := p.pull(); !errors.Is(err, errBreak) {
		t.Fatalf("backup: %v", err)
	}
	a.stop()
	b.wantClean()
}

func TestOpeningsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(nil)
	vm := b.vm(running, 0).UUID
	for name, change := range map[string]func(p *puller){
		"no VM":          func(p *puller) { p.opening.VmUuid = "" },
		"odd VM":         func(p *puller) { p.opening.VmUuid = "../../../../../../../../../../../etc" },
		"no nonce":       func(p *puller) { p.opening.Nonce = "" },
		"odd nonce":      func(p *puller) { p.opening.Nonce = "dpxen:take" },
		"no key":         func(p *puller) { p.opening.Key = "" },
		"no session":     func(p *puller) { p.opening.SessionId = "" },
		"attempt 0":      func(p *puller) { p.opening.Attempt = 0 },
		"no kind":        func(p *puller) { p.spec = &agentv1.BackupSpec{} },
		"odd compressor": func(p *puller) { p.spec = online(); p.spec.Compression = "rar" },
		"no spec":        func(p *puller) { p.spec = nil },
		"huge window":    func(p *puller) { p.opening.Window = 1 << 63 },
	} {
		p := newPuller(t, a, vm, online())
		change(p)
		if err := p.pull(); rpc.ReasonOf(err) != rpc.Invalid {
			t.Errorf("%s: got %v, want INVALID", name, err)
		}
	}
	p := newPuller(t, a, uuid.NewString(), online())
	if err := p.pull(); rpc.ReasonOf(err) != rpc.VMNotFound {
		t.Errorf("unknown VM: got %v, want VM_NOT_FOUND", err)
	}
	p = newPuller(t, a, vm, online())
	p.opening.Attempt = 3
	p.data.Write(make([]byte, 1000)) // at 0 it would be made anew
	if err := p.pull(); rpc.ReasonOf(err) != rpc.SessionGone {
		t.Errorf("unknown key with attempt 3 at 1000: got %v, want SESSION_GONE", err)
	}
	b.wantClean()
}
