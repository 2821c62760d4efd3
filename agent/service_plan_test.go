package agent

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// A controller starts restored VMs in their order. Only a user's halted VM that nobody works on is started.
func TestStartVM(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4, DiskSize: 1 << 20})
	a := b.agent(nil)
	x := b.client()
	off, on, busy := b.vm(halted, 0), b.vm(running, 0), b.vm(halted, 1)
	asleep := b.vm(running, 1)
	b.must(x.CallAsync(t.Context(), "suspend", "VM.suspend", xapi.Ref(asleep.Ref)))
	b.deadWork(x, busy.UUID, "nonce-of-another", time.Hour)
	snap, _, err := x.Snapshot(t.Context(), xapi.Ref(off.Ref), "mine", nil)
	b.must(nil, err)
	snapshot, err := x.VM(t.Context(), snap)
	b.must(nil, err)
	hosts, err := x.Hosts(t.Context())
	b.must(nil, err)
	domain := ""
	for _, h := range hosts {
		vm, err := x.VM(t.Context(), h.ControlDomain)
		b.must(nil, err)
		domain = vm.UUID
	}
	for _, tt := range []struct {
		name, vm, after string
		reason          rpc.Reason
	}{
		{"halted", off.UUID, running, ""},
		{"again", off.UUID, running, ""},
		{"running", on.UUID, running, ""},
		{"suspended", asleep.UUID, "Suspended", rpc.PowerState},
		{"of another session", busy.UUID, halted, rpc.Claimed},
		{"a snapshot", snapshot.UUID, halted, rpc.Invalid},
		{"the control domain", domain, running, rpc.Invalid},
		{"gone", uuid.NewString(), "", rpc.VMNotFound},
		{"no UUID", "../../etc/passwd", "", rpc.Invalid},
	} {
		got, err := a.client.StartVM(t.Context(), &agentv1.StartVMRequest{VmUuid: tt.vm, SessionId: "s"})
		switch {
		case tt.reason == "" && (err != nil || got.GetPowerState() != agentv1.PowerState_POWER_STATE_RUNNING):
			t.Errorf("%s: %v, %v", tt.name, got, err)
		case tt.reason != "" && (err == nil || rpc.ReasonOf(err) != tt.reason):
			t.Errorf("%s: got %v (%s), want %s", tt.name, err, rpc.ReasonOf(err), tt.reason)
		}
		if tt.after != "" {
			vm, err := x.VMByUUID(t.Context(), tt.vm)
			b.must(nil, err)
			if vm.PowerState != tt.after {
				t.Errorf("%s: the VM is %s, want %s", tt.name, vm.PowerState, tt.after)
			}
		}
	}
}

// planOf asks what a restore of the file would do.
func (p *pusher) planOf(ova []byte) (*agentv1.PlanRestoreResponse, error) {
	st, err := p.agent.client.PlanRestore(p.t.Context())
	if err != nil {
		return nil, err
	}
	for _, m := range []*agentv1.PlanRestoreRequest{
		{Kind: &agentv1.PlanRestoreRequest_Open{Open: &agentv1.PlanRestoreOpen{VmUuid: p.opening.GetVmUuid(), Spec: p.spec}}},
		{Kind: &agentv1.PlanRestoreRequest_Ova{Ova: &agentv1.Document{Data: ova, Last: true}}},
	} {
		if err := st.Send(m); err != nil {
			break // the answer says why
		}
	}
	return st.CloseAndRecv()
}

// A plan of a restore tells what the restore itself does, refuses what it refuses, and changes nothing.
func TestPlanRestore(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(halted, 0)
	archive := b.backUp(vm.UUID, online())
	a := b.agent(nil)
	before := b.dump()
	for _, tt := range []struct {
		name    string
		change  func(p *pusher) (ova []byte)
		inPlace bool
		reason  rpc.Reason
	}{
		{"in place", func(p *pusher) []byte { return p.report.RawOVA }, true, ""},
		{"as new", func(p *pusher) []byte { p.spec.AsNew = true; return p.report.RawOVA }, false, ""},
		{"an SR that is not there", func(p *pusher) []byte { p.spec.SrUuid = uuid.NewString(); return p.report.RawOVA }, false, rpc.Conflict},
		{"damaged", func(p *pusher) []byte { p.spec.OvaBytes = 3; return []byte("<a>") }, false, rpc.Archive},
		{"a record that is none", func(p *pusher) []byte { p.spec.OwnRecord = []byte("{"); return p.report.RawOVA }, false, rpc.Invalid},
		{"no UUID", func(p *pusher) []byte { p.opening.VmUuid = "x"; return p.report.RawOVA }, false, rpc.Invalid},
	} {
		p := newPusher(t, a, vm.UUID, archive, online().GetKind())
		got, err := p.planOf(tt.change(p))
		switch {
		case rpc.ReasonOf(err) != tt.reason && (err != nil || tt.reason != ""):
			t.Errorf("%s: got %v (%s), want %s", tt.name, err, rpc.ReasonOf(err), tt.reason)
		case err == nil && (got.GetPlan().GetInPlace() != tt.inPlace || len(got.GetPlan().GetParts()) == 0):
			t.Errorf("%s: %v", tt.name, got)
		case err == nil && tt.inPlace && got.GetPowerState() != agentv1.PowerState_POWER_STATE_HALTED:
			t.Errorf("%s: the VM is %s", tt.name, got.GetPowerState())
		}
	}
	after := b.dump()
	wantSame(t, "VMs", before.VMs, after.VMs)
	wantSame(t, "pool.other_config", before.PoolOtherConfig, after.PoolOtherConfig)
	b.wantClean()

	p := newPusher(t, a, vm.UUID, archive, online().GetKind())
	planned, err := p.planOf(p.report.RawOVA)
	b.must(nil, err)
	if err := p.push(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	if got, want := len(planned.GetPlan().GetParts()), len(p.plan.GetParts()); got != want || planned.GetPlan().GetInPlace() != p.plan.GetInPlace() {
		t.Errorf("planned %d parts, done %d", got, want)
	}
}
