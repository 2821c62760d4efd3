package controller

import (
	"slices"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/rpc"
)

// TestRestorePlanCode holds that a dry run has the code of the restore.
func TestRestorePlanCode(t *testing.T) {
	good := PlannedRestore{}
	warned := PlannedRestore{Warnings: []string{"w"}}
	refused := func(reason string) PlannedRestore {
		return PlannedRestore{RestoreItem: RestoreItem{Refused: "r", Reason: reason}}
	}
	away := []AgentStatus{{OK: true}, {Class: AgentUnreachable}}
	for name, tt := range map[string]struct {
		p    RestorePlan
		want int
	}{
		"all":                       {RestorePlan{VMs: []PlannedRestore{good, good}}, CodeOK},
		"a VM's warning":            {RestorePlan{VMs: []PlannedRestore{good, warned}}, CodeWarnings},
		"the session's warning":     {RestorePlan{VMs: []PlannedRestore{good}, Warnings: []string{"a clock"}}, CodeWarnings},
		"an agent that is away":     {RestorePlan{VMs: []PlannedRestore{good}, Agents: away, Warnings: []string{"an agent"}}, CodeSome},
		"some":                      {RestorePlan{VMs: []PlannedRestore{warned, refused(ReasonSRFull)}}, CodeSome},
		"a pool that is away":       {RestorePlan{VMs: []PlannedRestore{good, refused(ReasonUnreachable)}, Agents: away}, CodeSome},
		"a damaged file among them": {RestorePlan{VMs: []PlannedRestore{good, refused(ReasonIntegrity)}}, CodeIntegrity},
		"none for want of an agent": {RestorePlan{VMs: []PlannedRestore{refused(ReasonUnreachable)}, Agents: away}, CodeUnreachable},
		"none for want of room":     {RestorePlan{VMs: []PlannedRestore{refused(ReasonSRFull)}}, CodePreflight},
		"none by conflict":          {RestorePlan{VMs: []PlannedRestore{refused(string(rpc.Conflict))}}, CodeNone},
	} {
		for _, vm := range tt.p.VMs {
			if vm.Refused == "" {
				tt.p.Runnable++
			}
		}
		if got := tt.p.code(); got != tt.want {
			t.Errorf("%s: code %d, want %d", name, got, tt.want)
		}
	}
}

// TestUnheard holds what a restore says of agents that did not answer.
func TestUnheard(t *testing.T) {
	c := stateOnly(t)
	c.agents = []*agentConn{{name: "xs1"}, {name: "xs2"}}
	there := &target{vm: &VM{}}
	refused := &target{RestoreItem: RestoreItem{Refused: "r"}}
	inv := &Inventory{Pools: []Pool{{UUID: testUUID(poolA)}}, Agents: []AgentStatus{{Name: "xs1", OK: true}, {Name: "xs2"}}}
	for name, tt := range map[string]struct {
		targets []*target
		req     RestoreRequest
		pool    int // of xs2, by the configuration
		doubt   bool
	}{
		"in place":                   {targets: []*target{there}},
		"in place, one refused":      {targets: []*target{there, refused}},
		"anew":                       {targets: []*target{there, {}}, doubt: true},
		"anew, the agent of a pool":  {targets: []*target{{}}, pool: poolB, doubt: true},
		"anew, an agent of the pool": {targets: []*target{{}}, pool: poolA},
		"as new":                     {targets: []*target{{}}, req: RestoreRequest{AsNew: true}},
	} {
		c.agents[1].pool = ""
		if tt.pool != 0 {
			c.agents[1].pool = testUUID(tt.pool)
		}
		got := c.unheard(inv, tt.targets, &tt.req)
		if len(got) != 1 || !strings.HasPrefix(got[0], "agent xs2 did not answer") || strings.Contains(got[0], "made anew") != tt.doubt {
			t.Errorf("%s: %q", name, got)
		}
	}
	inv.Agents = slices.DeleteFunc(inv.Agents, func(a AgentStatus) bool { return !a.OK })
	if got := c.unheard(inv, []*target{{}}, &RestoreRequest{}); len(got) > 0 {
		t.Errorf("all answer: %q", got)
	}
}
