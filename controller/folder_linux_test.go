package controller

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// asNobody runs f without root's right to write everywhere, where this process has it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread() // the call is for this thread alone
	defer runtime.UnlockOSThread()
	if os.Geteuid() == 0 {
		if err := syscall.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Setfsuid(0); err != nil {
				t.Error(err)
			}
		}()
	}
	f()
}

// opened makes all that is below a folder accessible, and the folders above it that the test made.
func opened(t *testing.T, dir string) {
	t.Helper()
	for up := dir; up != os.TempDir() && len(up) > 1; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(path, 0o777)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A folder in which this user may not make files refuses the session, not each VM after its export.
func TestFolderNotWritable(t *testing.T) {
	for name, sub := range map[string]string{"staging": ".", "partial": filepath.Join(".dpxen", "partial")} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			c.cfg.Staging = filepath.Join(t.TempDir(), "staging")
			_, lock, err := c.openStaging("one")
			if err != nil {
				t.Fatal(err)
			}
			if err := lock.Unlock(); err != nil {
				t.Fatal(err)
			}
			opened(t, c.cfg.Staging)
			opened(t, c.cfg.State)
			if err := os.Chmod(filepath.Join(c.cfg.Staging, sub), 0o555); err != nil { //nolint:gosec // tried on purpose
				t.Fatal(err)
			}
			asNobody(t, func() {
				_, _, err := c.openStaging("two")
				if !is[*PreflightError](err) || ExitCode(nil, err) != CodePreflight || !strings.Contains(err.Error(), "permission denied") {
					t.Errorf("got %v, want a PreflightError", err)
				}
			})
			opened(t, c.cfg.Staging)
			if _, lock, err = c.openStaging("three"); err != nil {
				t.Fatalf("it is not free again: %v", err)
			}
			if err := lock.Unlock(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Of a session whose file this user may not read repair does not know that nothing is left.
func TestRepairOfUnreadableSession(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline})
	if err := s.unlock(); err != nil {
		t.Fatal(err)
	}
	opened(t, c.cfg.State)
	if err := os.Chmod(s.path(reportExt), 0); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		rep := &RepairReport{}
		broken, over, err := c.brokenSessions(rep)
		if err != nil || len(broken)+len(over) > 0 || len(rep.Errors) != 1 || !strings.Contains(rep.Errors[0], s.id) || repairCode(rep, nil) != CodeSome {
			t.Errorf("%v, %v, %v: %q", broken, over, err, rep.Errors)
		}
	})
}
