package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// find finds out where the VM is now, before each attempt: it may have moved since the plan, or since the attempt before, and
// agents may be gone. The agent that has answered, or one that suits the VM better by now, is to do the work.
func (v *vmBackup) find(ctx context.Context) (string, error) {
	var none error
	asked := ""
	for _, name := range v.inTurn(v.vm.Agents) {
		asked = name
		vm, err := v.c.agent(name).describe(ctx, v.vm.UUID, v.inv.PoolByUUID(v.vm.PoolUUID))
		v.heard(name, err)
		switch classify(err, func(error) bool { return false }) {
		case troubleNone:
			v.follow(vm)
			return v.inTurn(v.vm.Agents)[0], nil
		case troubleAway, troubleLost, troubleRefused:
			none = err // another one may know
		default:
			return name, err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return asked, fmt.Errorf("find out where it is: %w", cmp.Or(none, ctx.Err()))
}

// follow takes in where the VM is and what disks it has: who is to work on it, what it takes up, what is left out.
func (v *vmBackup) follow(vm *VM) {
	was := v.vm
	keep, out := v.c.cfg.diskRules().split(vm)
	now := *was
	now.vm, now.Host, now.HostUUID, now.Power, now.Excluded = vm, vm.Host, vm.HostUUID, vm.Power, out
	now.Disks = nil
	for _, d := range keep {
		now.Disks = append(now.Disks, plannedDisk(d))
	}
	ranks := agentRanks(v.inv, vm)
	now.Agents = slices.Clone(was.Agents)
	slices.SortStableFunc(now.Agents, func(a, b string) int { return cmp.Compare(ranks[a], ranks[b]) })
	if was.HostUUID != "" && now.HostUUID != "" && was.HostUUID != now.HostUUID {
		v.emit(Event{Type: EventNote, VM: v.vm.Ref(), Message: fmt.Sprintf("it has moved from host %s to %s", was.Host, now.Host)})
	}
	v.vm = &now
}

// describe asks the agent about one VM of its pool. That there is none is rpc.VMNotFound.
func (a *agentConn) describe(ctx context.Context, uuid string, p *Pool) (*VM, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(caller, a.timing.CallTimeout)
	defer cancel()
	vm, err := a.describeWithin(ctx, uuid, p)
	if err != nil && ctx.Err() != nil && caller.Err() == nil { // silent is as good as gone
		return nil, rpc.Errorf(rpc.Unreachable, "agent %s did not answer for %s", a.name, a.timing.CallTimeout)
	}
	return vm, err
}

func (a *agentConn) describeWithin(ctx context.Context, uuid string, p *Pool) (*VM, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	stream, err := client.ListVMs(ctx, &agentv1.ListVMsRequest{VmUuids: []string{uuid}})
	if err != nil {
		return nil, err
	}
	var found *VM
	for {
		page, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && found == nil:
			return nil, rpc.Errorf(rpc.VMNotFound, "the VM is not in its pool any more")
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, err
		}
		for _, m := range page.GetVms() { // an older agent tells them all
			if vm, ok := vmFrom(m, p); ok && vm.UUID == uuid {
				found = &vm
			}
		}
	}
}
