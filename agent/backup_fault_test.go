package agent

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// Faults of XAPI end the backup with a reason, and leave nothing.
func TestBackupFaults(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  xensim.Fault
		spec   *agentv1.BackupSpec
		reason rpc.Reason // "" = good
	}{
		{"export cut", xensim.Fault{Name: "export-cut", After: 2 << 20}, online(), rpc.ExportFailed},
		{"export cut, offline", xensim.Fault{Name: "export-cut", After: 2 << 20}, offline(), rpc.ExportFailed},
		{"export refused, offline", xensim.Fault{Name: "export-refused"}, offline(), rpc.ExportFailed},
		{"task fails", xensim.Fault{Name: "export-task-fails"}, online(), rpc.ExportFailed},
		{"task fails, offline", xensim.Fault{Name: "export-task-fails"}, offline(), rpc.ExportFailed},
		{"task vanishes", xensim.Fault{Name: "export-task-vanishes"}, online(), ""},
		{"no space", xensim.Fault{Name: "snapshot-fails"}, online(), rpc.SRFull},
		{"snapshot's answer lost", xensim.Fault{Name: "answer-lost", Method: "Async.VM.snapshot", Times: 1}, online(), ""},
		{"start fails once", xensim.Fault{Name: "start-fails", Times: 1}, offline(), ""},
		{"start fails otherwise once", xensim.Fault{Name: "start-fails", Code: "INTERNAL_ERROR", Times: 1}, offline(), ""},
		{"disk in use", xensim.Fault{Name: "vdi-in-use", Times: 2}, online(), ""},
		{"session lost", xensim.Fault{Name: "session-invalid", Skip: 12, Times: 1}, online(), ""},
		{"journal's answer lost", xensim.Fault{Name: "answer-lost", Method: "pool.add_to_other_config", Times: 1}, online(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2})
			a := b.agent(nil)
			vm := b.vm(running, 0)
			b.inject(tc.fault)
			p := newPuller(t, a, vm.UUID, tc.spec)
			err := p.pull()
			if got := rpc.ReasonOf(err); got != tc.reason {
				t.Errorf("backup: got %v (%s), want reason %q", err, got, tc.reason)
			}
			out := a.release(t, p.opening.GetKey())
			if tc.reason == "" {
				p.wantArchive(vm.Disks)
				wantGood(t, out)
			} else if out.GetSucceeded() || out.GetReason() != string(tc.reason) || !out.GetPowerRestored() {
				t.Errorf("outcome: got %v", out)
			}
			b.wantClean()
		})
	}
}

func TestShutdownIgnored(t *testing.T) {
	for _, force := range []bool{false, true} {
		t.Run(fmt.Sprint("force ", force), func(t *testing.T) { shutdownIgnored(t, force) })
	}
}

func shutdownIgnored(t *testing.T, force bool) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	if err := b.pool.SetGuest(vm.UUID, true, 0); err != nil {
		t.Fatal(err)
	}
	spec := offline()
	spec.ForceOff = force
	spec.ShutdownTimeout = durationpb.New(200 * time.Millisecond)
	p := newPuller(t, a, vm.UUID, spec)
	err := p.pull()
	if force {
		if err != nil {
			t.Errorf("with force: %v", err)
		}
	} else if rpc.ReasonOf(err) != rpc.ShutdownTimeout {
		t.Errorf("without force: got %v, want SHUTDOWN_TIMEOUT", err)
	}
	out := a.release(t, p.opening.GetKey())
	if out.GetSucceeded() != force || !out.GetPowerRestored() || out.GetPowerAfter() != powerToWire(running) {
		t.Errorf("outcome: got %v", out)
	}
	a.awaitWatches(t, b)
	b.wantClean()
}

// awaitWatches waits until the journal is empty.
func (a *runningAgent) awaitWatches(t *testing.T, b *bench) {
	t.Helper()
	for len(parseLedger(withoutMarks(b.dump().PoolOtherConfig)).raw) > 0 {
		if err := sleep(t.Context(), 5*time.Millisecond); err != nil {
			t.Fatal("the journal is never empty")
		}
	}
}

// The guest powers off after the shutdown was given up: it is started again.
func TestShutdownTooLate(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Speedup: 1})
	a := b.agent(func(c *Config) { c.Timing.Late = 5 * time.Second })
	vm := b.vm(running, 0)
	if err := b.pool.SetGuest(vm.UUID, false, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	spec := offline()
	spec.ShutdownTimeout = durationpb.New(200 * time.Millisecond)
	p := newPuller(t, a, vm.UUID, spec)
	if err := p.pull(); rpc.ReasonOf(err) != rpc.ShutdownTimeout {
		t.Errorf("backup: got %v, want SHUTDOWN_TIMEOUT", err)
	}
	a.release(t, p.opening.GetKey())
	a.awaitWatches(t, b)
	b.wantClean()
}
