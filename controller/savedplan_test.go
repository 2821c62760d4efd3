package controller

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestPlanFiles(t *testing.T) {
	c := planController(t)
	c.o.Version = "test"
	inv := kindsInventory()
	p, err := c.planOf(inv, Request{Mode: Online, Selection: Selection{VM: []string{"web-01", "off"}, Power: []string{"running", "halted"}}, Compression: "zstd"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "tonight.plan")
	for range 2 { // one that is a plan is replaced
		if err := c.SavePlan(p, path); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	got, err := LoadPlan(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got, cmpopts.IgnoreUnexported(Plan{}, PlannedVM{}, AgentStatus{})); diff != "" {
		t.Errorf("read again (-want +got):\n%s", diff)
	}
	if err := c.SavePlan(p, c.cfg.Staging+"/.dpxen/marker"); !is[*UsageError](err) {
		t.Errorf("a file that is no plan is replaced: %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "damaged": string(data[:len(data)/2]), "other JSON": `{"v":1}`, "newer": strings.Replace(string(data), `"format_version":1`, `"format_version":2`, 1),
		"no plan": `{"format":"dpxen-plan","format_version":1}`, "mode": strings.Replace(string(data), `"mode":"online"`, `"mode":"both"`, 1),
		"UUID": strings.ReplaceAll(string(data), testUUID(1001), "../../x"),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadPlan(path); !is[*UsageError](err) || !strings.Contains(err.Error(), "tonight.plan") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadPlan(filepath.Join(dir, "none")); !is[*UsageError](err) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// smallInventory is kindsInventory with disks for which any machine has room.
func smallInventory() *Inventory {
	inv := kindsInventory()
	for i := range inv.VMs {
		for k := range inv.VMs[i].Disks {
			inv.VMs[i].Disks[k].Size = 1 << 20
		}
	}
	return inv
}

// TestPlanFollowed holds what of a saved plan is done, refused or noted when something has changed since.
func TestPlanFollowed(t *testing.T) {
	vm := func(inv *Inventory, name string) *VM {
		return &inv.VMs[slices.IndexFunc(inv.VMs, func(vm VM) bool { return vm.Name == name })]
	}
	for name, tt := range map[string]struct {
		mode   Mode
		change func(*Inventory)
		err    []string // of a refusal
		note   string
		miss   bool
	}{
		"nothing":         {change: func(*Inventory) {}},
		"moved":           {change: func(i *Inventory) { vm(i, "web-01").HostUUID = testUUID(hostA2) }, note: "has moved from host"},
		"gone":            {change: func(i *Inventory) { i.VMs = slices.DeleteFunc(i.VMs, func(v VM) bool { return v.Name == "web-01" }) }, err: []string{"web-01", "it is gone"}},
		"in another pool": {change: func(i *Inventory) { vm(i, "web-01").PoolUUID, vm(i, "web-01").Pool = testUUID(poolB), "b1" }, err: []string{"in pool b1 instead of prod"}},
		"another disk":    {change: func(i *Inventory) { vm(i, "web-01").Disks[0].VDI = testUUID(5) }, err: []string{"its disks have changed"}},
		"a disk more": {change: func(i *Inventory) {
			v := vm(i, "web-01")
			v.Disks = append(v.Disks, Disk{UserDevice: "1", VDI: testUUID(6)})
		}, err: []string{"its disks have changed"}},
		"a disk left out":   {change: func(i *Inventory) { vm(i, "web-01").Disks[0].Name = "x [NOBAK]" }, err: []string{"its disks have changed"}},
		"grown":             {change: func(i *Inventory) { vm(i, "web-01").Disks[0].Size *= 2 }},
		"tag against":       {change: func(i *Inventory) { vm(i, "db-01").Tags = []string{"gold", "xo:no-bak"} }, err: []string{"db-01", "would not be chosen now: it has the tag xo:no-bak"}},
		"tag gone":          {change: func(i *Inventory) { vm(i, "db-01").Tags = nil }, err: []string{"gold"}},
		"a new VM":          {change: func(i *Inventory) { vm(i, "off").Tags = []string{"gold"} }, note: "off (" + testUUID(1005) + ") would be chosen now"},
		"switched off":      {change: func(i *Inventory) { vm(i, "web-01").Power, vm(i, "web-01").HostUUID = PowerHalted, "" }, note: "was Running when the plan was saved, and is Halted"},
		"off, for offline":  {mode: Offline, change: func(i *Inventory) { vm(i, "web-01").Power, vm(i, "web-01").HostUUID = PowerHalted, "" }, note: "is Halted"},
		"on, for offline":   {mode: Offline, change: func(i *Inventory) { vm(i, "db-01").Power = PowerPaused }, err: []string{"it was Running, and is Paused"}},
		"its pool is away":  {change: func(i *Inventory) { i.Pools, i.VMs, i.Agents[0].OK = i.Pools[:1], nil, false }, miss: true},
		"its pool has died": {change: func(i *Inventory) { i.PoolByUUID(testUUID(poolA)).Error = "x"; i.VMs = nil }, miss: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := planController(t)
			mode := tt.mode
			if mode == "" {
				mode = Online
			}
			p, err := c.planOf(smallInventory(), Request{Mode: mode, Selection: Selection{VM: []string{"web-01"}, Tag: []string{"gold"}}})
			if err != nil {
				t.Fatal(err)
			}
			data, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			saved := &Plan{}
			if err := json.Unmarshal(data, saved); err != nil {
				t.Fatal(err)
			}
			inv := smallInventory()
			if name == "its pool is away" {
				inv.Pools = slices.DeleteFunc(inv.Pools, func(p Pool) bool { return p.UUID == testUUID(poolA) })
			}
			tt.change(inv)
			req := saved.Request
			req.Saved = saved
			got, err := c.planOf(inv, req)
			if len(tt.err) > 0 {
				if !is[*PreflightError](err) || ExitCode(nil, err) != CodePreflight {
					t.Fatalf("got %v, want a PreflightError", err)
				}
				for _, part := range tt.err {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("lacks %q: %v", part, err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.miss {
				if len(got.Missing) != 2 || got.Selected != 0 || ExitCode(nil, got.Preflight()) != CodeUnreachable {
					t.Errorf("missing %+v, %d selected", got.Missing, got.Selected)
				}
				return
			}
			if got.Runnable != 2 || got.Selected != 2 {
				t.Errorf("%d of %d run", got.Runnable, got.Selected)
			}
			if tt.note != "" && !slices.ContainsFunc(got.Notes, func(n string) bool { return strings.Contains(n, tt.note) }) {
				t.Errorf("notes %q lack %q", got.Notes, tt.note)
			}
			for _, vm := range got.VMs {
				if !vm.Chosen && vm.Why != "not in the saved plan" {
					t.Errorf("%s: %q", vm.Name, vm.Why)
				}
			}
		})
	}
}
