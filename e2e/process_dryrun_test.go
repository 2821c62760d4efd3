//go:build e2e && linux

package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/xensim"
)

// repairLines are what a repair tells of things done or to be done, without the word that says which.
func repairLines(out, word string) []string {
	var lines []string
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, word); ok {
			lines = append(lines, strings.TrimSpace(rest))
		}
	}
	return lines
}

// TestProcessDryRun kills the controller, or the controller and the agent that works for it, at one stage after the other:
// what `dpxen repair --dry-run` tells is, line by line, what `dpxen repair` then does; the dry run itself changes nothing.
func TestProcessDryRun(t *testing.T) {
	t.Parallel()
	const victim = "db-01" // two disks on two SRs
	s := newPool(t, "--scenario", "demo", "--disk-size", "16MiB", "--bandwidth", "16MiB")
	s.claim, s.settle = patientClaim, "30s" // an export that stalls ends within 15 s of its cancelling, and the VM is started then
	s.install()
	// Leases that outlast the test: it is repair that cleans up, not the agents by themselves.
	s.edit(s.config, "lease: 3s", "lease: 2m")
	for _, mode := range []string{"online", "offline"} {
		s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", victim), "OK", 0, "1/1")
	}
	vmOf := func(state xensim.State) xensim.VMState { return s.vm(state, victim) }
	for _, stage := range []struct {
		name string
		args []string
		slow xensim.Fault
		here func(xensim.State) bool
	}{
		{"snapshot exported", []string{"backup", "--mode", "online"}, xensim.Fault{Name: "export-stall", After: 4 << 20, Delay: 250 * time.Second},
			func(is xensim.State) bool { return len(is.Snapshots) > 0 }},
		{"halted VM exported", []string{"backup", "--mode", "offline"}, xensim.Fault{Name: "export-stall", After: 4 << 20, Delay: 250 * time.Second},
			func(is xensim.State) bool { return vmOf(is).PowerState == "Halted" }},
		{"disks arrive", []string{"restore", "--mode", "online"}, xensim.Fault{Name: "import-stall", After: 4 << 20, Delay: 250 * time.Second},
			func(is xensim.State) bool { return len(is.Carriers) > 0 }},
		{"in the exchange", []string{"restore", "--mode", "offline"}, xensim.Fault{Name: "call-slow", Method: "VBD.create", Delay: lasting},
			func(is xensim.State) bool { return len(vmOf(is).Blocked) > 0 && vmOf(is).PowerState == "Halted" }},
		{"old disks deleted", []string{"restore", "--mode", "online"}, xensim.Fault{Name: "call-slow", Method: "VDI.destroy", Delay: lasting},
			func(is xensim.State) bool { return len(vmOf(is).Current) == 0 && len(is.Orphans) > 0 }},
	} {
		for _, both := range []bool{false, true} {
			name := stage.name + ", controller killed"
			if both {
				name = stage.name + ", both killed"
			}
			t.Run(name, func(t *testing.T) {
				s.t = t
				defer func() { s.t = s.root }()
				before := s.dump()
				// An export that goes on comes to its end, between the two runs perhaps: in the window of an agent that lives, or because
				// nobody reads it.
				goesOn, slow := stage.slow.Name != "export-stall", stage.slow
				if !goesOn {
					slow.Delay *= 3
				}
				s.inject(slow)
				args := append(slices.Clone(stage.args), "--vm", victim)
				if args[0] == "restore" {
					args = append(args, "--from", s.path("staging"))
				}
				p := s.begin(args...)
				s.until(20*time.Second, "it is at that stage", func() bool {
					if !p.running() {
						t.Fatalf("it ended before:\n%s", p.out)
					}
					return stage.here(s.dump())
				})
				if args[0] == "backup" {
					s.stalled() // an export that moves ends soon after those who read it
				}
				p.end(t, syscall.SIGKILL)
				worker := slices.IndexFunc(s.agents, func(a *program) bool { return strings.Contains(p.out.String(), "by agent "+agentName(s, a)) })
				if worker < 0 {
					t.Fatalf("no agent was told of:\n%s", p.out)
				}
				if both {
					s.agents[worker].end(t, syscall.SIGKILL)
				}
				if goesOn {
					s.clearFault(stage.slow.Name)
				}
				was := s.dump()
				dry := s.begin("repair", "--dry-run")
				dry.wait(t)
				if diff := cmp.Diff(journal(was), journal(s.dump())); diff != "" {
					t.Errorf("the dry run has changed the journal (-before +after):\n%s", diff)
				}
				run := s.begin("repair", "--wait", "0")
				run.wait(t)
				would, did := repairLines(dry.out.String(), "would "), repairLines(run.out.String(), "done ")
				if diff := cmp.Diff(would, did); diff != "" || len(would) == 0 {
					t.Errorf("the dry run (-) and the run (+):\n%s\n%s\n%s", diff, dry.out, run.out)
				}
				if !goesOn {
					s.clearFault(stage.slow.Name)
				}
				if both {
					s.startAgent(worker)
				}
				s.until(60*time.Second, "nothing is left", func() bool {
					return s.begin("repair").wait(t) == 0 && len(s.leftovers()) == 0
				})
				if got := s.dpxen(0, "repair"); !strings.Contains(got, "nothing to repair") {
					t.Errorf("repaired again: %s", got)
				}
				if is := vmOf(s.dump()); is.PowerState != vmOf(before).PowerState {
					t.Errorf("the VM is %s", is.PowerState)
				}
				s.clean()
			})
		}
	}
}

// agentName is the name of an agent's program.
func agentName(s *site, a *program) string {
	return []string{"xs1", "xs2", "xs3"}[slices.Index(s.agents, a)]
}

// journal are our keys in the pool but for the claims, which live agents renew.
func journal(state xensim.State) map[string]string {
	out := map[string]string{}
	for key, value := range state.PoolOtherConfig {
		if strings.HasPrefix(key, "dpxen:") && !strings.Contains(key, ":claim") && !strings.HasPrefix(key, "dpxen:take:") {
			out[key] = value
		}
	}
	return out
}
