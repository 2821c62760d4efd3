package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
)

const bothPassword = "the same in both pools"

// beside starts another pool with agents of the same authority; its cell shares all else.
func (c *cell) beside(sim xensim.Config) *cell {
	c.t.Helper()
	sim.Speedup, sim.DiskSize, sim.Check, sim.Password = 100, 16<<20, true, bothPassword
	pool, err := xensim.New(sim)
	if err != nil {
		c.t.Fatal(err)
	}
	pool.Start()
	c.t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			c.t.Error(err)
		}
	})
	d := &cell{t: c.t, dir: c.dir, ca: c.ca, pool: pool, cfg: c.cfg, events: c.events, adjust: c.adjust}
	for i := range pool.Info().Hosts {
		d.stops = append(d.stops, d.startAgent(fmt.Sprintf("dr%d", i+1), i))
	}
	return d
}

// poolOf is the pool of a cell as the controller sees it.
func poolOf(c *cell, agents []controller.AgentConfig) controller.Pool {
	c.t.Helper()
	was := c.cfg.Agents
	defer func() { c.cfg.Agents = was }()
	c.cfg.Agents = agents
	inv, err := c.controller().Inventory(c.t.Context())
	if err != nil || len(inv.Pools) != 1 {
		c.t.Fatalf("%v, pools %+v", err, inv)
	}
	return inv.Pools[0]
}

// usableSR is an SR of the pool that takes disks and that all hosts see.
func usableSR(t *testing.T, p controller.Pool) controller.SR {
	t.Helper()
	i := slices.IndexFunc(p.SRs, func(s controller.SR) bool { return s.Shared && s.ContentType != "iso" })
	if i < 0 {
		t.Fatalf("no shared SR in %+v", p.SRs)
	}
	return p.SRs[i]
}

// TestRestoreReleases restores files of one release to a pool of another: what is older is taken, checksums are ones that
// the host knows, and what is newer is refused before anything is made, unless its version is to be lowered.
func TestRestoreReleases(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		from, to string
		lower    bool
		code     int
	}{
		{"7.6", "8.3.0", false, controller.CodeOK},
		{"8.2.1", "8.3.0", false, controller.CodeOK},
		{"7.6", "7.6", false, controller.CodeOK},
		{"8.2.1", "7.6", false, controller.CodePreflight},
		{"8.2.1", "7.6", true, controller.CodeWarnings},
		{"8.3.0", "8.2.1", false, controller.CodePreflight},
		{"8.3.0", "8.2.1", true, controller.CodeWarnings},
	} {
		t.Run(fmt.Sprintf("%s to %s, lowered %v", tc.from, tc.to, tc.lower), func(t *testing.T) {
			t.Parallel()
			c := newCell(t, xensim.Config{Hosts: 1, VMs: 2, ProductVersion: tc.from, Password: bothPassword})
			compression := "zstd"
			if tc.from == "7.6" {
				compression = "gzip"
			}
			before := c.state()
			r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOffline, Compression: compression})
			c.want(controller.CodeOK, r, err)
			d := c.beside(xensim.Config{Hosts: 1, VMs: 1, Seed: 7, ProductVersion: tc.to})
			there := poolOf(d, d.agents)
			c.cfg.Agents = d.agents
			req := controller.RestoreRequest{Mode: controller.AllOffline, From: c.cfg.Staging, Pool: there.UUID, SR: usableSR(t, there).UUID,
				LowerVersion: tc.lower}
			r, err = c.controller().Restore(context.Background(), req)
			c.want(tc.code, r, err)
			if tc.code == controller.CodePreflight {
				if n := len(d.state().VMs); n != 1 {
					t.Errorf("there are %d VMs", n)
				}
				if why := r.VMs[0].Error; r.VMs[0].Status != controller.StatusRefused || !strings.Contains(why, "--lower-version") {
					t.Errorf("%+v", r.VMs[0])
				}
				d.clean()
				return
			}
			for key, sum := range disks(before) {
				if got := disks(d.state())[key]; got != sum {
					t.Errorf("disk %s is %.12s, was %.12s", key, got, sum)
				}
			}
			d.clean()
		})
	}
}

// TestRestoreAcross moves a pool's VMs to another pool with a map: preview, conflicts while the first pool answers, networks,
// SRs, start order and delays.
func TestRestoreAcross(t *testing.T) {
	t.Parallel()
	c := newCell(t, xensim.Config{Hosts: 2, VMs: 3, Password: bothPassword})
	before := c.state()
	r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOffline, OfflineSnapshot: true})
	c.want(controller.CodeOK, r, err)
	for _, vm := range r.VMs {
		if (vm.PowerBefore == controller.PowerRunning) != (vm.DowntimeSeconds > 0) {
			t.Errorf("VM %s was %s and down for %v s", vm.Name, vm.PowerBefore, vm.DowntimeSeconds)
		}
	}
	d := c.beside(xensim.Config{Hosts: 2, VMs: 1, Seed: 7})
	there := poolOf(d, d.agents)
	here := poolOf(c, c.agents)
	sr := usableSR(t, there)
	network := there.Networks[slices.IndexFunc(there.Networks, func(n controller.Network) bool { return n.Name == "Backup network" })]
	file := filepath.Join(t.TempDir(), "dr.yaml")
	text := fmt.Sprintf(`pools:
  %s:
    pool: %s
    sr: %s
    host: %s
    networks: {Pool-wide network associated with eth0: Backup network}
vms:
  vm-01: {start: true, order: 2}
  vm-02: {start: true, order: 1, start_delay: 1s}
`, here.UUID, there.UUID, sr.Name, there.Hosts[1].UUID)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	req := controller.RestoreRequest{Mode: controller.AllOffline, From: c.cfg.Staging}
	if req.Map, err = controller.LoadRestoreMap(file); err != nil {
		t.Fatal(err)
	}

	c.cfg.Agents = slices.Concat(c.agents, d.agents)
	plan, err := c.controller().PlanRestore(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Runnable != 0 || plan.Selected != 3 || !strings.Contains(plan.VMs[0].Refused, "the VM exists in pool") {
		t.Errorf("while the first pool answers: %d of %d would run: %s", plan.Runnable, plan.Selected, plan.VMs[0].Refused)
	}

	c.cfg.Agents = d.agents
	if plan, err = c.controller().PlanRestore(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	if plan.Runnable != 3 || len(plan.SRs) != 1 || plan.SRs[0].UUID != sr.UUID || plan.SRs[0].Need <= 0 {
		t.Errorf("%d would run; SRs %+v", plan.Runnable, plan.SRs)
	}
	for _, vm := range plan.VMs {
		if vm.Refused != "" || vm.ToPoolUUID != there.UUID || vm.ToHost != there.Hosts[1].Name || vm.Agent != "dr2" || vm.InPlace ||
			len(vm.Disks) != 1 || vm.Disks[0].SRUUID != sr.UUID || len(vm.NICs) == 0 {
			t.Errorf("planned: %+v", vm)
		}
	}
	if got := d.state(); len(got.VMs) != 1 {
		t.Fatalf("the preview has made VMs: %d", len(got.VMs))
	}

	r, err = c.controller().Restore(context.Background(), req)
	c.want(controller.CodeOK, r, err)
	after := d.state()
	for key, sum := range disks(before) {
		if got := disks(after)[key]; got != sum {
			t.Errorf("disk %s is %.12s, was %.12s", key, got, sum)
		}
	}
	names, was := map[string]string{}, map[string]string{}
	for _, vm := range before.VMs {
		was[vm.UUID] = vm.Name
	}
	for _, vm := range after.VMs {
		if _, ours := was[vm.UUID]; !ours {
			continue
		}
		names[vm.UUID] = vm.Name
		wantPower := map[string]string{"vm-01": controller.PowerRunning, "vm-02": controller.PowerRunning}[vm.Name]
		if wantPower == "" {
			wantPower = controller.PowerHalted
		}
		if vm.PowerState != wantPower {
			t.Errorf("VM %s is %s", vm.Name, vm.PowerState)
		}
		for _, vif := range vm.VIFs {
			if vif.Network != network.UUID && vif.Network != network.Name {
				t.Errorf("VM %s: interface %s is on network %s", vm.Name, vif.Device, vif.Network)
			}
		}
	}
	if diff := cmp.Diff(was, names); diff != "" {
		t.Errorf("names (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(macs(before), onlyOf(macs(after), was)); diff != "" {
		t.Errorf("MACs (-before +after):\n%s", diff)
	}
	first := startOf(c, "vm-02")
	if second := startOf(c, "vm-01"); first < 0 || second < first {
		t.Errorf("vm-02 was started at event %d, vm-01 at %d:\n%s", first, second, c.events)
	}
	d.clean()

	// What was restored is in the way now: nothing is made twice.
	free := macs(after)
	req.Map = nil
	req.Pool, req.SR, req.AsNew = there.UUID, sr.UUID, true
	r, err = c.controller().Restore(context.Background(), req)
	c.want(controller.CodeOK, r, err)
	for key, mac := range macs(d.state()) {
		for other, taken := range free {
			if mac == taken && key != other {
				t.Errorf("%s has the MAC of %s", key, other)
			}
		}
	}
}

func onlyOf(macs map[string]string, vms map[string]string) map[string]string {
	out := map[string]string{}
	for key, mac := range macs {
		uuid, _, _ := strings.Cut(key, "/")
		if _, ok := vms[uuid]; ok {
			out[key] = mac
		}
	}
	return out
}

// startOf is the number of the event that told of a VM's start in its order.
func startOf(c *cell, name string) int {
	c.events.mu.Lock()
	defer c.events.mu.Unlock()
	return slices.IndexFunc(c.events.all, func(e controller.Event) bool {
		return e.VM != nil && e.VM.Name == name && strings.Contains(e.Message, "start order")
	})
}
