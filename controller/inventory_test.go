package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestInventory(t *testing.T) {
	p := newPKI(t)
	vm := func(n, host int, name string) *agentv1.VM {
		m := &agentv1.VM{Uuid: testUUID(n), Name: name, PowerState: agentv1.PowerState_POWER_STATE_HALTED}
		if host != 0 {
			m.PowerState, m.ResidentHostUuid = agentv1.PowerState_POWER_STATE_RUNNING, strings.ToUpper(testUUID(host))
		}
		return m
	}
	pages := [][]*agentv1.VM{
		{vm(102, 12, "two"), vm(101, 11, "one"), {Uuid: "../../etc", Name: "evil"}},
		{vm(103, 0, "three"), vm(101, 11, "one")},
	}
	a1 := &toldAgent{host: toldHost("xs1"), check: toldPool(1, 11, 11, 12), listErr: rpc.Errorf(rpc.Internal, "broken")}
	a2 := &toldAgent{host: toldHost("xs2"), check: toldPool(1, 12, 11, 12), pages: pages}
	b1 := &toldAgent{host: toldHost("xs3"), check: toldPool(2, 21, 21), pages: [][]*agentv1.VM{{vm(201, 21, "far")}}}
	c := mustController(t, p.config(
		AgentConfig{Name: "xs1", Address: p.serve("xs1", a1, certs.PeerPolicy{})},
		AgentConfig{Name: "xs2", Address: p.serve("xs2", a2, certs.PeerPolicy{Allow: []string{"c1"}})},
		AgentConfig{Name: "xs3", Address: p.serve("xs3", b1, certs.PeerPolicy{})},
	), Options{Version: "test"})

	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Pools) != 2 || len(inv.Pools[0].Hosts) != 2 || len(inv.VMs) != 4 {
		t.Fatalf("%d pools, %d VMs: %+v", len(inv.Pools), len(inv.VMs), inv)
	}
	var names []string
	for _, vm := range inv.VMs {
		names = append(names, fmt.Sprintf("%s %s %s %v", vm.Name, vm.Power, vm.Host, vm.Agents))
	}
	want := []string{"one Running host-0b [xs2]", "three Halted  [xs2]", "two Running host-0c [xs2]", "far Running host-15 [xs3]"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("VMs (-want +got):\n%s", diff)
	}
	if w := inv.Pools[0].Warnings; len(w) != 1 || !strings.Contains(w[0], "evil") {
		t.Errorf("warnings %q", w)
	}
	// The first agent could not list: it is out, another of its pool took over.
	if a := inv.Agents[0]; a.OK || a.Class != AgentFault || !strings.Contains(a.Error, "broken") {
		t.Errorf("xs1: %+v", a)
	}
	if got := inv.Pools[0].Agents; !slices.Equal(got, []string{"xs2"}) || inv.Pools[0].Error != "" {
		t.Errorf("agents of the pool: %v, error %q", got, inv.Pools[0].Error)
	}

	a1.change(func() { a1.listErr, a1.pages = nil, pages })
	a1.lists.Store(0)
	a2.lists.Store(0)
	if inv, err = c.Inventory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := a1.lists.Load() + a2.lists.Load(); n != 1 {
		t.Errorf("the pool's VMs were listed %d times, want once", n)
	}
	if got := inv.VMs[0].Agents; !slices.Equal(got, []string{"xs1", "xs2"}) {
		t.Errorf("VM on xs1's host: agents %v", got)
	}
	if h := inv.Pools[0].Host(testUUID(12)); h == nil || h.Agent != "xs2" {
		t.Errorf("host 12: %+v", h)
	}
}

// The pools are listed at the same time: that agents of one cannot list is nothing that another pool's listing touches, which
// the race detector sees.
func TestInventoryOfPoolsThatFail(t *testing.T) {
	p := newPKI(t)
	var agents []AgentConfig
	for n := 1; n <= 6; n++ {
		name := fmt.Sprintf("xs%d", n)
		broken := &toldAgent{host: toldHost(name), check: toldPool(n, 10*n, 10*n), listErr: rpc.Errorf(rpc.Internal, "broken")}
		agents = append(agents, AgentConfig{Name: name, Address: p.serve(name, broken, certs.PeerPolicy{})})
	}
	inv, err := mustController(t, p.config(agents...), Options{Version: "test"}).Inventory(t.Context())
	if err == nil || inv == nil || len(inv.Pools) != len(agents) {
		t.Fatalf("%+v, error %v", inv, err)
	}
	for i, pool := range inv.Pools {
		if len(pool.Agents) != 0 || pool.Error != inv.Agents[i].Error || !strings.Contains(pool.Error, "broken") {
			t.Errorf("pool %d: agents %v, error %q", i, pool.Agents, pool.Error)
		}
	}
}

// TestAgentClasses holds what is told of each way in which an agent cannot be used, and the exit code when there is no other.
func TestAgentClasses(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	good := &toldAgent{host: toldHost("xs1"), check: toldPool(1, 11, 11)}
	future := toldHost("xs1")
	future.Protocol = &agentv1.ProtocolRange{Min: rpc.ProtocolMax + 1, Max: rpc.ProtocolMax + 2}
	for name, tt := range map[string]struct {
		address string
		class   AgentClass
		code    int
		says    string
	}{
		"nobody listens":   {nobody, AgentUnreachable, CodeUnreachable, "refused"},
		"silent":           {p.serve("xs1", &toldAgent{silent: true}, certs.PeerPolicy{}), AgentUnreachable, CodeUnreachable, ""},
		"other CA":         {other.serve("xs1", good, certs.PeerPolicy{}), AgentRefused, CodeAuth, "certificate"},
		"other name":       {p.serve("xs7", good, certs.PeerPolicy{}), AgentRefused, CodeAuth, "xs7"},
		"not on its list":  {p.serve("xs1", good, certs.PeerPolicy{Allow: []string{"c2"}}), AgentRefused, CodeAuth, "certificate"},
		"other version":    {p.serve("xs1", &toldAgent{host: future}, certs.PeerPolicy{}), AgentVersion, CodePreflight, "versions 2 to 3"},
		"XAPI's password":  {p.serve("xs1", &toldAgent{host: toldHost("xs1"), checkErr: rpc.Errorf(rpc.HostAuth, "SESSION_AUTHENTICATION_FAILED")}, certs.PeerPolicy{}), AgentRefused, CodeAuth, "SESSION_AUTHENTICATION_FAILED"},
		"XAPI away":        {p.serve("xs1", &toldAgent{host: toldHost("xs1"), checkErr: rpc.Errorf(rpc.XAPIUnreachable, "dial")}, certs.PeerPolicy{}), AgentUnreachable, CodeUnreachable, "dial"},
		"no pool":          {p.serve("xs1", &toldAgent{host: toldHost("xs1"), check: &agentv1.CheckResponse{}}, certs.PeerPolicy{}), AgentFault, CodeUnreachable, "no pool"},
		"VMs not listable": {p.serve("xs1", &toldAgent{host: toldHost("xs1"), check: toldPool(1, 11, 11), listErr: errors.New("x")}, certs.PeerPolicy{}), AgentFault, CodeUnreachable, "list the VMs"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := p.config(AgentConfig{Name: "xs1", Address: tt.address})
			if name == "silent" {
				cfg.Timing.ConnectTimeout = 200 * time.Millisecond
			}
			inv, err := mustController(t, cfg, Options{}).Inventory(t.Context())
			if code := ExitCode(nil, err); code != tt.code {
				t.Errorf("exit code %d, want %d: %v", code, tt.code, err)
			}
			if inv == nil {
				t.Fatal("no inventory")
			}
			if a := inv.Agents[0]; a.OK || a.Class != tt.class || !strings.Contains(a.Error, tt.says) || a.Advice == "" {
				t.Errorf("got %+v, want class %s and %q", a, tt.class, tt.says)
			}
			if !strings.Contains(err.Error(), "agent xs1 at "+tt.address) {
				t.Errorf("error does not name the agent: %v", err)
			}
		})
	}
}

func TestInventoryCancelled(t *testing.T) {
	p := newPKI(t)
	c := mustController(t, p.config(AgentConfig{Name: "xs1", Address: p.serve("xs1", &toldAgent{silent: true}, certs.PeerPolicy{})}), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Inventory(ctx); ExitCode(nil, err) != CodeCancelled {
		t.Errorf("got %v", err)
	}
}

func TestNewRefusesCertificates(t *testing.T) {
	p := newPKI(t)
	agent := p.issue(certs.Identity{Role: certs.Agent, Name: "xs1"})
	at := AgentConfig{Name: "xs1", Address: "127.0.0.1:1"}

	cfg := p.config(at)
	cfg.TLS.Cert, cfg.TLS.Key = agent.Cert, agent.Key
	if _, err := New(cfg, Options{}); !is[*AuthError](err) || !strings.Contains(err.Error(), "agent xs1") {
		t.Errorf("an agent's certificate: %v", err)
	}
	cfg = p.config(at)
	cfg.TLS.CA = filepath.Join(newPKI(t).dir, certs.CAFile)
	if _, err := New(cfg, Options{}); ExitCode(nil, err) != CodeAuth {
		t.Errorf("another authority: %v", err)
	}
	cfg = p.config(at)
	cfg.TLS.Key = filepath.Join(p.dir, "none.key")
	if _, err := New(cfg, Options{}); ExitCode(nil, err) != CodeUsage {
		t.Errorf("missing key: %v", err)
	}
	cfg = p.config(at)
	cfg.TLS.Cert = filepath.Join(p.dir, "text.pem")
	if err := os.WriteFile(cfg.TLS.Cert, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg, Options{}); ExitCode(nil, err) != CodeAuth {
		t.Errorf("no certificate in the file: %v", err)
	}
}

// TestAssign holds the rules of DESIGN section 9: the agent where it runs, else one whose host sees its SRs, else any of its
// pool; agents of other pools never; the same whatever the order of VMs and agents; and an even load.
func TestAssign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := []int{hostA1, hostA2, 13, 14}
		inv := &Inventory{}
		for i, h := range hosts[:rapid.IntRange(1, 4).Draw(t, "agents")] {
			inv.Agents = append(inv.Agents, AgentStatus{Name: fmt.Sprintf("a%d", i), OK: rapid.IntRange(0, 3).Draw(t, "ok") > 0,
				PoolUUID: testUUID(poolA), HostUUID: testUUID(h)})
		}
		inv.Agents = append(inv.Agents, AgentStatus{Name: "other", OK: true, PoolUUID: testUUID(poolB), HostUUID: testUUID(hostB1)})
		var vms []*VM
		for i := range rapid.IntRange(1, 20).Draw(t, "vms") {
			vm := testVM(i, "vm", poolA, rapid.SampledFrom([]int{0, hostA1, hostA2, 13, 99}).Draw(t, "host"))
			for _, h := range hosts {
				if rapid.Bool().Draw(t, "capable") {
					vm.CapableHosts = append(vm.CapableHosts, testUUID(h))
				}
			}
			vm.Disks = []Disk{{Size: rapid.Int64Range(0, 1<<40).Draw(t, "size")}}
			vms = append(vms, &vm)
		}
		weigh := func(vm *VM) int64 { return estimate(vm.Disks) }
		assign(inv, vms, weigh)
		first := map[string][]string{}
		for _, vm := range vms {
			first[vm.UUID] = vm.Agents
			checkAgents(t, inv, vm)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		rng.Shuffle(len(vms), func(i, j int) { vms[i], vms[j] = vms[j], vms[i] })
		rng.Shuffle(len(inv.Agents), func(i, j int) { inv.Agents[i], inv.Agents[j] = inv.Agents[j], inv.Agents[i] })
		assign(inv, vms, weigh)
		for _, vm := range vms {
			if !slices.Equal(first[vm.UUID], vm.Agents) {
				t.Fatalf("VM %s: %v, then %v", vm.UUID, first[vm.UUID], vm.Agents)
			}
		}
	})
}

func checkAgents(t *rapid.T, inv *Inventory, vm *VM) {
	usable := 0
	best := 3
	for _, a := range inv.Agents {
		if !a.OK || a.PoolUUID != vm.PoolUUID {
			continue
		}
		usable++
		switch {
		case a.HostUUID == vm.HostUUID:
			best = 0
		case slices.Contains(vm.CapableHosts, a.HostUUID):
			best = min(best, 1)
		default:
			best = min(best, 2)
		}
	}
	if len(vm.Agents) != usable {
		t.Fatalf("VM %s has %d agents of %d", vm.UUID, len(vm.Agents), usable)
	}
	if usable > 0 && agentRanks(inv, vm)[vm.Agents[0]] != best {
		t.Fatalf("VM %s goes to %s, there is a better one", vm.UUID, vm.Agents[0])
	}
}

// TestAssignSpreads holds that VMs that may go anywhere are spread by their size.
func TestAssignSpreads(t *testing.T) {
	inv := testInventory()
	var vms []*VM
	for i := range 10 {
		vm := testVM(i, "vm", poolA, 0)
		vm.Disks = []Disk{{Size: 10 << 30}}
		vms = append(vms, &vm)
	}
	assign(inv, vms, func(vm *VM) int64 { return estimate(vm.Disks) })
	count := map[string]int{}
	for _, vm := range vms {
		count[vm.Agents[0]]++
	}
	if count["xs1"] != 5 || count["xs2"] != 5 {
		t.Errorf("spread %v, want 5 each", count)
	}
}
