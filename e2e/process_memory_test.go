//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestProcessMemory holds that the size of a VM does not matter to the memory of agent and controller.
func TestProcessMemory(t *testing.T) {
	const agentLimit, controllerLimit = 100 << 10, 160 << 10 // KiB
	s := newSite(t, "--hosts", "1", "--vms", "1", "--disk-size", "8GiB", "--content", "sparse")
	name := s.pool.VMs[0].Name
	for _, args := range [][]string{
		{"backup", "--mode", "online", "--vm", name},
		{"restore", "--mode", "online", "--vm", name, "--from", s.path("staging")},
	} {
		p := s.begin(args...)
		controller := p.watchPeak()
		if code := p.wait(t); code != 0 {
			t.Fatalf("%v ended with %d:\n%s", args, code, p.out)
		}
		agent := s.agents[0].peak()
		t.Logf("%s: agent %d KiB, controller %d KiB", args[0], agent, controller)
		if agent == 0 || agent > agentLimit {
			t.Errorf("%s: the agent's peak is %d KiB", args[0], agent)
		}
		if controller == 0 || controller > controllerLimit {
			t.Errorf("%s: the controller's peak is %d KiB", args[0], controller)
		}
	}
	s.clean()
}

// watchPeak is the peak of a process that has ended when it returns. The usage that wait(2) tells cannot be used: a child
// begins on the memory of the process that started it, and its ru_maxrss keeps the size of that one.
func (p *program) watchPeak() (kib int64) {
	for p.running() {
		kib = max(kib, p.peak())
		select {
		case <-p.done:
		case <-time.After(10 * time.Millisecond):
		}
	}
	return kib
}

// peak is the most memory that a process has had so far, in KiB, and 0 when it has ended.
func (p *program) peak() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return n
		}
	}
	return 0
}
