package agent

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// anywhereStep is the distance of the calls that go wrong; 1 tries them all.
var anywhereStep = flag.Int("anywhere.step", 15, "every how many calls of XAPI are tried by TestTroubleAnywhere")

// callsOfBackup is more than a backup makes of XAPI.
const callsOfBackup = 60

// XAPI's trouble comes at any call. Whatever becomes of the backup, the pool is as it was, and success means a whole
// archive.
func TestTroubleAnywhere(t *testing.T) {
	for i, fault := range []xensim.Fault{
		{Name: "answer-lost", Times: 1},
		{Name: "toolstack-restart", Times: 1, Delay: 20 * time.Second},
		{Name: "session-invalid", Times: 1},
		{Name: "host-booting", Times: 2},
	} {
		for _, spec := range []*agentv1.BackupSpec{online(), offline()} {
			for skip := i; skip < callsOfBackup; skip += *anywhereStep {
				fault.Skip = skip
				t.Run(fmt.Sprintf("%s %s after %d", fault.Name, spec.GetKind(), skip), func(t *testing.T) { troubleAt(t, fault, spec) })
			}
		}
	}
}

func troubleAt(t *testing.T, fault xensim.Fault, spec *agentv1.BackupSpec) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	a := b.agent(func(c *Config) { c.Timing.Claim = 3 * time.Second })
	vm := b.vm(running, 0)
	b.inject(fault)
	p := newPuller(t, a, vm.UUID, spec)
	err := p.pull()
	out := a.release(t, p.opening.GetKey())
	if err == nil {
		p.wantArchive(vm.Disks)
	} else {
		t.Logf("backup: %v", err)
	}
	if !out.GetPowerRestored() || len(out.GetLeftovers()) > 0 || (err != nil && out.GetSucceeded()) {
		t.Errorf("outcome: got %v", out)
	}
	if strings.Contains(fmt.Sprint(out.GetWarnings()), "is watched until") { // a call for a shutdown got no answer
		a.awaitWatches(t, b)
	}
	if fault.Name == "answer-lost" {
		b.wantCleanButTasks()
	} else {
		b.wantClean()
	}
}
