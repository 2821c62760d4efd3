package controller

import (
	"cmp"
	"slices"
)

// assign gives each VM its agents in order of preference (DESIGN section 9): the one on the host where it runs, then those
// whose host sees its SRs, then the rest of its pool, among equals the least busy first. The result depends on the VMs and
// agents alone, not on their order. VMs that have no choice come first, then the largest, so that the load is even.
func assign(inv *Inventory, vms []*VM, bytes func(*VM) int64) {
	load := map[string]int64{}
	for _, a := range inv.Agents {
		load[a.Name] = int64(a.OpenTransfers) << 30 // a transfer that is under way weighs like a small VM
	}
	type work struct {
		vm    *VM
		bytes int64
		ranks map[string]int // agent -> 0 resident, 1 sees the SRs, 2 the rest
		fixed bool
	}
	jobs := make([]work, 0, len(vms))
	for _, vm := range vms {
		w := work{vm: vm, bytes: plus(bytes(vm), 1), ranks: agentRanks(inv, vm)}
		for _, rank := range w.ranks {
			w.fixed = w.fixed || rank == 0
		}
		jobs = append(jobs, w)
	}
	slices.SortFunc(jobs, func(a, b work) int {
		if a.fixed != b.fixed {
			return cmp.Or(-boolCompare(a.fixed, b.fixed))
		}
		return cmp.Or(-cmp.Compare(a.bytes, b.bytes), compareVMs(*a.vm, *b.vm))
	})
	for _, w := range jobs {
		agents := sortedKeys(w.ranks)
		slices.SortStableFunc(agents, func(a, b string) int {
			return cmp.Or(cmp.Compare(w.ranks[a], w.ranks[b]), cmp.Compare(load[a], load[b]))
		})
		w.vm.Agents = agents
		if len(agents) > 0 {
			load[agents[0]] = plus(load[agents[0]], w.bytes)
		}
	}
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// agentRanks tells how well each agent of the VM's pool suits it; lower is better.
func agentRanks(inv *Inventory, vm *VM) map[string]int {
	ranks := map[string]int{}
	for _, a := range inv.Agents {
		if !a.OK || a.PoolUUID != vm.PoolUUID {
			continue
		}
		switch {
		case a.HostUUID != "" && a.HostUUID == vm.HostUUID:
			ranks[a.Name] = 0
		case a.HostUUID != "" && slices.Contains(vm.CapableHosts, a.HostUUID):
			ranks[a.Name] = 1
		default:
			ranks[a.Name] = 2
		}
	}
	return ranks
}
