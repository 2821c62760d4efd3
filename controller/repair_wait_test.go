package controller

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/certs"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// sweptAgent answers each sweep with the next of its answers, and the last one ever after.
type sweptAgent struct {
	toldAgent
	answers []*agentv1.SweepResponse
	sweeps  int
}

func (a *sweptAgent) Sweep(context.Context, *agentv1.SweepRequest) (*agentv1.SweepResponse, error) {
	n := min(a.sweeps, len(a.answers)-1)
	a.sweeps++
	return a.answers[n], nil
}

// A repair is made again for what will be ready within its limit, and for nothing else.
func TestRepairWithin(t *testing.T) {
	started := &agentv1.SweepAction{VmUuid: testUUID(1), Action: "start VM", Done: true}
	deleted := &agentv1.SweepAction{VmUuid: testUUID(1), Action: "delete snapshot", Done: true}
	waits := func(again time.Duration) *agentv1.SweepAction {
		a := &agentv1.SweepAction{VmUuid: testUUID(1), Action: "delete snapshot", Waiting: "XAPI still works on it"}
		if again > 0 {
			a.AgainIn = durationpb.New(again)
		}
		return a
	}
	broken := &agentv1.SweepAction{VmUuid: testUUID(1), Action: "delete snapshot", Error: "SR_BACKEND_FAILURE"}
	round := func(actions ...*agentv1.SweepAction) *agentv1.SweepResponse {
		return &agentv1.SweepResponse{Actions: actions}
	}
	for name, tt := range map[string]struct {
		answers []*agentv1.SweepResponse
		limit   time.Duration
		sweeps  int
		actions []string
		code    int
	}{
		"nothing is left":             {[]*agentv1.SweepResponse{round()}, time.Minute, 1, nil, CodeOK},
		"it is ready later":           {[]*agentv1.SweepResponse{round(started, waits(time.Millisecond)), round(waits(time.Millisecond)), round(deleted)}, time.Minute, 3, []string{"start VM", "delete snapshot"}, CodeOK},
		"it will not be":              {[]*agentv1.SweepResponse{round(started, waits(time.Hour))}, time.Minute, 1, []string{"start VM", "delete snapshot"}, CodeSome},
		"nobody knows":                {[]*agentv1.SweepResponse{round(waits(0))}, time.Minute, 1, []string{"delete snapshot"}, CodeSome},
		"it has failed":               {[]*agentv1.SweepResponse{round(broken)}, time.Minute, 1, []string{"delete snapshot"}, CodeSome},
		"not to be waited for":        {[]*agentv1.SweepResponse{round(waits(time.Millisecond))}, 0, 1, []string{"delete snapshot"}, CodeSome},
		"it says so again and again":  {[]*agentv1.SweepResponse{round(waits(time.Millisecond))}, 3 * repairPause, 3, []string{"delete snapshot"}, CodeSome},
		"one is ready, another never": {[]*agentv1.SweepResponse{round(waits(time.Millisecond), waits(0)), round(deleted, waits(0))}, time.Minute, 2, []string{"delete snapshot", "delete snapshot"}, CodeSome},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPKI(t)
			a := &sweptAgent{toldAgent: toldAgent{host: toldHost("xs1"), check: toldPool(poolA, 1, 1)}, answers: tt.answers}
			c := mustController(t, p.config(AgentConfig{Name: "xs1", Address: p.serve("xs1", a, certs.PeerPolicy{})}), Options{})
			rep, err := c.RepairWithin(t.Context(), tt.limit)
			if err != nil {
				t.Fatal(err)
			}
			var actions []string
			for _, s := range rep.Actions {
				actions = append(actions, s.Action)
			}
			if len(actions) != len(tt.actions) || rep.Code != tt.code {
				t.Errorf("got %q with code %d, want %q with %d", actions, rep.Code, tt.actions, tt.code)
			}
			if tt.limit == time.Minute && a.sweeps != tt.sweeps || a.sweeps > tt.sweeps {
				t.Errorf("%d sweeps, want %d", a.sweeps, tt.sweeps)
			}
		})
	}
}

// A wait ends with its context.
func TestRepairWithinIsCancelled(t *testing.T) {
	p := newPKI(t)
	a := &sweptAgent{toldAgent: toldAgent{host: toldHost("xs1"), check: toldPool(poolA, 1, 1)}, answers: []*agentv1.SweepResponse{{Actions: []*agentv1.SweepAction{
		{VmUuid: testUUID(1), Action: "delete snapshot", Waiting: "claimed", AgainIn: durationpb.New(time.Minute)}}}}}
	c := mustController(t, p.config(AgentConfig{Name: "xs1", Address: p.serve("xs1", a, certs.PeerPolicy{})}), Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.RepairWithin(ctx, time.Hour); err == nil || ctx.Err() == nil {
		t.Errorf("got %v", err)
	}
}
