package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
)

// TestPreflight holds what refuses a VM although its agent would restore it.
func TestPreflight(t *testing.T) {
	const gib = 1 << 30
	pool := Pool{UUID: testUUID(poolA), Name: "A", SRs: []SR{{UUID: "sr", Name: "nfs", Size: 10 * gib, Used: 4 * gib}, {UUID: "dark", Name: "dark"}},
		Networks: []Network{{UUID: testUUID(800), Name: "lan"}}}
	inv := &Inventory{Pools: []Pool{pool, {UUID: testUUID(poolB), Name: "B"}}, VMs: []VM{
		{UUID: testUUID(5), Name: "other", PoolUUID: pool.UUID, Pool: "A", NICs: []NIC{{MAC: "AA:bb:cc:00:00:05"}}},
		{UUID: testUUID(6), Name: "elsewhere", PoolUUID: testUUID(poolB), Pool: "B", Power: PowerHalted, NICs: []NIC{{MAC: "aa:bb:cc:00:00:06"}}},
	}}
	aim := func(n int, need int64, sr, mac, network string) *target {
		known := ""
		if network == "lan" {
			known = testUUID(800)
		}
		return &target{RestoreItem: RestoreItem{UUID: testUUID(n), Name: fmt.Sprint("vm", n)}, pool: &pool, preview: &restorePreview{
			Disks: []restoreDisk{{ToSR: sr, Need: need}},
			NICs:  []restoreNIC{{NIC: NIC{Device: "0", MAC: mac, Network: network}, ToUUID: known, To: network, Made: true}}}}
	}
	for name, tt := range map[string]struct {
		req      RestoreRequest
		targets  []*target
		refused  string // of each: a letter of its reason, or -
		says     string // in what the last one is refused for, or warned of
		warnings int
	}{
		"all is well":                       {targets: []*target{aim(1, 2*gib, "sr", "aa:bb:cc:00:00:01", "lan")}, refused: "-"},
		"room for all":                      {targets: []*target{aim(1, 2*gib, "sr", "", "lan"), aim(2, 4*gib, "sr", "", "lan")}, refused: "--"},
		"not for a third":                   {targets: []*target{aim(1, 2*gib, "sr", "", "lan"), aim(2, 3*gib, "sr", "", "lan"), aim(3, 2*gib, "sr", "", "lan")}, refused: "--S", says: "of which the VMs before it may need 5.0 GiB"},
		"one that is refused holds no room": {targets: []*target{aim(1, 7*gib, "sr", "", "lan"), aim(2, 6*gib, "sr", "", "lan")}, refused: "S-"},
		"an SR that does not tell":          {targets: []*target{aim(1, 99*gib, "dark", "", "lan")}, refused: "-"},
		"a MAC of another VM":               {targets: []*target{aim(1, 1, "sr", "aa:BB:cc:00:00:05", "lan")}, refused: "C", says: "VM other"},
		"its own MAC":                       {targets: []*target{aim(5, 1, "sr", "aa:bb:cc:00:00:05", "lan")}, refused: "-"},
		"a MAC of another pool's VM":        {targets: []*target{aim(1, 1, "sr", "aa:bb:cc:00:00:06", "lan")}, refused: "-"},
		"a MAC, as new":                     {req: RestoreRequest{AsNew: true}, targets: []*target{aim(1, 1, "sr", "aa:bb:cc:00:00:05", "lan")}, refused: "-"},
		"the VM is elsewhere":               {targets: []*target{aim(6, 1, "sr", "", "lan")}, refused: "C", says: "exists in pool B"},
		"elsewhere, as new":                 {req: RestoreRequest{AsNew: true}, targets: []*target{aim(6, 1, "sr", "", "lan")}, refused: "-"},
		"no such network":                   {targets: []*target{aim(1, 1, "sr", "", "dmz")}, refused: "C", says: `no network "dmz"`},
		"all of it allowed":                 {req: RestoreRequest{AllowConflicts: true}, targets: []*target{aim(6, 1, "sr", "aa:bb:cc:00:00:05", "dmz")}, refused: "-", says: "--allow-conflicts", warnings: 3},
		"two files with one MAC":            {targets: []*target{aim(1, 1, "sr", "aa:bb:cc:00:00:01", "lan"), aim(2, 1, "sr", "aa:bb:cc:00:00:01", "lan")}, refused: "--", says: "vm1", warnings: 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := &preflight{req: &tt.req, inv: inv, free: map[string]int64{}, macs: map[string]*target{}}
			got := ""
			for _, x := range tt.targets {
				f.check(x)
				switch x.Reason {
				case "":
					got += "-"
				case string(rpc.Conflict), string(rpc.SRFull):
					got += x.Reason[:1]
				}
				if x.Refused != "" && x.Advice == "" {
					t.Errorf("%s: no advice", x.Refused)
				}
			}
			last := tt.targets[len(tt.targets)-1]
			if got != tt.refused || len(last.warnings) != tt.warnings || !strings.Contains(last.Refused+strings.Join(last.warnings, "\n"), tt.says) {
				t.Errorf("refused %q, want %q: %s, warnings %q", got, tt.refused, last.Refused, last.warnings)
			}
		})
	}
}

// TestArrange holds which VMs the session starts itself, and in which order.
func TestArrange(t *testing.T) {
	ready := func(order int, delay time.Duration, start bool) *target {
		return &target{order: order, delay: delay, wish: wish{start: start}, preview: &restorePreview{}}
	}
	running := ready(1, 0, true)
	running.vm = &VM{Power: PowerRunning}
	refused := ready(1, 0, true)
	refused.Refused = "no"
	for name, tt := range map[string]struct {
		targets []*target
		want    string
	}{
		"one alone":            {[]*target{ready(5, time.Second, true)}, "-"},
		"all of one order":     {[]*target{ready(1, 0, true), ready(1, 0, true)}, "--"},
		"of one, with a delay": {[]*target{ready(1, time.Second, true), ready(1, 0, true)}, "ss"},
		"two orders":           {[]*target{ready(2, 0, true), ready(1, 0, true), ready(0, 0, false)}, "ss-"},
		"one that runs":        {[]*target{running, ready(2, 0, true), ready(3, 0, true)}, "-ss"},
		"one that is refused":  {[]*target{refused, ready(2, 0, true)}, "--"},
	} {
		t.Run(name, func(t *testing.T) {
			arrange(&RestoreRequest{}, tt.targets)
			got := ""
			for _, x := range tt.targets {
				got += map[bool]string{true: "s", false: "-"}[x.starts]
				x.starts = false
			}
			if got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
