//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestProcessFlow is what a newcomer does by hand, with what he finds out by mistake.
func TestProcessFlow(t *testing.T) {
	s := newSite(t, "--vms", "4", "--disk-size", "24MiB")
	before := s.dump()
	s.says(s.dpxen(0, "hosts"), "xs1", "xs2")

	var vms []struct {
		Name string `json:"name"`
		UUID string `json:"uuid"`
	}
	if err := json.Unmarshal([]byte(s.dpxen(0, "vms", "--json")), &vms); err != nil || len(vms) != len(before.VMs) {
		t.Fatalf("vms --json has %d VMs: %v", len(vms), err)
	}
	plan := s.dpxen(0, "plan", "--mode", "allOnline")
	for _, vm := range before.VMs {
		s.says(plan, vm.Name)
	}
	s.result(s.dpxen(0, "backup", "--mode", "allOnline"), "OK", 0, "4/4")
	s.clean()
	s.same(before)
	if n := len(s.staged("*.online.*")); n != 4 {
		t.Errorf("%d files are staged instead of 4", n)
	}
	s.dpxen(0, "verify")

	victim := before.VMs[0]
	s.scribble(victim.Name, 1)
	written := s.dump()
	file := s.staged("*" + victim.UUID + "*")[0]
	flip(t, file)
	s.says(s.dpxen(5, "verify", file), "checksum")
	out := s.dpxen(5, "restore", "--mode", "online", "--vm", victim.Name, "--from", s.path("staging"))
	s.says(out, victim.Name)
	s.clean()
	s.same(written)
	for i, d := range s.vm(s.dump(), victim.Name).Disks {
		if d.VDI.UUID != victim.Disks[i].VDI.UUID {
			t.Errorf("disk %s was replaced from a damaged file", d.UserDevice)
		}
	}

	flip(t, file) // whole again
	s.dpxen(0, "verify", file)
	s.result(s.dpxen(0, "restore", "--mode", "online", "--vm", victim.Name, "--from", s.path("staging")), "OK", 0, "1/1")
	s.clean()
	s.same(before)

	s.result(s.dpxen(0, "backup", "--mode", "allOffline"), "OK", 0, "4/4")
	s.clean()
	s.scribble("", 2)
	s.result(s.dpxen(0, "restore", "--mode", "ALLOFFLINE", "--from", s.path("staging")), "OK", 0, "4/4")
	s.clean()
	s.same(before)
	s.says(s.dpxen(0, "sessions"), "OK")
}

// TestProcessDemo holds that the demonstration ends well and leaves no process.
func TestProcessDemo(t *testing.T) {
	s := newPool(t, "--vms", "1")
	out := s.dpxen(0, "demo", "--keep", s.path("demo"))
	s.says(out, "All is as it should be")
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.Contains(string(line), s.path("demo")) {
			t.Errorf("process %s is left: %q", e.Name(), line)
		}
	}
}
