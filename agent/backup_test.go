package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// puller is a controller's side of one backup.
type puller struct {
	t       *testing.T
	agent   *runningAgent
	opening *agentv1.Opening
	spec    *agentv1.BackupSpec

	data    bytes.Buffer
	opened  *agentv1.Opened
	facts   *agentv1.BackupFacts
	summary *agentv1.BackupSummary
	phases  []agentv1.Phase
	// onFrame, when set, is called after each frame; an error breaks the stream off.
	onFrame func() error
	// noAck keeps acknowledgements back.
	noAck bool
}

func online() *agentv1.BackupSpec {
	return &agentv1.BackupSpec{Kind: agentv1.BackupKind_BACKUP_KIND_ONLINE}
}
func offline() *agentv1.BackupSpec {
	return &agentv1.BackupSpec{Kind: agentv1.BackupKind_BACKUP_KIND_OFFLINE}
}

func newPuller(t *testing.T, a *runningAgent, vm string, spec *agentv1.BackupSpec) *puller {
	return &puller{t: t, agent: a, spec: spec, opening: &agentv1.Opening{Key: uuid.NewString(), Attempt: 1,
		SessionId: uuid.NewString(), Nonce: uuid.NewString(), VmUuid: vm}}
}

var errBreak = errors.New("the test broke the stream off")

// pull runs one stream to its end.
func (p *puller) pull() error {
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	defer cancel()
	st, err := p.agent.client.Backup(ctx)
	if err != nil {
		return err
	}
	p.opening.Offset = uint64(p.data.Len())
	err = st.SendMsg(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Open{
		Open: &agentv1.BackupOpen{Opening: p.opening, Spec: p.spec}}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		e := &transfer.BackupEvent{}
		if err := st.RecvMsg(e); errors.Is(err, io.EOF) {
			if p.summary == nil {
				p.t.Error("the stream ended without a summary")
			}
			return nil
		} else if err != nil {
			return err
		}
		if err := p.take(e); err != nil {
			return err
		}
		if e.Frame != nil && !p.noAck {
			ack := &agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Ack{Ack: &agentv1.Ack{Offset: uint64(p.data.Len())}}}
			if err := st.Send(ack); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	}
}

func (p *puller) take(e *transfer.BackupEvent) error {
	if e.Frame != nil {
		if p.facts == nil {
			p.t.Error("a frame came before the facts")
		}
		for _, b := range e.Frame {
			p.data.Write(b.ReadOnlyData())
		}
		e.Frame.Free()
		if p.onFrame != nil {
			return p.onFrame()
		}
		return nil
	}
	switch m := e.Msg.GetKind().(type) {
	case *agentv1.BackupResponse_Opened:
		p.opened = m.Opened
	case *agentv1.BackupResponse_Facts:
		p.facts = m.Facts
	case *agentv1.BackupResponse_Progress:
		if n := len(p.phases); n == 0 || p.phases[n-1] != m.Progress.GetPhase() {
			p.phases = append(p.phases, m.Progress.GetPhase())
		}
	case *agentv1.BackupResponse_Summary:
		p.summary = m.Summary
	}
	return nil
}

// wantArchive checks that what came is a complete archive of these disks, as the summary says.
func (p *puller) wantArchive(disks []xensim.DiskState) *xva.Report {
	p.t.Helper()
	if p.summary == nil {
		p.t.Fatal("no summary")
	}
	sum := crc32.Checksum(p.data.Bytes(), crc32.MakeTable(crc32.Castagnoli))
	if p.summary.GetBytes() != uint64(p.data.Len()) || p.summary.GetCrc32C() != sum {
		p.t.Errorf("summary: got %d bytes, CRC %x; have %d, %x", p.summary.GetBytes(), p.summary.GetCrc32C(), p.data.Len(), sum)
	}
	rep, err := xva.Verify(bytes.NewReader(p.data.Bytes()), xva.ReaderOptions{RequireExactEnd: true})
	if err != nil {
		p.t.Fatalf("archive: %v", err)
	}
	var want []string
	for _, d := range disks {
		if d.Type == "Disk" {
			want = append(want, d.UserDevice)
		}
	}
	var got []string
	for _, d := range p.facts.GetVm().GetDisks() {
		got = append(got, d.GetUserdevice())
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || len(rep.Disks) != len(want) {
		p.t.Errorf("disks: got %v in the facts and %d in the archive, want %v", got, len(rep.Disks), want)
	}
	return rep
}

func wantGood(t *testing.T, out *agentv1.Outcome) {
	t.Helper()
	if !out.GetSucceeded() || !out.GetPowerRestored() || len(out.GetLeftovers()) > 0 || out.GetError() != "" {
		t.Errorf("outcome: got %v, want success", out)
	}
}

func TestBackupByPowerState(t *testing.T) {
	for _, tc := range []struct {
		name, state string
		spec        *agentv1.BackupSpec
	}{
		{"online running", running, online()},
		{"online halted", halted, online()},
		{"offline running", running, offline()},
		{"offline halted", halted, offline()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 4})
			a := b.agent(nil)
			vm := b.vm(tc.state, 0)
			p := newPuller(t, a, vm.UUID, tc.spec)
			if err := p.pull(); err != nil {
				t.Fatalf("backup: %v", err)
			}
			rep := p.wantArchive(vm.Disks)
			if got := rep.OVA.VM().Name; tc.spec.GetKind() == agentv1.BackupKind_BACKUP_KIND_OFFLINE && got != vm.Name {
				t.Errorf("VM in the archive: got %q, want %q", got, vm.Name)
			}
			f := p.facts
			if f.GetVm().GetUuid() != vm.UUID || f.GetVm().GetName() != vm.Name || f.GetVm().GetPowerState() != powerToWire(tc.state) ||
				len(f.GetVm().GetNics()) != len(vm.VIFs) || f.GetPool().GetUuid() == "" || f.GetHost().GetUuid() == "" {
				t.Errorf("facts: got %v", f)
			}
			if f.GetTaken().AsTime().Year() < 2020 || (f.GetSnapshotUuid() != "") != (tc.spec.GetKind() == agentv1.BackupKind_BACKUP_KIND_ONLINE) {
				t.Errorf("facts: taken %v, snapshot %q", f.GetTaken().AsTime(), f.GetSnapshotUuid())
			}
			out := a.release(t, p.opening.GetKey())
			wantGood(t, out)
			if out.GetPowerBefore() != powerToWire(tc.state) || out.GetPowerAfter() != powerToWire(tc.state) {
				t.Errorf("power: got %v before, %v after", out.GetPowerBefore(), out.GetPowerAfter())
			}
			b.wantClean()
		})
	}
}

// Disks that are left out are in neither archive nor snapshot, on hosts that understand the exclusion and on older ones.
func TestBackupWithoutSomeDisks(t *testing.T) {
	for _, version := range []string{"8.2.1", "8.4.0"} {
		for _, spec := range []*agentv1.BackupSpec{online(), offline()} {
			t.Run(version+" "+spec.GetKind().String(), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, xensim.Config{Scenario: "demo", ProductVersion: version})
				a := b.agent(nil)
				i := slices.IndexFunc(b.before.VMs, func(v xensim.VMState) bool {
					disks := 0
					for _, d := range v.Disks {
						if d.Type == "Disk" {
							disks++
						}
					}
					return disks > 1 && v.PowerState == running
				})
				if i < 0 {
					t.Fatal("the demo has no running VM with two disks")
				}
				vm := b.before.VMs[i]
				n := slices.IndexFunc(vm.Disks, func(d xensim.DiskState) bool { return d.Type == "Disk" })
				spec.ExcludedVdiUuids = []string{vm.Disks[n].VDI.UUID}
				p := newPuller(t, a, vm.UUID, spec)
				if err := p.pull(); err != nil {
					t.Fatalf("backup: %v", err)
				}
				p.wantArchive(slices.Delete(slices.Clone(vm.Disks), n, n+1))
				if len(p.facts.GetExcluded()) != 1 || p.facts.GetExcluded()[0].GetVdiUuid() != vm.Disks[n].VDI.UUID {
					t.Errorf("excluded: got %v", p.facts.GetExcluded())
				}
				if p.facts.GetFromSnapshot() != (spec.GetKind() == agentv1.BackupKind_BACKUP_KIND_OFFLINE) {
					t.Errorf("from_snapshot: got %v", p.facts.GetFromSnapshot())
				}
				wantGood(t, a.release(t, p.opening.GetKey()))
				b.wantClean()
			})
		}
	}
}

// Faults of XAPI end the backup with a reason, and leave nothing.
func TestBackupFaults(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  xensim.Fault
		spec   *agentv1.BackupSpec
		reason rpc.Reason // "" = good
	}{
		{"export cut", xensim.Fault{Name: "export-cut", After: 2 << 20}, online(), rpc.ExportFailed},
		{"export cut, offline", xensim.Fault{Name: "export-cut", After: 2 << 20}, offline(), rpc.ExportFailed},
		{"export refused, offline", xensim.Fault{Name: "export-refused"}, offline(), rpc.ExportFailed},
		{"task fails", xensim.Fault{Name: "export-task-fails"}, online(), rpc.ExportFailed},
		{"task fails, offline", xensim.Fault{Name: "export-task-fails"}, offline(), rpc.ExportFailed},
		{"task vanishes", xensim.Fault{Name: "export-task-vanishes"}, online(), ""},
		{"no space", xensim.Fault{Name: "snapshot-fails"}, online(), rpc.SRFull},
		{"snapshot's answer lost", xensim.Fault{Name: "answer-lost", Method: "Async.VM.snapshot", Times: 1}, online(), ""},
		{"start fails once", xensim.Fault{Name: "start-fails", Times: 1}, offline(), ""},
		{"start fails otherwise once", xensim.Fault{Name: "start-fails", Code: "INTERNAL_ERROR", Times: 1}, offline(), ""},
		{"disk in use", xensim.Fault{Name: "vdi-in-use", Times: 2}, online(), ""},
		{"session lost", xensim.Fault{Name: "session-invalid", Skip: 12, Times: 1}, online(), ""},
		{"journal's answer lost", xensim.Fault{Name: "answer-lost", Method: "pool.add_to_other_config", Times: 1}, online(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2})
			a := b.agent(nil)
			vm := b.vm(running, 0)
			b.inject(tc.fault)
			p := newPuller(t, a, vm.UUID, tc.spec)
			err := p.pull()
			if got := rpc.ReasonOf(err); got != tc.reason {
				t.Errorf("backup: got %v (%s), want reason %q", err, got, tc.reason)
			}
			out := a.release(t, p.opening.GetKey())
			if tc.reason == "" {
				p.wantArchive(vm.Disks)
				wantGood(t, out)
			} else if out.GetSucceeded() || out.GetReason() != string(tc.reason) || !out.GetPowerRestored() {
				t.Errorf("outcome: got %v", out)
			}
			b.wantClean()
		})
	}
}

func TestShutdownIgnored(t *testing.T) {
	for _, force := range []bool{false, true} {
		t.Run(fmt.Sprint("force ", force), func(t *testing.T) { shutdownIgnored(t, force) })
	}
}

func shutdownIgnored(t *testing.T, force bool) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	if err := b.pool.SetGuest(vm.UUID, true, 0); err != nil {
		t.Fatal(err)
	}
	spec := offline()
	spec.ForceOff = force
	spec.ShutdownTimeout = durationpb.New(200 * time.Millisecond)
	p := newPuller(t, a, vm.UUID, spec)
	err := p.pull()
	if force {
		if err != nil {
			t.Errorf("with force: %v", err)
		}
	} else if rpc.ReasonOf(err) != rpc.ShutdownTimeout {
		t.Errorf("without force: got %v, want SHUTDOWN_TIMEOUT", err)
	}
	out := a.release(t, p.opening.GetKey())
	if out.GetSucceeded() != force || !out.GetPowerRestored() || out.GetPowerAfter() != powerToWire(running) {
		t.Errorf("outcome: got %v", out)
	}
	a.awaitWatches(t, b)
	b.wantClean()
}

// awaitWatches waits until the journal is empty.
func (a *runningAgent) awaitWatches(t *testing.T, b *bench) {
	t.Helper()
	for len(parseLedger(b.dump().PoolOtherConfig).raw) > 0 {
		if err := sleep(t.Context(), 5*time.Millisecond); err != nil {
			t.Fatal("the journal is never empty")
		}
	}
}

// The guest powers off after the shutdown was given up: it is started again.
func TestShutdownTooLate(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Speedup: 1})
	a := b.agent(func(c *Config) { c.Timing.Late = 5 * time.Second })
	vm := b.vm(running, 0)
	if err := b.pool.SetGuest(vm.UUID, false, 600*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	spec := offline()
	spec.ShutdownTimeout = durationpb.New(200 * time.Millisecond)
	p := newPuller(t, a, vm.UUID, spec)
	if err := p.pull(); rpc.ReasonOf(err) != rpc.ShutdownTimeout {
		t.Errorf("backup: got %v, want SHUTDOWN_TIMEOUT", err)
	}
	a.release(t, p.opening.GetKey())
	a.awaitWatches(t, b)
	b.wantClean()
}

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
