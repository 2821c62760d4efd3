//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// TestProcessRefusals holds messages and exit codes of what goes wrong before a VM is touched, and that nothing is left.
func TestProcessRefusals(t *testing.T) {
	s := newSite(t, "--vms", "4", "--disk-size", "4MiB")
	before := s.dump()
	names := []string{before.VMs[0].Name, before.VMs[1].Name}
	untouched := func(t *testing.T) {
		t.Helper()
		s.clean()
		s.same(before)
		if files := s.staged("*"); len(files) > 0 {
			t.Errorf("files are left in the staging folder: %v", files)
		}
	}
	step := func(name string, run func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			run(t)
			untouched(t)
		})
	}

	step("configuration", func(t *testing.T) {
		s.write("bad.yaml", "staging: 7\nstate: state\ncolour: red\ntls: {ca: nowhere.pem, cert: c.pem, key: k.pem}\n"+
			"agents:\n  - {name: 'No Name!', address: nonsense}\nlimits: {total: -1}\n")
		p, _ := s.start("dpxen", "-c", s.path("bad.yaml"), "backup", "--mode", "allOnline")
		if code := p.wait(t); code != 2 {
			t.Errorf("a wrong configuration ends with %d:\n%s", code, p.out)
		}
		s.says(p.out.String(), "colour", "agents[0].name", "agents[0].address", "limits.total", "bad.yaml")
		s.says(s.dpxen(2, "-c", s.path("none.yaml"), "hosts"), "none.yaml")
	})
	step("agent configuration", func(t *testing.T) {
		s.write("agent.yaml", "name: 'No Name!'\nlisten: nowhere\ncolour: red\nxapi: {url: 'ftp://x'}\n")
		p, _ := s.start("dpxen-agent", "--config", s.path("agent.yaml"), "--check")
		if code := p.wait(t); code == 0 {
			t.Errorf("a wrong configuration is good:\n%s", p.out)
		}
		s.says(p.out.String(), "name", "listen", "colour", "xapi.url", "tls.ca")
	})
	step("usage", func(t *testing.T) {
		s.says(s.dpxen(2, "backup", "--mode", "allOnline", "--vm", names[0]), "--exclude")
		s.dpxen(2, "backup", "--mode", "online")
		s.dpxen(2, "backup", "--mode", "sideways")
		s.dpxen(2, "backup")
		s.dpxen(2, "verify", s.path("nothing.xva"))
	})
	step("unknown VM", func(t *testing.T) {
		wrong := names[0] + "x"
		s.says(s.dpxen(2, "backup", "--mode", "online", "--vm", wrong), wrong, names[0])
	})
	step("unreachable agents", func(t *testing.T) {
		s.agents[1].end(t, syscall.SIGTERM)
		s.says(s.dpxen(3, "hosts"), "xs2")
		s.agents[0].end(t, syscall.SIGTERM)
		out := s.dpxen(10, "backup", "--mode", "allOnline")
		s.says(out, "xs1", "xs2")
		s.result(out, "REFUSED", 10, "0/0")
		s.startAgent(0)
		s.startAgent(1)
	})
	step("certificate of another authority", func(t *testing.T) {
		other := s.path("other/controller.yaml")
		p, _ := s.start("dpxen", "-c", other, "init", "--staging", s.path("staging"), "--state", s.path("state"))
		if code := p.wait(t); code != 0 {
			t.Fatalf("init: %d: %s", code, p.out)
		}
		s.edit(other, "agents: []\n", "agents:\n  - {name: xs1, address: \""+s.addrs[0]+"\"}\n  - {name: xs2, address: \""+s.addrs[1]+"\"}\n"+controllerTiming)
		out := s.dpxen(12, "-c", other, "backup", "--mode", "allOnline")
		s.says(out, "certificate")
		s.result(out, "REFUSED", 12, "0/0")
	})
	step("agents under each other's names", func(t *testing.T) {
		data, err := os.ReadFile(s.config)
		if err != nil {
			t.Fatal(err)
		}
		swapped := strings.NewReplacer("{name: xs1", "{name: xs2", "{name: xs2", "{name: xs1").Replace(string(data))
		s.write("etc/swapped.yaml", swapped)
		s.says(s.dpxen(12, "-c", s.path("etc/swapped.yaml"), "backup", "--mode", "allOnline"), "xs1", "xs2")
	})
	step("XAPI password", func(t *testing.T) {
		for _, name := range []string{"xs1", "xs2"} {
			s.write("etc/"+name+"/xapi.password", "guessed\n")
		}
		s.restart(0)
		s.restart(1)
		out := s.dpxen(12, "backup", "--mode", "allOnline")
		s.says(out, "password")
		s.result(out, "REFUSED", 12, "0/0")
		for _, name := range []string{"xs1", "xs2"} {
			s.write("etc/"+name+"/xapi.password", s.pool.Password+"\n")
		}
		s.restart(0)
		s.restart(1)
		s.dpxen(0, "hosts")
	})
	step("second session", func(t *testing.T) {
		s.inject(xensim.Fault{Name: "export-stall", After: 1 << 20, Delay: 10 * time.Minute})
		first := s.begin("backup", "--mode", "online", "--vm", names[0])
		s.until(20*time.Second, "the first session is at work", func() bool {
			return len(s.dump().Snapshots) > 0
		})
		out := s.dpxen(11, "backup", "--mode", "online", "--vm", names[1])
		s.says(out, "session")
		s.result(out, "REFUSED", 11, "0/0")
		s.clearFault("export-stall")
		if code := first.end(t, syscall.SIGINT); code != 130 {
			t.Errorf("a session that was interrupted ended with %d:\n%s", code, first.out)
		}
		s.result(first.out.String(), "CANCELLED", 130, "0/1")
	})
	step("revoked agent", func(t *testing.T) {
		s.dpxen(0, "certs", "revoke", "agent/xs2")
		s.says(s.dpxen(3, "hosts"), "revoked")
		s.says(s.dpxen(0, "certs", "list"), "revoked")
	})
}

// restart ends an agent in good order and starts it again.
func (s *site) restart(i int) {
	s.t.Helper()
	s.agents[i].end(s.t, syscall.SIGTERM)
	s.startAgent(i)
}

// TestProcessAmbiguous holds that a name that two VMs have is refused with both, and that either goes by its UUID.
func TestProcessAmbiguous(t *testing.T) {
	s := newSite(t, "--scenario", "demo", "--disk-size", "16MiB")
	before := s.dump()
	seen := map[string]xensim.VMState{}
	for _, vm := range before.VMs {
		other, twice := seen[vm.Name]
		if seen[vm.Name] = vm; !twice {
			continue
		}
		s.says(s.dpxen(2, "backup", "--mode", "online", "--vm", vm.Name), vm.UUID, other.UUID)
		s.result(s.dpxen(0, "backup", "--mode", "online", "--vm", vm.UUID), "OK", 0, "1/1")
		s.clean()
		s.same(before)
		return
	}
	t.Fatal("the scenario has no two VMs of one name")
}

// TestProcessOneAgentGone holds that a pool is backed up through the agent that is left, and that the session says so.
func TestProcessOneAgentGone(t *testing.T) {
	s := newSite(t, "--vms", "4", "--disk-size", "4MiB")
	before := s.dump()
	s.agents[1].end(t, syscall.SIGTERM)
	out := s.dpxen(3, "backup", "--mode", "allOnline")
	s.says(out, "xs2")
	s.clean()
	s.same(before)
	for _, f := range s.staged("*") {
		s.dpxen(0, "verify", f)
	}
}

// TestProcessFull holds that a staging folder that fills up fails its VMs alone, with their names, and keeps no piece.
func TestProcessFull(t *testing.T) {
	s := newSite(t, "--vms", "2", "--disk-size", "32MiB")
	before := s.dump()
	// No root is needed for a limit on the length of a file: writes beyond it fail as on a full disk.
	p, _ := s.start("dpxen", "-c", s.config, "hosts")
	p.wait(t)
	sh := filepath.Join(s.bin, "dpxen")
	full, _ := s.startPath("/bin/sh", "-c", "ulimit -f 16384; exec \"$0\" \"$@\"", sh, "-c", s.config, "backup", "--mode", "allOnline")
	if code := full.wait(t); code != 1 {
		t.Errorf("a backup to a full disk ended with %d:\n%s", code, full.out)
	}
	s.result(full.out.String(), "FAILED", 1, "0/2")
	s.says(full.out.String(), "NO_ROOM", "ulimit -f", "free room")
	for _, vm := range before.VMs {
		s.says(full.out.String(), vm.Name)
	}
	s.clean()
	s.same(before)
	if files := s.staged("*"); len(files) > 0 {
		t.Errorf("files are left in the staging folder: %v", files)
	}
}

// TestProcessNoRoom holds that a disk larger than the staging folder's file system is refused before anything happens.
func TestProcessNoRoom(t *testing.T) {
	s := newSite(t, "--vms", "1", "--disk-size", "16TiB", "--sr-size", "400TiB", "--content", "random")
	out := s.dpxen(6, "backup", "--mode", "allOnline")
	s.result(out, "REFUSED", 6, "0/1")
	s.says(out, s.pool.VMs[0].Name, "room")
	client := s.client()
	vms, err := client.VMs(t.Context()) // no dump: the digest of such a disk would take hours
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range vms {
		if vm.IsSnapshot {
			t.Errorf("snapshot %s is left", vm.Name)
		}
	}
	keys, err := client.PoolOtherConfig(t.Context())
	if err != nil || strings.Contains(fmt.Sprint(keys), "dpxen:") {
		t.Errorf("the pool's other_config is %v: %v", keys, err)
	}
}
