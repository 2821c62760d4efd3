package controller

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// fail answers with an error.
func fail(err error) func(grpc.ServerStream) error {
	return func(grpc.ServerStream) error { return err }
}

// TestLyingInventories: whatever an agent says of itself, its pool and its VMs, the controller ends, says what is wrong
// with it, and keeps no more of it than it has use for.
func TestLyingInventories(t *testing.T) {
	big := strings.Repeat(terminal, 30_000)
	host := func(change func(*agentv1.GetHostResponse)) any {
		h := toldHost("xs1")
		change(h)
		return h
	}
	check := func(change func(*agentv1.CheckResponse)) any {
		c := toldPool(1, 11, 11)
		change(c)
		return c
	}
	vms := func(all ...*agentv1.VM) any { return &agentv1.ListVMsResponse{Vms: all} }
	manyVMs := make([]*agentv1.VM, 60_000)
	for i := range manyVMs {
		manyVMs[i] = &agentv1.VM{}
	}
	for name, tt := range map[string]struct {
		method string
		answer func(grpc.ServerStream) error
		says   string // in the agent's error; empty = it is used
	}{
		"name of another agent":      {"GetHost", say(host(func(h *agentv1.GetHostResponse) { h.Agent = "xs2" })), "calls itself"},
		"a name that paints":         {"GetHost", say(host(func(h *agentv1.GetHostResponse) { h.Agent = big })), "calls itself"},
		"no versions":                {"GetHost", say(host(func(h *agentv1.GetHostResponse) { h.Protocol = nil })), "version"},
		"versions backwards":         {"GetHost", say(host(func(h *agentv1.GetHostResponse) { h.Protocol = &agentv1.ProtocolRange{Min: math.MaxUint32} })), "version"},
		"a megabyte of version":      {"GetHost", say(host(func(h *agentv1.GetHostResponse) { h.Version = big })), ""},
		"half a million features":    {"GetHost", say(host(func(h *agentv1.GetHostResponse) { h.Features = slices.Repeat([]string{"x", "y"}, 250_000) })), ""},
		"a time that is none":        {"GetHost", say(host(func(h *agentv1.GetHostResponse) { h.Time = &timestamppb.Timestamp{Seconds: math.MinInt64} })), ""},
		"invalid UTF-8":              {"GetHost", say(raw("\x12\x02\xff\xfe")), "UTF-8"},
		"garbage":                    {"GetHost", say(raw("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")), "unmarshal"},
		"three megabytes":            {"GetHost", say(raw(strings.Repeat("x", 3<<20))), "larger than max"},
		"nothing":                    {"GetHost", say(), ""},
		"answers twice":              {"GetHost", say(toldHost("xs1"), toldHost("xs1")), ""},
		"an error that paints":       {"GetHost", fail(status.Error(codes.Internal, big[:20_000])), terminal[:4]},
		"an error of its own reason": {"GetHost", fail(rpc.ToStatus(&rpc.Error{Reason: rpc.Reason(terminal), Msg: "x"})), "x"},
		"headers without end": {"GetHost", func(st grpc.ServerStream) error {
			return errors.Join(st.SendHeader(metadata.Pairs("x", strings.Repeat("y", 1<<20))), st.SendMsg(toldHost("xs1")))
		}, "INTERNAL_ERROR"},
		"silence":               {"GetHost", silence, "deadline"},
		"no pool":               {"Check", say(&agentv1.CheckResponse{}), "no pool"},
		"a pool that is a path": {"Check", say(check(func(c *agentv1.CheckResponse) { c.Pool.Uuid = "../../../../../../etc/cron.d/aaaaaaa" })), "no pool"},
		"a million hosts":       {"Check", say(raw(strings.Repeat("\x12\x00", 1_000_000))), "too many others"},
		"sizes below zero": {"Check", say(check(func(c *agentv1.CheckResponse) {
			c.Srs[0].PhysicalSize, c.Srs[0].PhysicalUtilisation = math.MinInt64, math.MaxInt64
		})), ""},
		"warnings":            {"Check", say(check(func(c *agentv1.CheckResponse) { c.Warnings = slices.Repeat([]string{big[:900], big[1:900]}, 1000) })), ""},
		"silent check":        {"Check", silence, "deadline"},
		"VM that is a path":   {"ListVMs", say(vms(&agentv1.VM{Uuid: "../../../../../../etc/cron.d/aaaaaaa", Name: "a"})), ""},
		"VMs of one UUID":     {"ListVMs", say(vms(&agentv1.VM{Uuid: testUUID(5), Name: "a"}, &agentv1.VM{Uuid: testUUID(5), Name: "b"})), ""},
		"VMs without end":     {"ListVMs", sayFor(0, vms(manyVMs...)), "more than"},
		"names without end":   {"ListVMs", sayFor(0, vms(&agentv1.VM{Name: big, Uuid: testUUID(5)})), "longer than"},
		"pages without VMs":   {"ListVMs", sayFor(time.Millisecond, vms()), "deadline"},
		"a page now and then": {"ListVMs", sayFor(300*time.Millisecond, vms(&agentv1.VM{Uuid: testUUID(5)})), "deadline"},
		"a million disks":     {"ListVMs", say(raw(emptyElements(1, 7))), "too many others"},
	} {
		t.Run(name, func(t *testing.T) {
			a := honest(t)
			a[tt.method] = tt.answer
			s := newHostileSite(t, a, func(tm *Timing) {
				tm.ConnectTimeout = 10 * time.Second
				if strings.Contains(tt.says, "deadline") {
					tm.ConnectTimeout, tm.CallTimeout = 2*time.Second, 2*time.Second
				} else if tt.says == "longer than" || tt.says == "more than" {
					tm.CallTimeout = 4 * time.Minute // so much of it is read before, slowly where the machine has other work
				}
			})
			ends(t, 5*time.Minute, func() {
				inv, err := s.Inventory(t.Context())
				if inv == nil || len(inv.Agents) != 1 {
					t.Fatalf("%+v, %v", inv, err)
				}
				agent := inv.Agents[0]
				late := tt.says == "deadline" && strings.Contains(agent.Error, "CANCEL") // the agent's side was over first
				if tt.says != "" && (agent.OK || err == nil || !late && !strings.Contains(agent.Error, tt.says)) {
					t.Errorf("agent %v %.300q, %.300v; want %q", agent.OK, agent.Error, err, tt.says)
				}
				if len(agent.Error) > 2*maxText || len(agent.Version) > maxText {
					t.Errorf("error of %d bytes, version of %d", len(agent.Error), len(agent.Version))
				}
				bounded(t, "inventory", inv)
				if len(inv.VMs) > 1 || len(inv.VMs) == 1 && canonicalUUID(inv.VMs[0].UUID) == "" {
					t.Errorf("VMs %+v", inv.VMs)
				}
				r, err := s.Backup(t.Context(), Request{Mode: AllOnline})
				if code := s.ended(r, err); code == CodeOK && tt.says != "" {
					t.Errorf("code %d with such an agent", code)
				}
			})
		})
	}
}

// TestHugeSizes: sizes whose sum is beyond all numbers are no room that is there.
func TestHugeSizes(t *testing.T) {
	a := honest(t)
	var all []*agentv1.VM
	for n := range 4 {
		vm := &agentv1.VM{Uuid: testUUID(400 + n), Name: "huge", PowerState: agentv1.PowerState_POWER_STATE_HALTED}
		for range n {
			vm.Disks = append(vm.Disks, &agentv1.Disk{Userdevice: "0", VirtualSize: math.MaxInt64, SrUuid: testUUID(901)},
				&agentv1.Disk{Userdevice: "1", VirtualSize: math.MinInt64, PhysicalBytes: math.MinInt64})
		}
		all = append(all, vm)
	}
	a["ListVMs"] = say(&agentv1.ListVMsResponse{Vms: all})
	s := newHostileSite(t, a, nil)
	p, err := s.Plan(t.Context(), Request{Mode: AllOffline})
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range p.VMs {
		if huge := vm.UUID != testUUID(400); huge && vm.Reason != ReasonNoRoom || vm.Bytes < 0 {
			t.Errorf("VM %s of %d bytes, chosen %v (%s): %q", vm.UUID, vm.Bytes, vm.Chosen, vm.Why, vm.Refused)
		}
	}
	if p.Bytes < 0 || p.Runnable != 1 {
		t.Errorf("%d bytes, %d VMs", p.Bytes, p.Runnable)
	}
}

// TestPinnedPool: an agent that the configuration has in one pool does not speak for another.
func TestPinnedPool(t *testing.T) {
	s := newHostileSite(t, honest(t), nil)
	for pool, want := range map[string]AgentClass{"": AgentFine, testUUID(1): AgentFine, testUUID(2): AgentFault} {
		s.agents[0].pool = pool
		all, err := s.Agents(t.Context())
		if err != nil || all[0].Class != want || want == AgentFault && !strings.Contains(all[0].Error, "speaks for pool") {
			t.Errorf("pinned to %q: %+v, %v", pool, all, err)
		}
	}
}

// TestLyingSweeps: repair ends, whatever the agent has to tell, and does not call it repaired.
func TestLyingSweeps(t *testing.T) {
	text := strings.Repeat(terminal, 50_000)
	running := &agentv1.LookupTransferResponse{Found: true, Phase: 99, LeaseEnd: &timestamppb.Timestamp{Seconds: math.MaxInt64}}
	for name, tt := range map[string]struct {
		change answers
		code   int
	}{
		"honest":                   {nil, CodeOK},
		"half a million actions":   {answers{"Sweep": say(raw(strings.Repeat("\x0a\x00", 500_000)))}, CodeSome},
		"30000 actions":            {answers{"Sweep": say(&agentv1.SweepResponse{Actions: slices.Repeat([]*agentv1.SweepAction{{}}, 30_000)})}, CodeSome},
		"actions that paint":       {answers{"Sweep": say(&agentv1.SweepResponse{Actions: []*agentv1.SweepAction{{VmUuid: terminal, VmName: text, Error: text[1:]}}})}, CodeSome},
		"later, in 292 years":      {answers{"Sweep": say(&agentv1.SweepResponse{Actions: []*agentv1.SweepAction{{Waiting: "x", AgainIn: &durationpb.Duration{Seconds: math.MaxInt64}}}})}, CodeSome},
		"later, 292 years ago":     {answers{"Sweep": say(&agentv1.SweepResponse{Actions: []*agentv1.SweepAction{{Waiting: "x", AgainIn: &durationpb.Duration{Seconds: math.MinInt64}}}})}, CodeSome},
		"silence":                  {answers{"Sweep": silence}, CodeSome},
		"silent about transfers":   {answers{"LookupTransfer": silence}, CodeSome},
		"at it for ever":           {answers{"LookupTransfer": say(running), "ReleaseTransfer": say(&agentv1.ReleaseTransferResponse{Found: true})}, CodeSome},
		"power states without end": {answers{"ListVMs": silence}, CodeSome},
		"an error that paints":     {answers{"Sweep": fail(status.Error(codes.Unavailable, text[:20_000]))}, CodeSome},
	} {
		t.Run(name, func(t *testing.T) {
			a := honest(t)
			for method, f := range tt.change {
				a[method] = f
			}
			s := newHostileSite(t, a, func(tm *Timing) { tm.CallTimeout, tm.ConnectTimeout = 2*time.Second, 10*time.Second })
			dead := mustSession(t, s.Controller, Report{Action: ActionBackup, Mode: AllOnline, VMs: []VMResult{{UUID: testUUID(hostileVM), PoolUUID: testUUID(1), Status: StatusRunning}}})
			err := dead.intend(Intent{Key: testUUID(6), Nonce: "n", VMUUID: testUUID(hostileVM), PoolUUID: testUUID(1), Agent: "xs1",
				Action: ActionBackup, PowerBefore: PowerRunning})
			if err := errors.Join(err, dead.lock.Unlock()); err != nil {
				t.Fatal(err)
			}
			ends(t, time.Minute, func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				rep, err := s.RepairWithin(ctx, 500*time.Millisecond)
				if err != nil || rep.Code != tt.code {
					t.Errorf("%+v, %v, want code %d", rep, err, tt.code)
				}
				bounded(t, "report", rep)
				if r := mustReport(t, s.Controller, dead.id); r.State == StateRunning {
					t.Errorf("session is %s", r.State)
				}
			})
		})
	}
}
