package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/rpc"
)

// keptSession keeps a session's report as a done one.
func keptSession(t *testing.T, c *Controller, r Report) string {
	t.Helper()
	s := mustSession(t, c, r)
	if _, err := s.finish(time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // IDs sort by milliseconds
	return s.id
}

func outcome(n int, status Status) VMResult {
	return VMResult{UUID: testUUID(n), Name: fmt.Sprint("vm", n), Pool: "A", PoolUUID: testUUID(poolA), Status: status, File: fmt.Sprintf("vm%d.xva", n)}
}

func TestFormer(t *testing.T) {
	c := stateOnly(t)
	c.o.Now = time.Now
	sel := Selection{Exclude: []string{"x"}}
	req := Request{Mode: AllOffline, Selection: sel, ForceOff: true, Compression: "zstd"}
	here := AgentStatus{Name: "a1", OK: true, PoolUUID: testUUID(poolA)}
	vms := []VMResult{outcome(1, StatusGood), outcome(2, StatusFailed), outcome(3, StatusRefused), outcome(4, StatusSkipped),
		outcome(5, StatusCancelled), {Name: "unknown", Status: StatusFailed}}
	id := keptSession(t, c, Report{Action: ActionBackup, Mode: AllOffline, Selection: &sel, Request: &req, Agents: []AgentStatus{here}, VMs: vms})
	f, err := c.Former(id)
	if err != nil {
		t.Fatal(err)
	}
	got := f.request()
	want := req
	want.Again = &Again{Session: id, Seen: []string{testUUID(poolA)}}
	for _, n := range []int{2, 3, 5} {
		want.Again.VMs = append(want.Again.VMs, VMID{UUID: testUUID(n), Name: fmt.Sprint("vm", n), Pool: "A", PoolUUID: testUUID(poolA)})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asks for (-want +got):\n%s", diff)
	}

	// A rerun, and a rerun of that, make two of three good.
	again := keptSession(t, c, Report{Action: ActionBackup, RerunOf: id, Mode: AllOffline, VMs: []VMResult{outcome(2, StatusGood), outcome(3, StatusFailed)}})
	keptSession(t, c, Report{Action: ActionBackup, RerunOf: again, Mode: AllOffline, VMs: []VMResult{outcome(3, StatusGood)}})
	if f, err = c.Former(id); err != nil || len(f.failed) != 2 || f.failed[0].UUID != testUUID(5) {
		t.Errorf("after reruns: %v, %+v", err, f)
	}
	if _, err := c.Former(again); !errors.Is(err, ErrNothingToRerun) {
		t.Errorf("a rerun that was run again: %v", err)
	}
	// VMs of a pool that did not answer are not done again either, once reruns have made them good.
	away := AgentStatus{Name: "b1"}
	unseen := keptSession(t, c, Report{Action: ActionBackup, Mode: AllOffline, Selection: &sel, Request: &req, Agents: []AgentStatus{here, away},
		VMs: []VMResult{outcome(1, StatusGood), {Name: "vm8", Status: StatusFailed}}})
	if f, err = c.Former(unseen); err != nil || !f.request().Again.Unseen {
		t.Errorf("a pool did not answer: %v, %+v", err, f)
	}
	ofB := func(n int, s Status) VMResult {
		vm := outcome(n, s)
		vm.PoolUUID, vm.Pool = testUUID(poolB), "B"
		return vm
	}
	away.OK, away.PoolUUID = true, testUUID(poolB)
	half := keptSession(t, c, Report{Action: ActionBackup, RerunOf: unseen, Mode: AllOffline, Agents: []AgentStatus{here, away},
		VMs: []VMResult{ofB(7, StatusGood), ofB(8, StatusFailed)}})
	done := []VMID{{UUID: testUUID(7), Name: "vm7", Pool: "B", PoolUUID: testUUID(poolB)}}
	if f, err = c.Former(unseen); err != nil {
		t.Error(err)
	} else if diff := cmp.Diff(&Again{Session: unseen, Unseen: true, Seen: []string{testUUID(poolA)}, Done: done}, f.request().Again); diff != "" {
		t.Errorf("one of two is good (-want +got):\n%s", diff)
	}
	keptSession(t, c, Report{Action: ActionBackup, RerunOf: unseen, Mode: AllOffline, Agents: []AgentStatus{here, {Name: "b1"}},
		VMs: []VMResult{{Name: "vm8", Status: StatusFailed}}})
	keptSession(t, c, Report{Action: ActionBackup, RerunOf: half, Mode: AllOffline, VMs: []VMResult{ofB(8, StatusGood)}})
	if _, err := c.Former(unseen); !errors.Is(err, ErrNothingToRerun) {
		t.Errorf("both are good: %v", err)
	}
	good := keptSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, VMs: []VMResult{outcome(1, StatusGood), outcome(4, StatusSkipped)}})
	if _, err := c.Former(good); !errors.Is(err, ErrNothingToRerun) {
		t.Errorf("all good: %v", err)
	}
	refused := keptSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, Request: &req})
	if f, err := c.Former(refused); err != nil || f.request().Again != nil || !f.request().ForceOff {
		t.Errorf("one that never knew its VMs: %v", err)
	}
	running := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline})
	if _, err := c.Former(running.id); !is[*LockedError](err) {
		t.Errorf("one that runs: %v", err)
	}
	if _, err := running.finish(time.Now(), nil); err != nil {
		t.Error(err)
	}
	old := keptSession(t, c, Report{Action: ActionRestore, Mode: Online, VMs: []VMResult{outcome(1, StatusFailed)}})
	if _, err := c.Former(old); !is[*UsageError](err) {
		t.Errorf("a restore of an older dpxen: %v", err)
	}
	rr := RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"*"}}, Files: []string{"/other/vm3.xva"}, KeepOldDisks: true}
	restored := keptSession(t, c, Report{Action: ActionRestore, Mode: Online, Folder: "/restore", RestoreRequest: &rr,
		VMs: []VMResult{outcome(1, StatusGood), outcome(2, StatusFailed), outcome(3, StatusFailed)}})
	if f, err = c.Former(restored); err != nil {
		t.Fatal(err)
	}
	if r := f.restoreRequest(); !slices.Equal(r.Files, []string{"vm2.xva", "/other/vm3.xva"}) || r.From != "/restore" || !r.KeepOldDisks {
		t.Errorf("restores %+v", r)
	}
}

// TestRerunOfRestore: of what was asked for by name, in a map or as another SR or network, the VM that is good already is not
// looked for among the files that are left; and a file is found in its own folder.
func TestRerunOfRestore(t *testing.T) {
	c, dir := restoreFolder(t)
	c.o.Now = time.Now
	req := RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"web", "db"}, Exclude: []string{"web-*"}}, SRs: map[string]string{"old": "new"},
		Networks: map[string]string{"old": "new"}, Map: &RestoreMap{VMs: map[string]RestoreMember{"web": {}, "db": {}}}}
	set, err := c.RestoreFiles(RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"web", "db"}}})
	if err != nil || len(set.Items) != 2 {
		t.Fatalf("%v, %+v", err, set)
	}
	report := Report{Action: ActionRestore, Mode: Online, Folder: dir, RestoreRequest: &req}
	for i := range set.Items {
		res := (&target{RestoreItem: set.Items[i]}).result(&req)
		res.Status = StatusGood
		if res.Name == "db" {
			res.Status = StatusFailed
		}
		report.VMs = append(report.VMs, res)
	}
	f, err := c.Former(keptSession(t, c, report))
	if err != nil {
		t.Fatal(err)
	}
	again := f.restoreRequest()
	set, err = c.RestoreFiles(again)
	if err != nil || items(set) != "2@2030" || again.Files[0] != set.Items[0].Path {
		t.Fatalf("%v, of %v: %+v", err, again.Files, set)
	}
	if err := newPlacing(&again, &Inventory{}).err(true); err != nil {
		t.Errorf("the map: %v", err)
	}
	if err := newPlacing(&req, &Inventory{}).err(true); err == nil {
		t.Error("the map of the former session: no fault")
	}
}

// TestRerunResolves: exactly what the former session left undone is chosen, whatever the selection says by now, and what is
// not there any more is told.
func TestRerunResolves(t *testing.T) {
	inv := chooseInventory()
	inv.VMs = nil
	for n := 1; n <= 3; n++ {
		inv.VMs = append(inv.VMs, VM{UUID: testUUID(n), Name: fmt.Sprint("vm", n), PoolUUID: testUUID(poolA), Pool: "A"})
	}
	inv.VMs = append(inv.VMs, VM{UUID: testUUID(1), Name: "twin", PoolUUID: testUUID(poolB), Pool: "B"})
	id := func(n, pool int) VMID {
		return VMID{UUID: testUUID(n), Name: fmt.Sprint("vm", n), PoolUUID: testUUID(pool), Pool: "P"}
	}
	for name, tt := range map[string]struct {
		again   Again
		chosen  string
		missing string
	}{
		"two":              {Again{VMs: []VMID{id(1, poolA), id(3, poolA)}}, "[vm1 vm3]", "[]"},
		"deleted":          {Again{VMs: []VMID{id(2, poolA), id(9, poolA)}}, "[vm2]", "[vm9 VM_NOT_FOUND]"},
		"its pool is away": {Again{VMs: []VMID{id(1, 77)}}, "[]", "[vm1 UNREACHABLE]"},
		"a pool was away":  {Again{VMs: []VMID{id(2, poolA)}, Unseen: true, Seen: []string{testUUID(poolA)}}, "[vm2 twin]", "[]"},
		"and was done":     {Again{VMs: []VMID{id(2, poolA)}, Unseen: true, Seen: []string{testUUID(poolA)}, Done: []VMID{id(1, poolB)}}, "[vm2]", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.again.Session = "s"
			res, err := Request{Mode: AllOnline, Again: &tt.again}.resolve(inv, nil)
			if err != nil {
				t.Fatal(err)
			}
			var chosen, missing []string
			for i, d := range res.decisions {
				if d.chosen {
					chosen = append(chosen, inv.VMs[i].Name)
				}
			}
			for _, m := range res.missing {
				missing = append(missing, m.Asked+" "+m.Reason)
			}
			if fmt.Sprint(chosen) != tt.chosen || fmt.Sprint(missing) != tt.missing {
				t.Errorf("chosen %v, missing %v", chosen, missing)
			}
		})
	}
}

// TestHeldBy: who has a VM that is claimed is in its result, and a claim of the session itself is waited for as such.
func TestHeldBy(t *testing.T) {
	err := rpc.Errorf(rpc.Claimed, "claimed")
	err.Holder = &rpc.Holder{Controller: "dp2", Session: "s2", Agent: "xs1"}
	var vm VMResult
	(&runner{}).failed(t.Context(), &vm, fmt.Errorf("try: %w", err))
	if vm.HeldBy == nil || vm.HeldBy.Controller != "dp2" || !strings.Contains(vm.Advice, "rerun") {
		t.Errorf("%+v", vm)
	}
	if !holds("s2", err) || holds("s1", err) {
		t.Error("whose session it is")
	}
}
