package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
)

// ExcludeKinds are what the KIND of an exclusion KIND:VALUE may be. Any other text is a pattern of a VM.
var ExcludeKinds = []string{"vm", "tag", "pool", "host", "sr", "power", "larger", "smaller", "set"}

// exclusion is what one value of Exclude leaves out.
type exclusion struct{ kind, value string }

// parseExclusion takes a value apart: KIND:VALUE, or a pattern of a VM.
func parseExclusion(text string) exclusion {
	kind, value, ok := strings.Cut(text, ":")
	if ok && slices.Contains(ExcludeKinds, kind) {
		return exclusion{kind, value}
	}
	return exclusion{"vm", text}
}

func checkExclusion(sets map[string]Set) func(string) error {
	return func(text string) error {
		e := parseExclusion(text)
		switch e.kind {
		case "tag":
			return checkTag(e.value)
		case "power":
			return checkPower(e.value)
		case "set":
			return checkSetName(sets)(e.value)
		case "larger", "smaller":
			_, err := parseSize(e.value)
			return err
		}
		return checkPattern(e.value)
	}
}

// parseSize reads a number of bytes such as 100GiB.
func parseSize(text string) (int64, error) {
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<62 {
		return 0, fmt.Errorf("want a size such as 100GiB, got %q", text)
	}
	return int64(n), nil
}

// cycle returns how a set comes to name itself, such as "a -> b -> a"; empty where it does not.
func cycle(sets map[string]Set, name string) string {
	var path []string
	var visit func(string) bool
	done := map[string]bool{}
	visit = func(at string) bool {
		path = append(path, at)
		for _, next := range sets[at].names() {
			if next == name {
				path = append(path, next)
				return true
			}
			if _, known := sets[next]; known && !done[next] {
				done[next] = true
				if visit(next) {
					return true
				}
			}
		}
		path = path[:len(path)-1]
		return false
	}
	if visit(name) {
		return strings.Join(path, " -> ")
	}
	return ""
}

// names returns the sets that the set names, as parts or as exclusions.
func (s Set) names() []string {
	names := slices.Clone(s.Set)
	for _, text := range s.Exclude {
		if e := parseExclusion(text); e.kind == "set" {
			names = append(names, e.value)
		}
	}
	return names
}

// excluded resolves what the criteria leave out of the area: positions, and the value that leaves each of them out. A name
// must exist, since it may be misspelt and what it means is then not left out; a pattern, a tag, a power state, a size or a
// set may leave nothing out.
func (r *resolver) excluded(c criteria, area []int) map[int]string {
	out := map[int]string{}
	note := func(text string, matches func(vm *VM) bool) {
		for _, i := range area {
			if _, is := out[i]; !is && matches(&r.inv.VMs[i]) {
				out[i] = text
			}
		}
	}
	var vms []string
	for _, text := range c.exclude {
		e := parseExclusion(text)
		if e.kind != "vm" {
			note(text, r.excludes(c, e))
			continue
		}
		vms = append(vms, e.value)
	}
	for k, text := range r.patterns(c, "exclude", "VM", r.mayBeAbsent(c, vms, r.vms(area)), r.vms(area)) {
		if _, is := out[area[k]]; !is {
			out[area[k]] = text
		}
	}
	return out
}

// excludes returns whether an exclusion that is not of names of VMs leaves a VM out.
func (r *resolver) excludes(c criteria, e exclusion) func(*VM) bool {
	switch e.kind {
	case "tag":
		tags := r.tagged(e.value)
		if len(tags) == 0 {
			r.note(fmt.Sprintf("%s tag:%s: no VM has this tag", c.option("exclude"), e.value))
		}
		return func(vm *VM) bool { return slices.ContainsFunc(vm.Tags, func(t string) bool { return tags[t] }) }
	case "pool":
		in := r.pools(c, "exclude pool:", r.mayBeAbsent(c, []string{e.value}, r.allPools()))
		return func(vm *VM) bool { return in[vm.PoolUUID] }
	case "host":
		on := r.hosts(c, "exclude host:", r.mayBeAbsent(c, []string{e.value}, r.allHosts()))
		return func(vm *VM) bool { return on[homeOf(vm)] }
	case "sr":
		on := r.srs(c, "exclude sr:", r.mayBeAbsent(c, []string{e.value}, r.allSRs()))
		return func(vm *VM) bool { return usesSR(vm, on) }
	case "power":
		return func(vm *VM) bool { return strings.EqualFold(vm.Power, e.value) }
	case "larger":
		n, _ := parseSize(e.value) // checked before
		return func(vm *VM) bool { return vm.Size() > n }
	case "smaller":
		n, _ := parseSize(e.value)
		return func(vm *VM) bool { return vm.Size() < n }
	}
	in := r.set(e.value)
	return func(vm *VM) bool { _, is := in[vmKey{vm.PoolUUID, vm.UUID}]; return is }
}

// mayBeAbsent returns the texts without those that may match nothing and do: of them a note tells.
func (r *resolver) mayBeAbsent(c criteria, texts []string, all []named) []string {
	var left []string
	for _, text := range texts {
		p, err := compilePattern(text)
		if err == nil && (p.many() || len(r.absent) > 0) {
			if _, err := p.match(all); errors.Is(err, errUnmatched) {
				r.note(fmt.Sprintf("%s %q matches nothing", c.option("exclude"), text))
				continue
			}
		}
		left = append(left, text)
	}
	return left
}
