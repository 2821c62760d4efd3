package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/certs"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestPlanChains(t *testing.T) {
	for _, tt := range []struct {
		chain  uint32
		mode   Mode
		reason string
		risk   bool
	}{
		{1, AllOnline, "", false}, {longChain - 1, AllOnline, "", false}, {longChain, AllOnline, "", true},
		{maxChain - 1, AllOnline, "", true}, {maxChain, AllOnline, ReasonChain, false}, {maxChain, AllOffline, "", false},
	} {
		vm := testVM(1, "a", poolA, hostA1)
		vm.Disks = []Disk{{UserDevice: "0", Name: "root", Size: 1 << 30, Chain: tt.chain, SRName: "nfs"}}
		p := onePlan(t, vm, Request{Mode: tt.mode})
		if p.Reason != tt.reason || (len(p.Risks) > 0) != tt.risk || tt.reason != "" && p.Advice == "" {
			t.Errorf("%d in mode %s: reason %q, risks %q", tt.chain, tt.mode, p.Reason, p.Risks)
		}
	}
	vm := testVM(1, "a", poolA, hostA1)
	vm.NoSnapshot = "it has USB devices"
	if p := onePlan(t, vm, Request{Mode: AllOnline}); p.Reason != ReasonProblem || p.Refused != vm.NoSnapshot {
		t.Errorf("no snapshot: %+v", p)
	}
	if p := onePlan(t, vm, Request{Mode: AllOffline}); p.Refused != "" {
		t.Errorf("no snapshot is needed: %q", p.Refused)
	}
}

func TestPlanHA(t *testing.T) {
	for _, tt := range []struct {
		ha         HA
		prio       string
		mode       Mode
		risk, note bool
	}{
		{HA{}, "restart", AllOffline, false, false},
		{HA{Enabled: true, PlanFor: 1, Tolerate: 1}, "restart", AllOffline, false, true},
		{HA{Enabled: true, PlanFor: 1, Tolerate: 1}, "best-effort", AllOffline, false, false},
		{HA{Enabled: true, PlanFor: 0, Tolerate: 1}, "restart", AllOffline, true, false},
		{HA{Enabled: true, PlanFor: 1, Tolerate: 1, Overcommitted: true}, "restart", AllOffline, true, false},
		{HA{Enabled: true, Overcommitted: true}, "restart", AllOnline, false, false},
	} {
		vm := testVM(1, "a", poolA, hostA1)
		vm.Settings = map[string]string{"ha_restart_priority": tt.prio}
		vm.Disks = []Disk{{Size: 1}}
		inv := testInventory(vm)
		inv.PoolByUUID(testUUID(poolA)).HA = tt.ha
		p, err := planController(t).planOf(inv, Request{Mode: tt.mode})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.VMs[0]; (len(got.Risks) > 0) != tt.risk || (len(got.Notes) > 0) != tt.note {
			t.Errorf("%+v %s %s: risks %q, notes %q", tt.ha, tt.prio, tt.mode, got.Risks, got.Notes)
		}
	}
}

// A VM that could not be started again is refused before it is shut down, and not where it need not be.
func TestPlanStart(t *testing.T) {
	blocked := map[string]string{"blocked_operations:start": "ask the owner"}
	for _, tt := range []struct {
		name     string
		power    string
		mode     Mode
		settings map[string]string
		disabled bool
		why      string
	}{
		{"as usual", PowerRunning, AllOffline, nil, false, ""},
		{"blocked", PowerRunning, AllOffline, blocked, false, "its start is blocked (ask the owner)"},
		{"shutdown blocked", PowerRunning, AllOffline, map[string]string{"blocked_operations:clean_shutdown": "production"}, false, "its clean_shutdown is blocked (production)"},
		{"another operation blocked", PowerRunning, AllOffline, map[string]string{"blocked_operations:hard_shutdown": "production"}, false, ""},
		{"export blocked", PowerHalted, AllOffline, map[string]string{"blocked_operations:export": "production"}, false, "blocked its export (production)"},
		{"export blocked, online", PowerRunning, AllOnline, map[string]string{"blocked_operations:export": "production"}, false, ""},
		{"snapshot blocked", PowerRunning, AllOnline, map[string]string{"blocked_operations:snapshot": "production"}, false, "blocked snapshots of it (production)"},
		{"snapshot blocked, offline", PowerRunning, AllOffline, map[string]string{"blocked_operations:snapshot": "production"}, false, ""},
		{"blocked and off", PowerHalted, AllOffline, blocked, false, ""},
		{"blocked, online", PowerRunning, AllOnline, blocked, false, ""},
		{"no host enabled", PowerRunning, AllOffline, nil, true, "no host that sees its disks is enabled"},
		{"no host enabled, off", PowerHalted, AllOffline, nil, true, ""},
		{"no host enabled, online", PowerRunning, AllOnline, nil, true, ""},
	} {
		vm := testVM(1, "a", poolA, hostA1)
		vm.Power, vm.Settings, vm.CapableHosts, vm.CleanStop = tt.power, tt.settings, []string{testUUID(hostA1)}, true
		inv := testInventory(vm)
		for i := range inv.PoolByUUID(testUUID(poolA)).Hosts {
			inv.PoolByUUID(testUUID(poolA)).Hosts[i].Enabled = !tt.disabled
			inv.PoolByUUID(testUUID(poolA)).Hosts[i].Live = true
		}
		p, err := planController(t).planOf(inv, Request{Mode: tt.mode})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.VMs[0].Refused; (got != "") != (tt.why != "") || !strings.Contains(got, tt.why) {
			t.Errorf("%s: refused: %q, want %q", tt.name, got, tt.why)
		}
	}
}

// crowdedInventory has three VMs with 10 GiB each on one SR.
func crowdedInventory(sr SR) *Inventory {
	var vms []VM
	for i := range 3 {
		vm := testVM(i, "vm", poolA, hostA1)
		vm.Disks = []Disk{{Size: 10 << 30, SR: sr.UUID, SRName: sr.Name}}
		vms = append(vms, vm)
	}
	inv := testInventory(vms...)
	inv.PoolByUUID(testUUID(poolA)).SRs = []SR{sr}
	return inv
}

func TestPlanSnapshotsAtOnce(t *testing.T) {
	limits := Limits{Total: 8, PerHost: 8, PerSR: 2, PerPool: 8}
	for name, tt := range map[string]struct {
		sr       SR
		risk     bool
		doubtful bool
	}{
		"thick with room":      {SR{Type: "lvm", Size: 100 << 30, Used: 10 << 30}, false, false},
		"thick, may be stale":  {SR{Type: "lvm", Size: 100 << 30, Used: 70 << 30}, false, true},
		"thick, room for one":  {SR{Type: "lvm", Size: 100 << 30, Used: 85 << 30}, true, true},
		"thick, room for none": {SR{Type: "lvm", Size: 100 << 30, Used: 95 << 30}, false, true},
		"thin with room":       {SR{Type: "nfs", Size: 1 << 40, Used: 1 << 39}, false, false},
		"thin, close":          {SR{Type: "nfs", Size: 1 << 40, Used: 1<<40 - 15<<30}, false, true},
		"not known":            {SR{Type: "nfs"}, false, true},
	} {
		tt.sr.UUID, tt.sr.Name = testUUID(77), "SAN"
		inv := crowdedInventory(tt.sr)
		c := planController(t)
		c.cfg.Limits = limits
		p, err := c.planOf(inv, Request{Mode: AllOnline})
		if err != nil {
			t.Fatal(err)
		}
		if (len(p.Risks) > 0) != tt.risk || (len(p.doubtful(inv, limits)[testUUID(poolA)]) > 0) != tt.doubtful {
			t.Errorf("%s: risks %q, doubtful %v", name, p.Risks, p.doubtful(inv, limits))
		}
		if p, err = c.planOf(inv, Request{Mode: AllOffline}); err != nil || len(p.doubtful(inv, limits)) > 0 {
			t.Errorf("%s: no snapshot is taken: %v, %v", name, p.doubtful(inv, limits), err)
		}
	}
}

func TestPlanLeastTime(t *testing.T) {
	one := func(host int, sr int, seconds float64) PlannedVM {
		return PlannedVM{Chosen: true, HostUUID: testUUID(host), PoolUUID: testUUID(poolA), Disks: []PlannedDisk{{SR: testUUID(sr)}, {SR: testUUID(sr)}},
			Forecast: &Forecast{Seconds: seconds}}
	}
	p := Plan{VMs: []PlannedVM{one(1, 1, 100), one(1, 2, 100), one(2, 3, 10), one(3, 3, 10), {Chosen: true, Forecast: &Forecast{}}, {Refused: "x"}}}
	for _, tt := range []struct {
		limits Limits
		want   float64
	}{
		{Limits{Total: 8, PerHost: 8, PerSR: 8, PerPool: 8}, 100},
		{Limits{Total: 1, PerHost: 8, PerSR: 8, PerPool: 8}, 220},
		{Limits{Total: 8, PerHost: 1, PerSR: 8, PerPool: 8}, 200},
		{Limits{Total: 8, PerHost: 8, PerSR: 8, PerPool: 2}, 110},
	} {
		if got, known := p.least(tt.limits); got != tt.want || known != 4 {
			t.Errorf("%+v: %v of %d, want %v of 4", tt.limits, got, known, tt.want)
		}
	}
}

// TestSurvey holds that agents which know where they stand are not asked for their pools, but for one of each, that one which
// does not know it is asked, and that storage is looked at again where its record decides something.
func TestSurvey(t *testing.T) {
	p := newPKI(t)
	knows := func(name string, pool, host int) *agentv1.GetHostResponse {
		h := toldHost(name)
		h.Features, h.PoolUuid, h.HostUuid = []string{featureSurvey}, testUUID(pool), testUUID(host)
		return h
	}
	vms := [][]*agentv1.VM{{{Uuid: testUUID(101), Name: "one", CapableHostUuids: []string{testUUID(11)},
		Disks: []*agentv1.Disk{{Userdevice: "0", VdiUuid: testUUID(201), VirtualSize: 50 << 30, SrUuid: testUUID(902)}}}}}
	a1 := &toldAgent{host: knows("xs1", 1, 11), check: toldPool(1, 11, 11, 12), pages: vms}
	a2 := &toldAgent{host: knows("xs2", 1, 12), check: toldPool(1, 12, 11, 12), pages: vms}
	b1 := &toldAgent{host: toldHost("xs3"), check: toldPool(2, 21, 21), pages: [][]*agentv1.VM{{{Uuid: testUUID(301), Name: "far"}}}}
	a1.refreshed = &agentv1.RefreshSRsResponse{Srs: []*agentv1.SR{{Uuid: testUUID(902), Type: "lvm", PhysicalSize: 500 << 30, PhysicalUtilisation: 90 << 30}},
		Warnings: []string{"slow"}}
	cfg := p.config(AgentConfig{Name: "xs1", Address: p.serve("xs1", a1, certs.PeerPolicy{})}, AgentConfig{Name: "xs2", Address: p.serve("xs2", a2, certs.PeerPolicy{})},
		AgentConfig{Name: "xs3", Address: p.serve("xs3", b1, certs.PeerPolicy{})})
	c := mustController(t, cfg, Options{Version: "test"})
	plan, err := c.Plan(t.Context(), Request{Mode: AllOnline})
	if err != nil {
		t.Fatal(err)
	}
	if n := a1.checks.Load() + a2.checks.Load(); n != 0 || b1.checks.Load() != 1 || a1.lists.Load()+a2.lists.Load() != 1 {
		t.Errorf("%d checks of the pool whose agents know it, %d of the other; %d and %d lists", n, b1.checks.Load(), a1.lists.Load(), a2.lists.Load())
	}
	if plan.Selected != 2 || !slices.Equal(plan.VMs[1].Agents, []string{"xs1", "xs2"}) && !slices.Equal(plan.VMs[0].Agents, []string{"xs1", "xs2"}) {
		t.Errorf("plan: %+v", plan.VMs)
	}
	// 10 GiB are free by the record, 410 GiB once storage is asked.
	if plan.Runnable != 2 || a1.refreshes.Load() != 1 {
		t.Errorf("%d runnable, %d refreshes: %+v", plan.Runnable, a1.refreshes.Load(), plan.VMs)
	}
	if !slices.ContainsFunc(plan.Notes, func(n string) bool { return strings.Contains(n, "slow") }) {
		t.Errorf("notes %q", plan.Notes)
	}

	// One that cannot list is out, and the next one of its pool tells both pool and VMs; one that is in another pool by now too.
	a1.change(func() { a1.check = toldPool(3, 11, 11) })
	inv, err := c.survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a := inv.Agents[0]; a.OK || !strings.Contains(a.Error, "describes pool") {
		t.Errorf("xs1: %+v", a)
	}
	if len(inv.Pools) != 2 || len(inv.VMs) != 2 || inv.Pools[0].Name != "pool" || len(inv.Pools[0].Hosts) == 0 {
		t.Errorf("inventory: %+v", inv)
	}
	// Nobody of the pool answers: it is told by its UUID.
	a1.change(func() { a1.listErr = errTest })
	a2.change(func() { a2.listErr = errTest })
	if inv, err = c.survey(t.Context()); err != nil || inv.PoolByUUID(testUUID(1)).Error == "" {
		t.Errorf("%+v, %v", inv, err)
	}
	// Storage that cannot be asked is told of, and its record stands.
	a2.change(func() { a2.listErr = nil })
	a1.change(func() {
		a1.listErr, a1.check, a1.refreshed = nil, toldPool(1, 11, 11, 12), nil
		a1.pages = [][]*agentv1.VM{{{Uuid: testUUID(101), Name: "one", CapableHostUuids: []string{testUUID(11)},
			Disks: []*agentv1.Disk{{Userdevice: "0", VdiUuid: testUUID(201), VirtualSize: 50 << 30, SrUuid: testUUID(902)}}}}}
	})
	begin := time.Now()
	plan, err = c.Plan(t.Context(), Request{Mode: AllOnline})
	if err != nil || plan.Runnable != 1 || !slices.ContainsFunc(plan.Notes, func(n string) bool { return strings.Contains(n, "could not be read again") }) {
		t.Errorf("%+v, %v after %s", plan, err, time.Since(begin))
	}
}
