//go:build e2e && linux

package e2e

import (
	"strings"
	"testing"
)

// TestSavedPlan holds that a backup does what a saved plan says and nothing else, that it refuses a plan that does not fit any
// more before anything is touched, and that the next plan knows of the backup.
func TestSavedPlan(t *testing.T) {
	s := newSite(t, "--hosts", "2", "--vms", "4", "--disk-size", "2MiB")
	file := s.path("tonight.plan")
	first, second := s.pool.VMs[0], s.pool.VMs[1]
	s.dpxen(0, "plan", "--mode", "online", "--vm", first.UUID, "--save", file)
	s.dpxen(0, "plan", "--mode", "allOnline", "--save", s.path("all.plan"))
	out := s.dpxen(0, "backup", "--plan", file)
	if !strings.Contains(out, "RESULT OK code=0 good=1/1") {
		t.Errorf("the backup of the plan:\n%s", out)
	}
	out = s.dpxen(0, "plan", "--mode", "online", "--vm", first.UUID, "--vm", second.UUID)
	if !strings.Contains(out, "at least, by earlier backups (1 of 2 VMs)") || !strings.Contains(out, "DRIFT    3 VMs never backed up well") {
		t.Errorf("the next plan does not know of the backup:\n%s", out)
	}
	x := s.client()
	vm, err := x.VMByUUID(t.Context(), second.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Call(t.Context(), "VM.add_tags", vm.Ref, "dpxen:no-backup"); err != nil {
		t.Fatal(err)
	}
	out = s.dpxen(6, "backup", "--plan", s.path("all.plan"))
	if !strings.Contains(out, "RESULT REFUSED code=6 good=0/0") {
		t.Errorf("the backup of a plan that does not fit:\n%s", out)
	}
	out = s.dpxen(0, "backup", "--mode", "allOnline")
	if !strings.Contains(out, "good=3/3") || !strings.Contains(out, "it has the tag dpxen:no-backup") {
		t.Errorf("a VM with a mark:\n%s", out)
	}
}
