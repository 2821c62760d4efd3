//go:build e2e && linux

package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestProcessForgotten kills a controller in mid-backup and damages, or takes away, the file of its session: repair ends at once
// what agents still do for it, and need not wait for their leases.
func TestProcessForgotten(t *testing.T) {
	for name, hurt := range map[string]func(path string) error{
		"damaged": func(path string) error { return os.Truncate(path, 100) },
		"gone":    os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			s := slowSite(t)
			s.edit(s.config, "lease: 3s", "lease: 10m")
			before := s.dump()
			vm := running(t, before)
			p := s.begin("backup", "--mode", "offline", "--vm", vm.Name)
			s.receiving(4 << 20)
			p.end(t, syscall.SIGKILL)
			files, err := filepath.Glob(s.path("state/sessions/*.json"))
			if err != nil || len(files) != 1 {
				t.Fatalf("sessions: %v, %v", files, err)
			}
			if err := hurt(files[0]); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			s.says(s.dpxen(0, "repair"), "what a session had begun that died is known from the pools alone")
			if took := time.Since(began); took > 2*time.Minute {
				t.Errorf("repair took %s", took)
			}
			s.clean()
			s.same(before)
			if locks, _ := filepath.Glob(s.path("state/sessions/*.lock")); len(locks) > 0 {
				t.Errorf("left: %v", locks)
			}
			s.result(s.dpxen(0, "backup", "--mode", "offline", "--vm", vm.Name), "OK", 0, "1/1")
			s.clean()
		})
	}
}
