//go:build e2e && linux

package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// killedAt is one stage of a restore: what makes it last, and how it is seen that the restore is there.
type killedAt struct {
	name string
	slow xensim.Fault
	here func(was, is xensim.State) bool
}

// lasting is long enough in real time, 6 s, to see that a restore is at its stage and to kill it there on a busy machine.
const lasting = 300 * time.Second

// slowCall is a call that takes so much longer.
func slowCall(method string) xensim.Fault {
	return xensim.Fault{Name: "call-slow", Method: method, Delay: lasting}
}

// killAt begins a restore, kills the controller alone when the restore is at its stage, and has everything repaired. It gives
// the pool before and after, and fails the test where a repeated repair changes anything, or anything is left.
func (s *site) killAt(m killedAt, args ...string) (was, is xensim.State) {
	s.t.Helper()
	was = s.dump()
	s.inject(m.slow)
	p := s.begin(append([]string{"restore", "--from", s.path("staging")}, args...)...)
	s.until(20*time.Second, "the restore is at that stage", func() bool {
		if !p.running() {
			s.t.Fatalf("the restore ended before:\n%s", p.out)
		}
		return m.here(was, s.dump())
	})
	if code := p.end(s.t, syscall.SIGKILL); code != -1 {
		s.t.Fatalf("the controller ended with %d before it was killed:\n%s", code, p.out)
	}
	s.clearFault(m.slow.Name)
	s.until(40*time.Second, "repair finds nothing more to do", func() bool {
		return s.begin("repair").wait(s.t) == 0 && len(s.leftovers()) == 0
	})
	is = s.dump()
	s.says(s.dpxen(0, "repair"), "nothing to repair")
	s.same(is)
	s.clean()
	return was, is
}

// sub runs a part of a test on the site.
func (s *site) sub(name string, run func(t *testing.T)) {
	s.root.Run(name, func(t *testing.T) {
		s.t = t
		defer func() { s.t = s.root }()
		run(t)
	})
}

// find finds a VM by its UUID; there may be none.
func find(state xensim.State, uuid string) *xensim.VMState {
	i := slices.IndexFunc(state.VMs, func(vm xensim.VMState) bool { return vm.UUID == uuid })
	if i < 0 {
		return nil
	}
	return &state.VMs[i]
}

// call makes one call with a VM's reference as its first argument.
func (s *site) call(method, uuid string, args ...any) {
	s.t.Helper()
	client := s.client()
	vm, err := client.VMByUUID(s.t.Context(), uuid)
	if err == nil {
		_, err = client.Call(s.t.Context(), method, append([]any{vm.Ref}, args...)...)
	}
	if err != nil {
		s.t.Fatalf("%s of VM %s: %v", method, uuid, err)
	}
}

// twoSRs tells whether a VM's disks lie on several SRs.
func twoSRs(vm xensim.VMState) bool {
	return slices.ContainsFunc(vm.Disks, func(d xensim.DiskState) bool { return d.Type == "Disk" && d.VDI.SR != vm.Disks[0].VDI.SR })
}

// TestProcessControllerKilledRecreating kills the controller at each stage of the restore of a VM that was deleted, whose disks
// lie on a shared and on a local SR of a pool of two hosts: afterwards the VM is there, whole and with its identity, or not at
// all.
func TestProcessControllerKilledRecreating(t *testing.T) {
	t.Parallel()
	const victim = "db-01"
	s := newSite(t, "--scenario", "demo", "--disk-size", "8MiB", "--bandwidth", "24MiB")
	for _, mode := range []string{"online", "offline"} {
		s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", victim), "OK", 0, "1/1")
	}
	first := s.vm(s.dump(), victim)
	if !twoSRs(first) {
		t.Fatal("the disks lie on one SR")
	}
	for i, m := range []killedAt{
		{"transfer", xensim.Fault{Name: "import-stall", After: 2 << 20, Delay: lasting}, func(was, is xensim.State) bool {
			return len(is.Carriers)+len(is.VMs)+len(is.Orphans) > len(was.Carriers)+len(was.VMs)+len(was.Orphans)
		}},
		{"disks of another SR are attached", slowCall("VBD.create"), func(_, is xensim.State) bool {
			return find(is, first.UUID) != nil && len(is.Carriers) > 0
		}},
		{"carriers are removed", slowCall("VM.destroy"), func(_, is xensim.State) bool {
			vm := find(is, first.UUID)
			return vm != nil && len(dataDisks(*vm)) >= len(dataDisks(first))
		}},
	} {
		for j, mode := range []string{"online", "offline"} {
			if (i+j)%2 == 1 {
				continue // the other kind: each stage once
			}
			s.sub(mode+" "+m.name, func(t *testing.T) {
				s.deleted(victim)
				_, is := s.killAt(m, "--mode", mode, "--recreate", "--vm", victim)
				vm := find(is, first.UUID)
				if vm == nil {
					s.result(s.dpxen(0, "restore", "--from", s.path("staging"), "--mode", mode, "--recreate", "--vm", victim), "OK", 0, "1/1")
					is = s.dump()
					vm = find(is, first.UUID)
				}
				if vm == nil || dataDisks(*vm) != dataDisks(first) || vm.PowerState != "Halted" || vm.Name != first.Name {
					t.Fatalf("the VM is %+v, it was %+v", vm, first)
				}
				if got, want := interfaces(*vm), interfaces(first); got != want {
					t.Errorf("interfaces %s, they were %s", got, want)
				}
				s.call("VM.start", vm.UUID, false, false)
			})
		}
	}
}

// deleted deletes a VM with its disks, as its user would.
func (s *site) deleted(name string) {
	s.t.Helper()
	state := s.dump()
	if s.vm(state, name).PowerState != "Halted" {
		s.call("VM.hard_shutdown", s.vm(state, name).UUID)
	}
	s.removed(name, state)
}

func interfaces(vm xensim.VMState) string {
	var out []string
	for _, v := range vm.VIFs {
		out = append(out, v.Device+" "+v.MAC+" "+v.Network)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestProcessControllerKilledDiscardingMemory kills the controller at each stage of a restore that gives up the memory of a
// suspended VM: afterwards it is still suspended on its old disks, or halted on the old or the restored ones; it never has
// the memory of other disks than its own.
func TestProcessControllerKilledDiscardingMemory(t *testing.T) {
	t.Parallel()
	const victim = "db-01"
	s := newSite(t, "--scenario", "demo", "--disk-size", "8MiB", "--bandwidth", "24MiB")
	for _, mode := range []string{"online", "offline"} {
		s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", victim), "OK", 0, "1/1")
	}
	restored := dataDisks(s.vm(s.dump(), victim))
	uuid := s.vm(s.dump(), victim).UUID
	count := len(s.vm(s.dump(), victim).Disks)
	for i, m := range []killedAt{
		{"transfer", xensim.Fault{Name: "import-stall", After: 2 << 20, Delay: lasting}, func(_, is xensim.State) bool { return len(is.Carriers) > 0 }},
		{"before the exchange", slowCall("VBD.destroy"), func(_, is xensim.State) bool { return find(is, uuid).PowerState == "Halted" }},
		{"in the exchange", slowCall("VBD.create"), func(_, is xensim.State) bool { return len(find(is, uuid).Disks) < count }},
		{"cleaning up", slowCall("VDI.destroy"), func(was, is xensim.State) bool {
			return len(find(is, uuid).Disks) == count && dataDisks(*find(is, uuid)) != dataDisks(*find(was, uuid))
		}},
	} {
		mode := []string{"online", "offline"}[i%2]
		s.sub(mode+" "+m.name, func(t *testing.T) {
			s.scribble(victim, 50+i)
			s.call("VM.suspend", uuid)
			old := dataDisks(s.vm(s.dump(), victim))
			_, is := s.killAt(m, "--mode", mode, "--discard-memory", "--vm", victim)
			vm := s.vm(is, victim)
			switch got := dataDisks(vm); {
			case vm.PowerState == "Suspended" && got == old:
				s.call("VM.resume", uuid, false, false)
				return
			case vm.PowerState == "Halted" && (got == old || got == restored):
				s.call("VM.start", uuid, false, false)
			default:
				t.Errorf("the VM is %s with %s; old %s, restored %s", vm.PowerState, got, old, restored)
			}
		})
	}
}

// TestProcessControllerKilledSeveralSRs kills the controller at each stage of restores of a running VM whose disks lie on a
// shared and on a local SR of a pool of two hosts, and of one whose disk is on the shared SR alone. The agents clean up alone.
func TestProcessControllerKilledSeveralSRs(t *testing.T) {
	t.Parallel()
	s := newSite(t, "--scenario", "demo", "--disk-size", "8MiB", "--bandwidth", "24MiB")
	victims := []string{"db-01", "web-01"}
	for _, mode := range []string{"online", "offline"} {
		s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", victims[0], "--vm", victims[1]), "OK", 0, "2/2")
	}
	backedUp := s.dump()
	if one, two := s.vm(backedUp, victims[0]), s.vm(backedUp, victims[1]); !twoSRs(one) || twoSRs(two) {
		t.Fatal("the disks do not lie as they should")
	}
	for i, m := range []struct {
		name string
		slow xensim.Fault
		here func(was, is xensim.VMState, carriers int) bool
	}{
		{"transfer", xensim.Fault{Name: "import-stall", After: 2 << 20, Delay: lasting}, func(_, _ xensim.VMState, carriers int) bool { return carriers > 0 }},
		{"shutdown", xensim.Fault{Name: "shutdown-late", Delay: lasting}, func(_, is xensim.VMState, _ int) bool {
			return slices.Contains(is.Current, "clean_shutdown")
		}},
		{"in the exchange", slowCall("VBD.create"), func(was, is xensim.VMState, _ int) bool { return len(is.Disks) < len(was.Disks) }},
		{"before the start", slowCall("Async.VM.start"), func(was, is xensim.VMState, _ int) bool {
			return len(is.Disks) == len(was.Disks) && dataDisks(is) != dataDisks(was)
		}},
		{"cleaning up", slowCall("VDI.destroy"), func(was, is xensim.VMState, _ int) bool {
			return dataDisks(is) != dataDisks(was) && is.PowerState == "Running"
		}},
	} {
		victim, mode := victims[i%2], []string{"offline", "online"}[i/2%2]
		s.sub(victim+" "+mode+" "+m.name, func(t *testing.T) {
			s.scribble(victim, 70+i)
			at := killedAt{m.name, m.slow, func(was, is xensim.State) bool {
				return m.here(s.vm(was, victim), s.vm(is, victim), len(is.Carriers))
			}}
			was, is := s.killAt(at, "--mode", mode, "--vm", victim)
			vm := s.vm(is, victim)
			if got := dataDisks(vm); got != dataDisks(s.vm(was, victim)) && got != dataDisks(s.vm(backedUp, victim)) {
				t.Errorf("the VM has disks %s, neither the old nor the restored ones", got)
			}
			if vm.PowerState != "Running" {
				t.Errorf("the VM is %s", vm.PowerState)
			}
			for _, other := range was.VMs {
				if o := find(is, other.UUID); other.Name != victim && (o == nil || dataDisks(*o) != dataDisks(other) || o.PowerState != other.PowerState) {
					t.Errorf("VM %s is not as before", other.Name)
				}
			}
		})
	}
}
