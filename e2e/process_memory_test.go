//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
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
		if code := p.wait(t); code != 0 {
			t.Fatalf("%v ended with %d:\n%s", args, code, p.out)
		}
		usage, ok := p.cmd.ProcessState.SysUsage().(*syscall.Rusage)
		if !ok {
			t.Fatal("no usage of a process")
		}
		agent := s.agents[0].peak(t)
		t.Logf("%s: agent %d KiB, controller %d KiB", args[0], agent, usage.Maxrss)
		if agent > agentLimit {
			t.Errorf("%s: the agent's peak is %d KiB", args[0], agent)
		}
		if usage.Maxrss > controllerLimit {
			t.Errorf("%s: the controller's peak is %d KiB", args[0], usage.Maxrss)
		}
	}
	s.clean()
}

// peak is the most memory that a process has had so far, in KiB.
func (p *program) peak(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no VmHWM in a process's status")
	return 0
}
