package controller

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dpxen/dpxen/internal/staging"
)

// pastSession writes the report of a session that is over.
func pastSession(t *testing.T, c *Controller, at time.Time, dp *DPRecord, vms ...VMResult) string {
	t.Helper()
	if err := staging.MakeFolders(c.sessionsDir()); err != nil {
		t.Fatal(err)
	}
	s := &session{id: newID(at), dir: c.sessionsDir()}
	s.lock = newLock(s.path(lockExt))
	s.report = Report{V: ReportVersion, ID: s.id, Action: ActionBackup, Mode: AllOnline, State: StateDone, Started: at, Ended: at, DP: dp, VMs: vms}
	if err := s.update(func(*Report) {}); err != nil {
		t.Fatal(err)
	}
	return s.id
}

func goodVM(n int, bytes int64, seconds float64, agent string) VMResult {
	return VMResult{UUID: testUUID(1000 + n), Name: fmt.Sprint("vm-", n), Pool: "prod", PoolUUID: testUUID(poolA), Agent: agent,
		Status: StatusGood, Bytes: bytes, Seconds: seconds}
}

func TestHistory(t *testing.T) {
	c := stateOnly(t)
	now := time.Date(2026, 11, 20, 20, 0, 0, 0, time.UTC)
	c.o.Now = func() time.Time { return now }
	bad := goodVM(2, 0, 0, "xs1")
	bad.Status, bad.Reason = StatusFailed, "VM_BUSY"
	old := pastSession(t, c, now.Add(-72*time.Hour), nil, goodVM(1, 100, 10, "xs1"), goodVM(2, 100, 10, "xs1"))
	pastSession(t, c, now.Add(-48*time.Hour), nil, goodVM(1, 100, 20, "xs1"), bad)
	unsaved := &DPRecord{Spec: "X", Closed: now, Saved: false}
	pastSession(t, c, now.Add(-24*time.Hour), unsaved, goodVM(1, 100, 20, "xs1"), goodVM(3, 1, 1, "xs2"))
	if err := c.remember(""); err != nil {
		t.Fatal(err)
	}
	// The history outlives the reports, and a temporary of a writer that was killed.
	if err := os.RemoveAll(c.sessionsDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.cfg.State, "."+historyFile+".1.tmp"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := pastSession(t, c, now.Add(-time.Hour), &DPRecord{Spec: "X"}, goodVM(4, 1, 1, "xs2"))
	for round := range 2 { // the second time from what was written
		h, err := c.history()
		if err != nil || h.doubt != "" {
			t.Fatalf("%v, %q", err, h.doubt)
		}
		one, two, three, four := testVM(1, "vm-1", poolA, 0), testVM(2, "vm-2", poolA, 0), testVM(3, "vm-3", poolA, 0), testVM(4, "vm-4", poolA, 0)
		if last, ok := h.of(&one).last(); !ok || !last.Time.Equal(now.Add(-48*time.Hour)) {
			t.Errorf("round %d: VM 1, whose newest was not saved: %+v", round, h.of(&one))
		}
		if last, ok := h.of(&two).last(); !ok || last.Session != old {
			t.Errorf("VM 2: %+v", h.of(&two))
		}
		if why := h.of(&two).trouble(now.Add(-72 * time.Hour)); !strings.Contains(why, "VM_BUSY") {
			t.Errorf("VM 2: %q", why)
		}
		if _, ok := h.of(&three).last(); ok {
			t.Errorf("VM 3, never saved: %+v", h.of(&three))
		}
		if last, ok := h.of(&four).last(); !ok || last.Session != open || h.Sessions[open] {
			t.Errorf("VM 4, whose post-exec is still to come: %+v", h.of(&four))
		}
		if err := c.remember(""); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(c.cfg.State, ".history*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	// Post-exec says that it was not saved.
	if _, err := c.amend(open, func(r *Report) { r.DP.Closed, r.DP.Saved = now, false }); err != nil {
		t.Fatal(err)
	}
	if err := c.remember(open); err != nil {
		t.Fatal(err)
	}
	four := testVM(4, "vm-4", poolA, 0)
	h, err := c.history()
	if _, ok := h.of(&four).last(); ok || err != nil || !h.Sessions[open] {
		t.Errorf("after post-exec: %+v, %v", h.of(&four), err)
	}
	if why := h.of(&four).trouble(time.Time{}); !strings.Contains(why, "has not saved it") {
		t.Errorf("after post-exec: %q", why)
	}
}

// TestHistoryDamaged holds that a history that cannot be read is made anew from the reports, says so, and is kept.
func TestHistoryDamaged(t *testing.T) {
	for _, text := range []string{"", "{", `{"v":2}`, `{"v":1,"vms":[]}`, "\x00"} {
		c := stateOnly(t)
		pastSession(t, c, time.Now().Add(-time.Hour), nil, goodVM(1, 100, 10, "xs1"))
		if err := os.WriteFile(c.historyPath(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := c.history()
		if err != nil || h.doubt == "" || len(h.VMs) != 1 {
			t.Errorf("%q: %v, doubt %q, %d VMs", text, err, h.doubt, len(h.VMs))
		}
		if err := c.remember(""); err != nil {
			t.Fatal(err)
		}
		if h, err = c.history(); err != nil || h.doubt != "" || len(h.VMs) != 1 {
			t.Errorf("%q, made anew: %v, doubt %q", text, err, h.doubt)
		}
		if kept, err := os.ReadFile(c.historyPath() + ".unread"); err != nil || string(kept) != text {
			t.Errorf("%q is not kept: %q, %v", text, kept, err)
		}
	}
	// null entries are nothing.
	c := stateOnly(t)
	if err := staging.MakeFolders(c.cfg.State); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.historyPath(), []byte(`{"v":1,"sessions":null,"vms":{"a/b":null}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err := c.history(); err != nil || h.doubt != "" || len(h.VMs) != 0 {
		t.Errorf("null: %+v, %v", h, err)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	h, now := newHistory(), time.Now()
	for i := range maxPastVMs + 10 {
		h.VMs[fmt.Sprintf("p/%06d", i)] = &pastVM{Seen: now.Add(-time.Duration(i) * time.Second)}
	}
	h.VMs["p/old"] = &pastVM{Seen: now.Add(-forgetAfter - time.Hour)}
	h.Sessions = map[string]bool{"gone": true, "there": true}
	h.bound(now, []string{"there", "new"})
	if len(h.VMs) != maxPastVMs || h.VMs["p/000000"] == nil || h.VMs["p/old"] != nil || len(h.Sessions) != 1 {
		t.Errorf("%d VMs, sessions %v", len(h.VMs), h.Sessions)
	}
	p := &pastVM{}
	r := &Report{Mode: AllOnline, DP: &DPRecord{Closed: now}}
	for i := range 3 * keptRuns {
		r.ID, r.Started, r.DP.Saved = fmt.Sprint(i), now.Add(time.Duration(i)*time.Hour), i == 1
		vm := goodVM(1, 1, 1, "")
		p.good(r, &vm)
	}
	if last, ok := p.last(); !ok || last.Session != "1" || len(p.Good) != keptRuns+1 {
		t.Errorf("the one that was saved is forgotten: %+v", p.Good)
	}
}

// TestHistoryFolds holds that sessions come to the same in whatever order and however often they are folded in.
func TestHistoryFolds(t *testing.T) {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		var reports []*Report
		for i := range rapid.IntRange(1, 5).Draw(t, "sessions") {
			r := &Report{ID: fmt.Sprint(i), Action: ActionBackup, Mode: Online, State: StateDone, Started: base.Add(time.Duration(i) * time.Hour)}
			for n := range 3 {
				vm := goodVM(n, int64(i+1), 1, "")
				vm.Status = rapid.SampledFrom([]Status{StatusGood, StatusFailed, StatusSkipped}).Draw(t, "status")
				r.VMs = append(r.VMs, vm)
			}
			reports = append(reports, r)
		}
		first := newHistory()
		for _, r := range reports {
			first.fold(r, base)
		}
		second := newHistory()
		order := rapid.Permutation(reports).Draw(t, "order")
		for _, r := range append(slices.Clone(order), order[0]) {
			second.fold(r, base)
		}
		for key, a := range first.VMs {
			if b := second.VMs[key]; b == nil || fmt.Sprint(*a) != fmt.Sprint(*b) {
				t.Fatalf("%s: %+v, %+v", key, a, b)
			}
		}
		if len(first.VMs) != len(second.VMs) {
			t.Fatalf("%d and %d VMs", len(first.VMs), len(second.VMs))
		}
	})
}

func TestForecast(t *testing.T) {
	h := newHistory()
	at := time.Now()
	for i, r := range []VMResult{goodVM(1, 1000, 10, "xs1"), goodVM(1, 1000, 20, "xs1"), goodVM(1, 1000, 5, "xs1"), goodVM(2, 5000, 10, "xs1")} {
		h.fold(&Report{ID: fmt.Sprint(i), Action: ActionBackup, Mode: Online, Started: at.Add(time.Duration(i))}, at)
		h.fold(&Report{ID: fmt.Sprint(i), Action: ActionBackup, Mode: Online, Started: at.Add(time.Duration(i)), VMs: []VMResult{r}}, at)
	}
	s := newSpeeds(h)
	own, other := testVM(1, "a", poolA, 0), testVM(9, "b", poolA, 0)
	if f := s.forecast(&own, KindOnline, "xs1", 2000); f.Bytes != 1000 || f.Seconds != 10 || f.Basis != "its last 3 backups" {
		t.Errorf("of its own: %+v", f)
	}
	if f := s.forecast(&own, KindOnline, "xs1", 500); f.Bytes != 500 || f.Seconds != 5 {
		t.Errorf("smaller now: %+v", f)
	}
	if f := s.forecast(&own, KindOffline, "xs2", 2000); f.Seconds != 0 {
		t.Errorf("another kind by another agent: %+v", f)
	}
	if f := s.forecast(&other, KindOnline, "xs1", 4000); f.Bytes != 4000 || f.Seconds < 9.9 || f.Seconds > 10.1 || !strings.Contains(f.Basis, "agent xs1") {
		t.Errorf("of the host: %+v", f) // 6000 bytes in 15 s
	}
	day := goodVM(1, 1<<40, 100*3600, "xs1")
	h.fold(&Report{ID: "x", Action: ActionBackup, Mode: Offline, Started: at, VMs: []VMResult{day}}, at)
	p := PlannedVM{UUID: own.UUID, Power: PowerRunning, Agent: "xs1", Bytes: 2 << 40, vm: &own}
	p.foresee(newSpeeds(h), Request{Mode: Offline}, false)
	if len(p.Risks) != 1 || !strings.Contains(p.Risks[0], "24h") || p.Forecast.Downtime != p.Forecast.Seconds+powerCycle.Seconds() ||
		p.Forecast.DowntimeBasis != "the export and 1m30s assumed for shutdown and start" {
		t.Errorf("a long one: %+v %+v", p.Risks, p.Forecast)
	}
	p = PlannedVM{Power: PowerHalted, Agent: "new", Bytes: 6e12, vm: &other}
	p.foresee(newSpeeds(h), Request{Mode: Offline}, false)
	if len(p.Risks) != 1 || p.Forecast.Seconds != 0 || p.Forecast.Downtime != 0 {
		t.Errorf("a large one of which nothing is known: %+v %+v", p.Risks, p.Forecast)
	}
}

// TestLongestFirst: a small VM of a slow host is longer than a large one of a fast host, and one of which nothing is known is
// taken to be as fast as the others.
func TestLongestFirst(t *testing.T) {
	known := func(bytes int64, seconds float64) PlannedVM {
		return PlannedVM{Bytes: bytes, Forecast: &Forecast{Bytes: bytes, Seconds: seconds}}
	}
	p := Plan{VMs: []PlannedVM{known(1000, 100), known(9000, 10), {Bytes: 4000, Forecast: &Forecast{Bytes: 4000}}, {Bytes: 100}}}
	rate := p.rate()
	var got []int64
	for i := range p.VMs {
		got = append(got, p.VMs[i].lasts(rate)/1e6)
	}
	if want := []int64{100, 10, 44, 1}; !slices.Equal(got, want) {
		t.Errorf("seconds %v, want %v", got, want)
	}
	if got := (&Plan{VMs: p.VMs[3:]}).rate(); got != usualSpeed {
		t.Errorf("nothing is known: %g bytes a second", got)
	}
}

// TestDowntime: for how long a VM will be off is taken from what it was, with the export or for a snapshot only, then from what
// other VMs were, then assumed.
func TestDowntime(t *testing.T) {
	h := newHistory()
	at := time.Now()
	fold := func(n int, down float64, brief bool) {
		vm := goodVM(n, 1000, 10, "xs1")
		vm.DowntimeSeconds = down
		at = at.Add(time.Second)
		h.fold(&Report{ID: at.String(), Action: ActionBackup, Mode: Offline, Started: at, Request: &Request{OfflineSnapshot: brief}, VMs: []VMResult{vm}}, at)
	}
	foreseen := func(n int, brief bool) string {
		vm := testVM(n, "a", poolA, 0)
		p := PlannedVM{UUID: vm.UUID, Power: PowerRunning, Agent: "xs1", Bytes: 1000, vm: &vm}
		p.foresee(newSpeeds(h), Request{Mode: Offline}, brief)
		return fmt.Sprintf("%g by %s", p.Forecast.Downtime, p.Forecast.DowntimeBasis)
	}
	for _, step := range []struct {
		fold        func()
		n           int
		brief, full string
	}{
		{func() {}, 1, "90 by 1m30s assumed for shutdown and start", "0 by "},
		{func() { fold(1, 50, false) }, 1, "90 by 1m30s assumed for shutdown and start", "50 by its last backups of this kind"},
		{func() { fold(2, 12, true) }, 1, "12 by other VMs' backups of this kind", "50 by its last backups of this kind"},
		{func() { fold(1, 20, true); fold(1, 30, true); fold(1, 10, true) }, 1, "20 by its last backups of this kind", "50 by its last backups of this kind"},
		{func() {}, 3, "12 by other VMs' backups of this kind", "100 by the export and 1m30s assumed for shutdown and start"},
	} {
		step.fold()
		if brief, full := foreseen(step.n, true), foreseen(step.n, false); brief != step.brief || full != step.full {
			t.Errorf("VM %d: for a snapshot %s, with the export %s; want %s and %s", step.n, brief, full, step.brief, step.full)
		}
	}
}

func TestDrift(t *testing.T) {
	c := stateOnly(t)
	now := time.Now().UTC().Truncate(time.Second)
	c.o.Now = func() time.Time { return now }
	c.cfg.MaxAge = 48 * time.Hour
	c.cfg.Sets = map[string]Set{"some": {VM: []string{"vm-1", "gone"}}}
	c.cfg.Specs = map[string]Spec{"S": {Mode: "online", Set: Set{Tag: []string{"s"}}}, "T": {Mode: "online", Set: Set{SR: []string{"none"}}}}
	pastSession(t, c, now.Add(-72*time.Hour), nil, goodVM(2, 1, 1, ""))
	pastSession(t, c, now.Add(-24*time.Hour), nil, goodVM(1, 1, 1, ""))
	inv := testInventory(testVM(1, "vm-1", poolA, hostA1), testVM(2, "vm-2", poolA, hostA1, "s"), testVM(3, "vm-3", poolA, hostA1),
		testVM(4, "vm-4", poolA, hostA1, "xo:no-bak"))
	p, err := c.planOf(inv, Request{Mode: AllOnline})
	if err != nil {
		t.Fatal(err)
	}
	names := func(vms []DriftVM) string {
		var all []string
		for _, vm := range vms {
			all = append(all, vm.Name)
		}
		return strings.Join(all, " ")
	}
	if d := p.Drift; names(d.Uncovered) != "vm-3" || names(d.Never) != "vm-3" || names(d.Old) != "vm-2" || d.Old[0].LastGood != now.Add(-72*time.Hour) {
		t.Errorf("%+v", d)
	}
	if d := p.Drift.without(map[vmKey]bool{{testUUID(poolA), testUUID(1002)}: true}); len(d.Old) != 0 || len(d.Never) != 1 || len(d.Uncovered) != 1 {
		t.Errorf("after a backup of vm-2: %+v", d)
	}
	c.cfg.Sets, c.cfg.Specs, c.cfg.MaxAge = nil, nil, 0
	if p, err = c.planOf(inv, Request{Mode: AllOnline}); err != nil || names(p.Drift.Never) != "vm-3" || p.Drift.Uncovered != nil || p.Drift.Old != nil {
		t.Errorf("nothing is configured: %+v, %v", p.Drift, err)
	}
	c.cfg.Specs = map[string]Spec{"all": {Mode: "allOffline", Set: Set{Exclude: []string{"vm-2"}}}}
	if p, err = c.planOf(inv, Request{Mode: AllOnline}); err != nil || names(p.Drift.Uncovered) != "vm-2" {
		t.Errorf("all but one: %+v, %v", p.Drift, err)
	}
}
