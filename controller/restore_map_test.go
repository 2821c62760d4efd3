package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLoadRestoreMap(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want []string // in the error, all of them; none: it loads
	}{
		"all of it": {`
networks: {Production: Lab}
srs: {"local 1": shared}
hosts: {xs1: dr1}
pools:
  prod: {pool: dr, host: dr1, sr: shared, networks: {a: b}, srs: {c: d}, hosts: {e: f}}
vms:
  db: {pool: dr, host: dr2, sr: fast, networks: {a: c}, srs: {x: y}, name: db-copy, start: true, order: 0, start_delay: 2m}
  7: {start: false}
`, nil},
		"nothing": {"", []string{"it says nothing"}},
		"every fault at once": {`
network: {a: b}
pools: {prod: {pol: dr}}
vms:
  db: {order: -1, start_delay: 30}
  web: {order: first, start_delay: 48h, networks: {a: ""}}
`, []string{"network", "pools.prod", "pol", "vms.db.order", "vms.db.start_delay", "want a duration", "vms.web.order", "vms.web.start_delay", "(line "}},
		"no YAML":       {"vms: [", []string{"yaml"}},
		"two documents": {"vms: {a: {start: true}}\n---\n{}\n", []string{"more than one"}},
		"a key twice":   {"srs: {a: b}\nsrs: {a: c}\n", []string{"already defined"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "map.yaml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := LoadRestoreMap(path)
			if len(tt.want) == 0 {
				if err != nil || m.VMs["db"].StartDelay == nil || *m.VMs["db"].StartDelay != 2*time.Minute || m.VMs["7"].Start == nil {
					t.Errorf("%+v, %v", m, err)
				}
				return
			}
			if !is[*ConfigError](err) || ExitCode(nil, err) != CodeUsage {
				t.Fatalf("got %v, want a ConfigError", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\ndoes not say %q", err, want)
				}
			}
		})
	}
	if _, err := LoadRestoreMap(filepath.Join(t.TempDir(), "none")); !is[*ConfigError](err) {
		t.Errorf("no file: %v", err)
	}
}

// TestWish holds what beats what: the command line, the VM, its pool, all.
func TestWish(t *testing.T) {
	order, delay, yes, no := 3, time.Minute, true, false
	m := &RestoreMap{Networks: map[string]string{"a": "all", "b": "all", "c": "all", "d": "all"}, SRs: map[string]string{"s": "all"},
		Pools: map[string]RestorePool{"prod": {Pool: "dr", Host: "h", SR: "sr", Networks: map[string]string{"a": "pool", "b": "pool", "c": "pool"}}},
		VMs: map[string]RestoreMember{
			"web":       {Host: "own", Networks: map[string]string{"a": "vm", "b": "vm"}, Start: &yes, Order: &order, StartDelay: &delay, Name: "copy"},
			testUUID(2): {Pool: "other", Start: &no},
			"nobody":    {},
		}}
	req := &RestoreRequest{Networks: map[string]string{"a": "line"}, Map: m, Start: true}
	used := map[string]bool{}
	got := req.wish(&RestoreItem{UUID: testUUID(1), Name: "web", Pool: "prod"}, used)
	want := wish{pool: "dr", host: "own", sr: "sr", name: "copy", start: true, order: &order, delay: &delay,
		networks: map[string]string{"a": "line", "b": "vm", "c": "pool", "d": "all"}, srs: map[string]string{"s": "all"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(wish{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := req.wish(&RestoreItem{UUID: testUUID(2), Name: "db"}, used); got.pool != "other" || got.start || got.host != "" {
		t.Errorf("by UUID: %+v", got)
	}
	if faults := m.unused(used); len(faults) != 1 || faults[0].Key != "vms.nobody" {
		t.Errorf("unused: %v", faults)
	}
}
