package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// maxVMs bounds what is taken from one pool.
const maxVMs = 200_000

// Inventory asks the agents what exists: every agent what it is and what its pool is, all at the same time, then one agent
// of each pool for the VMs (another of the same pool where that one fails), so that what XAPI is asked does not grow with
// the number of agents. An agent or pool that does not answer is marked so; the error is set where none answers (as
// AgentStatus.Err has it, all joined) and when ctx ends.
func (c *Controller) Inventory(ctx context.Context) (*Inventory, error) {
	asked, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	return inventoryOf(ctx, asked)
}

// survey is Inventory for a plan: it costs a handful of XAPI calls a pool however many agents the pool has. Networks, network
// interfaces and clocks are not in it.
func (c *Controller) survey(ctx context.Context) (*Inventory, error) {
	asked, err := c.askAll(ctx, c.askLittle)
	if err != nil {
		return nil, err
	}
	return inventoryOf(ctx, asked)
}

// inventoryOf asks for the VMs, once the agents have said what they are.
func inventoryOf(ctx context.Context, asked []answer) (*Inventory, error) {
	inv := &Inventory{}
	for i := range asked {
		inv.addAgent(&asked[i])
	}
	lists := make([][]VM, len(inv.Pools))
	var g errgroup.Group
	for i := range inv.Pools {
		g.Go(func() error {
			lists[i] = listPool(ctx, &inv.Pools[i], asked)
			return nil
		})
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	inv.VMs = slices.Concat(lists...)
	var none []error
	for i := range asked {
		inv.Agents = append(inv.Agents, asked[i].status)
		none = append(none, asked[i].status.Err())
	}
	if !slices.ContainsFunc(inv.Agents, func(a AgentStatus) bool { return a.OK }) {
		return inv, errors.Join(none...)
	}
	inv.linkHosts()
	inv.sort()
	all := make([]*VM, len(inv.VMs))
	for i := range inv.VMs {
		all[i] = &inv.VMs[i]
	}
	assign(inv, all, func(vm *VM) int64 { return estimate(vm.Disks) })
	return inv, nil
}

// addAgent puts the agent's pool into the inventory, or the agent to the pool that is there already.
func (inv *Inventory) addAgent(ans *answer) {
	if !ans.status.OK {
		return
	}
	p := inv.PoolByUUID(ans.status.PoolUUID)
	if p == nil {
		inv.Pools = append(inv.Pools, Pool{UUID: ans.status.PoolUUID, Name: ans.status.PoolUUID}) // all else comes with its VMs
		if ans.check != nil {
			inv.Pools[len(inv.Pools)-1] = poolFrom(ans.check)
		}
		p = &inv.Pools[len(inv.Pools)-1]
	}
	p.Agents = append(p.Agents, ans.status.Name)
}

// linkHosts notes the agent beside each host.
func (inv *Inventory) linkHosts() {
	for _, a := range inv.Agents {
		if p := inv.PoolByUUID(a.PoolUUID); a.OK && p != nil {
			if h := p.Host(a.HostUUID); h != nil && h.Agent == "" {
				h.Agent = a.Name
			}
		}
	}
}

// listPool asks the pool's agents one after the other until one has told all VMs. What fails is marked in its status: an
// agent that cannot list cannot work either. Each pool's agents are its own, so pools may be listed at the same time: of
// another pool's agent only the pool is read, which stays as it is.
func listPool(ctx context.Context, p *Pool, asked []answer) []VM {
	for i := range asked {
		ans := &asked[i]
		if ans.status.PoolUUID != p.UUID || !ans.status.OK {
			continue
		}
		vms, warnings, err := listVMs(ctx, ans.conn, p, ans.surveyed())
		if err == nil {
			ans.status.Warnings = append(ans.status.Warnings, warnings...)
			p.Error = ""
			return vms
		}
		ans.status.classify(fmt.Errorf("list the VMs of pool %s: %w", p.Name, err))
		p.Agents = slices.DeleteFunc(p.Agents, func(name string) bool { return name == ans.status.Name })
		p.Error = ans.status.Error
	}
	return nil
}

// listVMs returns the VMs of the agent's pool. With survey the agent also tells the pool, which is filled in, and has warnings
// of its own.
func listVMs(ctx context.Context, a *agentConn, p *Pool, survey bool) (all []VM, warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.timing.CallTimeout)
	defer cancel()
	client, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	stream, err := client.ListVMs(ctx, &agentv1.ListVMsRequest{WithPool: survey, WithoutNics: survey})
	if err != nil {
		return nil, nil, err
	}
	seen, told, bytes, unusable := map[string]bool{}, 0, 0, 0
	for first := true; ; first = false {
		page, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			if unusable > maxTexts {
				p.Warnings = append(p.Warnings, fmt.Sprintf("… and %d more VMs have no usable UUID", unusable-maxTexts))
			}
			return all, warnings, nil
		case err != nil:
			return nil, nil, err
		case first && survey:
			if err := p.fill(page.GetPool()); err != nil {
				return nil, nil, err
			}
			warnings = texts(page.GetPool().GetWarnings())
		}
		if told += len(page.GetVms()); told > maxVMs { // usable or not
			return nil, nil, rpc.Errorf(rpc.Invalid, "more than %d VMs", maxVMs)
		}
		if bytes += proto.Size(page); bytes > maxListed {
			return nil, nil, rpc.Errorf(rpc.Invalid, "the descriptions of all VMs are longer than %s", size(maxListed))
		}
		for _, m := range page.GetVms() {
			vm, ok := vmFrom(m, p)
			switch {
			case !ok:
				if unusable++; unusable <= maxTexts {
					p.Warnings = append(p.Warnings, fmt.Sprintf("VM %.200q has no usable UUID and is left out", m.GetName()))
				}
			case !seen[vm.UUID]:
				seen[vm.UUID] = true
				all = append(all, vm)
			}
		}
	}
}

// fill puts what an agent says of the pool into it.
func (p *Pool) fill(m *agentv1.CheckResponse) error {
	told := poolFrom(m)
	if told.UUID != p.UUID {
		return fmt.Errorf("it describes pool %.80q instead of %s", m.GetPool().GetUuid(), p.UUID)
	}
	told.Agents, told.Warnings, told.Error = p.Agents, p.Warnings, p.Error
	*p = told
	return nil
}
