package agent

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// pusher is a controller's side of one restore.
type pusher struct {
	t       *testing.T
	agent   *runningAgent
	opening *agentv1.Opening
	spec    *agentv1.RestoreSpec
	archive []byte
	report  *xva.Report

	opened *agentv1.Opened
	plan   *agentv1.RestorePlan
	result *agentv1.RestoreResult
	stream []byte // the logical stream, once the plan stands
	sizes  []uint64
	// breakAt breaks the first stream off before the frame at that offset; 0 = never.
	breakAt int
	// pack gives the bytes of a packed frame; nil = frames are sent as they are, as is one of which it gives nil.
	pack func(frame []byte) []byte
}

// backUp returns the archive of a VM, by an agent of its own.
func (b *bench) backUp(vm string, spec *agentv1.BackupSpec) []byte {
	b.t.Helper()
	a := b.agent(nil)
	defer a.stop()
	p := newPuller(b.t, a, vm, spec)
	if err := p.pull(); err != nil {
		b.t.Fatalf("backup: %v", err)
	}
	wantGood(b.t, a.release(b.t, p.opening.GetKey()))
	return p.data.Bytes()
}

func newPusher(t *testing.T, a *runningAgent, vm string, archive []byte, kind agentv1.BackupKind) *pusher {
	t.Helper()
	report, err := xva.Verify(bytes.NewReader(archive), xva.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &pusher{t: t, agent: a, archive: archive, report: report,
		opening: &agentv1.Opening{Key: uuid.NewString(), Attempt: 1, SessionId: uuid.NewString(), Nonce: uuid.NewString(), VmUuid: vm},
		spec:    &agentv1.RestoreSpec{Kind: kind, OvaBytes: uint64(len(report.RawOVA))}}
}

// push runs one stream to its end.
func (p *pusher) push(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	st, err := p.agent.client.Restore(ctx)
	if err != nil {
		return err
	}
	for _, m := range []*agentv1.RestoreRequest{
		{Kind: &agentv1.RestoreRequest_Open{Open: &agentv1.RestoreOpen{Opening: p.opening, Spec: p.spec}}},
		{Kind: &agentv1.RestoreRequest_Ova{Ova: &agentv1.Document{Data: p.report.RawOVA, Last: true}}},
	} {
		if err := st.Send(m); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	var docs []byte
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch k := m.GetKind().(type) {
		case *agentv1.RestoreResponse_Opened:
			p.opened = k.Opened
		case *agentv1.RestoreResponse_Plan:
			p.plan = k.Plan
		case *agentv1.RestoreResponse_Ova:
			docs = append(docs, k.Ova.GetData()...)
			if k.Ova.GetLast() {
				if err := p.send(st, docs); err != nil {
					return err
				}
			}
		case *agentv1.RestoreResponse_Result:
			p.result = k.Result
		}
	}
}

// send sends lengths, bytes from where the agent stands, and totals.
func (p *pusher) send(st agentv1.AgentService_RestoreClient, docs []byte) error {
	if p.stream == nil {
		var out bytes.Buffer
		for _, part := range p.plan.GetParts() {
			before := out.Len()
			doc := docs[:part.GetOvaBytes()]
			docs = docs[part.GetOvaBytes():]
			if err := xva.Rewrite(&out, bytes.NewReader(p.archive), p.report, doc, part.GetDisks(), xva.RewriteOptions{}); err != nil {
				p.t.Errorf("rewrite: %v", err)
				return err
			}
			p.sizes = append(p.sizes, uint64(out.Len()-before))
		}
		p.stream = out.Bytes()
	}
	err := st.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_Sizes{Sizes: &agentv1.RestoreSizes{Bytes: p.sizes}}})
	for at := int(p.opened.GetOffset()); err == nil && at < len(p.stream); {
		if p.breakAt > 0 && at >= p.breakAt {
			p.breakAt = 0
			return errBreak
		}
		n := min(len(p.stream)-at, 256<<10)
		err = st.SendMsg(p.frame(p.stream[at : at+n]))
		at += n
	}
	if err == nil {
		err = st.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_End{End: &agentv1.RestoreEnd{Bytes: uint64(len(p.stream)),
			Crc32C: crc32.Checksum(p.stream, crc32.MakeTable(crc32.Castagnoli))}}})
	}
	if errors.Is(err, io.EOF) {
		return nil // Recv tells why
	}
	return err
}

// frame returns what carries data.
func (p *pusher) frame(data []byte) *transfer.RestoreEvent {
	if p.pack != nil {
		if packed := p.pack(data); packed != nil {
			return &transfer.RestoreEvent{Msg: &agentv1.RestoreRequest{
				Kind: &agentv1.RestoreRequest_Packed{Packed: &agentv1.PackedFrame{Zstd: packed}}}}
		}
	}
	return &transfer.RestoreEvent{Frame: mem.BufferSlice{mem.SliceBuffer(data)}}
}

// vmNow returns a VM as it is now.
func (b *bench) vmNow(uuid string) xensim.VMState {
	b.t.Helper()
	for _, vm := range b.dump().VMs {
		if vm.UUID == uuid {
			return vm
		}
	}
	b.t.Fatalf("VM %s is gone", uuid)
	return xensim.VMState{}
}

// digests are the digests of a VM's disks by position.
func digests(vm xensim.VMState) map[string]string {
	out := map[string]string{}
	for _, d := range vm.Disks {
		if d.Type == "Disk" && !d.Empty {
			out[d.UserDevice] = d.VDI.SHA256
		}
	}
	return out
}

// scribble changes the VM's disks as its guest would.
func (b *bench) scribble(vm xensim.VMState) xensim.VMState {
	b.t.Helper()
	for _, d := range vm.Disks {
		if d.Type == "Disk" && !d.Empty {
			if err := b.pool.Scribble(d.VDI.UUID, 7, 3); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	return b.vmNow(vm.UUID)
}

// wantUnmarked checks that no record of the pool's carries a key of ours, and no VM a block.
func (b *bench) wantUnmarked() {
	b.t.Helper()
	b.wantUnmarkedBut("", nil)
}

const kindOnline = agentv1.BackupKind_BACKUP_KIND_ONLINE

// A restore whose stream breaks in the middle goes on where the agent stands, and gives the disks back byte for byte.
func TestRestoreGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	b.scribble(vm)
	a := b.agent(nil)
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	p.breakAt = 1 << 20
	if err := p.push(t.Context()); !errors.Is(err, errBreak) {
		t.Fatalf("first stream: got %v, want it broken off", err)
	}
	p.opening.Attempt = 2
	if err := p.push(t.Context()); err != nil {
		t.Fatalf("second stream: %v", err)
	}
	if !p.opened.GetResumed() || p.result == nil || !p.result.GetInPlace() {
		t.Errorf("resumed %v, result %v", p.opened.GetResumed(), p.result)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	wantSame(t, "disks", digests(vm), digests(b.vmNow(vm.UUID)))
	b.wantClean()
	b.wantUnmarked()
}

// Nobody comes back to a restore: its lease runs out, and nothing is left.
func TestRestoreLeaseEnds(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	changed := b.scribble(vm)
	a := b.agent(func(c *Config) { c.Timing.Lease = 100 * time.Millisecond })
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	p.breakAt = 1 << 20
	if err := p.push(t.Context()); !errors.Is(err, errBreak) {
		t.Fatalf("stream: got %v, want it broken off", err)
	}
	out := a.awaitDone(t, p.opening.GetKey())
	if out.Succeeded || !out.PowerRestored || rpc.ReasonOf(out.Err) != rpc.SessionGone {
		t.Errorf("outcome: got %+v", out)
	}
	wantSame(t, "disks", digests(changed), digests(b.vmNow(vm.UUID)))
	b.wantClean()
}

// The guest ignores the shutdown: the restore is refused, the VM runs on as it was and the carriers are gone.
func TestRestoreShutdownIgnored(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	changed := b.scribble(vm)
	b.inject(xensim.Fault{Name: "shutdown-ignored", Object: vm.UUID})
	a := b.agent(func(c *Config) { c.Timing.Shutdown = 100 * time.Millisecond })
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	if err := p.push(t.Context()); rpc.ReasonOf(err) != rpc.ShutdownTimeout {
		t.Errorf("restore: got %v, want SHUTDOWN_TIMEOUT", err)
	}
	out := a.awaitDone(t, p.opening.GetKey())
	if out.Succeeded || !out.PowerRestored || out.After != running {
		t.Errorf("outcome: got %+v", out)
	}
	a.awaitWatches(t, b)
	wantSame(t, "disks", digests(changed), digests(b.vmNow(vm.UUID)))
	b.wantClean()
	b.wantUnmarked()
}

// The VM does not start on its restored disks: that is said, the old disks are kept, and the sweep starts it later.
func TestRestoreStartFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	b.scribble(vm)
	b.inject(xensim.Fault{Name: "call-fails", Method: "Async.VM.start", Code: "INTERNAL_ERROR", Times: 5})
	a := b.agent(nil)
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	if err := p.push(t.Context()); err != nil {
		t.Fatalf("restore: %v", err)
	}
	out := a.release(t, p.opening.GetKey())
	if out.GetPowerRestored() || len(p.result.GetKeptDisks()) != 1 {
		t.Errorf("outcome %v, kept %v: want the power state missed and the disk kept", out, p.result.GetKeptDisks())
	}
	if _, err := a.agent.sweeper.sweep(t.Context(), sweepOptions{AtStart: true}); err != nil {
		t.Fatal(err)
	}
	now := b.vmNow(vm.UUID)
	wantSame(t, "disks", digests(vm), digests(now))
	if n := len(b.dump().Orphans); now.PowerState != running || n != 1 {
		t.Errorf("after the sweep: %s, %d disks kept", now.PowerState, n)
	}
	wantSame(t, "journal", b.before.PoolOtherConfig, b.dump().PoolOtherConfig)
}

// Two restores of one VM at once: one of them is refused.
func TestTwoRestores(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	a := b.agent(nil)
	first := newPusher(t, a, vm.UUID, archive, kindOnline)
	first.breakAt = 1 << 20
	if err := first.push(t.Context()); !errors.Is(err, errBreak) {
		t.Fatal(err)
	}
	second := newPusher(t, b.agent(nil), vm.UUID, archive, kindOnline)
	if err := second.push(t.Context()); rpc.ReasonOf(err) != rpc.Claimed {
		t.Errorf("second: got %v, want CLAIMED", err)
	}
	first.opening.Attempt = 2
	if err := first.push(t.Context()); err != nil {
		t.Errorf("first: %v", err)
	}
	wantGood(t, a.release(t, first.opening.GetKey()))
	wantSame(t, "disks", digests(vm), digests(b.vmNow(vm.UUID)))
	b.wantClean()
}
