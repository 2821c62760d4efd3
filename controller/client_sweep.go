package controller

import (
	"context"
	"time"

	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// SweepAction is one thing that an agent did, would do, or leaves for later about what earlier work left in its pool.
type SweepAction struct {
	Agent            string `json:"agent"`
	VMUUID           string `json:"vm_uuid,omitempty"`
	VMName           string `json:"vm_name,omitempty"`
	Action           string `json:"action"`
	Object           string `json:"object,omitempty"`
	Done             bool   `json:"done"`
	Error            string `json:"error,omitempty"`
	Waiting          string `json:"waiting,omitempty"` // why it is left for later
	PowerNotRestored bool   `json:"power_not_restored,omitempty"`
}

// Open tells whether something is left to do after the action; never in a dry run.
func (s SweepAction) Open() bool { return s.Error != "" || s.Waiting != "" }

// sweep asks an agent to sweep its pool. deadSessions are those whose work nobody drives any more.
func (a *agentConn) sweep(ctx context.Context, dryRun bool, intents []Intent, deadSessions []string) ([]SweepAction, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	req := &agentv1.SweepRequest{DryRun: dryRun, DeadSessions: deadSessions}
	for _, i := range intents {
		req.Intents = append(req.Intents, &agentv1.Intent{SessionId: sessionOf(i), Key: i.Key, Nonce: i.Nonce, VmUuid: i.VMUUID,
			Action: string(i.Action), PowerBefore: powerState(i.PowerBefore)})
	}
	m, err := client.Sweep(ctx, req)
	if err != nil {
		return nil, err
	}
	var actions []SweepAction
	for _, s := range m.GetActions() {
		actions = append(actions, SweepAction{Agent: a.name, VMUUID: canonicalUUID(s.GetVmUuid()), VMName: s.GetVmName(),
			Action: s.GetAction(), Object: s.GetObject(), Done: s.GetDone(), Error: s.GetError(), Waiting: s.GetWaiting(),
			PowerNotRestored: s.GetPowerNotRestored()})
	}
	return actions, nil
}

func sessionOf(i Intent) string { return i.Session }

// powerOf reads a VM's power state from the agent's list; empty when there is no such VM.
func (a *agentConn) powerOf(ctx context.Context, uuid string) (string, error) {
	vms, err := listVMs(ctx, a, &Pool{})
	if err != nil {
		return "", err
	}
	for _, vm := range vms {
		if vm.UUID == uuid {
			return vm.Power, nil
		}
	}
	return "", nil
}

// confirm finds out how a VM was left by an agent that does not know the transfer any more, since it was started anew: its
// sweep cleans up at its start. What a dry run still finds is waited for until ctx ends.
func (r *runner) confirm(ctx context.Context, conn *agentConn, open opening, vm, before string) (ending, error) {
	intent := Intent{Session: open.Session, Key: open.Key, Nonce: open.Nonce, VMUUID: vm, Action: ActionBackup, PowerBefore: before}
	for {
		actions, err := conn.sweep(ctx, true, []Intent{intent}, nil)
		var left []string
		for _, a := range actions {
			if a.VMUUID == vm {
				left = append(left, a.Action+" "+a.Object)
			}
		}
		power, perr := "", error(nil)
		if err == nil {
			power, perr = conn.powerOf(ctx, vm)
		}
		if err == nil && perr == nil && (len(left) == 0 || power == before && !open.stopsVM) {
			// A snapshot that waits for its lease is deleted by the agent's next sweep.
			return ending{Known: true, Before: before, After: power, PowerRestored: power == before || power == "", Leftovers: left}, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = perr
			}
			return ending{Before: before, After: power, PowerRestored: power == before, Leftovers: left}, err
		case <-time.After(r.c.cfg.Timing.BackoffMax):
		}
	}
}
