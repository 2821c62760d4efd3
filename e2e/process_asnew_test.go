//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// TestProcessAsNewOnce: an agent dies when the VM that it makes as new is whole, and has told nobody. It is not made a second
// time; the session, or where that died too repair, names it.
func TestProcessAsNewOnce(t *testing.T) {
	for name, both := range map[string]bool{"agent killed": false, "both killed": true} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "--hosts", "1", "--vms", "1", "--disk-size", "2MiB")
			vm := s.dump().VMs[0]
			s.dpxen(0, "backup", "--mode", "allOnline")
			whole := func() (n int) {
				for _, is := range s.dump().VMs {
					if is.Name == "neu" && is.Config["dpxen:carrier"] == "" {
						n++
					}
				}
				return n
			}
			s.inject(xensim.Fault{Name: "call-slow", Method: "Async.VM.start", Delay: 150 * time.Second, Times: 1}) // 3 s here
			p := s.begin("restore", "--mode", "online", "--vm", vm.UUID, "--from", s.path("staging"), "--as-new=neu", "--start")
			s.until(20*time.Second, "the VM is whole", func() bool { return whole() == 1 })
			if both {
				p.end(t, syscall.SIGKILL)
			}
			s.agents[0].end(t, syscall.SIGKILL)
			s.startAgent(0)
			if !both {
				code := p.wait(t)
				if n := whole(); n != 1 || code != 1 {
					t.Errorf("%d VMs were made, and the code is %d:\n%s", n, code, p.out)
				}
				s.says(p.out.String(), `has made the VM, as "neu"`, "not made a second time")
			}
			told := false
			s.until(60*time.Second, "nothing is left", func() bool {
				r := s.begin("repair")
				code := r.wait(t)
				told = told || strings.Contains(r.out.String(), "keep the VM that was made completely, as new, and that its session does not know of neu ")
				return code == 0
			})
			r := s.report()
			if whole() != 1 || both && !told {
				t.Errorf("%d VMs; repair told of it: %v", whole(), told)
			}
			if both && !slices.ContainsFunc(r.VMs[0].Warnings, func(w string) bool {
				return strings.Contains(w, "may be there, complete and even running") || strings.Contains(w, "the VM was made as new, as ")
			}) {
				t.Errorf("the report: %+v", r.VMs)
			}
		})
	}
}

// TestProcessAsNewLastAttempt: the agent dies when the VM that it makes as new is whole, and the session begins no other attempt.
// The session names the VM, and so does repair.
func TestProcessAsNewLastAttempt(t *testing.T) {
	s := newSite(t, "--hosts", "1", "--vms", "1", "--disk-size", "2MiB")
	data, err := os.ReadFile(s.config)
	if err == nil {
		err = os.WriteFile(s.config, []byte(strings.Replace(string(data), "retries: 1", "retries: 0", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	vm := s.dump().VMs[0]
	s.dpxen(0, "backup", "--mode", "allOnline")
	made := func() string {
		for _, is := range s.dump().VMs {
			if is.Name == "neu" && is.Config["dpxen:carrier"] == "" {
				return is.UUID
			}
		}
		return ""
	}
	s.inject(xensim.Fault{Name: "call-slow", Method: "Async.VM.start", Delay: 150 * time.Second, Times: 1}) // 3 s here
	p := s.begin("restore", "--mode", "online", "--vm", vm.UUID, "--from", s.path("staging"), "--as-new=neu", "--start")
	s.until(20*time.Second, "the VM is whole", func() bool { return made() != "" })
	s.agents[0].end(t, syscall.SIGKILL)
	s.startAgent(0)
	code := p.wait(t)
	if w := fmt.Sprint(s.report().VMs[0].Warnings); code != 1 || !strings.Contains(w, made()) {
		t.Errorf("code %d, warnings %s, want %s named:\n%s", code, w, made(), p.out)
	}
	told := false
	s.until(60*time.Second, "nothing is left", func() bool {
		r := s.begin("repair")
		code := r.wait(t)
		told = told || strings.Contains(r.out.String(), "its session does not know of neu "+made())
		return code == 0
	})
	if !told {
		t.Error("repair has not told of the VM")
	}
}
