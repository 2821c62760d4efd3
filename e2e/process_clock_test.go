//go:build e2e && linux

package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dpClockSpec is a specification that keeps one saved set.
const dpClockSpec = "\nspecs:\n  NIGHT: {mode: allOnline, keep_sets: 1}\n"

// slowClocks is a clockSite whose streams take seconds.
func slowClocks(t *testing.T) *site {
	t.Helper()
	return clockSite(t, "--vms", "2", "--disk-size", "24MiB", "--bandwidth", "12MiB")
}

// The wall clock of the controller or of the agent is set back or forward in the midst of a backup: the session does not care,
// and nothing is left.
func TestClockJumpsInBackup(t *testing.T) {
	s := slowClocks(t)
	before := s.dump()
	vm := running(t, before)
	for _, program := range []string{"dpxen", "dpxen-agent"} {
		for _, by := range []time.Duration{-2 * time.Hour, 25 * time.Hour} {
			for _, mode := range []string{"online", "offline"} {
				t.Run(program+" "+by.String()+" "+mode, func(t *testing.T) {
					s.t = t
					defer func() { s.t = s.root }()
					p := s.begin("backup", "--mode", mode, "--vm", vm.Name)
					s.receiving(4 << 20)
					s.setClock(program, by)
					s.wellOrWarned(p)
					if shown := s.dpxen(0, "show", "last"); !strings.Contains(shown, "good=1/1") || strings.Contains(shown, "in -") {
						t.Errorf("the session reads:\n%s", shown)
					}
					s.clean()
					s.setClock(program, 0)
				})
			}
		}
	}
	s.same(before)
	s.dpxen(0, "verify")
	s.dpxen(0, "repair")
}

// The controller or the agent is killed in the midst of an offline backup, and its clock is set before it is started again:
// the VM runs again, repair ends with nothing left, and says so again when it is repeated.
func TestClockJumpsBeforeRepair(t *testing.T) {
	s := slowClocks(t)
	before := s.dump()
	vm := running(t, before)
	for _, program := range []string{"dpxen", "dpxen-agent"} {
		for _, by := range []time.Duration{-2 * time.Hour, 25 * time.Hour} {
			t.Run(program+" "+by.String(), func(t *testing.T) {
				s.t = t
				defer func() { s.t = s.root }()
				p := s.begin("backup", "--mode", "offline", "--vm", vm.Name)
				s.receiving(4 << 20)
				p.end(t, syscall.SIGKILL)
				if program == "dpxen-agent" {
					s.agents[0].end(t, syscall.SIGKILL)
				}
				s.setClock(program, by)
				if program == "dpxen-agent" {
					s.startAgent(0)
				}
				s.says(s.dpxen(0, "show", "last"), "INTERRUPTED (no code yet: dpxen repair ends it)")
				s.dpxen(0, "repair")
				s.says(s.dpxen(0, "show", "last"), "INTERRUPTED (code ", "RESULT ")
				s.clean()
				s.same(before)
				s.says(s.dpxen(0, "repair"), "nothing to repair")
				s.wellOrWarned(s.begin("backup", "--mode", "offline", "--vm", vm.Name))
				s.setClock(program, 0)
				if program == "dpxen-agent" { // its certificate may be younger than its clock
					s.agents[0].end(t, syscall.SIGTERM)
					s.startAgent(0)
				}
			})
		}
	}
	s.same(before)
	s.clean()
	s.dpxen(0, "verify")
}

// Nights of Data Protector without any ID, between whose pre-exec and post-exec, and between which, the client's clock is set:
// each post-exec ends the session before it, the newest set is kept, sessions are in their order, and a post-exec whose
// pre-exec did not run is told so.
func TestClockJumpsBetweenSessions(t *testing.T) {
	s := clockSite(t, "--vms", "2", "--disk-size", "4MiB")
	s.edit(s.config, "\nspecs: {}\n", dpClockSpec)
	before := s.dump()
	var ids []string
	for _, at := range []struct{ pre, post time.Duration }{
		{0, -2 * time.Hour}, {-2 * time.Hour, 25 * time.Hour}, {-26 * time.Hour, -26 * time.Hour}, {0, 0},
	} {
		s.setClock("dpxen", at.pre)
		p := s.begin("pre-exec", "--spec", "NIGHT")
		s.wellOrWarned(p)
		id := lastID(p.out.String())
		s.setClock("dpxen", at.post)
		s.says(s.dpxen(0, "post-exec", "--spec", "NIGHT", "--dp-smexit", "0"), "session="+id, "the newest 1 sets are kept")
		s.says(s.dpxen(0, "post-exec", "--spec", "NIGHT", "--dp-smexit", "0"), "session="+id)
		if len(ids) > 0 && id <= ids[len(ids)-1] {
			t.Errorf("session %s does not come after %s", id, ids[len(ids)-1])
		}
		ids = append(ids, id)
		for _, f := range s.staged("*") {
			if !s.manifestOf(f, id) {
				t.Errorf("%s is kept, and is not of the newest session %s", f, id)
			}
		}
		if n := len(s.staged("*")); n != 2 {
			t.Errorf("%d files are kept, want the 2 of the newest session", n)
		}
	}
	s.setClock("dpxen", -30*time.Hour)
	s.says(s.dpxen(1, "post-exec", "--spec", "NIGHT", "--dp-smexit", "0"), "no pre-exec")
	shown, at := s.dpxen(0, "sessions"), -1
	for _, id := range ids {
		next := strings.Index(shown, id)
		if next <= at {
			t.Errorf("session %s is out of order:\n%s", id, shown)
		}
		at = next
	}
	s.says(s.dpxen(0, "show", "last"), ids[len(ids)-1])
	s.dpxen(0, "verify")
	s.dpxen(0, "repair")
	s.clean()
	s.same(before)
}

// Certificates are held against the clock of whoever looks at them, also after it was set while the agent runs, and nothing is
// touched where they do not hold.
func TestClockJumpsPastCertificates(t *testing.T) {
	s := clockSite(t, "--vms", "2", "--disk-size", "4MiB")
	before := s.dump()
	for _, program := range []string{"dpxen", "dpxen-agent"} {
		for _, by := range []time.Duration{20 * 365 * 24 * time.Hour, -5 * 365 * 24 * time.Hour} {
			s.setClock(program, by)
			out := s.dpxen(12, "backup", "--mode", "allOnline")
			s.says(out, "RESULT REFUSED code=12 good=0/0")
			s.dpxen(12, "repair")
			s.setClock(program, 0)
			s.wellOrWarned(s.begin("backup", "--mode", "allOnline"))
		}
	}
	s.clean()
	s.same(before)
	s.dpxen(0, "repair")
}

// wellOrWarned waits for a session all of whose VMs are good. It may warn of the clock.
func (s *site) wellOrWarned(p *program) {
	s.t.Helper()
	code := p.wait(s.t)
	out := p.out.String()
	if code != 0 && (code != 4 || !strings.Contains(out, "clock")) || !strings.Contains(out, "failed 0") ||
		strings.Contains(out, "retries") && !strings.Contains(out, "file exists already") {
		s.t.Errorf("the session ended with %d:\n%s", code, out)
	}
}

// lastID is the session that the last line of a text names.
func lastID(text string) string {
	_, id, _ := strings.Cut(text[strings.LastIndex(text, "RESULT "):], "session=")
	return strings.TrimSpace(id)
}

// manifestOf tells whether the manifest of a staged file names a word.
func (s *site) manifestOf(file, word string) bool {
	s.t.Helper()
	data, err := os.ReadFile(strings.TrimSuffix(file, ".xva") + ".json")
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Contains(string(data), word)
}
