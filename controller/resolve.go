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
	policy bool   // it would be chosen but for a mark on it
	note   string // what is worth knowing all the same
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
	r := newResolver(inv, sets)
	c := s.criteria()
	chosen := r.evaluate(c, mode.All())
	if err := usage(r.faults); err != nil {
		return nil, err
	}
	for i := range r.res.decisions {
		d := &r.res.decisions[i]
		v, in := chosen[i]
		switch mark := r.mark(i); {
		case in && mark != "" && !v.named:
			*d = decision{why: mark, policy: true}
		case in:
			*d = decision{chosen: true, why: v.why}
			if mark != "" {
				d.note = mark + ": it is taken all the same, since it is named"
			}
		case r.left[i] != "":
			d.why = r.left[i]
		default:
			d.why = "not selected"
		}
	}
	if !slices.ContainsFunc(r.res.decisions, func(d decision) bool { return d.chosen }) && len(r.res.missing) == 0 {
		return nil, r.nothing(c)
	}
	return r.res, nil
}

// nothing says that no VM is left although every part of the selection is known.
func (r *resolver) nothing(c criteria) error {
	var marked []string
	for i, d := range r.res.decisions {
		if d.policy {
			marked = append(marked, fmt.Sprintf("%q (%s)", r.inv.VMs[i].Name, d.why))
		}
	}
	switch {
	case len(r.inv.VMs) == 0:
		return &UsageError{Failure{What: "there is no VM in any pool",
			Advice: "templates, snapshots and control domains are never VMs; see dpxen vms"}}
	case len(marked) > 0:
		shown := strings.Join(marked[:min(len(marked), maxCandidates)], ", ")
		return &UsageError{Failure{What: fmt.Sprintf("every VM that is selected is left out by a mark on it: %s", shown),
			Advice: "to take one all the same, name it with its whole name or UUID"}}
	case len(c.exclude) > 0:
		return &UsageError{Failure{What: "nothing is left of the selection after --exclude", Advice: "see dpxen vms"}}
	}
	return &UsageError{Failure{What: "the selection matches no VM", Advice: "see dpxen vms"}}
}

// vmKey names a VM: a UUID may be in several pools.
type vmKey struct{ pool, uuid string }

// verdict is that a VM is chosen.
type verdict struct {
	why   string
	named bool // by its whole name or UUID, as against a pattern, a tag or a place
}

// resolver collects decisions and faults.
type resolver struct {
	inv    *Inventory
	sets   map[string]Set
	res    *resolution
	absent []string       // agents and pools that did not answer
	left   map[int]string // why VMs that a part of the selection is about are not chosen by it
	faults []string
	known  map[string]map[vmKey]verdict // sets that were evaluated
	marks  bool                         // marks against backups count
	// lenient: what a set names need not be there. A restore is of what is in the folder.
	lenient bool
	limited bool // nor need be what the command line names
}

func newResolver(inv *Inventory, sets map[string]Set) *resolver {
	r := &resolver{inv: inv, sets: sets, res: &resolution{decisions: make([]decision, len(inv.VMs))}, left: map[int]string{},
		known: map[string]map[vmKey]verdict{}, marks: !inv.ofFiles, lenient: inv.ofFiles, limited: inv.limited}
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
	return r
}

// mark returns the mark against backups that a VM bears, where such marks count.
func (r *resolver) mark(i int) string {
	if !r.marks {
		return ""
	}
	return r.inv.VMs[i].mark()
}

func (r *resolver) note(text string) { r.res.notes = appendNew(r.res.notes, text) }

// evaluate returns the VMs that the criteria choose, by position; every VM but those left out where all is set.
func (r *resolver) evaluate(c criteria, all bool) map[int]verdict {
	area := r.area(c)
	chosen := map[int]verdict{}
	choose := func(i int, v verdict) {
		if old, is := chosen[i]; !is || v.named && !old.named {
			chosen[i] = v
		}
	}
	switch {
	case all:
		for _, i := range area {
			choose(i, verdict{why: "every VM"})
		}
	case len(c.vm)+len(c.tag)+len(c.sets) == 0:
		why := c.by
		if why == "" {
			why = "in the chosen " + c.places()
		}
		for _, i := range area {
			choose(i, verdict{why: why})
		}
	}
	r.names(c, area, choose)
	r.withTags(c, area, choose)
	for _, name := range c.sets {
		in := r.set(name)
		for _, i := range area {
			if v, is := in[r.key(i)]; is {
				choose(i, v)
			}
		}
	}
	fits := r.fits(c)
	for i := range chosen {
		if why := fits(&r.inv.VMs[i]); why != "" {
			delete(chosen, i)
			r.left[i] = why
		}
	}
	for i, text := range r.excluded(c, area) {
		_, was := chosen[i]
		delete(chosen, i)
		if was || r.left[i] == "" {
			r.left[i] = fmt.Sprintf("%s %s", c.option("exclude"), text)
		}
	}
	return chosen
}

// names chooses by the VMs' names within the area.
func (r *resolver) names(c criteria, area []int, choose func(int, verdict)) {
	all := r.vms(area)
	for k, text := range r.patterns(c, "vm", "VM", c.vm, all) {
		p, err := compilePattern(text)
		choose(area[k], verdict{why: c.option("vm") + " " + text,
			named: err == nil && p.re == nil && (p.uuid == all[k].uuid || slices.Contains(all[k].names, text))})
	}
}

// withTags chooses by tags within the area.
func (r *resolver) withTags(c criteria, area []int, choose func(int, verdict)) {
	for _, tag := range c.tag {
		tags := r.tagged(tag)
		found := false
		for _, i := range area {
			if slices.ContainsFunc(r.inv.VMs[i].Tags, func(t string) bool { return tags[t] }) {
				choose(i, verdict{why: c.option("tag") + " " + tag})
				found = true
			}
		}
		if !found {
			r.fail(c, tag, fmt.Sprintf("%s %q: no VM has this tag; tags are: %s", c.option("tag"), tag, orNone(r.tags(area))), true)
		}
	}
}

// set returns the VMs of a set; it is evaluated once.
func (r *resolver) set(name string) map[vmKey]verdict {
	if in, is := r.known[name]; is {
		return in
	}
	in := map[vmKey]verdict{}
	r.known[name] = in // a set that names itself is refused with the configuration
	for i, v := range r.evaluate(r.sets[name].criteria(setPrefix+name), false) {
		in[r.key(i)] = v
	}
	return in
}

func (r *resolver) key(i int) vmKey { return vmKey{r.inv.VMs[i].PoolUUID, r.inv.VMs[i].UUID} }

// fail records that a pattern chose nothing. What is unknown while somebody did not answer is no fault of the user's.
func (r *resolver) fail(c criteria, asked, text string, unknown bool) {
	if unknown && (r.limited || r.lenient && c.by != "") {
		r.note(text)
		return
	}
	if !unknown || len(r.absent) == 0 {
		r.faults = appendNew(r.faults, text)
		return
	}
	r.res.missing = append(r.res.missing, Missing{Asked: asked, Reason: ReasonUnreachable,
		Error: fmt.Sprintf("%s; %s did not answer and may have it", text, strings.Join(r.absent, ", "))})
}

// patterns resolves each text among all; it returns the union of what they choose, and for each position the first text that
// chose it, a name or UUID before all others.
func (r *resolver) patterns(c criteria, part, what string, texts []string, all []named) map[int]string {
	chosen := map[int]string{}
	exact := map[int]bool{}
	for _, text := range texts {
		p, err := compilePattern(text)
		if err != nil { // a set's, checked with the configuration
			r.faults = append(r.faults, fmt.Sprintf("%s %q: %v", c.option(part), text, err))
			continue
		}
		found, err := p.match(all)
		if errors.Is(err, errAmbiguous) && what == "SR" { // each host has its "Local storage"
			err = nil
		}
		if err != nil {
			r.fail(c, text, p.explain(c.option(part), what, all, found, err), errors.Is(err, errUnmatched))
			continue
		}
		name := p.re == nil && len(found) == 1
		for _, i := range found {
			if _, dup := chosen[i]; !dup || name && !exact[i] {
				chosen[i], exact[i] = text, name
			}
		}
	}
	return chosen
}
