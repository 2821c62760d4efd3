package controller

import (
	"fmt"
	"slices"
	"strings"
)

// Selection says which VMs a session is about. Values of VM, Tag, Pool, Host and SR are patterns: NAME, UUID, GLOB or
// re:REGEXP.
//
// Chosen are the VMs that VM or Tag or Set name; where none of these is given, all; of these only those that are in Pool, on
// Host, have a disk on SR, are in one of the Power states and of a size between MinSize and MaxSize, where given; never those
// that Exclude names. VMs that bear a mark against backups are left out unless VM has their whole name or UUID.
type Selection struct {
	VM      []string `json:"vm,omitempty"`
	Tag     []string `json:"tag,omitempty"` // a VM with any of these tags
	Pool    []string `json:"pool,omitempty"`
	Host    []string `json:"host,omitempty"`     // VMs that run there, and halted ones that can run nowhere else
	SR      []string `json:"sr,omitempty"`       // VMs with a disk on any of them
	Power   []string `json:"power,omitempty"`    // running, halted, paused or suspended, in any case
	MinSize int64    `json:"min_size,omitempty"` // bytes; the size of a VM is the sum of its disks' virtual sizes
	MaxSize int64    `json:"max_size,omitempty"` // bytes, 0 = no bound
	Exclude []string `json:"exclude,omitempty"`  // a pattern of a VM, or KIND:VALUE, see ExcludeKinds
	Set     string   `json:"set,omitempty"`      // the name of a Set in the configuration
	Sets    []string `json:"sets,omitempty"`     // more of them

	// Source is where it was written, for messages, if not in options of the command line.
	Source string `json:"-"`
}

// Empty tells whether nothing is chosen by it; Exclude alone chooses nothing.
func (s Selection) Empty() bool { return s.criteria().empty() }

// Selection returns what the specification of that name chooses in the mode: of every VM, all but its exclusions.
func (s Spec) Selection(name string, mode Mode) Selection {
	sel := Selection{Exclude: s.Exclude, Source: strings.TrimSpace("specification " + name)}
	if mode.All() {
		return sel
	}
	sel.VM, sel.Tag, sel.Pool, sel.Host, sel.SR, sel.Power = s.VM, s.Tag, s.Pool, s.Host, s.SR, s.Power
	sel.MinSize, sel.MaxSize, sel.Set, sel.Sets = s.MinSize, s.MaxSize, s.Select, s.Set.Set
	return sel
}

// criteria is a selection or a set, with what its parts are called in messages.
type criteria struct {
	by string // such as "set tier1"; empty for the command line, whose options begin with --

	vm, tag, sets, pool, host, sr, power []string
	minSize, maxSize                     int64
	exclude                              []string
}

func (s Selection) criteria() criteria {
	c := criteria{by: s.Source, vm: s.VM, tag: s.Tag, sets: s.Sets, pool: s.Pool, host: s.Host, sr: s.SR, power: s.Power,
		minSize: s.MinSize, maxSize: s.MaxSize, exclude: s.Exclude}
	if s.Set != "" {
		c.sets = append([]string{s.Set}, s.Sets...)
	}
	return c
}

// setPrefix begins what is told about a set's parts.
const setPrefix = "set "

func (s Set) criteria(by string) criteria {
	return criteria{by: by, vm: s.VM, tag: s.Tag, sets: s.Set, pool: s.Pool, host: s.Host, sr: s.SR, power: s.Power,
		minSize: s.MinSize, maxSize: s.MaxSize, exclude: s.Exclude}
}

// empty tells whether nothing is chosen by it.
func (c criteria) empty() bool {
	return len(c.vm)+len(c.tag)+len(c.sets)+len(c.pool)+len(c.host)+len(c.sr)+len(c.power) == 0 && c.minSize == 0 && c.maxSize == 0
}

// option is what a part is called: --vm, or "set tier1 vm".
func (c criteria) option(part string) string {
	if c.by == "" {
		return "--" + part
	}
	return c.by + " " + part
}

// check says what is wrong with it whatever exists. tell is given the part, its position and the fault; a part that has no
// list is at position -1.
func (c criteria) check(sets map[string]Set, tell func(part string, at int, value, fault string)) {
	for _, list := range []struct {
		part   string
		values []string
		check  func(string) error
	}{
		{"vm", c.vm, checkPattern}, {"tag", c.tag, checkTag}, {"pool", c.pool, checkPattern}, {"host", c.host, checkPattern},
		{"sr", c.sr, checkPattern}, {"power", c.power, checkPower}, {"exclude", c.exclude, checkExclusion(sets)},
		{"set", c.sets, checkSetName(sets)},
	} {
		for i, value := range list.values {
			if err := list.check(value); err != nil {
				tell(list.part, i, value, err.Error())
			}
		}
	}
	switch {
	case c.minSize < 0:
		tell("min_size", -1, fmt.Sprint(c.minSize), "want 0 or more bytes")
	case c.maxSize < 0:
		tell("max_size", -1, fmt.Sprint(c.maxSize), "want 0 or more bytes")
	case c.maxSize > 0 && c.maxSize < c.minSize:
		tell("max_size", -1, size(c.maxSize), "is less than min_size: no VM is of such a size")
	}
}

func checkPattern(text string) error { _, err := compilePattern(text); return err }

// checkTag accepts everything: a tag that exists as it is written is that tag, whatever characters are in it.
func checkTag(text string) error {
	if text == "" {
		return fmt.Errorf("is empty")
	}
	return nil
}

var powerStates = []string{PowerRunning, PowerHalted, PowerPaused, PowerSuspended}

func checkPower(text string) error {
	if !slices.ContainsFunc(powerStates, func(p string) bool { return strings.EqualFold(p, text) }) {
		return fmt.Errorf("want %s", strings.ToLower(strings.Join(powerStates, ", ")))
	}
	return nil
}

func checkSetName(sets map[string]Set) func(string) error {
	return func(name string) error {
		if _, ok := sets[name]; !ok {
			return fmt.Errorf("no such set in the configuration; there are: %s", orNone(strings.Join(sortedKeys(sets), ", ")))
		}
		return nil
	}
}

// Check returns a UsageError where mode and selection do not go together, or a pattern cannot be read: what can be said
// without asking anybody.
func (s Selection) Check(mode Mode, sets map[string]Set) error {
	var faults []string
	c := s.criteria()
	switch {
	case mode.All() && !c.empty():
		faults = append(faults, fmt.Sprintf("mode %s is about every VM: leave the selectors out (--exclude may stay), or use mode %s",
			mode, mode.Kind()))
	case !mode.All() && c.empty():
		faults = append(faults, fmt.Sprintf("mode %s needs to be told which VMs: --vm, --tag, --pool, --host, --sr, --power, --min-size, "+
			"--max-size or --set; or use mode %s", mode, allOf(mode)))
	}
	c.check(sets, func(part string, _ int, value, fault string) {
		faults = append(faults, fmt.Sprintf("%s %q: %s", c.option(part), value, fault))
	})
	return usage(faults)
}

func allOf(m Mode) Mode {
	if m.Kind() == KindOffline {
		return AllOffline
	}
	return AllOnline
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// usage makes one UsageError of all faults; nil where there are none.
func usage(faults []string) error {
	if len(faults) == 0 {
		return nil
	}
	return &UsageError{Failure{What: strings.Join(faults, "\n")}}
}
