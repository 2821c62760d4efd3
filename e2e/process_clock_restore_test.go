//go:build e2e && linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// clockVictim is the VM that is restored: it has two disks on two SRs.
const clockVictim = "db-01"

// clockStage is a stage of a restore at which clocks are set.
type clockStage struct {
	killedAt
	beside bool // another VM is made, and not this one restored
}

// clockStages are those of restores in place and beside.
var clockStages = []clockStage{
	{killedAt{"bytes flow", xensim.Fault{Name: "import-stall", After: 4 << 20, Delay: lasting}, func(_, is xensim.State) bool {
		return len(is.Carriers) > 0
	}}, false},
	{killedAt{"before the exchange", slowCall("VBD.destroy"), func(was, is xensim.State) bool {
		vm := findNamed(is, clockVictim)
		return vm.PowerState == "Halted" && len(vm.Disks) == len(findNamed(was, clockVictim).Disks)
	}}, false},
	{killedAt{"in the exchange", slowCall("VBD.create"), func(was, is xensim.State) bool {
		return len(findNamed(is, clockVictim).Disks) < len(findNamed(was, clockVictim).Disks)
	}}, false},
	{killedAt{"after the exchange", slowCall("VDI.destroy"), func(was, is xensim.State) bool {
		vm := findNamed(is, clockVictim)
		return vm.PowerState == "Running" && dataDisks(*vm) != dataDisks(*findNamed(was, clockVictim))
	}}, false},
	{killedAt{"bytes flow beside", xensim.Fault{Name: "import-stall", After: 4 << 20, Delay: lasting}, func(was, is xensim.State) bool {
		return len(is.Carriers)+len(is.VMs)+len(is.Orphans) > len(was.Carriers)+len(was.VMs)+len(was.Orphans)
	}}, true},
	{killedAt{"attached beside", slowCall("VBD.create"), func(_, is xensim.State) bool {
		return findNamed(is, clockCopy) != nil && len(is.Carriers) > 0
	}}, true},
}

// clockCopy is the name of the VM that is made beside.
const clockCopy = "made"

// findNamed finds a VM by its name; there may be none.
func findNamed(state xensim.State, name string) *xensim.VMState {
	i := slices.IndexFunc(state.VMs, func(vm xensim.VMState) bool { return vm.Name == name })
	if i < 0 {
		return nil
	}
	return &state.VMs[i]
}

// restoreClocks is a clockSite of two hosts with an online and an offline backup of the victim. It gives the pool as it was then.
func restoreClocks(t *testing.T) (*site, xensim.State) {
	t.Helper()
	s := clockPool(t, "--hosts", "2", "--scenario", "demo", "--disk-size", "8MiB")
	s.claim = patientClaim
	s.installClocks()
	for _, mode := range []string{"online", "offline"} {
		s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", clockVictim), "OK", 0, "1/1")
	}
	return s, s.dump()
}

// restoreTo begins a restore and waits until it is at a stage, which lasts until its fault is cleared, or a few seconds.
func (s *site) restoreTo(stage clockStage, mode string) (p *program, was xensim.State) {
	s.t.Helper()
	was = s.dump()
	s.inject(stage.slow)
	args := []string{"restore", "--from", s.path("staging"), "--mode", mode, "--vm", clockVictim}
	if stage.beside {
		args = append(args, "--as-new="+clockCopy)
	}
	p = s.begin(args...)
	s.until(30*time.Second, "the restore is at that stage", func() bool {
		if !p.running() {
			s.t.Fatalf("the restore ended before:\n%s", p.out)
		}
		return stage.here(was, s.dump())
	})
	return p, was
}

// copied holds that the VM that was made beside is whole, and removes it. Where it need not be, it is not there at all.
func (s *site) copied(good string, must bool) {
	s.t.Helper()
	is := s.dump()
	vm := findNamed(is, clockCopy)
	switch {
	case vm == nil && !must:
		return
	case vm == nil:
		s.t.Error("the VM was not made")
		return
	case dataDisks(*vm) != good || vm.PowerState != "Halted":
		s.t.Errorf("the VM that was made is %s with %s, the backup has %s", vm.PowerState, dataDisks(*vm), good)
	}
	s.removed(clockCopy, is)
}

// The wall clock of the controller or of the agents jumps twice, by hours and by days, forth and back, at each stage of a
// restore in place and of one beside: the session is good and says so, the VM is on its restored disks and runs as before, and
// nothing is left, whatever the clocks say when that is looked for.
func TestClockJumpsInRestore(t *testing.T) {
	t.Parallel()
	s, backedUp := restoreClocks(t)
	good := dataDisks(s.vm(backedUp, clockVictim))
	jumps := [][2]time.Duration{{3 * time.Hour, -72 * time.Hour}, {-2 * time.Hour, 50 * time.Hour}}
	for i, stage := range clockStages {
		for j, program := range []string{"dpxen", "dpxen-agent"} {
			to, mode := jumps[(i+j)%2], []string{"online", "offline"}[(i/2+j)%2]
			s.sub(fmt.Sprintf("%s %s, %s to %s and %s", mode, stage.name, program, to[0], to[1]), func(t *testing.T) {
				defer s.setClock(program, 0)
				if !stage.beside {
					s.scribble(clockVictim, 100+2*i+j)
				}
				p, _ := s.restoreTo(stage, mode)
				for _, by := range to {
					s.setClock(program, by)
				}
				if !p.running() {
					t.Fatalf("the restore ended before the clock was set:\n%s", p.out)
				}
				s.clearFault(stage.slow.Name)
				s.wellOrWarned(p)
				s.says(s.dpxen(0, "show", "last"), "good=1/1")
				r := s.report()
				if vm := r.VMs[0].Seconds; r.Took() < 0 || r.Took() > 5*time.Minute || vm < 0 || vm > r.Took().Seconds() {
					t.Errorf("the session took %s, its VM %g s", r.Took(), vm)
				}
				if stage.beside {
					s.copied(good, true)
				}
				s.says(s.dpxen(0, "repair"), "nothing to repair")
				s.same(backedUp)
				s.clean()
			})
		}
	}
	s.dpxen(0, "verify")
	s.says(s.dpxen(0, "repair"), "nothing to repair")
	s.clean()
}

// The controller of a restore, or the controller and the agent that works for it, is killed after its clock has jumped, and the
// clocks of the agents that repair are elsewhere: the session reads as interrupted, the VM is wholly on its old or on its
// restored disks and runs, another VM is whole or not there, and nothing is left, also once the clocks are right again.
func TestClockJumpsBeforeRestoreIsRepaired(t *testing.T) {
	t.Parallel()
	s, backedUp := restoreClocks(t)
	good := dataDisks(s.vm(backedUp, clockVictim))
	for i, stage := range clockStages {
		for j, by := range []struct{ controller, agents time.Duration }{{-2 * time.Hour, 25 * time.Hour}, {72 * time.Hour, -3 * time.Hour}} {
			mode, both := []string{"online", "offline"}[(i+j)%2], (i/2+j)%2 == 1
			s.sub(fmt.Sprintf("%s %s, controller at %s, agents at %s, agent killed %v", mode, stage.name, by.controller, by.agents, both), func(t *testing.T) {
				defer s.setClock("dpxen", 0)
				defer s.setClock("dpxen-agent", 0)
				s.scribble(clockVictim, 200+2*i+j)
				p, was := s.restoreTo(stage, mode)
				s.setClock("dpxen", by.controller)
				if code := p.end(t, syscall.SIGKILL); code != -1 {
					t.Fatalf("the controller ended with %d before it was killed:\n%s", code, p.out)
				}
				worker := slices.IndexFunc(s.agents, func(a *program) bool { return strings.Contains(p.out.String(), "by agent "+agentName(s, a)) })
				if worker < 0 {
					t.Fatalf("no agent was told of:\n%s", p.out)
				}
				if both {
					s.agents[worker].end(t, syscall.SIGKILL)
				}
				s.clearFault(stage.slow.Name)
				s.setClock("dpxen-agent", by.agents)
				s.says(s.dpxen(0, "show", "last"), "INTERRUPTED (no code yet: dpxen repair ends it)")
				want := map[bool]int{false: 0, true: 3}[both] // an agent that does not answer
				s.until(60*time.Second, "repair finds nothing more to do", func() bool {
					return s.begin("repair").wait(t) == want && len(s.leftovers()) == 0
				})
				s.says(s.dpxen(0, "show", "last"), "INTERRUPTED (code ", "RESULT ")
				if both {
					s.startAgent(worker)
				}
				s.says(s.dpxen(0, "repair"), "nothing to repair")
				vm := s.vm(s.dump(), clockVictim)
				if got := dataDisks(vm); got != good && got != dataDisks(s.vm(was, clockVictim)) {
					t.Errorf("the VM is neither on its old nor on its restored disks: %s", got)
				}
				if vm.PowerState != "Running" {
					t.Errorf("the VM is %s", vm.PowerState)
				}
				if stage.beside {
					s.copied(good, false)
				}
				s.setClock("dpxen-agent", 0)
				s.setClock("dpxen", 0)
				s.says(s.dpxen(0, "repair"), "nothing to repair")
				s.clean()
			})
		}
	}
	s.result(s.dpxen(0, "restore", "--from", s.path("staging"), "--mode", "online", "--vm", clockVictim), "OK", 0, "1/1")
	s.same(backedUp)
	s.clean()
}
