//go:build e2e && linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// TestProcessSnapshotForgotten: XAPI's database falls back to before a backup's snapshot, and agent and controller have died. The
// storage still has the snapshot's disks, and neither a record nor the journal names them: repair knows them by the controller's
// copy.
func TestProcessSnapshotForgotten(t *testing.T) {
	for name, before := range map[string]string{"the snapshot": "VM.fall_back", "all of it": "VM.fall_far_back"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "--hosts", "1", "--vms", "1", "--disk-size", "8MiB", "--bandwidth", "1MiB")
			vm := s.dump().VMs[0]
			journal := func(step string) func() bool {
				return func() bool {
					for key := range s.dump().PoolOtherConfig {
						if strings.HasSuffix(key, step) {
							return true
						}
					}
					return false
				}
			}
			// What is written after this is lost when the call, which is none of XAPI's, is made.
			forget := func() { s.inject(xensim.Fault{Name: "database-rolled-back", Method: before, Times: 1}) }
			if before == "VM.fall_far_back" {
				forget()
			} else {
				s.inject(xensim.Fault{Name: "call-slow", Method: "Async.VM.snapshot", Delay: 100 * time.Second, Times: 1}) // 2 s here
			}
			p := s.begin("backup", "--mode", "online", "--vm", vm.UUID)
			if before == "VM.fall_back" {
				s.until(20*time.Second, "the intent is in the journal", journal(":snapshot"))
				forget()
			}
			s.until(20*time.Second, "the controller has heard of the snapshot's disks", func() bool {
				sessions, err := filepath.Glob(s.path("state/sessions/*.json"))
				if err != nil || len(sessions) != 1 {
					return false
				}
				report, err := os.ReadFile(sessions[0])
				return err == nil && strings.Contains(string(report), "snapshot_disks")
			})
			p.end(t, syscall.SIGKILL)
			s.agents[0].end(t, syscall.SIGKILL)
			client := s.client()
			ref, err := client.VMByUUID(t.Context(), vm.UUID)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Call(t.Context(), before, ref.Ref); err == nil {
				t.Fatal("XAPI did not crash")
			}
			s.until(20*time.Second, "XAPI is back", func() bool { _, err := client.VMByUUID(t.Context(), vm.UUID); return err == nil })
			if len(s.dump().Orphans) == 0 || len(s.dump().Snapshots) > 0 {
				t.Fatalf("the database has not fallen back: orphans %v, snapshots %v", s.dump().Orphans, s.dump().Snapshots)
			}
			s.startAgent(0)
			var said string
			s.until(60*time.Second, "repair has ended", func() bool {
				r := s.begin("repair")
				code := r.wait(t)
				said += r.out.String()
				return code == 0
			})
			s.says(said, "delete the disk of a snapshot whose record is gone")
			s.clean()
		})
	}
}

// TestProcessForgottenBetween: XAPI's database falls back while a session is under way, which goes on with another attempt, and
// that one does not hear of the first one's snapshot, nor that the first one has shut the VM down.
func TestProcessForgottenBetween(t *testing.T) {
	for _, mode := range []string{"online", "offline"} {
		t.Run(mode, func(t *testing.T) {
			s := newSite(t, "--hosts", "1", "--vms", "1", "--disk-size", "8MiB", "--bandwidth", "2MiB")
			s.inject(xensim.Fault{Name: "database-rolled-back", Method: "VM.fall_back", Times: 1})
			vm := s.dump().VMs[0].UUID
			p := s.begin("backup", "--mode", mode, "--vm", vm)
			s.until(20*time.Second, "the export is under way", func() bool {
				files, err := filepath.Glob(s.path("staging/.dpxen/partial/*.xva"))
				return err == nil && len(files) > 0
			})
			client := s.client()
			if _, err := client.Call(t.Context(), "VM.fall_back"); err == nil {
				t.Fatal("XAPI did not crash")
			}
			if code := p.wait(t); code != 0 && code != 4 {
				t.Errorf("the session ended with %d:\n%s", code, p.out)
			}
			s.until(20*time.Second, "XAPI is back", func() bool { _, err := client.VMByUUID(t.Context(), vm); return err == nil })
			s.until(60*time.Second, "repair has ended", func() bool { return s.begin("repair").wait(t) == 0 })
			s.clean()
			if is := s.dump().VMs[0].PowerState; is != "Running" {
				t.Errorf("the VM is %s", is)
			}
		})
	}
}
