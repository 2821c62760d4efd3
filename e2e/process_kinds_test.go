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

// dataDisks are the digests of a VM's disks by position.
func dataDisks(vm xensim.VMState) string {
	var out []string
	for _, d := range vm.Disks {
		if d.Type == "Disk" {
			out = append(out, d.UserDevice+" "+d.VDI.SHA256)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestProcessControllerKilledInRestore kills the controller at moments all over each kind of restore, and now and then the
// agent too. After repair the VM is wholly on its old or wholly on the restored disks and runs; another VM is whole or is not
// there. Repaired again, nothing changes.
func TestProcessControllerKilledInRestore(t *testing.T) {
	const victim = "db-01" // two disks on two SRs
	s := newSite(t, "--hosts", "1", "--scenario", "demo", "--disk-size", "16MiB", "--bandwidth", "24MiB")
	for _, mode := range []string{"online", "offline"} {
		s.result(s.dpxen(0, "backup", "--mode", mode, "--vm", victim), "OK", 0, "1/1")
	}
	good := dataDisks(s.vm(s.dump(), victim))
	for _, kind := range []struct {
		name string
		args []string
	}{
		{"in place", []string{"--mode", "offline"}},
		{"keep old disks", []string{"--mode", "online", "--keep-old-disks"}},
		{"delete first", []string{"--mode", "online", "--delete-first"}},
		{"as new", []string{"--mode", "offline", "--as-new=made"}},
	} {
		for i, after := range []int{300, 600, 900, 1300, 1800} {
			t.Run(fmt.Sprintf("%s, after %d ms", kind.name, after), func(t *testing.T) {
				s.t = t
				defer func() { s.t = s.root }()
				s.scribble(victim, 100+i)
				before := s.dump()
				old := dataDisks(s.vm(before, victim))
				p := s.begin(append([]string{"restore", "--vm", victim, "--from", s.path("staging")}, kind.args...)...)
				time.Sleep(time.Duration(after) * time.Millisecond)
				ended := !p.running()
				p.end(t, syscall.SIGKILL)
				if i%2 == 1 {
					s.agents[0].end(t, syscall.SIGKILL)
					s.startAgent(0)
				}
				var said string
				first := -1
				s.until(40*time.Second, "repair finds nothing more to do", func() bool {
					r := s.begin("repair")
					code := r.wait(t)
					said += r.out.String()
					if first < 0 {
						first = code
					}
					return code == 0
				})
				is := s.dump()
				vm := s.vm(is, victim)
				switch got := dataDisks(vm); {
				case got == old, got == good && kind.name != "as new":
				case kind.name == "delete first" && strings.Contains(said, "restore again") && strings.Contains(said, "POWER"):
					s.result(s.dpxen(0, "restore", "--mode", "online", "--vm", victim, "--start", "--from", s.path("staging")), "OK", 0, "1/1")
					vm = s.vm(s.dump(), victim)
					if first != 20 {
						t.Errorf("repair ended with %d:\n%s", first, said)
					}
				default:
					t.Errorf("the VM is on neither its old nor the restored disks: %s\nold  %s\ngood %s\n%s\n%s", got, old, good, p.out, said)
				}
				if vm.PowerState != "Running" {
					t.Errorf("the VM is %s:\n%s\n%s", vm.PowerState, p.out, said)
				}
				for _, made := range is.VMs {
					if made.Name == "made" && dataDisks(made) != good {
						t.Errorf("the new VM is not whole: %s", dataDisks(made))
					}
				}
				s.removed("made", is)
				if again := s.dpxen(0, "repair"); !strings.Contains(again, "nothing to repair") {
					t.Errorf("repaired again: %s", again)
				}
				s.clean()
				t.Logf("the session had ended: %v", ended)
			})
		}
	}
}

// removed removes a VM that a test made with its disks, and what an operator who asked to keep replaced disks has done with
// by then.
func (s *site) removed(name string, is xensim.State) {
	s.t.Helper()
	client := s.client()
	for _, vm := range is.VMs {
		if vm.Name != name {
			continue
		}
		rec, err := client.VMByUUID(s.t.Context(), vm.UUID)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, d := range vm.Disks {
			if d.Type == "Disk" {
				s.destroyVDI(d.VDI.UUID)
			}
		}
		if err := client.DestroyVM(s.t.Context(), rec.Ref); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, d := range is.Orphans {
		if strings.Contains(d.Name, "(replaced in dpxen session") {
			s.destroyVDI(d.UUID)
		}
	}
}

func (s *site) destroyVDI(uuid string) {
	s.t.Helper()
	client := s.client()
	vdi, err := client.VDIByUUID(s.t.Context(), uuid)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := client.DestroyVDI(s.t.Context(), vdi.Ref); err != nil {
		s.t.Fatal(err)
	}
}
