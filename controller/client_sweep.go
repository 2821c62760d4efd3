package controller

import (
	"context"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
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

	nonce string        // of work on a VM that was to be made as new, in place of VMUUID
	again time.Duration // of what waits: in how long it may be worth while to repair again; 0 = not known
}

// Open tells whether the action did not succeed or is left for later.
func (s SweepAction) Open() bool { return s.Error != "" || s.Waiting != "" }

// Left tells whether a later repair has something to do: an error that is done with is the last word on it.
func (s SweepAction) Left() bool { return s.Open() && !s.Done }

// concerns tells whether the action is about the intent's work: about its VM, or about what its nonce names.
func (s SweepAction) concerns(i Intent) bool {
	return s.VMUUID != "" && s.VMUUID == i.VMUUID || i.Nonce != "" && (s.nonce == i.Nonce || strings.Contains(s.Object, i.Nonce))
}

// message is the intent as an agent gets it for a sweep. The power state is told where it is to be brought back: not where
// the work does not stop the VM, nor where the VM may lack the disks that were deleted first. That is the journal's to know.
func (i *Intent) message() *agentv1.Intent {
	m := &agentv1.Intent{SessionId: i.Session, Key: i.Key, Nonce: i.Nonce, VmUuid: i.VMUUID, Action: string(i.Action),
		SnapshotDiskUuids: i.Disks}
	if i.StopsVM && !i.DeletesFirst {
		m.PowerBefore = powerState(i.PowerBefore)
	}
	return m
}

// sweep asks an agent to sweep its pool. deadSessions are those whose work nobody drives any more; heard are over, and tell of
// all that was made for them.
func (a *agentConn) sweep(ctx context.Context, dryRun bool, intents []Intent, deadSessions, heard []string) ([]SweepAction, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	req := &agentv1.SweepRequest{DryRun: dryRun, DeadSessions: deadSessions, HeardSessions: heard}
	for _, i := range intents {
		req.Intents = append(req.Intents, i.message())
	}
	m, err := client.Sweep(ctx, req)
	if err != nil {
		return nil, err
	}
	var actions []SweepAction
	if len(m.GetActions()) > maxActions {
		return nil, rpc.Errorf(rpc.Invalid, "the agent tells of %d actions", len(m.GetActions()))
	}
	for _, s := range m.GetActions() {
		actions = append(actions, SweepAction{Agent: a.name, VMUUID: canonicalUUID(s.GetVmUuid()), VMName: clipText(s.GetVmName()),
			Action: clipText(s.GetAction()), Object: clipText(s.GetObject()), Done: s.GetDone(), Error: clipText(s.GetError()), Waiting: clipText(s.GetWaiting()),
			PowerNotRestored: s.GetPowerNotRestored(), nonce: nonceOf(s.GetVmUuid()), again: s.GetAgainIn().AsDuration()})
	}
	return actions, nil
}

// nonceOf is what stands for a VM that does not exist yet: anything that is no UUID.
func nonceOf(vm string) string {
	if canonicalUUID(vm) != "" {
		return ""
	}
	return clipText(vm)
}

// speaksFor returns a *foreignPool unless the agent is of that pool.
func (a *agentConn) speaksFor(ctx context.Context, pool string) error {
	ctx, cancel := context.WithTimeout(ctx, a.timing.CallTimeout)
	defer cancel()
	client, err := a.client()
	if err != nil {
		return err
	}
	m, err := client.Check(ctx, &agentv1.CheckRequest{})
	if err != nil {
		return err
	}
	if says := canonicalUUID(m.GetPool().GetUuid()); says != pool {
		return &foreignPool{says: says, own: pool}
	}
	return nil
}

// vms reads all VMs of the agent's pool, by UUID.
func (a *agentConn) vms(ctx context.Context) (map[string]VM, error) {
	list, _, err := listVMs(ctx, a, &Pool{}, false)
	if err != nil {
		return nil, err
	}
	all := make(map[string]VM, len(list))
	for _, vm := range list {
		all[vm.UUID] = vm
	}
	return all, nil
}
