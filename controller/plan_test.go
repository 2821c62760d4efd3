package controller

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

func TestEstimate(t *testing.T) {
	for _, tt := range []struct {
		name string
		disk Disk
		want int64
	}{
		{"chain known", Disk{Size: 1000 << 20, Physical: 498 << 20}, 505 << 20},
		{"all but unwritten", Disk{Size: 1000 << 20, Physical: 4096}, 2<<20 + 4096 + (2<<20+4096)/100 + 1},
		{"chain almost as large as the disk", Disk{Size: 1000, Physical: 500}, 1010},
		{"chain larger than the disk", Disk{Size: 1000, Physical: 5000}, 1010},
		{"chain unknown", Disk{Size: 1000}, 1010},
		{"rounded up", Disk{Size: 1}, 2},
		{"empty", Disk{}, 0},
	} {
		if got := estimateDisk(tt.disk); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	if got := estimate([]Disk{{Size: 100}, {Size: 200}}); got != 303+overhead {
		t.Errorf("two disks: %d", got)
	}
}

func TestSnapshotNeed(t *testing.T) {
	disks := []Disk{{SR: "a", Size: 5 << 30}, {SR: "a", Size: 1 << 30}, {SR: "b", Size: 100 << 30}}
	for _, tt := range []struct {
		name string
		sr   SR
		want int64
	}{
		{"thick: what its disks are in size", SR{UUID: "a", Type: "lvmoiscsi", Size: 1 << 40}, 6 << 30},
		{"thin and large: 10 GiB", SR{UUID: "a", Type: "nfs", Size: 1 << 40}, 10 << 30},
		{"thin and small: a tenth", SR{UUID: "a", Type: "ext", Size: 1000}, 100},
		{"no disk on it", SR{UUID: "c", Type: "lvm", Size: 1 << 40}, 0},
	} {
		if got := snapshotNeed(&tt.sr, disks); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// planController has a staging folder that is ready, and no agents to ask.
func planController(t *testing.T) *Controller {
	t.Helper()
	c := stateOnly(t)
	if err := staging.Init(c.cfg.Staging); err != nil {
		t.Fatal(err)
	}
	return c
}

// onePlan plans for one VM and returns what is planned for it.
func onePlan(t *testing.T, vm VM, req Request, srs ...SR) PlannedVM {
	t.Helper()
	inv := testInventory(vm)
	inv.PoolByUUID(testUUID(poolA)).SRs = srs
	p, err := planController(t).planOf(inv, req)
	if err != nil {
		t.Fatal(err)
	}
	return p.VMs[0]
}

func TestPlanPowerStates(t *testing.T) {
	for _, tt := range []struct {
		power   string
		req     Request
		action  string
		reason  string
		warning bool
		risk    bool
	}{
		{PowerRunning, Request{Mode: AllOnline}, "snapshot, export", "", false, false},
		{PowerHalted, Request{Mode: AllOnline}, "snapshot, export", "", false, false},
		{PowerPaused, Request{Mode: AllOnline}, "snapshot, export", "", false, false},
		{PowerSuspended, Request{Mode: AllOnline}, "snapshot, export", "", true, false},
		{PowerRunning, Request{Mode: AllOffline}, "shut down, export, start", "", false, true},
		{PowerRunning, Request{Mode: AllOffline, ForceOff: true}, "shut down, export, start", "", false, false},
		{PowerHalted, Request{Mode: AllOffline}, "export", "", false, false},
		{PowerPaused, Request{Mode: AllOffline}, "", ReasonPowerState, false, false},
		{PowerSuspended, Request{Mode: AllOffline}, "", ReasonPowerState, false, false},
		{PowerSuspended, Request{Mode: AllOffline, WithMemory: true}, "export", "", false, false},
		{PowerUnknown, Request{Mode: AllOffline}, "", ReasonPowerState, false, false},
	} {
		vm := testVM(1, "a", poolA, hostA1)
		vm.Power, vm.CleanStop = tt.power, false
		p := onePlan(t, vm, tt.req)
		if p.Reason != tt.reason || (p.Refused != "") != (tt.reason != "") || !strings.HasPrefix(p.Action, tt.action) {
			t.Errorf("%s %s: %q %q, action %q", tt.power, tt.req.Mode, p.Reason, p.Refused, p.Action)
		}
		if (len(p.Warnings) > 0) != tt.warning || (len(p.Risks) > 0) != tt.risk {
			t.Errorf("%s %s: warnings %q, risks %q", tt.power, tt.req.Mode, p.Warnings, p.Risks)
		}
	}
}

// A memory image takes room as the disks do, where it is backed up.
func TestPlanMemoryImage(t *testing.T) {
	vm := testVM(1, "a", poolA, hostA1)
	vm.Power, vm.MemoryImage, vm.Disks = PowerSuspended, 2<<30, []Disk{{Size: 1 << 20}}
	with := onePlan(t, vm, Request{Mode: AllOffline, WithMemory: true})
	without := onePlan(t, vm, Request{Mode: AllOnline})
	if more := with.Bytes - without.Bytes; more < 2<<30 || more > 2<<30+2<<30/50 {
		t.Errorf("the memory image of 2 GiB adds %d bytes", more)
	}
	if text := strings.Join(with.Notes, " "); !strings.Contains(text, "2.0 GiB") {
		t.Errorf("notes %q, want the memory image told", text)
	}
}

func TestPlanDisks(t *testing.T) {
	vm := testVM(1, "a", poolA, hostA1)
	vm.Disks = []Disk{
		{UserDevice: "0", VDI: testUUID(5), Name: "root", Size: 100 << 20, Physical: 50 << 20, SR: testUUID(901)},
		{UserDevice: "1", VDI: testUUID(6), Name: "swap [nobak]", Size: 8 << 30, SR: testUUID(902)},
	}
	full := SR{UUID: testUUID(901), Name: "full", Type: "lvm", Size: 10 << 30, Used: 10<<30 - 1<<20}
	other := SR{UUID: testUUID(902), Name: "other", Type: "lvm", Size: 10 << 30, Used: 10 << 30}

	p := onePlan(t, vm, Request{Mode: AllOffline, ForceOff: true})
	if len(p.Disks) != 1 || len(p.Excluded) != 1 || p.Excluded[0].VDI != testUUID(6) || p.Excluded[0].Why == "" || len(p.Notes) != 1 {
		t.Errorf("disks %+v, excluded %+v, notes %q", p.Disks, p.Excluded, p.Notes)
	}
	if want := estimate(vm.Disks[:1]); p.Bytes != want {
		t.Errorf("bytes %d, want %d", p.Bytes, want)
	}
	if !strings.Contains(p.Action, "snapshot without") {
		t.Errorf("action %q: disks are left out, so it is from a snapshot", p.Action)
	}
	// A full SR refuses where a snapshot is taken, but not for a disk that is left out.
	if p = onePlan(t, vm, Request{Mode: AllOnline}, other); p.Refused != "" {
		t.Errorf("refused for an SR that is not concerned: %s", p.Refused)
	}
	if p = onePlan(t, vm, Request{Mode: AllOnline}, full); p.Reason != ReasonSRFull || p.Advice == "" {
		t.Errorf("full SR: %q %q", p.Reason, p.Refused)
	}
	if p = onePlan(t, vm, Request{Mode: AllOffline}, full); p.Reason != ReasonSRFull {
		t.Errorf("full SR, offline with a disk left out: %q", p.Reason)
	}
	vm.Disks = vm.Disks[:1]
	if p = onePlan(t, vm, Request{Mode: AllOffline}, full); p.Refused != "" {
		t.Errorf("full SR, offline without snapshot: %s", p.Refused)
	}
	full.Size = 0
	if p = onePlan(t, vm, Request{Mode: AllOnline}, full); p.Refused != "" || len(p.Risks) != 1 {
		t.Errorf("room unknown: %q, risks %q", p.Refused, p.Risks)
	}
}

func TestPlanRefusals(t *testing.T) {
	vm := testVM(1, "a", poolA, hostA1)
	vm.Problem = "a disk cannot be snapshotted"
	if p := onePlan(t, vm, Request{Mode: AllOnline}); p.Reason != ReasonProblem || p.Refused != vm.Problem {
		t.Errorf("problem: %+v", p)
	}
	vm.Problem, vm.ClaimedBy = "", "session x since y"
	if p := onePlan(t, vm, Request{Mode: AllOnline}); p.Refused != "" || len(p.Risks) != 1 {
		t.Errorf("claimed: %+v", p)
	}
	vm.Disks = []Disk{{Size: 1 << 60}}
	if p := onePlan(t, vm, Request{Mode: AllOnline}); p.Reason != ReasonNoRoom {
		t.Errorf("no room: %+v", p)
	}
	if p := onePlan(t, vm, Request{Mode: Online, Selection: Selection{VM: []string{"a"}, Exclude: []string{"b*"}}}); !p.Chosen || p.Why != "--vm a" || p.Agent != "xs1" {
		t.Errorf("chosen: %+v", p)
	}
}

func TestPlanTotals(t *testing.T) {
	a, b, off := testVM(1, "a", poolA, hostA1), testVM(2, "b", poolA, hostA2), testVM(3, "c", poolA, 0)
	a.Disks, b.Disks = []Disk{{Size: 100}}, []Disk{{Size: 300}}
	off.Power = PowerPaused
	inv := testInventory(a, b, off)
	c := planController(t)
	p, err := c.planOf(inv, Request{Mode: AllOffline})
	if err != nil {
		t.Fatal(err)
	}
	if p.Selected != 3 || p.Runnable != 2 || p.Bytes != 101+303+2*overhead || p.Room.Short || p.Room.Free <= 0 {
		t.Errorf("plan: %+v", p)
	}
	if runs := p.Runs(); len(runs) != 2 || runs[0].Name != "b" || runs[0].VM().UUID != b.UUID {
		t.Errorf("runs %+v, want the largest first", runs)
	}
	if err := p.Preflight(); err != nil {
		t.Errorf("preflight: %v", err)
	}

	p.VMs = p.VMs[:2]
	p.Selected, p.Runnable, p.Bytes = 0, 0, 0
	p.addRoom("f", 2*overhead)
	if !p.Room.Short || p.Runnable != 2 || len(p.Warnings) != 1 {
		t.Errorf("short of room for both: %+v", p)
	}
	p.Selected, p.Runnable, p.Bytes = 0, 0, 0
	p.addRoom("f", overhead)
	if p.Runnable != 0 || ExitCode(nil, p.Preflight()) != CodePreflight {
		t.Errorf("no room for any: runnable %d, %v", p.Runnable, p.Preflight())
	}
}

// TestPlanPreflight holds the class of the error when no VM can be begun.
func TestPlanPreflight(t *testing.T) {
	away := AgentStatus{Name: "xs9", Class: AgentUnreachable, Error: "refused"}
	refused := AgentStatus{Name: "xs8", Class: AgentRefused, Error: "certificate"}
	vm := func(reason string) PlannedVM { return PlannedVM{Name: "a", Chosen: true, Refused: "r", Reason: reason} }
	for name, tt := range map[string]struct {
		p    Plan
		want int
	}{
		"power state":           {Plan{VMs: []PlannedVM{vm(ReasonPowerState)}}, CodeNone},
		"room":                  {Plan{VMs: []PlannedVM{vm(ReasonNoRoom)}}, CodePreflight},
		"SR":                    {Plan{VMs: []PlannedVM{vm(ReasonSRFull), vm(ReasonPowerState)}}, CodePreflight},
		"agent":                 {Plan{VMs: []PlannedVM{vm(ReasonUnreachable), vm(ReasonNoRoom)}}, CodeUnreachable},
		"missing":               {Plan{Missing: []Missing{{Error: "m"}}, Agents: []AgentStatus{away}}, CodeUnreachable},
		"missing, by a refusal": {Plan{Missing: []Missing{{Error: "m"}}, Agents: []AgentStatus{away, refused}}, CodeAuth},
	} {
		if got := ExitCode(nil, tt.p.Preflight()); got != tt.want {
			t.Errorf("%s: code %d, want %d: %v", name, got, tt.want, tt.p.Preflight())
		}
	}
}

func TestPlanStagingFolder(t *testing.T) {
	req, inv := Request{Mode: AllOnline}, testInventory(testVM(1, "a", poolA, hostA1))
	c := stateOnly(t)
	c.cfg.Staging += "/not/made/yet"
	if p, err := c.planOf(inv, req); err != nil || p.Room.Free <= 0 {
		t.Errorf("a folder that is not made yet: %+v, %v", p, err)
	}
	c = planController(t)
	if err := c.rememberFolder([]string{c.cfg.Staging}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.planOf(inv, req); err != nil {
		t.Errorf("a folder in use: %v", err)
	}
	if err := os.RemoveAll(c.cfg.Staging); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(c.cfg.Staging, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := c.planOf(inv, req)
	if !is[*PreflightError](err) || !errors.Is(err, staging.ErrNoMarker) {
		t.Errorf("a folder in use without its marker: %v", err)
	}
}

// TestPlanOfManyVMs holds that planning stays fast when there are many. It takes a quarter of a second, and twenty times as long
// under the race detector on a busy machine; make bench-plan has the figures.
func TestPlanOfManyVMs(t *testing.T) {
	var vms []VM
	for i := range 10_000 {
		vm := testVM(i, "vm", poolA, 0)
		vm.Disks = []Disk{{Size: int64(i)}}
		vms = append(vms, vm)
	}
	inv := testInventory(vms...)
	c := planController(t)
	begin := time.Now()
	p, err := c.planOf(inv, Request{Mode: Online, Selection: Selection{VM: []string{"v*", "re:m$", testUUID(1005)}, Exclude: []string{"x*"}}})
	if err != nil || p.Runnable != len(vms) {
		t.Fatalf("%d runnable, %v", p.Runnable, err)
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("planning took %s", d)
	}
}
