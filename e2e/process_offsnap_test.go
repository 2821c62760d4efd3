//go:build e2e && linux

package e2e

import (
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// offSnapStages are the stages of --offline-snapshot: what makes each last, and how it is seen.
var offSnapStages = []struct {
	name string
	slow xensim.Fault
	here func(is xensim.State, vm xensim.VMState) bool
}{
	{"shutdown", xensim.Fault{Name: "shutdown-late", Delay: lasting}, func(_ xensim.State, vm xensim.VMState) bool {
		return slices.Contains(vm.Current, "clean_shutdown")
	}},
	{"snapshot", slowCall("VM.snapshot"), func(is xensim.State, vm xensim.VMState) bool {
		return vm.PowerState == "Halted" && len(is.Snapshots) == 0
	}},
	{"start", slowCall("VM.start"), func(is xensim.State, vm xensim.VMState) bool {
		return vm.PowerState == "Halted" && len(is.Snapshots) > 0
	}},
	{"export", xensim.Fault{Name: "export-stall", After: 2 << 20, Delay: lasting}, func(is xensim.State, vm xensim.VMState) bool {
		return vm.PowerState == "Running" && len(is.Snapshots) > 0
	}},
	{"deletion", slowCall("VDI.destroy"), func(is xensim.State, vm xensim.VMState) bool {
		return vm.PowerState == "Running" && len(is.Snapshots)+len(is.Orphans) > 0
	}},
}

// TestProcessOfflineSnapshotKilled kills the controller, the agent, or both at once at each stage of --offline-snapshot:
// afterwards the VM runs as before, nothing is left, and what is called good is good.
func TestProcessOfflineSnapshotKilled(t *testing.T) {
	for _, who := range []string{"controller", "agent", "both"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			s := patientSite(t, "--hosts", "1", "--vms", "2", "--disk-size", "6MiB")
			before := s.dump()
			name := running(t, before).Name
			for i, stage := range offSnapStages {
				if who == "both" && i%2 == 0 {
					continue // each of the two shows what there is to see alone
				}
				s.sub(stage.name, func(t *testing.T) { s.killOfflineSnapshot(who, i, name, before) })
			}
			s.result(s.dpxen(0, "backup", "--mode", "offline", "--offline-snapshot", "--vm", name), "OK", 0, "1/1")
			s.dpxen(0, "verify")
			s.same(before)
			s.clean()
		})
	}
}

func (s *site) killOfflineSnapshot(who string, stage int, name string, before xensim.State) {
	s.t.Helper()
	at := offSnapStages[stage]
	if at.slow.Method != "" {
		at.slow.Times = 1
	}
	s.inject(at.slow)
	p := s.begin("backup", "--mode", "offline", "--offline-snapshot", "--vm", name)
	s.until(30*time.Second, "the backup is at that stage", func() bool {
		if !p.running() {
			s.t.Fatalf("the backup ended before:\n%s", p.out)
		}
		is := s.dump()
		return at.here(is, s.vm(is, name)) && (at.slow.Times == 0 || !s.armed(at.slow))
	})
	if who != "controller" {
		s.agents[0].end(s.t, syscall.SIGKILL)
	}
	if who != "agent" {
		if code := p.end(s.t, syscall.SIGKILL); code != -1 {
			s.t.Fatalf("the controller ended with %d before it was killed:\n%s", code, p.out)
		}
	}
	s.clearFault(at.slow.Name)
	if who != "controller" {
		s.startAgent(0)
	}
	if who == "agent" {
		s.truthful(p, before)
	} else {
		s.says(s.dpxen(0, "sessions"), "interrupted")
	}
	s.until(60*time.Second, "repair finds nothing more to do", func() bool {
		return s.begin("repair").wait(s.t) == 0 && len(s.leftovers()) == 0
	})
	s.says(s.dpxen(0, "repair"), "nothing to repair")
	s.same(before)
	if len(s.staged("*")) > 0 {
		s.dpxen(0, "verify") // what has its final name is whole
	}
	s.clean()
}

// armed tells whether a fault is yet to happen.
func (s *site) armed(f xensim.Fault) bool {
	s.t.Helper()
	var faults struct {
		Armed []xensim.Fault `json:"armed"`
	}
	s.control(http.MethodGet, "/faults", nil, &faults)
	return slices.ContainsFunc(faults.Armed, func(a xensim.Fault) bool { return a.Name == f.Name && a.Method == f.Method })
}

// truthful waits for a session's end: it is good with a file to show for it and the VM as it was, or it says that it is not.
func (s *site) truthful(p *program, before xensim.State) {
	s.t.Helper()
	code := p.wait(s.t)
	text := p.out.String()
	switch {
	case code == 0 || code == 4:
		s.says(text, "good=1/1")
		s.same(before)
		if len(s.staged("*.offline.*")) == 0 {
			s.t.Errorf("good without a file:\n%s", text)
		}
	case !strings.Contains(text, "good=0/1"):
		s.t.Errorf("code %d:\n%s", code, text)
	}
}

// TestProcessTwoPoolsKilled kills the controller of a session while VMs of two pools are down for it, and an agent of one pool
// with it: each pool is made whole by its own agents, and the session is seen as interrupted until it is repaired.
func TestProcessTwoPoolsKilled(t *testing.T) {
	t.Parallel()
	s, other := newSites(t, []string{"--hosts", "2", "--vms", "3", "--disk-size", "6MiB", "--bandwidth", "1MiB"},
		[]string{"--hosts", "2", "--vms", "3", "--disk-size", "6MiB", "--bandwidth", "1MiB"},
		"  total: 8\n  per_host: 2\n  per_sr: 2\n  per_pool: 2\n  stagger: 0s\n")
	before, beforeOther := s.dump(), other.dump()
	down := func(was, is xensim.State) bool {
		return slices.ContainsFunc(was.VMs, func(vm xensim.VMState) bool {
			now := find(is, vm.UUID)
			return vm.PowerState == "Running" && now != nil && now.PowerState == "Halted" && slices.Contains(now.Current, "export")
		})
	}
	p := s.begin("backup", "--mode", "allOffline")
	s.until(30*time.Second, "VMs of both pools are down and exported", func() bool {
		return down(before, s.dump()) && down(beforeOther, other.dump())
	})
	if code := p.end(t, syscall.SIGKILL); code != -1 {
		t.Fatalf("the controller ended with %d before it was killed:\n%s", code, p.out)
	}
	s.agents[0].end(t, syscall.SIGKILL)
	s.says(s.dpxen(0, "sessions"), "interrupted")
	s.startAgent(0)
	s.until(60*time.Second, "repair finds nothing more to do", func() bool {
		return s.begin("repair").wait(t) == 0 && len(s.leftovers())+len(other.leftovers()) == 0
	})
	s.says(s.dpxen(0, "repair"), "nothing to repair")
	s.same(before)
	other.same(beforeOther)
	r := s.report()
	namesEveryOnce(t, &r, s.dump(), other.dump())
	for _, vm := range r.VMs {
		if vm.Status == "good" && vm.File == "" {
			t.Errorf("VM %s is good without a file", vm.Name)
		}
	}
	if len(s.staged("*")) > 0 {
		s.dpxen(0, "verify")
	}
	s.clean()
	other.clean()
}
