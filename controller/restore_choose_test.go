package controller

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// chooseInventory has pools A (hosts and agents a1, a2; VM 1) and B (agent b1; VM 1 as well).
func chooseInventory() *Inventory {
	pool := func(n int, name string, agents ...string) Pool {
		return Pool{UUID: testUUID(n), Name: name, Agents: agents, SRs: []SR{
			{UUID: testUUID(n*10 + 900), Name: "nfs"}, {UUID: testUUID(n*10 + 901), Name: "twin"}, {UUID: testUUID(n*10 + 902), Name: "twin"},
			{UUID: testUUID(n*10 + 903), Name: "isos", ContentType: "iso"}}}
	}
	here := VM{UUID: testUUID(1), Name: "web", PoolUUID: testUUID(poolA), Agents: []string{"a2", "a1"}, Power: PowerRunning}
	there := here
	there.PoolUUID, there.Agents = testUUID(poolB), []string{"b1"}
	return &Inventory{Pools: []Pool{pool(poolA, "A", "a1", "a2"), pool(poolB, "B", "b1"), pool(7, "idle")}, VMs: []VM{here, there}}
}

func TestPlace(t *testing.T) {
	for name, tt := range map[string]struct {
		vm, pool int // of the file; pool 0: no manifest
		req      RestoreRequest
		want     string // pool, agents, SR
		reason   string
		usage    string // a UsageError with this
	}{
		"where it is":            {vm: 1, pool: poolA, want: "A a2,a1 "},
		"in the other pool":      {vm: 1, pool: poolB, want: "B b1 "},
		"absent":                 {vm: 2, pool: poolA, want: "A a1,a2 "},
		"its pool is away":       {vm: 2, pool: 99, reason: ReasonUnreachable},
		"another pool":           {vm: 2, pool: 99, req: RestoreRequest{Pool: "B"}, want: "B b1 "},
		"another pool by UUID":   {vm: 1, pool: poolA, req: RestoreRequest{Pool: strings.ToUpper(testUUID(poolB))}, want: "B b1 "},
		"an unknown pool":        {vm: 1, pool: poolA, req: RestoreRequest{Pool: "C"}, usage: "names 0 pools"},
		"no agent there":         {vm: 1, pool: 7, reason: ReasonUnreachable},
		"adopted, in two pools":  {vm: 1, usage: "no manifest"},
		"adopted, nowhere":       {vm: 2, usage: "--pool"},
		"adopted, with its pool": {vm: 1, req: RestoreRequest{Pool: "A"}, want: "A a2,a1 "},
		"an SR":                  {vm: 1, pool: poolA, req: RestoreRequest{SR: "nfs"}, want: "A a2,a1 " + testUUID(poolA*10+900)},
		"an SR by UUID":          {vm: 1, pool: poolA, req: RestoreRequest{SR: testUUID(poolA*10 + 902)}, want: "A a2,a1 " + testUUID(poolA*10+902)},
		"an ambiguous SR":        {vm: 1, pool: poolA, req: RestoreRequest{SR: "twin"}, usage: "names 2 SRs"},
		"the other pool's SR":    {vm: 1, pool: poolA, req: RestoreRequest{SR: testUUID(poolB*10 + 900)}, usage: "names 0 SRs"},
	} {
		t.Run(name, func(t *testing.T) {
			item := &target{RestoreItem: RestoreItem{UUID: testUUID(tt.vm), File: "f.xva"}}
			if tt.pool != 0 {
				item.PoolUUID = testUUID(tt.pool)
			}
			p := newPlacing(&tt.req, chooseInventory())
			reason, err := p.place(item)
			if err == nil {
				err = p.err(false)
			}
			switch {
			case tt.usage != "":
				if !is[*UsageError](err) || !strings.Contains(err.Error(), tt.usage) {
					t.Errorf("%v", err)
				}
			case tt.reason != "":
				if err == nil || reason != tt.reason || is[*UsageError](err) {
					t.Errorf("%s, %v", reason, err)
				}
			case err != nil:
				t.Error(err)
			default:
				if got := fmt.Sprintf("%s %s %s", item.pool.Name, strings.Join(item.agents, ","), item.sr); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			}
		})
	}
}

// TestPlaceSpreads: VMs that do not exist go to the agents in turn.
func TestPlaceSpreads(t *testing.T) {
	p := newPlacing(&RestoreRequest{}, chooseInventory())
	for i := range 6 {
		item := &target{RestoreItem: RestoreItem{UUID: testUUID(100 + i), PoolUUID: testUUID(poolA)}}
		if _, err := p.place(item); err != nil {
			t.Fatal(err)
		}
	}
	if p.load["a1"] != 3 || p.load["a2"] != 3 {
		t.Errorf("%v", p.load)
	}
}

func TestRestoreUses(t *testing.T) {
	inv := chooseInventory()
	inv.VMs[0].Disks = []Disk{{SR: "s1"}, {SR: "s2"}, {SR: "s1"}}
	inv.VMs[0].HostUUID = "h"
	there := &vmRestore{restore: &restore{runner: runner{hosts: map[string]string{"a1": "own"}}},
		item: &target{pool: &inv.Pools[0], vm: &inv.VMs[0]}}
	if got := there.uses("a1"); !slices.Equal(got.srs, []string{"s1", "s2"}) || !slices.Equal(got.hosts, []string{"h", "own"}) || got.pool != testUUID(poolA) {
		t.Errorf("%+v", got)
	}
	there.item.sr = "s3"
	if got := there.uses("a1"); !slices.Equal(got.srs, []string{"s3"}) {
		t.Errorf("with an SR: %+v", got)
	}
}

// TestWorthTelling: of what a restore leaves aside only older files of its VMs and damaged ones are worth a remark.
func TestWorthTelling(t *testing.T) {
	c, dir := restoreFolder(t)
	damaged := stagedBackup{n: 4, name: "torn", mode: Offline, at: testTime, pool: poolB}.stage(t, dir)
	other := stagedBackup{n: 1, name: "web", mode: Offline, at: testTime.Add(time.Hour), pool: poolA}.stage(t, dir)
	writeFile(t, strings.TrimSuffix(damaged, ".xva")+".json", []byte("{"))
	set, err := c.RestoreFiles(RestoreRequest{Mode: Online, Selection: Selection{VM: []string{testUUID(1)}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(set.Skipped) < 5 {
		t.Fatalf("skipped: %+v", set.Skipped)
	}
	told := strings.Join(set.worthTelling(), "\n")
	older := "web." + testUUID(1) + ".online." + testTime.Format("20060102T150405Z")
	for _, want := range []string{older, filepath.Base(damaged)} {
		if !strings.Contains(told, want) {
			t.Errorf("%s is not told of:\n%s", want, told)
		}
	}
	for _, no := range []string{filepath.Base(other), "foreign.xva", "db." + testUUID(2), "web." + testUUID(3)} {
		if strings.Contains(told, no) {
			t.Errorf("%s is told of:\n%s", no, told)
		}
	}
}

// TestLockSource: a restore out of the staging folder keeps backups out of it, whatever the folder is called.
func TestLockSource(t *testing.T) {
	c := stateOnly(t)
	_, lock, err := c.openStaging("backup")
	if err != nil {
		t.Fatal(err)
	}
	restoreOf := func(from string) error {
		s := mustSession(t, c, Report{Action: ActionRestore, Mode: AllOnline})
		r := &restore{runner: runner{c: c, s: s}, req: RestoreRequest{Mode: AllOnline, From: from}}
		unlock, err := r.lockSource()
		if err == nil {
			err = unlock()
		}
		if _, ferr := s.finish(time.Now(), nil); ferr != nil {
			t.Error(ferr)
		}
		return err
	}
	for _, from := range []string{c.cfg.Staging, c.cfg.Staging + "/", filepath.Join(c.cfg.Staging, "..", filepath.Base(c.cfg.Staging))} {
		if err := restoreOf(from); !is[*LockedError](err) {
			t.Errorf("from %s: %v", from, err)
		}
	}
	if err := restoreOf(t.TempDir()); err != nil {
		t.Errorf("from another folder: %v", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := restoreOf(c.cfg.Staging); err != nil {
		t.Errorf("once it is free: %v", err)
	}
}
