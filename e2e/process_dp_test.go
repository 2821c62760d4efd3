//go:build e2e && linux

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// dpSite is a site whose configuration has specifications.
func dpSite(t *testing.T, simArgs ...string) *site {
	t.Helper()
	s := newSite(t, simArgs...)
	s.edit(s.config, "\nsets: {}\n", "\nsets: {two: {vm: [\"*\"], exclude: [vm-03, vm-04]}}\n")
	s.edit(s.config, "\nspecs: {}\n", "\nspecs:\n"+
		"  NIGHTLY: {mode: allOnline}\n"+
		"  STRICT: {mode: allOnline, partial: fail, dp_mode: refuse}\n"+
		"  KEEP: {mode: allOffline, keep_sets: 1, keep_unsaved: true}\n"+
		"  SOME: {mode: online, select: two}\n"+
		"  OFFLINE: {mode: allOffline}\n")
	return s
}

// TestDataProtectorNights plays whole nights of a Data Protector cell and reads its session messages.
func TestDataProtectorNights(t *testing.T) {
	s := dpSite(t, "--vms", "4", "--disk-size", "4MiB")
	before := s.dump()
	step := func(name string, run func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			run(t)
			s.clean()
			s.same(before)
		})
	}
	step("doctor", func(t *testing.T) {
		text := s.dpxen(4, "doctor", "--dp-home", s.path("none"))
		s.says(text, "PASS  agent xs1", "PASS  pool ", "PASS  storage ", "PASS  specification NIGHTLY: mode allOnline, 4 VMs, 4 would run")
		if strings.Contains(text, "FAIL  ") {
			t.Errorf("something fails:\n%s", text)
		}
	})
	nightly := newDPCell(s, "NIGHTLY")
	noFiles := func(t *testing.T) {
		t.Helper()
		if files := s.staged("*"); len(files) > 0 {
			t.Errorf("files stay in the staging folder: %v", files)
		}
	}
	saved := func(t *testing.T, d dpSession, n int) {
		t.Helper()
		if files, _ := filepath.Glob(filepath.Join(d.media, "*.xva")); d.media == "" || len(files) != n {
			t.Errorf("%d files are on the media, want %d", len(files), n)
		}
	}

	step("preview", func(t *testing.T) {
		d := nightly.run(night{preview: true})
		d.want(t, "Completed", 0, notRun, "preview: nothing is changed", "4 VMs chosen")
		noFiles(t)
	})
	step("good", func(t *testing.T) {
		d := nightly.run(night{})
		d.want(t, "Completed", 0, 0, "DP      told to go on (exit 0): 4 files staged", "RESULT OK code=0 good=4/4", "4 of them deleted")
		saved(t, d, 4)
		noFiles(t)
		s.says(s.dpxen(0, "verify", filepath.Join(d.media, filepath.Base(glob(t, d.media)))), "good")
		s.says(s.dpxen(0, "sessions"), d.id, "NIGHTLY")
	})
	step("partial", func(t *testing.T) {
		s.inject(xensim.Fault{Name: "snapshot-fails", Object: before.VMs[1].UUID})
		d := nightly.run(night{})
		s.clearFault("snapshot-fails")
		d.want(t, "Completed/Errors", 0, 3, before.VMs[1].Name, "told to go on", "told of a failure (exit 3)", "RESULT PARTIAL code=3 good=3/4")
		saved(t, d, 3)
		noFiles(t)
		d = newDPCell(s, "STRICT").run(night{})
		d.want(t, "Completed", 0, 0, "RESULT OK")
		s.inject(xensim.Fault{Name: "snapshot-fails", Object: before.VMs[1].UUID})
		d = newDPCell(s, "STRICT").run(night{})
		s.clearFault("snapshot-fails")
		d.want(t, "Failed", 3, notRun, "partial: fail")
		if n := len(s.staged("*")); n != 3 {
			t.Errorf("%d files are staged, want the 3 that nobody saved", n)
		}
		d = newDPCell(s, "STRICT").run(night{})
		d.want(t, "Completed", 0, 0, "3 staged files of session", "RESULT OK")
		saved(t, d, 4)
	})
	step("incremental", func(t *testing.T) {
		d := newDPCell(s, "STRICT").run(night{mode: "incremental1"})
		d.want(t, "Failed", 2, notRun, "incremental1", "dp_mode: warn")
		d = nightly.run(night{mode: "incremental"})
		d.want(t, "Completed", 0, 0, "incremental", "RESULT WARN code=4 good=4/4")
	})
	step("media failure", func(t *testing.T) {
		d := nightly.run(night{media: 11})
		d.want(t, "Completed/Failures", 0, 0, "SMEXIT 11", "the staged files stay")
		if n := len(s.staged("*")); n != 4 {
			t.Errorf("%d files are staged, want the 4 that were not saved", n)
		}
		again := nightly.run(night{id: d.id, restarted: true})
		again.want(t, "Completed", 0, 0, "restarted", "4 of them deleted")
		saved(t, again, 4)
		noFiles(t)
		nightly.run(night{media: 13})
		d = nightly.run(night{})
		d.want(t, "Completed", 0, 0, "4 staged files of session", "RESULT OK")
		saved(t, d, 4)
	})
	step("pre-exec killed", func(t *testing.T) {
		slow := func() {
			s.control("POST", "/shape", map[string]any{"object": s.pool.Hosts[0].Name, "bandwidth": 2 << 20}, nil)
		}
		slow()
		d := nightly.run(night{postAlways: true, duringPre: func(cmd *exec.Cmd) {
			s.until(20*time.Second, "an export runs", func() bool { return len(s.dump().Snapshots) > 0 })
			_ = cmd.Process.Kill() // as asked
		}})
		s.control("POST", "/shape", map[string]any{"object": s.pool.Hosts[0].Name}, nil)
		if d.pre == 0 || d.post == 0 {
			t.Errorf("killed, and told as pre-exec %d, post-exec %d:\n%s", d.pre, d.post, d.messages)
		}
		s.says(d.messages, "INTERRUPTED", "repaired", "the session died before its end")
		d = nightly.run(night{})
		d.want(t, "Completed", 0, 0, "RESULT OK")
	})
	step("cancelled", func(t *testing.T) {
		s.control("POST", "/shape", map[string]any{"object": s.pool.Hosts[0].Name, "bandwidth": 1 << 20}, nil)
		d := newDPCell(s, "STRICT").run(night{postAlways: true, duringPre: func(*exec.Cmd) {
			s.until(20*time.Second, "an export runs", func() bool { return len(s.dump().Snapshots) > 0 })
			lines := strings.Split(strings.TrimSpace(s.dpxen(0, "sessions")), "\n")
			s.dpxen(0, "cancel", strings.Fields(lines[len(lines)-1])[0])
		}})
		s.control("POST", "/shape", map[string]any{"object": s.pool.Hosts[0].Name}, nil)
		if d.pre == 0 || d.post != 1 {
			t.Errorf("cancelled, and told as pre-exec %d, post-exec %d:\n%s", d.pre, d.post, d.messages)
		}
		s.says(d.messages, "RESULT CANCELLED code=130")
	})
	step("missing pre-exec", func(t *testing.T) {
		d := nightly.run(night{noPre: true})
		d.want(t, "Completed/Errors", notRun, 1, "no pre-exec of")
	})
	step("kept sets", func(t *testing.T) {
		keep := newDPCell(s, "KEEP")
		for range 3 {
			keep.run(night{}).want(t, "Completed", 0, 0, "RESULT OK", "the newest 1 sets are kept")
		}
		if n := len(s.staged("*.offline.*")); n != 4 {
			t.Errorf("%d files are kept, want one set of 4", n)
		}
		keep.run(night{media: 11})
		keep.run(night{media: 11}).want(t, "Completed/Failures", 0, 0)
		if n := len(s.staged("*.offline.*")); n != 12 {
			t.Errorf("%d files are kept, want a saved set and two unsaved ones of 4", n)
		}
		nightly.run(night{}).want(t, "Completed", 0, 0)
		if n := len(s.staged("*.offline.*")); n != 12 {
			t.Errorf("%d files of another specification are left, want 12", n)
		}
	})
	step("object level, without any environment", func(t *testing.T) {
		cell := newDPCell(s, "")
		cell.object = true
		d := cell.run(night{})
		d.want(t, "Completed", 0, 0, "RESULT OK code=0 good=4/4", "BDACC 0")
		cell.bare = true
		d = cell.run(night{preArgs: []string{"--spec", "SOME"}})
		d.want(t, "Completed", 0, 0, "RESULT OK code=0 good=2/2")
	})
}

// glob returns the first export of a folder.
func glob(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.xva"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no export in %s: %v", dir, err)
	}
	return files[0]
}
