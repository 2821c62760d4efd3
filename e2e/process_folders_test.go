//go:build e2e && linux

package e2e

import (
	"os"
	"strings"
	"testing"
	"time"
)

// away does what unmounting a folder's file system does, and gives what mounts it again: an empty folder is in its place.
func (s *site) away(name string) (back func()) {
	s.t.Helper()
	path := s.path(name)
	if err := os.Rename(path, path+".away"); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 {
			s.t.Errorf("written to the mount point %s: %v, %v", path, entries, err)
		}
		if err := os.RemoveAll(path); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Rename(path+".away", path); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestProcessFoldersGone has the staging folder or the state folder go away in mid-session: what is said is true, the VM is
// as before, and once the folder is back, repair makes every state final.
func TestProcessFoldersGone(t *testing.T) {
	s := slowSite(t)
	before := s.dump()
	vm := running(t, before)

	// The staging folder, in the midst of the transfer.
	p := s.begin("backup", "--mode", "offline", "--vm", vm.Name)
	s.receiving(4 << 20)
	back := s.away("staging")
	if code := p.wait(t); code != 1 {
		t.Errorf("without staging folder: ended with %d:\n%s", code, p.out)
	}
	s.says(p.out.String(), vm.Name, "STAGING", "the staging folder cannot be written", "is it mounted")
	s.result(p.out.String(), "FAILED", 1, "0/1")
	back()
	s.same(before)

	// The empty mount point is refused.
	back = s.away("staging")
	out := s.dpxen(6, "backup", "--mode", "offline", "--vm", vm.Name)
	s.says(out, "marker", "mount")
	s.result(out, "REFUSED", 6, "0/0")
	back()
	s.says(s.dpxen(0, "repair", "--dry-run"), "remove the unfinished file")
	s.says(s.dpxen(0, "repair"), "remove the unfinished file")
	s.clean()

	// The state folder, at the end.
	p = s.begin("backup", "--mode", "offline", "--vm", vm.Name)
	s.receiving(4 << 20)
	back = s.away("state")
	if code := p.wait(t); code != 3 {
		t.Errorf("without state folder: ended with %d:\n%s", code, p.out)
	}
	s.says(p.out.String(), "write state of session", "this end is not on disk", "dpxen repair")
	s.result(p.out.String(), "PARTIAL", 3, "1/1")
	s.same(before)
	back()
	id := sessionOf(p.out.String())
	s.says(s.dpxen(0, "sessions"), "interrupted")
	s.until(20*time.Second, "repair finds nothing more to do", func() bool { return s.begin("repair").wait(t) == 0 })
	shown := s.dpxen(0, "show", id)
	s.says(shown, "INTERRUPTED", "good 1", "power: as before")
	for _, f := range s.staged("*") {
		s.dpxen(0, "verify", f)
	}
	s.clean()
	s.same(before)

	// No VM is begun while its intent cannot be written.
	if err := os.RemoveAll(s.path("staging")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.path("state/folders.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path("state/sessions"), s.path("sessions.away")); err != nil {
		t.Fatal(err)
	}
	s.write("state/sessions", "a file where a folder should be\n")
	out = s.dpxen(6, "backup", "--mode", "offline", "--vm", vm.Name)
	s.says(out, "state folder")
	s.result(out, "REFUSED", 6, "0/0")
	s.same(before)
	s.clean()
}

// sessionOf is the session of the RESULT line.
func sessionOf(out string) string {
	_, id, _ := strings.Cut(out[strings.LastIndex(out, "RESULT "):], "session=")
	return strings.TrimSpace(id)
}
