package controller

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/gobwas/glob"
	"github.com/google/uuid"
)

// rePrefix begins a pattern that is a regular expression (RE2), found anywhere in the name.
const rePrefix = "re:"

// pattern is what a user wrote to choose by name: NAME, UUID, GLOB or re:REGEXP.
type pattern struct {
	text string
	uuid string         // in lower case, where the text is one
	re   *regexp.Regexp // for re:
	glob *glob.Pattern  // where the text has *, ?, [ or {
}

// compilePattern reads a pattern. Its errors are about the text, not about what exists.
func compilePattern(text string) (pattern, error) {
	p := pattern{text: text}
	if text == "" {
		return p, errors.New("is empty")
	}
	if expr, ok := strings.CutPrefix(text, rePrefix); ok {
		re, err := regexp.Compile(expr)
		if err != nil {
			return p, fmt.Errorf("not a regular expression: %w", err)
		}
		p.re = re
		return p, nil
	}
	if id, err := uuid.Parse(text); err == nil && len(text) == len(uuid.Nil.String()) {
		p.uuid = id.String()
		return p, nil
	}
	if strings.ContainsAny(text, "*?[{") {
		g, err := glob.Compile(text)
		if err != nil {
			return p, fmt.Errorf("not a pattern: %w", err)
		}
		p.glob = g
	}
	return p, nil
}

// named is something with names and a UUID that a pattern may choose.
type named struct {
	uuid  string
	names []string // the first is shown
	where string   // tells apart what has the same name, such as the pool
}

func (n named) String() string {
	s := fmt.Sprintf("%q (%s", n.names[0], n.uuid)
	if n.where != "" {
		s += ", " + n.where
	}
	return s + ")"
}

// errAmbiguous and errUnmatched are why a pattern chose nothing.
var (
	errAmbiguous = errors.New("is ambiguous")
	errUnmatched = errors.New("matches nothing")
)

// match returns the positions of what the pattern chooses among all. A name or UUID must be that of exactly one
// (errAmbiguous, errUnmatched); an expression must match at least one. A name that exists as it is written is that name,
// whatever characters are in it. A UUID is its own object's, also where another one is named like it.
func (p pattern) match(all []named) ([]int, error) {
	if p.uuid != "" {
		if own := find(all, func(n named) bool { return n.uuid == p.uuid }); len(own) == 1 {
			return own, nil
		}
	}
	if p.re == nil {
		exact := find(all, func(n named) bool { return p.uuid != "" && n.uuid == p.uuid || slices.Contains(n.names, p.text) })
		switch {
		case len(exact) == 1:
			return exact, nil
		case len(exact) > 1:
			return exact, errAmbiguous
		case p.glob == nil:
			return nil, errUnmatched
		}
	}
	found := find(all, func(n named) bool { return slices.ContainsFunc(n.names, p.expression) })
	if len(found) == 0 {
		return nil, errUnmatched
	}
	return found, nil
}

// expression tells whether the glob or regular expression matches.
func (p pattern) expression(name string) bool {
	if p.re != nil {
		return p.re.MatchString(name)
	}
	return p.glob != nil && p.glob.Match(name)
}

// many tells whether the pattern is one that may choose several, as against a name.
func (p pattern) many() bool { return p.re != nil || p.glob != nil }

func find(all []named, ok func(named) bool) []int {
	var found []int
	for i, n := range all {
		if ok(n) {
			found = append(found, i)
		}
	}
	return found
}

// Bounds of what a message about a wrong name lists.
const (
	maxNearest    = 5
	maxCandidates = 20
	maxCompared   = 128 // bytes of a name that are compared
)

// nearest returns those of all whose names are most like text, the likest first; all of them where they are few.
func nearest(text string, all []named) []named {
	type scored struct {
		named
		distance int
	}
	text = clip(strings.ToLower(text))
	var list []scored
	for _, n := range all {
		s := scored{named: n, distance: 1 << 30}
		for _, name := range n.names {
			name = clip(strings.ToLower(name))
			d := levenshtein.ComputeDistance(text, name)
			if text != "" && strings.Contains(name, text) {
				d = min(d, 1)
			}
			s.distance = min(s.distance, d)
		}
		if len(all) <= maxNearest || s.distance <= max(len(text)/2, 2) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.names[0], b.names[0]), cmp.Compare(a.uuid, b.uuid))
	})
	var best []named
	for _, s := range list[:min(len(list), maxNearest)] {
		best = append(best, s.named)
	}
	return best
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxCompared)], "") }

// explain says in one line why the pattern, given by an option such as --vm, chose nothing, and lists what it may mean.
// matched are the positions that an ambiguous one has.
func (p pattern) explain(option, what string, all []named, matched []int, err error) string {
	var list []string
	if errors.Is(err, errAmbiguous) {
		for _, i := range matched[:min(len(matched), maxCandidates)] {
			list = append(list, all[i].String())
		}
		if more := len(matched) - len(list); more > 0 {
			list = append(list, fmt.Sprintf("and %d more", more))
		}
		return fmt.Sprintf("%s %q is ambiguous: %d %ss have this name: %s; use a UUID", option, p.text, len(matched), what,
			strings.Join(list, ", "))
	}
	for _, n := range nearest(strings.TrimPrefix(p.text, rePrefix), all) {
		list = append(list, n.String())
	}
	switch {
	case len(all) == 0:
		return fmt.Sprintf("%s %q: there is no %s", option, p.text, what)
	case len(list) == 0:
		return fmt.Sprintf("%s %q: no such %s among %d", option, p.text, what, len(all))
	case len(list) == len(all):
		return fmt.Sprintf("%s %q: no such %s; there are %s", option, p.text, what, strings.Join(list, ", "))
	}
	return fmt.Sprintf("%s %q: no such %s; nearest are %s", option, p.text, what, strings.Join(list, ", "))
}
