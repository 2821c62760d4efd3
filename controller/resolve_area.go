package controller

import (
	"fmt"
	"slices"
	"strings"
)

// area returns the positions of the VMs in the pools and on the hosts that the criteria name, ascending. Names of VMs are
// looked up there.
func (r *resolver) area(c criteria) []int {
	inPool, onHost := r.pools(c, "pool", c.pool), r.hosts(c, "host", c.host)
	var area []int
	for i := range r.inv.VMs {
		vm := &r.inv.VMs[i]
		switch {
		case len(c.pool) > 0 && !inPool[vm.PoolUUID], len(c.host) > 0 && !onHost[homeOf(vm)]:
		default:
			area = append(area, i)
		}
	}
	return area
}

// places are the narrowing parts that the criteria have, for messages.
func (c criteria) places() string {
	var parts []string
	for _, p := range []struct {
		is   bool
		name string
	}{{len(c.pool) > 0, "pools"}, {len(c.host) > 0, "hosts"}, {len(c.sr) > 0, "SRs"}, {len(c.power) > 0, "power states"},
		{c.minSize > 0 || c.maxSize > 0, "sizes"}} {
		if p.is {
			parts = append(parts, p.name)
		}
	}
	return strings.Join(parts, ", ")
}

// fits returns what says why a VM is not chosen because of its SRs, power state or size; empty where none of them is against
// it.
func (r *resolver) fits(c criteria) func(*VM) string {
	on := r.srs(c, "sr", c.sr)
	return func(vm *VM) string {
		is := func(p string) bool { return strings.EqualFold(p, vm.Power) }
		switch {
		case len(c.sr) > 0 && !usesSR(vm, on):
			return fmt.Sprintf("%s: it has no disk there", c.option("sr"))
		case len(c.power) > 0 && !slices.ContainsFunc(c.power, is):
			return fmt.Sprintf("%s %s: it is %s", c.option("power"), strings.Join(c.power, ", "), vm.Power)
		case vm.Size() < c.minSize:
			return fmt.Sprintf("%s: its disks are %s", c.option("min-size"), size(vm.Size()))
		case c.maxSize > 0 && vm.Size() > c.maxSize:
			return fmt.Sprintf("%s: its disks are %s", c.option("max-size"), size(vm.Size()))
		}
		return ""
	}
}

// Size returns the sum of the virtual sizes of the VM's disks, in bytes.
func (v *VM) Size() int64 {
	var n int64
	for _, d := range v.Disks {
		n = plus(n, d.Size)
	}
	return n
}

func usesSR(vm *VM, on map[string]bool) bool {
	return slices.ContainsFunc(vm.Disks, func(d Disk) bool { return on[d.SR] })
}

// homeOf returns the host where a VM runs, or the only one where it can; empty where there are several.
func homeOf(vm *VM) string {
	if vm.HostUUID == "" && len(vm.CapableHosts) == 1 {
		return vm.CapableHosts[0]
	}
	return vm.HostUUID
}

// uuids resolves patterns among all to a set of UUIDs.
func (r *resolver) uuids(c criteria, part, what string, texts []string, all []named) map[string]bool {
	set := map[string]bool{}
	for i := range r.patterns(c, part, what, texts, all) {
		set[all[i].uuid] = true
	}
	return set
}

func (r *resolver) pools(c criteria, part string, texts []string) map[string]bool {
	return r.uuids(c, part, "pool", texts, r.allPools())
}

func (r *resolver) hosts(c criteria, part string, texts []string) map[string]bool {
	return r.uuids(c, part, "host", texts, r.allHosts())
}

func (r *resolver) srs(c criteria, part string, texts []string) map[string]bool {
	return r.uuids(c, part, "SR", texts, r.allSRs())
}

func (r *resolver) allPools() []named {
	all := make([]named, len(r.inv.Pools))
	for i, p := range r.inv.Pools {
		all[i] = named{uuid: p.UUID, names: []string{p.Name}}
	}
	return all
}

// allHosts may be named by name, UUID, address, or the agent beside them.
func (r *resolver) allHosts() []named {
	var all []named
	for _, p := range r.inv.Pools {
		for _, h := range p.Hosts {
			n := named{uuid: h.UUID, names: []string{h.Name}, where: "pool " + p.Name}
			for _, alias := range []string{h.Address, h.Agent} {
				if alias != "" && alias != h.Name {
					n.names = append(n.names, alias)
				}
			}
			all = append(all, n)
		}
	}
	return all
}

// allSRs are the storage repositories that may hold disks of VMs.
func (r *resolver) allSRs() []named {
	var all []named
	for _, p := range r.inv.Pools {
		for _, sr := range p.SRs {
			if sr.ContentType != "iso" {
				all = append(all, named{uuid: sr.UUID, names: []string{sr.Name}, where: "pool " + p.Name})
			}
		}
	}
	return all
}

// vms returns the VMs at the positions as what patterns choose among.
func (r *resolver) vms(area []int) []named {
	all := make([]named, len(area))
	for k, i := range area {
		vm := &r.inv.VMs[i]
		all[k] = named{uuid: vm.UUID, names: []string{vm.Name}, where: "pool " + vm.Pool}
	}
	return all
}

// tagged returns the tags that VMs have and a text means: the one that is written so, else those that it matches as a
// pattern.
func (r *resolver) tagged(text string) map[string]bool {
	tags := map[string]bool{}
	p, err := compilePattern(text)
	for i := range r.inv.VMs {
		for _, t := range r.inv.VMs[i].Tags {
			if t == text {
				return map[string]bool{t: true}
			}
			if err == nil && p.expression(t) {
				tags[t] = true
			}
		}
	}
	return tags
}

// tags lists the tags of the VMs of an area.
func (r *resolver) tags(area []int) string {
	seen := map[string]bool{}
	for _, i := range area {
		for _, t := range r.inv.VMs[i].Tags {
			seen[t] = true
		}
	}
	all := sortedKeys(seen)
	if len(all) > maxCandidates {
		all = append(all[:maxCandidates], "…")
	}
	return strings.Join(all, ", ")
}
