//go:build e2e && linux

package e2e

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// slow makes exports last, and fast lets them go on.
func (s *site) slow() { s.shape(1 << 20) }

func (s *site) fast() { s.shape(0) }

// shape limits every host, so that no VM is done before what a test does in the midst of a session.
func (s *site) shape(bandwidth int) {
	for _, h := range s.pool.Hosts {
		s.control("POST", "/shape", map[string]any{"object": h.Name, "bandwidth": bandwidth}, nil)
	}
}

// exporting waits until a backup is in the midst of its work, and no guest in that of shutting down: one whose shutdown is given up
// is watched for a while.
func (s *site) exporting() {
	s.t.Helper()
	s.until(20*time.Second, "an export runs", func() bool {
		files, err := os.ReadDir(s.path("staging/.dpxen/partial"))
		down := slices.ContainsFunc(s.dump().VMs, func(vm xensim.VMState) bool { return slices.Contains(vm.Current, "clean_shutdown") })
		return err == nil && len(files) > 0 && !down
	})
}

// exportingOff is exporting in an offline session, once no guest is shut down or going to be. What is in the journal from that
// place on is the session's: a VM that runs was exported.
func (s *site) exportingOff(from int) {
	s.t.Helper()
	s.until(20*time.Second, "no guest is going to be shut down", func() bool {
		done := map[string]bool{}
		for _, d := range s.journal()[from:] {
			done[d.VM] = done[d.VM] || d.What == "export" && d.End
		}
		return !slices.ContainsFunc(s.dump().VMs, func(vm xensim.VMState) bool { return vm.PowerState == "Running" && !done[vm.UUID] })
	})
	s.exporting()
}

// lastSession is the ID of the newest session.
func (s *site) lastSession() string {
	lines := strings.Split(strings.TrimSpace(s.dpxen(0, "sessions")), "\n")
	return strings.Fields(lines[len(lines)-1])[0]
}

// TestDataProtectorTrouble plays nights in which something stands in the way.
func TestDataProtectorTrouble(t *testing.T) {
	s := dpSite(t, "--vms", "3", "--disk-size", "4MiB")
	before := s.dump()
	step := func(name string, run func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			run(t)
			s.fast()
			s.until(30*time.Second, "guests that were asked to shut down are not watched any more", func() bool { return len(s.leftovers()) == 0 })
			s.clean()
			s.same(before)
		})
	}
	nightly, offline := newDPCell(s, "NIGHTLY"), newDPCell(s, "OFFLINE")

	step("two sessions at once", func(t *testing.T) {
		s.slow()
		var second, late dpSession
		first := nightly.run(night{id: "2026/11/24-1", duringPre: func(*exec.Cmd) {
			s.exporting()
			holder := s.lastSession()
			second = offline.run(night{id: "2026/11/24-2", postAlways: true})
			second.want(t, "Failed", 11, 11, "another session is at work", "by session "+holder, "RESULT REFUSED code=11 good=0/0")
			late.post = nightly.command(&late, nightly.environment("2026/11/24-1", night{}, "SMEXIT=13"), nil, "post-exec")
			s.fast()
		}})
		first.want(t, "Completed", 0, 0, "RESULT OK code=0 good=3/3", "3 of them deleted")
		if late.post != 11 || !strings.Contains(late.messages, "is still running") {
			t.Errorf("a post-exec beside its pre-exec: %d\n%s", late.post, late.messages)
		}
	})
	step("cancelled from another shell, offline", func(t *testing.T) {
		s.slow()
		from := len(s.journal())
		d := offline.run(night{postAlways: true, duringPre: func(*exec.Cmd) {
			s.exportingOff(from)
			s.says(s.dpxen(0, "cancel", "last"), "RESULT CANCELLED code=130")
		}})
		d.want(t, "Failed", 1, 1, "told of a failure (exit 1)", "RESULT CANCELLED code=130")
	})
	step("ended by a signal", func(t *testing.T) {
		s.slow()
		from := len(s.journal())
		d := offline.run(night{postAlways: true, duringPre: func(pre *exec.Cmd) {
			s.exportingOff(from)
			_ = pre.Process.Signal(syscall.SIGTERM) // it runs
		}})
		d.want(t, "Failed", 1, 1, "RESULT CANCELLED code=130")
	})
	step("killed, and the next night repairs", func(t *testing.T) {
		s.slow()
		from := len(s.journal())
		d := offline.run(night{duringPre: func(pre *exec.Cmd) {
			s.exportingOff(from)
			_ = pre.Process.Kill() // as asked
		}})
		d.want(t, "Failed", killed, notRun)
		s.fast()
		d = offline.run(night{})
		d.want(t, "Completed", 0, 0, "was repaired first", "RESULT OK code=0 good=3/3")
	})
	step("aborted after pre-exec", func(t *testing.T) {
		nightly.run(night{media: 13}).want(t, "Completed/Failures", 0, 0, "SMEXIT 13 the session was aborted", "the staged files stay")
		nightly.run(night{}).want(t, "Completed", 0, 0, "3 staged files of session", "RESULT OK")
	})
	step("restarted, but a file is gone", func(t *testing.T) {
		d := nightly.run(night{media: 11})
		if err := os.Remove(s.staged("*")[0]); err != nil {
			t.Fatal(err)
		}
		again := nightly.run(night{id: d.id, restarted: true})
		again.want(t, "Completed", 0, 0, "RESULT OK code=0 good=3/3", "3 of them deleted")
		if n := len(s.staged("*")); n != 0 {
			t.Errorf("%d files are staged", n)
		}
	})
	step("no agent", func(t *testing.T) {
		for _, a := range s.agents {
			a.end(t, syscall.SIGTERM)
		}
		d := nightly.run(night{postAlways: true})
		d.want(t, "Failed", 10, 10, "check that dpxen-agent runs there", "RESULT REFUSED code=10")
		if strings.Contains(d.messages, "an earlier session left") {
			t.Errorf("nothing is left of earlier sessions:\n%s", d.messages)
		}
		for i := range s.agents {
			s.startAgent(i)
		}
	})
	step("not mounted", func(t *testing.T) {
		if err := os.Rename(s.path("staging"), s.path("away")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(s.path("staging"), 0o700); err != nil {
			t.Fatal(err)
		}
		d := nightly.run(night{postAlways: true})
		d.want(t, "Failed", 6, 6, "mount its file system", "RESULT REFUSED code=6")
		if err := os.Remove(s.path("staging")); err != nil {
			t.Errorf("something was written to the mount point: %v", err)
		}
		if err := os.Rename(s.path("away"), s.path("staging")); err != nil {
			t.Fatal(err)
		}
	})
	step("an export stalls", func(t *testing.T) {
		s.inject(xensim.Fault{Name: "export-stall", After: 1 << 20, Delay: 600 * time.Second, Times: 1}) // 12 s at the simulator's speed
		cell := newDPCell(s, "NIGHTLY")
		cell.silence = 9 * time.Second
		d := cell.run(night{})
		s.clearFault("export-stall")
		d.want(t, "Completed", 0, 0, "still at work", "RESULT OK code=0 good=3/3")
	})
	step("object level", func(t *testing.T) {
		object := newDPCell(s, "")
		object.object = true
		object.run(night{preview: true}).want(t, "Completed", 0, notRun, "preview: nothing is changed")
		s.inject(xensim.Fault{Name: "snapshot-fails", Object: before.VMs[0].UUID})
		object.run(night{}).want(t, "Completed", 0, 0, before.VMs[0].Name, "at object level a failure would make a good object an aborted one", "RESULT PARTIAL code=3 good=2/3")
		s.clearFault("snapshot-fails")
		object.run(night{media: 1}).want(t, "Completed/Failures", 0, 0, "BDACC 1", "the staged files stay")
		object.host = true
		object.run(night{}).want(t, "Completed", 0, 0, "neither SMEXIT nor BDACC was given", "the staged files stay")
		s.inject(xensim.Fault{Name: "snapshot-fails", Object: before.VMs[0].UUID})
		object.postArgs = []string{"--dp-object"}
		object.run(night{}).want(t, "Completed", 0, 0, "RESULT PARTIAL code=3 good=2/3")
		s.clearFault("snapshot-fails")
		object.postArgs = nil
		object.host = false
		s.inject(xensim.Fault{Name: "snapshot-fails"})
		object.run(night{}).want(t, "Aborted", 1, notRun, "RESULT FAILED code=1 good=0/3")
		s.clearFault("snapshot-fails")
		object.run(night{}).want(t, "Completed", 0, 0, "RESULT OK code=0 good=3/3", "BDACC 0")
	})
	step("by the scripts of dp-spec", func(t *testing.T) {
		s.dpxen(0, "dp-spec", "--spec", "NIGHTLY", "--out", s.path("scripts"), "--restore-mode", "allOnline")
		cell := newDPCell(s, "NIGHTLY")
		cell.scripts, cell.bare = s.path("scripts"), true
		d := cell.run(night{})
		d.want(t, "Completed", 0, 0, "neither SMEXIT nor BDACC was given")
		saved := s.dump()
		s.scribble("", 77)
		r := cell.restore(restoreNight{media: d.media, objects: [][]string{{".xva", ".json"}}})
		r[0].want(t, "Completed", notRun, 0, "RESULT OK code=0 good=3/3")
		s.changed(saved, "none of them")
	})
}
