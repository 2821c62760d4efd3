package controller

import (
	"fmt"
	"slices"
)

// caps are the limits of one session, by UUID: what the configuration says by name, applied to what there is.
type caps struct {
	Limits
	hosts, srs, pools map[string]int // where they are other than the usual
}

func (c *caps) host(uuid string) int { return capOf(c.hosts, uuid, c.PerHost) }
func (c *caps) sr(uuid string) int   { return capOf(c.srs, uuid, c.PerSR) }
func (c *caps) pool(uuid string) int { return capOf(c.pools, uuid, c.PerPool) }

func capOf(own map[string]int, uuid string, usual int) int {
	if n, ok := own[uuid]; ok {
		return n
	}
	return usual
}

// on applies the limits to an inventory. Remarks name the entries that are about nothing in it. Two things of one name have
// the limit each; an entry by UUID beats one by name.
func (l Limits) on(inv *Inventory) (c caps, remarks []string) {
	c = caps{Limits: l, hosts: map[string]int{}, srs: map[string]int{}, pools: map[string]int{}}
	used := map[string]bool{}
	apply := func(list string, own, into map[string]int, uuid, name string) {
		for _, key := range []string{name, uuid} {
			if n, ok := own[key]; ok && key != "" {
				into[uuid] = n
				used[list+"."+key] = true
			}
		}
	}
	for i := range inv.Pools {
		p := &inv.Pools[i]
		apply("pools", l.Pools, c.pools, p.UUID, p.Name)
		for _, h := range p.Hosts {
			apply("hosts", l.Hosts, c.hosts, h.UUID, h.Name)
		}
		for _, sr := range p.SRs {
			apply("srs", l.SRs, c.srs, sr.UUID, sr.Name)
		}
	}
	for _, list := range l.named() {
		for _, key := range sortedKeys(list.own) {
			if !used[list.key+"."+key] {
				remarks = append(remarks, fmt.Sprintf("limits.%s: there is no %s %q in the pools that answer", list.key, list.what, key))
			}
		}
	}
	return c, remarks
}

// namedLimits are the limits of single things, by name or UUID.
type namedLimits struct {
	key, what string
	own       map[string]int
}

func (l Limits) named() []namedLimits {
	return []namedLimits{{"hosts", "host", l.Hosts}, {"srs", "SR", l.SRs}, {"pools", "pool", l.Pools}}
}

// seats returns what a VM takes up that an agent beside ownHost works on: the host where it runs, and those that may read its
// disks. A host that sees all the disks' SRs exports them itself; else it sends the agent to one that does, which of them is
// XAPI's to choose.
func (v *VM) seats(ownHost string) []string {
	var hosts []string
	if v.HostUUID != "" {
		hosts = append(hosts, v.HostUUID)
	}
	switch {
	case len(v.CapableHosts) == 0 || slices.Contains(v.CapableHosts, ownHost):
		if ownHost != "" {
			hosts = appendNew(hosts, ownHost)
		}
	default:
		for _, h := range v.CapableHosts {
			hosts = appendNew(hosts, h)
		}
	}
	return hosts
}
