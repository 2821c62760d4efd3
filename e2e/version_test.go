package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// TestVersions has agents and controllers of other protocol versions meet: one version apart they work together in the
// older one's, further apart nothing is begun, and the refusal names both.
func TestVersions(t *testing.T) {
	t.Parallel()
	speaks := func(low, high uint32) *agentv1.ProtocolRange { return &agentv1.ProtocolRange{Min: low, Max: high} }
	for _, tc := range []struct {
		name              string
		agent, controller *agentv1.ProtocolRange
		protocol          uint32 // 0 = refused
		says              []string
	}{
		{"agent older", speaks(1, 1), speaks(1, 2), 1, nil},
		{"controller older", speaks(1, 2), speaks(1, 1), 1, nil},
		{"both newer", speaks(2, 3), speaks(1, 2), 2, nil},
		{"agent too old", speaks(1, 1), speaks(2, 3), 0, []string{"version 1", "versions 2 to 3", "update the older"}},
		{"controller too old", speaks(2, 3), speaks(1, 1), 0, []string{"version 1", "versions 2 to 3", "update the older"}},
		{"agent without a version", speaks(0, 0), speaks(1, 1), 0, []string{"version 1", "no known version"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCell(t, one(1, 4<<20))
			c.stops[0]()
			c.speaks = [2]*agentv1.ProtocolRange{tc.agent, tc.controller}
			c.startAgent("xs1", 0)
			c.cfg.Agents[0].Address = c.agents[len(c.agents)-1].Address
			before := c.state()
			ctl := c.controller()
			agents, err := ctl.Agents(context.Background())
			if err != nil || len(agents) != 1 {
				t.Fatalf("agents: %+v, %v", agents, err)
			}
			if tc.protocol > 0 && agents[0].Protocol != tc.protocol {
				t.Errorf("they speak version %d, want %d", agents[0].Protocol, tc.protocol)
			}
			r, err := ctl.Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
			if tc.protocol > 0 {
				c.want(controller.CodeOK, r, err)
				r, err = ctl.Restore(context.Background(), controller.RestoreRequest{Mode: controller.AllOffline, From: c.cfg.Staging})
				c.want(controller.CodeOK, r, err)
			} else {
				c.want(controller.CodePreflight, r, err)
				for _, text := range tc.says {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%q is not in: %v", text, err)
					}
				}
				if agents[0].Class != controller.AgentVersion {
					t.Errorf("class %q", agents[0].Class)
				}
				c.nothingStaged()
			}
			if diff := cmp.Diff(powers(before), powers(c.state())); diff != "" {
				t.Errorf("power states (-before +after):\n%s", diff)
			}
			c.clean()
		})
	}
}
