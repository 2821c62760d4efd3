package controller

import (
	"fmt"
	"slices"
	"strings"
)

// Selection says which VMs a session is about. VM, Pool, Host and Exclude hold patterns: NAME, UUID, GLOB or re:REGEXP.
//
// Chosen are the VMs that VM or Tag or Set name; where none of these is given, all; of these only those in Pool and on Host,
// where given; never those that Exclude names.
type Selection struct {
	VM      []string `json:"vm,omitempty"`
	Tag     []string `json:"tag,omitempty"` // a VM with any of these tags
	Pool    []string `json:"pool,omitempty"`
	Host    []string `json:"host,omitempty"` // VMs that run there, and halted ones that can run nowhere else
	Exclude []string `json:"exclude,omitempty"`
	Set     string   `json:"set,omitempty"` // the name of a Set in the configuration
}

// Empty tells whether nothing is chosen by it; Exclude alone chooses nothing.
func (s Selection) Empty() bool {
	return len(s.VM)+len(s.Tag)+len(s.Pool)+len(s.Host) == 0 && s.Set == ""
}

// Check returns a UsageError where mode and selection do not go together, or a pattern cannot be read: what can be said
// without asking anybody.
func (s Selection) Check(mode Mode, sets map[string]Set) error {
	var faults []string
	switch {
	case mode.All() && !s.Empty():
		faults = append(faults, fmt.Sprintf("mode %s is about every VM: leave the selectors out (--exclude may stay), or use mode %s",
			mode, mode.Kind()))
	case !mode.All() && s.Empty():
		faults = append(faults, fmt.Sprintf("mode %s needs to be told which VMs: --vm, --tag, --pool, --host or --set; or use mode %s",
			mode, allOf(mode)))
	}
	for _, list := range []struct {
		option   string
		patterns []string
	}{{"--vm", s.VM}, {"--pool", s.Pool}, {"--host", s.Host}, {"--exclude", s.Exclude}} {
		for _, text := range list.patterns {
			if _, err := compilePattern(text); err != nil {
				faults = append(faults, fmt.Sprintf("%s %q: %v", list.option, text, err))
			}
		}
	}
	if slices.Contains(s.Tag, "") {
		faults = append(faults, `--tag "": is empty`)
	}
	if _, ok := sets[s.Set]; s.Set != "" && !ok {
		faults = append(faults, fmt.Sprintf("--set %q: no such set in the configuration; there are: %s", s.Set,
			orNone(strings.Join(sortedKeys(sets), ", "))))
	}
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
