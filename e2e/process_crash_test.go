//go:build e2e && linux

package e2e

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// slowSite is a pool of one host whose streams take seconds, so that something can happen in their midst.
func slowSite(t *testing.T) *site {
	t.Helper()
	return newSite(t, "--hosts", "1", "--vms", "2", "--disk-size", "24MiB", "--bandwidth", "12MiB")
}

// running gives the first VM of a pool that runs.
func running(t *testing.T, state xensim.State) xensim.VMState {
	t.Helper()
	i := slices.IndexFunc(state.VMs, func(vm xensim.VMState) bool { return vm.PowerState == "Running" })
	if i < 0 {
		t.Fatal("no VM runs")
	}
	return state.VMs[i]
}

// receiving waits until a file of a backup has grown to some length.
func (s *site) receiving(length int64) {
	s.t.Helper()
	s.until(20*time.Second, "a backup is in the midst of its transfer", func() bool { return s.received() >= length })
}

// received is the length of the longest unfinished file.
func (s *site) received() (most int64) {
	entries, err := os.ReadDir(s.path("staging/.dpxen/partial"))
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			most = max(most, info.Size())
		}
	}
	return most
}

// stalled waits until a backup has received something and nothing more comes.
func (s *site) stalled() {
	s.t.Helper()
	last, since := int64(0), time.Now()
	s.until(20*time.Second, "a backup's export stalls", func() bool {
		if n := s.received(); n != last || n == 0 {
			last, since = n, time.Now()
		}
		return time.Since(since) > 400*time.Millisecond
	})
}

// settled waits until agents have cleaned up by themselves.
func (s *site) settled(limit time.Duration) {
	s.t.Helper()
	end := time.Now().Add(limit)
	for left := s.leftovers(); len(left) > 0; left = s.leftovers() {
		if time.Now().After(end) {
			s.t.Fatalf("after %s there is still left behind: %v", limit, left)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestProcessAgentKilledInBackup holds that the death of an agent costs a retry, and leaves nothing.
func TestProcessAgentKilledInBackup(t *testing.T) {
	for _, mode := range []string{"online", "offline"} {
		t.Run(mode, func(t *testing.T) {
			s := slowSite(t)
			before := s.dump()
			vm := running(t, before)
			p := s.begin("backup", "--mode", mode, "--vm", vm.Name)
			s.receiving(4 << 20)
			s.agents[0].end(t, syscall.SIGKILL)
			snapshots := s.dump().Snapshots
			s.startAgent(0)
			code := p.wait(t)
			if code != 0 && code != 4 {
				t.Errorf("the session ended with %d:\n%s", code, p.out)
			}
			s.says(p.out.String(), "good=1/1", "retries 1")
			for _, snap := range snapshots {
				if !s.manifestSays(snap.UUID) {
					t.Errorf("the VM was not begun anew from its snapshot %s", snap.UUID)
				}
			}
			s.settled(20 * time.Second)
			s.same(before)
			s.dpxen(0, "repair")
			s.dpxen(0, "verify")
		})
	}
}

// manifestSays tells whether a word is in a manifest of the staging folder.
func (s *site) manifestSays(word string) bool {
	s.t.Helper()
	for _, f := range s.staged("*") {
		data, err := os.ReadFile(strings.TrimSuffix(f, ".xva") + ".json")
		if err != nil {
			s.t.Fatal(err)
		}
		if strings.Contains(string(data), word) {
			return true
		}
	}
	return false
}

// TestProcessXAPIRestarts holds that a toolstack that is restarted in the midst of an export costs a retry, and leaves nothing.
func TestProcessXAPIRestarts(t *testing.T) {
	for _, mode := range []string{"online", "offline"} {
		t.Run(mode, func(t *testing.T) {
			s := slowSite(t)
			before := s.dump()
			vm := running(t, before)
			s.inject(xensim.Fault{Name: "export-cut", After: 12 << 20, Times: 1}) // with sessions and tasks, streams are lost
			p := s.begin("backup", "--mode", mode, "--vm", vm.Name)
			s.receiving(4 << 20)
			s.inject(xensim.Fault{Name: "toolstack-restart", Times: 1, Delay: 50 * time.Second}) // 1 s
			if code := p.wait(t); code != 0 && code != 4 {
				t.Errorf("the session ended with %d:\n%s", code, p.out)
			}
			s.says(p.out.String(), "good=1/1", "| retries ")
			s.until(20*time.Second, "repair finds nothing more to do", func() bool { return s.begin("repair").wait(t) == 0 })
			s.clean()
			s.same(before)
			s.dpxen(0, "verify")
		})
	}
}

// TestProcessControllerKilled holds that agents clean up alone, and that the session is seen as interrupted until repaired.
func TestProcessControllerKilled(t *testing.T) {
	for _, mode := range []string{"online", "offline"} {
		t.Run(mode, func(t *testing.T) {
			s := slowSite(t)
			before := s.dump()
			vm := running(t, before)
			p := s.begin("backup", "--mode", mode, "--vm", vm.Name)
			s.receiving(4 << 20)
			p.end(t, syscall.SIGKILL)
			s.until(30*time.Second, "the agent has cleaned up alone", func() bool {
				return !slices.ContainsFunc(s.leftovers(), func(what string) bool { return !strings.HasPrefix(what, "partial") })
			})
			s.until(20*time.Second, "the VM runs again", func() bool { return s.vm(s.dump(), vm.Name).PowerState == "Running" })
			s.says(s.dpxen(0, "sessions"), "interrupted")
			s.dpxen(0, "repair")
			s.dpxen(0, "repair") // again: it may always be repeated
			s.clean()
			s.same(before)
			s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", vm.Name), "OK", 0, "1/1")
			s.clean()
		})
	}
}

// TestProcessInterrupted holds that Ctrl-C ends a session in good order.
func TestProcessInterrupted(t *testing.T) {
	s := slowSite(t)
	before := s.dump()
	vm := running(t, before)
	for _, mode := range []string{"online", "offline"} {
		p := s.begin("backup", "--mode", mode, "--vm", vm.Name)
		s.receiving(4 << 20)
		if code := p.end(t, syscall.SIGINT); code != 130 {
			t.Errorf("%s: the session ended with %d:\n%s", mode, code, p.out)
		}
		s.result(p.out.String(), "CANCELLED", 130, "0/1")
		s.clean()
		s.same(before)
	}
	s.result(s.dpxen(0, "backup", "--mode", "offline", "--vm", vm.Name), "OK", 0, "1/1")
	s.scribble(vm.Name, 3)
	written := s.dump()
	p := s.begin("restore", "--mode", "offline", "--vm", vm.Name, "--from", s.path("staging"))
	s.until(20*time.Second, "disks arrive", func() bool { return len(s.dump().Carriers) > 0 })
	if code := p.end(t, syscall.SIGINT); code != 130 {
		t.Errorf("restore: the session ended with %d:\n%s", code, p.out)
	}
	s.clean()
	s.same(written)
}

// TestProcessAgentStopped holds that an agent that is told to end gives up in good order: the VM runs again.
func TestProcessAgentStopped(t *testing.T) {
	s := slowSite(t)
	before := s.dump()
	vm := running(t, before)
	p := s.begin("backup", "--mode", "offline", "--vm", vm.Name)
	s.receiving(4 << 20)
	if code := s.agents[0].end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("the agent ended with %d", code)
	}
	s.same(before)
	// What became of the VM is not known to the session where the agent did not come back in time: 20 is no lie then.
	if code := p.wait(t); code != 1 && code != 20 {
		t.Errorf("the session ended with %d:\n%s", code, p.out)
	}
	s.startAgent(0)
	s.dpxen(0, "repair")
	s.clean()
	s.same(before)
}

// TestProcessAgentKilledInRestore kills the agent at every stage of a restore, and now and then the controller too. After
// repair the VM is wholly on its old or wholly on the restored disks, and runs as before.
func TestProcessAgentKilledInRestore(t *testing.T) {
	t.Parallel()
	const victim = "db-01" // two disks on two SRs
	s := patientSite(t, "--hosts", "1", "--scenario", "demo", "--disk-size", "16MiB", "--bandwidth", "24MiB")
	for _, mode := range []string{"online", "offline"} {
		s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", victim), "OK", 0, "1/1")
	}
	backedUp := s.dump()
	vmOf := func(state xensim.State) xensim.VMState { return s.vm(state, victim) }
	disks := func(state xensim.State) (n int) {
		for _, d := range vmOf(state).Disks {
			if d.Type == "Disk" {
				n++
			}
		}
		return n
	}
	swapped := func(was, is xensim.State) bool {
		return disks(is) == disks(was) && vmOf(was).Disks[0].VDI.UUID != vmOf(is).Disks[0].VDI.UUID
	}
	const long = 200 * time.Second // 4 s here: long enough to see on a busy machine that the restore is at its stage
	moments := []struct {
		name string
		slow xensim.Fault
		here func(was, is xensim.State) bool
	}{
		{"transfer", xensim.Fault{Name: "import-stall", After: 4 << 20, Delay: long}, func(_, is xensim.State) bool { return len(is.Carriers) > 0 }},
		{"shutdown", xensim.Fault{Name: "shutdown-late", Delay: long}, func(_, is xensim.State) bool {
			return slices.Contains(vmOf(is).Current, "clean_shutdown")
		}},
		{"before the exchange", xensim.Fault{Name: "call-slow", Method: "VBD.destroy", Delay: long}, func(_, is xensim.State) bool {
			return vmOf(is).PowerState == "Halted"
		}},
		{"in the exchange", xensim.Fault{Name: "call-slow", Method: "VBD.create", Delay: long}, func(was, is xensim.State) bool {
			return disks(is) < disks(was)
		}},
		{"before the start", xensim.Fault{Name: "call-slow", Method: "Async.VM.start", Delay: long}, swapped},
		{"cleaning up", xensim.Fault{Name: "call-slow", Method: "VDI.destroy", Delay: long}, func(was, is xensim.State) bool {
			return swapped(was, is) && vmOf(is).PowerState == "Running"
		}},
	}
	for i, m := range moments {
		for j, mode := range []string{"online", "offline"} {
			t.Run(mode+" "+m.name, func(t *testing.T) {
				s.t = t
				defer func() { s.t = s.root }()
				s.scribble(victim, 10+i)
				written := s.dump()
				s.inject(m.slow)
				p := s.begin("restore", "--mode", mode, "--vm", victim, "--from", s.path("staging"))
				s.until(20*time.Second, "the restore is at that stage", func() bool {
					if !p.running() {
						t.Fatalf("the restore ended before:\n%s", p.out)
					}
					return m.here(written, s.dump())
				})
				s.agents[0].end(t, syscall.SIGKILL)
				if (i+j)%2 == 1 {
					p.end(t, syscall.SIGKILL)
				}
				s.clearFault(m.slow.Name)
				s.startAgent(0)
				p.wait(t)
				s.until(60*time.Second, "repair finds nothing more to do", func() bool {
					r := s.begin("repair")
					return r.wait(t) == 0 && len(s.leftovers()) == 0
				})
				is := s.dump()
				old, restored := true, true
				for k, d := range vmOf(is).Disks {
					old = old && d.VDI.SHA256 == vmOf(written).Disks[k].VDI.SHA256
					restored = restored && d.VDI.SHA256 == vmOf(backedUp).Disks[k].VDI.SHA256
				}
				if !old && !restored {
					t.Error("the VM is neither on its old nor on the restored disks")
				}
				if p.cmd.ProcessState.ExitCode() == 0 && !restored {
					t.Errorf("the session says that all is good:\n%s", p.out)
				}
				if state := vmOf(is).PowerState; state != "Running" {
					t.Errorf("the VM is %s", state)
				}
				s.clean()
				if t.Failed() {
					t.Logf("the session said:\n%s", p.out)
				}
			})
		}
	}
}
