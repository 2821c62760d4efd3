package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// decision is whether a VM is chosen, and why.
type decision struct {
	chosen bool
	why    string
}

// resolution is what a selection comes to over an inventory.
type resolution struct {
	decisions []decision // as inv.VMs
	missing   []Missing  // names found nowhere while an agent does not answer
	notes     []string
}

// resolve decides on every VM of the inventory. Where every agent answered, a name that is unknown, ambiguous or unmatched
// is a UsageError that lists the nearest or all candidates. Where one did not, what is unknown may be its: it is missing.
func (s Selection) resolve(mode Mode, inv *Inventory, sets map[string]Set) (*resolution, error) {
	if err := s.Check(mode, sets); err != nil {
		return nil, err
	}
	r := &resolver{inv: inv, res: &resolution{decisions: make([]decision, len(inv.VMs))}, lenient: inv.ofFiles, limited: inv.limited}
	for _, a := range inv.Agents {
		if !a.OK {
			r.absent = append(r.absent, a.Name)
		}
	}
	for _, p := range inv.Pools {
		if p.Error != "" {
			r.absent = append(r.absent, "pool "+p.Name)
		}
	}
	area := r.area("--pool", "--host", s.Pool, s.Host)
	r.limit = area
	switch {
	case mode.All():
		r.choose(area, "every VM")
	case len(s.VM)+len(s.Tag) == 0 && s.Set == "":
		r.choose(area, "in the chosen pools and hosts")
	}
	r.add(area, "", s.VM, s.Tag)
	if s.Set != "" {
		r.addSet(s.Set, sets[s.Set])
	}
	r.exclude("--exclude", area, s.Exclude)
	if err := usage(r.faults); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(r.res.decisions, func(d decision) bool { return d.chosen }) && len(r.res.missing) == 0 {
		return nil, r.nothing(s)
	}
	for i := range r.res.decisions {
		if r.res.decisions[i].why == "" {
			r.res.decisions[i].why = "not selected"
		}
	}
	return r.res, nil
}

// nothing says that no VM is left although every part of the selection is known.
func (r *resolver) nothing(s Selection) error {
	switch {
	case len(r.inv.VMs) == 0:
		return &UsageError{Failure{What: "there is no VM in any pool",
			Advice: "templates, snapshots and control domains are never VMs; see dpxen vms"}}
	case len(s.Exclude) > 0:
		return &UsageError{Failure{What: "nothing is left of the selection after --exclude", Advice: "see dpxen vms"}}
	}
	return &UsageError{Failure{What: "the selection matches no VM", Advice: "see dpxen vms"}}
}

// resolver collects decisions and faults.
type resolver struct {
	inv    *Inventory
	res    *resolution
	absent []string // agents and pools that did not answer
	limit  []int    // the VMs that may be chosen at all, ascending
	faults []string
	// lenient: what a set names need not be there. A restore is of what is in the folder.
	lenient bool
	limited bool // nor need be what the command line names
}

// fail records that a pattern chose nothing. What is unknown while somebody did not answer is no fault of the user's.
func (r *resolver) fail(asked, text string, unknown bool) {
	if unknown && (r.limited || r.lenient && strings.HasPrefix(text, setPrefix)) {
		r.res.notes = append(r.res.notes, text)
		return
	}
	if !unknown || len(r.absent) == 0 {
		r.faults = append(r.faults, text)
		return
	}
	r.res.missing = append(r.res.missing, Missing{Asked: asked, Reason: ReasonUnreachable,
		Error: fmt.Sprintf("%s; %s did not answer and may have it", text, strings.Join(r.absent, ", "))})
}

// patterns resolves each text among all; it returns the union of what they choose, and for each position the first text that
// chose it.
func (r *resolver) patterns(option, what string, texts []string, all []named) map[int]string {
	chosen := map[int]string{}
	for _, text := range texts {
		p, err := compilePattern(text)
		if err != nil { // a set's, checked with the configuration
			r.faults = append(r.faults, fmt.Sprintf("%s %q: %v", option, text, err))
			continue
		}
		found, err := p.match(all)
		if err != nil {
			r.fail(text, p.explain(option, what, all, found, err), errors.Is(err, errUnmatched))
			continue
		}
		for _, i := range found {
			if _, dup := chosen[i]; !dup {
				chosen[i] = text
			}
		}
	}
	return chosen
}

// area returns the positions of the VMs in the pools and on the hosts named.
func (r *resolver) area(poolOption, hostOption string, pools, hosts []string) []int {
	inPool, onHost := r.pools(poolOption, pools), r.hosts(hostOption, hosts)
	var area []int
	for i := range r.inv.VMs {
		vm := &r.inv.VMs[i]
		if (len(pools) == 0 || inPool[vm.PoolUUID]) && (len(hosts) == 0 || onHost[homeOf(vm)]) {
			area = append(area, i)
		}
	}
	return area
}

// homeOf returns the host where a VM runs, or the only one where it can; empty where there are several.
func homeOf(vm *VM) string {
	if vm.HostUUID == "" && len(vm.CapableHosts) == 1 {
		return vm.CapableHosts[0]
	}
	return vm.HostUUID
}

func (r *resolver) pools(option string, texts []string) map[string]bool {
	all := make([]named, len(r.inv.Pools))
	for i, p := range r.inv.Pools {
		all[i] = named{uuid: p.UUID, names: []string{p.Name}}
	}
	set := map[string]bool{}
	for i := range r.patterns(option, "pool", texts, all) {
		set[all[i].uuid] = true
	}
	return set
}

// hosts may be named by name, UUID, address, or the agent beside them.
func (r *resolver) hosts(option string, texts []string) map[string]bool {
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
	set := map[string]bool{}
	for i := range r.patterns(option, "host", texts, all) {
		set[all[i].uuid] = true
	}
	return set
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

func (r *resolver) choose(area []int, why string) {
	for _, i := range area {
		if _, in := slices.BinarySearch(r.limit, i); in && !r.res.decisions[i].chosen {
			r.res.decisions[i] = decision{chosen: true, why: why}
		}
	}
}

// add chooses by names and tags within the area. by names the set, or is empty for the command line.
func (r *resolver) add(area []int, by string, vms, tags []string) {
	vmOption, tagOption := "--vm", "--tag"
	if by != "" {
		vmOption, tagOption = by+" vm", by+" tag"
	}
	for k, text := range r.patterns(vmOption, "VM", vms, r.vms(area)) {
		r.choose([]int{area[k]}, fmt.Sprintf("%s %s", vmOption, text))
	}
	for _, tag := range tags {
		var with []int
		for _, i := range area {
			if slices.Contains(r.inv.VMs[i].Tags, tag) {
				with = append(with, i)
			}
		}
		if len(with) == 0 {
			r.fail(tag, fmt.Sprintf("%s %q: no VM has this tag; tags are: %s", tagOption, tag, orNone(r.tags(area))), true)
		}
		r.choose(with, fmt.Sprintf("%s %s", tagOption, tag))
	}
}

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

// setPrefix begins what is told about a set's patterns.
const setPrefix = "set "

// addSet chooses a set's VMs: its own pools, hosts and exclusions hold for its own part of the selection.
func (r *resolver) addSet(name string, set Set) {
	by := setPrefix + name
	own := r.area(by+" pool", by+" host", set.Pool, set.Host)
	if len(set.Exclude) > 0 {
		out := r.patternsOut(by+" exclude", own, set.Exclude)
		for i := range out {
			if d := &r.res.decisions[i]; !d.chosen {
				d.why = fmt.Sprintf("%s exclude %s", by, out[i])
			}
		}
		own = slices.DeleteFunc(own, func(i int) bool { _, is := out[i]; return is })
	}
	if len(set.VM)+len(set.Tag) == 0 {
		r.choose(own, by)
		return
	}
	r.add(own, by, set.VM, set.Tag)
}

// patternsOut resolves what is to be left out. A name must exist, since it may be misspelt and what it means is then not
// left out; an expression may match nothing.
func (r *resolver) patternsOut(option string, area []int, texts []string) map[int]string {
	all, names := r.vms(area), []string(nil)
	for _, text := range texts {
		p, err := compilePattern(text)
		if err == nil && (p.many() || len(r.absent) > 0) {
			if _, err := p.match(all); errors.Is(err, errUnmatched) {
				r.res.notes = append(r.res.notes, fmt.Sprintf("%s %q matches no VM", option, text))
				continue
			}
		}
		names = append(names, text)
	}
	out := map[int]string{}
	for k, text := range r.patterns(option, "VM", names, all) {
		out[area[k]] = text
	}
	return out
}

func (r *resolver) exclude(option string, area []int, texts []string) {
	for i, text := range r.patternsOut(option, area, texts) {
		r.res.decisions[i] = decision{why: fmt.Sprintf("%s %s", option, text)}
	}
}
