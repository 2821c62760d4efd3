package controller

import (
	"slices"
	"testing"

	"github.com/dpxen/dpxen/certs"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// TestRestoreFollows: between attempts a restore finds out where its VM is, from whichever agent answers, and goes to the agent
// there; in which power state the VM is to be left it knows from the beginning.
func TestRestoreFollows(t *testing.T) {
	p := newPKI(t)
	there := &agentv1.VM{Uuid: testUUID(101), Name: "web", PowerState: agentv1.PowerState_POWER_STATE_HALTED, ResidentHostUuid: testUUID(12),
		CapableHostUuids: []string{testUUID(11), testUUID(12), testUUID(13)}}
	told := &toldAgent{host: toldHost("xs3"), check: toldPool(1, 13, 11, 12, 13), pages: [][]*agentv1.VM{{there}}}
	c := mustController(t, p.config(
		AgentConfig{Name: "xs1", Address: "127.0.0.1:1"},
		AgentConfig{Name: "xs2", Address: "127.0.0.1:2"},
		AgentConfig{Name: "xs3", Address: p.serve("xs3", told, certs.PeerPolicy{})},
	), Options{Version: "test"})
	pool := testUUID(poolA)
	inv := &Inventory{Pools: []Pool{{UUID: pool, Name: "pool", Agents: []string{"xs1", "xs2", "xs3"},
		Hosts: []Host{{UUID: testUUID(11), Name: "h1"}, {UUID: testUUID(12), Name: "h2"}, {UUID: testUUID(13), Name: "h3"}}}}}
	for i, name := range []string{"xs1", "xs2", "xs3"} {
		inv.Agents = append(inv.Agents, AgentStatus{Name: name, OK: true, PoolUUID: pool, HostUUID: testUUID(11 + i)})
	}
	s := mustSession(t, c, Report{Action: ActionRestore, VMs: []VMResult{{UUID: testUUID(101), PoolUUID: pool}}})
	defer func() {
		if _, err := s.finish(c.o.Now(), nil); err != nil {
			t.Error(err)
		}
	}()
	for name, tt := range map[string]struct {
		tries  int
		asNew  bool
		host   string
		absent bool
		agents []string
		on     string // host where it is known to be
		asks   int32
	}{
		"first attempt":   {agents: []string{"xs1", "xs2", "xs3"}, on: testUUID(11)},
		"another":         {tries: 1, agents: []string{"xs2", "xs1", "xs3"}, on: testUUID(12), asks: 1},
		"host was chosen": {tries: 1, host: testUUID(11), agents: []string{"xs1", "xs2", "xs3"}, on: testUUID(12), asks: 1},
		"as new":          {tries: 1, asNew: true, agents: []string{"xs1", "xs2", "xs3"}, on: testUUID(11)},
		"absent":          {tries: 1, absent: true, agents: []string{"xs1", "xs2", "xs3"}},
	} {
		t.Run(name, func(t *testing.T) {
			vm := &VM{UUID: testUUID(101), PoolUUID: pool, Power: PowerRunning, HostUUID: testUUID(11), Host: "h1"}
			if tt.absent {
				vm = nil
			}
			item := &target{RestoreItem: RestoreItem{UUID: testUUID(101), Name: "web"}, pool: &inv.Pools[0], vm: vm, host: tt.host, agents: []string{"xs1", "xs2", "xs3"}}
			v := &vmRestore{restore: &restore{runner: runner{c: c, s: s, hosts: inv.agentHosts()}, inv: inv, req: RestoreRequest{AsNew: tt.asNew}}, item: item, tries: tt.tries}
			before := told.lists.Load()
			if _, err := v.find(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(item.agents, tt.agents) || told.lists.Load()-before != tt.asks {
				t.Errorf("agents %v after %d questions", item.agents, told.lists.Load()-before)
			}
			if item.vm != nil && (item.vm.HostUUID != tt.on || item.vm.Power != PowerRunning) {
				t.Errorf("it is known to be %s on %s", item.vm.Power, item.vm.HostUUID)
			}
		})
	}
}
