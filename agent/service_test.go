package agent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func listVMs(t *testing.T, a *runningAgent) []*agentv1.VM {
	t.Helper()
	st, err := a.client.ListVMs(t.Context(), &agentv1.ListVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out []*agentv1.VM
	for {
		page, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, page.GetVms()...)
	}
}

func TestListVMs(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{Scenario: "demo"})
	a := b.agent(nil)
	vms := listVMs(t, a)
	if len(vms) != len(b.before.VMs) {
		t.Fatalf("got %d VMs, want %d", len(vms), len(b.before.VMs))
	}
	for _, want := range b.before.VMs {
		i := slices.IndexFunc(vms, func(v *agentv1.VM) bool { return v.GetUuid() == want.UUID })
		if i < 0 {
			t.Fatalf("%s is missing", want.Name)
		}
		got := vms[i]
		if got.GetName() != want.Name || got.GetPowerState() != powerToWire(want.PowerState) || got.GetProblem() != "" ||
			len(got.GetCapableHostUuids()) == 0 || len(got.GetNics()) != len(want.VIFs) {
			t.Errorf("got %v, want %+v", got, want)
		}
		if (got.GetResidentHostUuid() != "") != (want.PowerState == running) {
			t.Errorf("%s: host %q while %s", want.Name, got.GetResidentHostUuid(), want.PowerState)
		}
		var disks []string
		for _, d := range want.Disks {
			if d.Type == "Disk" {
				disks = append(disks, d.VDI.UUID)
			}
		}
		for _, d := range got.GetDisks() {
			if !slices.Contains(disks, d.GetVdiUuid()) || d.GetSrUuid() == "" || d.GetVirtualSize() == 0 {
				t.Errorf("%s: disk %v", want.Name, d)
			}
		}
		if len(got.GetDisks()) != len(disks) {
			t.Errorf("%s: %d disks, want %d", want.Name, len(got.GetDisks()), len(disks))
		}
	}
}

// Pages hold as much as a message bears, whatever stands in the records; a VM that no message bears is told by its name.
func TestListVMsOfAnySize(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{Scenario: "demo"})
	a := b.agent(nil)
	x := b.client()
	huge := b.before.VMs[0]
	for _, vm := range b.before.VMs {
		text := strings.Repeat("ä", 200<<10)
		if vm.UUID == huge.UUID {
			text = strings.Repeat("ä", 3<<20)
		}
		ref, err := x.VMByUUID(t.Context(), vm.UUID)
		b.must(nil, err)
		b.must(nil, x.SetVMField(t.Context(), ref.Ref, "name_description", text))
	}
	vms := listVMs(t, a)
	if len(vms) != len(b.before.VMs) {
		t.Fatalf("got %d VMs, want %d", len(vms), len(b.before.VMs))
	}
	for _, vm := range vms {
		tooLarge := strings.Contains(vm.GetProblem(), "its record is too large")
		if tooLarge != (vm.GetUuid() == huge.UUID) || vm.GetName() == "" || !tooLarge && len(vm.GetDescription()) != 400<<10 {
			t.Errorf("%s: problem %q, description of %d bytes", vm.GetName(), vm.GetProblem(), len(vm.GetDescription()))
		}
	}
}

// Snapshots are no VMs; the claim of whoever works on a VM is shown.
func TestListVMsDuringBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	a := b.agent(nil)
	p := newPuller(t, a, b.vm(running, 0).UUID, online())
	p.onFrame = func() error { return errBreak }
	if err := p.pull(); !errors.Is(err, errBreak) {
		t.Fatal(err)
	}
	vms := listVMs(t, a)
	if len(vms) != 2 {
		t.Errorf("got %d VMs, want 2", len(vms))
	}
	for _, vm := range vms {
		claimed := vm.GetUuid() == p.opening.GetVmUuid()
		if strings.Contains(vm.GetClaimedBy(), p.opening.GetSessionId()) != claimed {
			t.Errorf("%s: claimed by %q", vm.GetName(), vm.GetClaimedBy())
		}
	}
	look, err := a.client.LookupTransfer(t.Context(), &agentv1.LookupTransferRequest{Key: p.opening.GetKey()})
	if err != nil || !look.GetFound() || look.GetBytes() == 0 || look.GetPhase() != agentv1.Phase_PHASE_TRANSFER {
		t.Errorf("lookup: got %v, %v", look, err)
	}
	a.release(t, p.opening.GetKey())
	look, err = a.client.LookupTransfer(t.Context(), &agentv1.LookupTransferRequest{Key: p.opening.GetKey()})
	if err != nil || look.GetPhase() != agentv1.Phase_PHASE_DONE || look.GetOutcome().GetReason() != string(rpc.Cancelled) {
		t.Errorf("lookup of a finished transfer: got %v, %v", look, err)
	}
	b.wantClean()
}

func TestCheckAndGetHost(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Hosts: 2})
	for i, host := range b.info.Hosts {
		a := b.start(b.config("host"+string(rune('a'+i)), i))
		c, err := a.client.Check(t.Context(), &agentv1.CheckRequest{})
		if err != nil {
			t.Fatalf("check: %v", err)
		}
		if c.GetHostUuid() != host.UUID || len(c.GetHosts()) != 2 || c.GetPool().GetUuid() == "" || len(c.GetSrs()) == 0 ||
			len(c.GetNetworks()) == 0 || c.GetPool().GetMasterUuid() != b.info.Hosts[0].UUID || c.GetPool().GetApiVersion() == "" {
			t.Errorf("check beside %s: got %v", host.Name, c)
		}
		for _, h := range c.GetHosts() {
			if !h.GetLive() || !h.GetEnabled() {
				t.Errorf("host %v", h)
			}
		}
		g, err := a.client.GetHost(t.Context(), &agentv1.GetHostRequest{Protocol: rpc.OwnProtocol()})
		if err != nil || g.GetAgent() != "host"+string(rune('a'+i)) || g.GetXapiTransport() != "http" {
			t.Errorf("host: got %v, %v", g, err)
		}
		_, err = a.client.GetHost(t.Context(), &agentv1.GetHostRequest{Protocol: &agentv1.ProtocolRange{Min: 7, Max: 9}})
		if rpc.ReasonOf(err) != rpc.UnsupportedVersion {
			t.Errorf("another protocol: got %v", err)
		}
	}
}

// Without XAPI an agent still answers what does not need it, and says so.
func TestXAPIAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(func(c *Config) {
		c.XAPI.URL = "http://127.0.0.1:1"
		c.Timing.Settle = 200 * time.Millisecond
	})
	if _, err := a.client.GetHost(t.Context(), &agentv1.GetHostRequest{}); err != nil {
		t.Errorf("host: %v", err)
	}
	if r, err := a.client.ReleaseTransfer(t.Context(), &agentv1.ReleaseTransferRequest{Key: "unknown-key"}); err != nil || r.GetFound() {
		t.Errorf("release: got %v, %v", r, err)
	}
	_, err := a.client.Check(t.Context(), &agentv1.CheckRequest{})
	if rpc.ReasonOf(err) != rpc.XAPIUnreachable {
		t.Errorf("check: got %v, want XAPI_UNREACHABLE", err)
	}
	h, err := healthpb.NewHealthClient(a.conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: rpc.HealthXAPI})
	if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health of XAPI: got %v, %v", h, err)
	}
	p := newPuller(t, a, b.vm(running, 0).UUID, online())
	if err := p.pull(); rpc.ReasonOf(err) != rpc.XAPIUnreachable {
		t.Errorf("backup: got %v, want XAPI_UNREACHABLE", err)
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(func(c *Config) { c.XAPI.PasswordFile = b.write("wrong", []byte("wrong")) })
	p := newPuller(t, a, b.vm(running, 0).UUID, online())
	if err := p.pull(); rpc.ReasonOf(err) != rpc.HostAuth {
		t.Errorf("backup: got %v, want HOST_AUTH", err)
	}
	b.wantClean()
}

// Only controllers get in, and only those on the list.
func TestPeers(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(func(c *Config) { c.Allow = []string{"ctl"} })
	if _, err := a.client.GetHost(t.Context(), &agentv1.GetHostRequest{}); err != nil {
		t.Errorf("the controller on the list: %v", err)
	}
	for _, id := range []certs.Identity{{Role: certs.Controller, Name: "other"}, {Role: certs.Agent, Name: "xs9"}} {
		b.controller = b.source(id)
		conn := b.dial(a.agent.cfg.Name, a.agent.Addr().String())
		if _, err := agentv1.NewAgentServiceClient(conn).GetHost(t.Context(), &agentv1.GetHostRequest{}); rpc.ReasonOf(err) != rpc.Auth {
			t.Errorf("%s: got %v, want AUTH", id, err)
		}
		conn.Close()
	}
}

// Another controller neither sees nor ends a transfer.
func TestTransfersBelongToTheirController(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 40 << 20})
	a := b.agent(nil)
	p := newPuller(t, a, b.vm(running, 0).UUID, online())
	p.onFrame = func() error { return errBreak }
	if err := p.pull(); !errors.Is(err, errBreak) {
		t.Fatal(err)
	}
	b.controller = b.source(certs.Identity{Role: certs.Controller, Name: "other"})
	conn := b.dial(a.agent.cfg.Name, a.agent.Addr().String())
	defer conn.Close()
	other := agentv1.NewAgentServiceClient(conn)
	if r, err := other.ReleaseTransfer(t.Context(), &agentv1.ReleaseTransferRequest{Key: p.opening.GetKey()}); err != nil || r.GetFound() {
		t.Errorf("release by another controller: got %v, %v", r, err)
	}
	p.opening.Attempt, p.onFrame = 2, nil
	if err := p.pull(); err != nil {
		t.Errorf("its own controller goes on: %v", err)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
}

func TestTransferLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4, DiskSize: 40 << 20})
	a := b.agent(func(c *Config) { c.Limits.Transfers = 1 })
	first := newPuller(t, a, b.vm(running, 0).UUID, online())
	first.onFrame = func() error { return errBreak }
	if err := first.pull(); !errors.Is(err, errBreak) {
		t.Fatal(err)
	}
	second := newPuller(t, a, b.vm(halted, 0).UUID, online())
	if err := second.pull(); rpc.ReasonOf(err) != rpc.Busy || !rpc.Retryable(err) {
		t.Errorf("second: got %v, want BUSY", err)
	}
	a.release(t, first.opening.GetKey())
	if err := second.pull(); err != nil {
		t.Errorf("second, after the first has ended: %v", err)
	}
	wantGood(t, a.release(t, second.opening.GetKey()))
	b.wantClean()
}

// After a restart of the agent the same work goes on from the snapshot that is there.
func TestSnapshotIsUsedAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	vm := b.vm(running, 0)
	p := newPuller(t, nil, vm.UUID, online())
	old, err := New(cfg, nil) // the agent before: it claims, takes the snapshot, and dies
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	c, err := old.journal.claim(ctx, vm.UUID, owner{Session: p.opening.GetSessionId(), Key: p.opening.GetKey(), Nonce: p.opening.GetNonce()})
	if err != nil {
		t.Fatal(err)
	}
	name := snapshotPrefix + p.opening.GetNonce()
	if err := c.note(ctx, stepSnapshot, snapshotNote{Name: name}); err != nil {
		t.Fatal(err)
	}
	record, err := old.xapi.VMByUUID(ctx, vm.UUID)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := old.takeSnapshot(ctx, record, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.agent = b.start(cfg)
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	if p.facts.GetSnapshotUuid() != snap.UUID {
		t.Errorf("snapshot: got %s, want %s", p.facts.GetSnapshotUuid(), snap.UUID)
	}
	p.wantArchive(vm.Disks)
	wantGood(t, p.agent.release(t, p.opening.GetKey()))
	b.wantClean()
	if err := old.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// A snapshot of the same VM that is a user's stays, also one whose name resembles ours.
func TestOtherSnapshotsStay(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	record, err := a.agent.xapi.VMByUUID(t.Context(), vm.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.agent.xapi.Snapshot(t.Context(), record.Ref, snapshotPrefix+"of mine", nil); err != nil {
		t.Fatal(err)
	}
	p := newPuller(t, a, vm.UUID, online())
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	if left := b.dump().Snapshots; len(left) != 1 || left[0].Name != snapshotPrefix+"of mine" {
		t.Errorf("snapshots: got %+v", left)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(func(c *Config) { c.Metrics.Listen = "127.0.0.1:0" })
	p := newPuller(t, a, b.vm(halted, 0).UUID, online())
	if err := p.pull(); err != nil {
		t.Fatal(err)
	}
	a.release(t, p.opening.GetKey())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.agent.MetricsAddr().String()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`dpxen_agent_bytes_total{direction="backup"} `, `dpxen_agent_sessions_total{direction="backup",state="succeeded"} 1`,
		"dpxen_agent_sessions 0", "grpc_server_started_total"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
}

// A list tells how large the memory image of a suspended VM is, and of no other.
func TestMemoryImageTold(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4, DiskSize: 1 << 20})
	x, asleep := b.client(), b.vm(running, 0)
	b.must(x.CallAsync(t.Context(), "suspend", "VM.suspend", xapi.Ref(asleep.Ref)))
	rec, err := x.VM(t.Context(), xapi.Ref(asleep.Ref))
	b.must(nil, err)
	image, err := x.VDI(t.Context(), rec.SuspendVDI)
	b.must(nil, err)
	for _, vm := range listVMs(t, b.agent(nil)) {
		want := int64(0)
		if vm.GetUuid() == asleep.UUID {
			want = image.VirtualSize
		}
		if got := vm.GetMemoryImageBytes(); got != want {
			t.Errorf("VM %s: a memory image of %d bytes, want %d", vm.GetName(), got, want)
		}
	}
}
