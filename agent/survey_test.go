package agent

import (
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// surveyed asks the agent as a plan does.
func surveyed(t *testing.T, a *runningAgent) (*agentv1.CheckResponse, map[string]*agentv1.VM) {
	t.Helper()
	st, err := a.client.ListVMs(t.Context(), &agentv1.ListVMsRequest{WithPool: true, WithoutNics: true})
	if err != nil {
		t.Fatal(err)
	}
	var pool *agentv1.CheckResponse
	vms := map[string]*agentv1.VM{}
	for first := true; ; first = false {
		page, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return pool, vms
		}
		if err != nil {
			t.Fatal(err)
		}
		if first {
			pool = page.GetPool()
		} else if page.GetPool() != nil {
			t.Error("a later page has the pool again")
		}
		for _, vm := range page.GetVms() {
			vms[vm.GetUuid()] = vm
		}
	}
}

// TestSurvey holds that pool and VMs cost one call a class, and are what Check and ListVMs tell.
func TestSurvey(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{Hosts: 2, VMs: 60})
	a := b.agent(func(c *Config) { c.Timing.Health, c.Timing.Sweep = time.Hour, time.Hour })
	check, err := a.client.Check(t.Context(), &agentv1.CheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// What the agent does of itself at its start is over: its sweep was there, and nothing is called any more.
	for before := -1; ; b.must(nil, sleep(t.Context(), 100*time.Millisecond)) {
		now := 0
		for _, n := range b.pool.Calls() {
			now += n
		}
		if now == before && b.pool.Calls()["pool.get_other_config"] > 0 && b.pool.Calls()["host.get_servertime"] > 0 {
			break
		}
		before = now
	}
	b.pool.ClearCalls()
	pool, vms := surveyed(t, a)
	total := 0
	for method, n := range b.pool.Calls() {
		if !strings.HasSuffix(method, ".get_all_records") || n != 1 {
			t.Errorf("%d calls of %s", n, method)
		}
		total += n
	}
	if total > 10 {
		t.Errorf("%d calls: %v", total, slices.Sorted(maps.Keys(b.pool.Calls())))
	}
	if pool.GetPool().GetUuid() != check.GetPool().GetUuid() || pool.GetHostUuid() != check.GetHostUuid() ||
		len(pool.GetSrs()) != len(check.GetSrs()) || len(pool.GetHosts()) != len(check.GetHosts()) || pool.GetHostUuid() == "" {
		t.Errorf("pool %v\nwant %v", pool, check)
	}
	listed := listVMs(t, a)
	if len(listed) != len(vms) {
		t.Fatalf("%d and %d VMs", len(listed), len(vms))
	}
	for _, want := range listed {
		got := vms[want.GetUuid()]
		if len(got.GetNics()) != 0 || len(want.GetNics()) == 0 {
			t.Errorf("%s: interfaces %v", want.GetName(), got.GetNics())
		}
		want.Nics = nil
		if got.String() != want.String() {
			t.Errorf("got %v\nwant %v", got, want)
		}
	}
	host, err := a.client.GetHost(t.Context(), &agentv1.GetHostRequest{})
	if err != nil || host.GetPoolUuid() != check.GetPool().GetUuid() || host.GetHostUuid() != check.GetHostUuid() {
		t.Errorf("GetHost: %v, %v", host, err)
	}
}

// TestPlaceWhenXAPIIsAway holds that an agent does not tell where it stands once XAPI does not answer.
func TestPlaceWhenXAPIIsAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{Hosts: 1, VMs: 1})
	a := b.agent(func(c *Config) { c.Timing.Health = 100 * time.Millisecond })
	stands := func() bool {
		host, err := a.client.GetHost(t.Context(), &agentv1.GetHostRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return host.GetPoolUuid() != "" && host.GetHostUuid() != ""
	}
	until := func(want bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); stands() != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it stays %v", !want)
			}
		}
	}
	until(true)
	b.inject(xensim.Fault{Name: "call-fails", Method: "pool.get_all_records", Code: "INTERNAL_ERROR"})
	until(false)
	b.pool.Clear("call-fails")
	until(true)
}

func TestReplicas(t *testing.T) {
	for name, tt := range map[string]struct {
		vm   xapi.VM
		want string // in the reason
	}{
		"plain":                   {xapi.VM{PowerState: halted}, ""},
		"blocked by somebody":     {xapi.VM{PowerState: halted, BlockedOperations: map[string]string{"start": "no"}}, ""},
		"marked, put to use":      {xapi.VM{PowerState: halted, OtherConfig: map[string]string{"xo:backup:job": "1"}}, ""},
		"marked and blocked":      {xapi.VM{PowerState: halted, OtherConfig: map[string]string{"xo:backup:job": "1"}, BlockedOperations: map[string]string{"start": "no"}}, "xo:backup"},
		"marked, blocked, runs":   {xapi.VM{PowerState: running, OtherConfig: map[string]string{"xo:backup:job": "1"}, BlockedOperations: map[string]string{"start": "no"}}, ""},
		"tag of a continuous one": {xapi.VM{PowerState: halted, Tags: []string{"a", "Continuous Replication"}, BlockedOperations: map[string]string{"start": "no"}}, "Continuous"},
		"tag alone":               {xapi.VM{PowerState: halted, Tags: []string{"Disaster Recovery"}}, ""},
		"another block":           {xapi.VM{PowerState: halted, Tags: []string{"Disaster Recovery"}, BlockedOperations: map[string]string{"destroy": "no"}}, ""},
	} {
		if got := replica(tt.vm); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// TestSurveyTellsWhatIsAgainstBackups holds what the agent says of a replica, of a disk that is reset at boot, and of one that is local to a dead host.
func TestSurveyTellsWhatIsAgainstBackups(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{Hosts: 2, VMs: 6})
	a := b.agent(nil)
	x := b.client()
	ctx := t.Context()
	off := b.vm(halted, 0)
	vm, err := x.VMByUUID(ctx, off.UUID)
	if err != nil {
		t.Fatal(err)
	}
	b.must(x.Call(ctx, "VM.add_to_other_config", vm.Ref, "xo:backup:sr", "x"))
	b.must(x.Call(ctx, "VM.add_to_blocked_operations", vm.Ref, "start", "clone it"))
	_, vms := surveyed(t, a)
	if got := vms[off.UUID]; !strings.Contains(got.GetReplica(), "xo:backup") || got.GetProblem() != "" {
		t.Errorf("replica: %v", got)
	}
	if err := b.pool.SetHostDown(b.info.Hosts[1].Name, true, true); err != nil {
		t.Fatal(err)
	}
	_, vms = surveyed(t, a)
	dead := 0
	for _, vm := range vms {
		if strings.Contains(vm.GetProblem(), "is local to host "+b.info.Hosts[1].Name+", which is not live") {
			dead++
		}
	}
	if dead == 0 {
		t.Errorf("no VM with a disk on a dead host's storage: %v", vms)
	}
}

func TestRefreshSRs(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{Hosts: 2, VMs: 2})
	a := b.agent(nil)
	pool, _ := surveyed(t, a)
	var uuids []string
	for _, sr := range pool.GetSrs() {
		uuids = append(uuids, sr.GetUuid())
	}
	b.pool.ClearCalls()
	resp, err := a.client.RefreshSRs(t.Context(), &agentv1.RefreshSRsRequest{SrUuids: append(uuids[:1:1], "none")})
	if err != nil || len(resp.GetSrs()) != 1 || resp.GetSrs()[0].GetUuid() != uuids[0] || len(resp.GetWarnings()) != 1 {
		t.Errorf("%v, %v", resp, err)
	}
	if n := b.pool.Calls()["Async.SR.update"]; n != 1 {
		t.Errorf("%d updates: %v", n, b.pool.Calls())
	}
	b.inject(xensim.Fault{Name: "call-fails", Method: "Async.SR.update", Code: "SR_BACKEND_FAILURE_46", Times: 1})
	if resp, err = a.client.RefreshSRs(t.Context(), &agentv1.RefreshSRsRequest{SrUuids: uuids[:1]}); err != nil || len(resp.GetSrs()) != 1 ||
		len(resp.GetWarnings()) != 1 || !strings.Contains(resp.GetWarnings()[0], "SR_BACKEND_FAILURE_46") {
		t.Errorf("one that fails: %v, %v", resp, err)
	}
	many := make([]string, maxRefresh+1)
	if _, err = a.client.RefreshSRs(t.Context(), &agentv1.RefreshSRsRequest{SrUuids: many}); err == nil {
		t.Error("any number of SRs is taken")
	}
}
