//go:build e2e && linux

package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dpxen/dpxen/controller"
)

// TestProcessRestoreUnheard: agents that do not answer, one of the pool of the VMs and the only one of another pool, are
// told of by a restore that another agent does, whose code is 3; VMs that no agent can restore are refused. The dry run ends with
// the code of the restore.
func TestProcessRestoreUnheard(t *testing.T) {
	t.Parallel()
	s, other := newSites(t, []string{"--hosts", "2", "--vms", "2", "--disk-size", "4MiB"},
		[]string{"--hosts", "1", "--vms", "1", "--disk-size", "4MiB"}, "  total: 8\n  per_host: 2\n  per_sr: 2\n  per_pool: 2\n  stagger: 0s\n")
	s.edit(s.config, "xapi_outage: 10s", "xapi_outage: 2s")
	s.result(s.dpxen(0, "backup", "--mode", "allOnline"), "OK", 0, "3/3")
	before, beforeOther := s.dump(), other.dump()
	here, there := before.VMs[0], beforeOther.VMs[0]
	s.agents[1].end(t, syscall.SIGKILL)
	s.agents[2].end(t, syscall.SIGKILL)

	both := func(code int, word, good string, args ...string) (dry, run string) {
		t.Helper()
		args = append([]string{"restore", "--from", s.path("staging")}, args...)
		dry = s.dpxen(code, append(slices.Clone(args), "--dry-run")...)
		run = s.dpxen(code, args...)
		s.result(run, word, code, good)
		s.clean()
		return dry, run
	}
	s.scribble(here.Name, 1)
	dry, run := both(3, "PARTIAL", "1/1", "--mode", "online", "--vm", here.UUID)
	for _, text := range []string{dry, run} {
		s.says(text, "agent xs2 did not answer (see dpxen hosts)", "agent xs3 did not answer (see dpxen hosts)")
		if strings.Contains(text, "made anew") {
			t.Errorf("no VM is made anew:\n%s", text)
		}
	}
	s.same(before)
	s.says(s.dpxen(0, "rerun", "--failed", "last"), "nothing to do")

	if here.PowerState != "Halted" {
		s.call("VM.hard_shutdown", here.UUID)
	}
	gone := s.dump()
	s.removed(here.Name, gone)
	dry, run = both(3, "PARTIAL", "1/1", "--mode", "online", "--recreate", "--vm", here.UUID)
	for _, text := range []string{dry, run} {
		s.says(text, "agent xs3 did not answer (see dpxen hosts): it is not known whether VMs that are made anew exist in a pool of its own")
	}
	s.same(gone)

	other.scribble(there.Name, 2)
	both(10, "REFUSED", "0/1", "--mode", "online", "--vm", there.UUID)
	_, run = both(3, "PARTIAL", "2/3", "--mode", "allOnline")
	s.says(run, "its pool ", "is not among those that answer")
	s.result(s.dpxen(3, "backup", "--mode", "online", "--vm", here.UUID), "PARTIAL", 3, "1/1")

	s.startAgent(1)
	s.startAgent(2)
	id := ""
	for line := range strings.Lines(run) {
		if _, after, ok := strings.Cut(line, "RESULT "); ok {
			_, id, _ = strings.Cut(strings.TrimSpace(after), "session=")
		}
	}
	s.result(s.dpxen(0, "rerun", "--failed", id), "OK", 0, "1/1")
	if r := s.report(); len(r.VMs) != 1 || r.VMs[0].UUID != there.UUID || r.Action != controller.ActionRestore {
		t.Errorf("run again: %+v", r.VMs)
	}
	s.same(gone)
	other.same(beforeOther)
	s.clean()
	other.clean()
}
