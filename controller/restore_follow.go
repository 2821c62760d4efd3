package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// find finds out, before another attempt at a VM that is there, on which host it is by now: it may have moved, or been started
// elsewhere, since agents were chosen. What it was when the session began stays known: in which power state it is to be left,
// above all. Where nobody can say, what was known holds, and the agents are taken in their turn.
func (v *vmRestore) find(ctx context.Context) (string, error) {
	if v.tries == 0 || v.item.vm == nil || v.req.AsNew {
		return v.inTurn(v.item.agents)[0], nil
	}
	for _, name := range v.inTurn(v.item.agents) {
		vm, err := v.c.agent(name).describe(ctx, v.item.UUID, v.item.pool)
		v.heard(name, err)
		if err == nil {
			v.follow(vm)
			break
		}
		if ctx.Err() != nil {
			return name, fmt.Errorf("find out where it is: %w", context.Cause(ctx))
		}
	}
	return v.inTurn(v.item.agents)[0], nil
}

// follow takes in where the VM is.
func (v *vmRestore) follow(vm *VM) {
	t := v.item
	was := t.vm
	if vm.HostUUID != "" && was.HostUUID != "" && vm.HostUUID != was.HostUUID {
		v.emit(Event{Type: EventNote, VM: t.ref(), Message: fmt.Sprintf("it has moved from host %s to %s", was.Host, vm.Host)})
	}
	now := *vm
	now.Power = was.Power
	t.vm = &now
	if t.host != "" {
		return // the agent beside that host goes first, wherever the VM is
	}
	ranks := agentRanks(v.inv, vm)
	t.agents = slices.Clone(t.agents)
	slices.SortStableFunc(t.agents, func(a, b string) int { return cmp.Compare(ranks[a], ranks[b]) })
}
