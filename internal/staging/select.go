package staging

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Criteria choose what is restored. Where several are given, all must hold.
type Criteria struct {
	Kind      Kind      // empty = both, each for itself
	At        time.Time // the newest not after it; zero = the newest of all
	DPSession string    // of that Data Protector session only
	Files     []string  // these only, by file name or path, of the export or its manifest; empty = all
	// Adopt lets files that Files names be chosen without a manifest or a name of ours.
	Adopt bool
}

// Skipped is an entry that was not chosen.
type Skipped struct {
	Entry  Entry
	Reason string
}

// Select chooses the newest complete backup of each VM and kind that satisfies c, by file name, and says of every other
// entry why not. Errors concern c.Files: ErrNotFound where one is not there, ErrNotComplete where one is no backup,
// ErrCriteria where one does not fit the rest of c, ErrAmbiguous where two are of the same VM.
func Select(entries []Entry, c Criteria) (chosen []Entry, skipped []Skipped, err error) {
	named, err := c.named(entries)
	if err != nil {
		return nil, nil, err
	}
	best := map[string]int{} // VM and kind -> index of its newest
	for i, e := range entries {
		if why := c.unfit(e, len(named) > 0); why != nil {
			if named[i] {
				return nil, nil, fmt.Errorf("%s: %w", e.Base(), why)
			}
			skipped = append(skipped, Skipped{e, why.Error()})
			continue
		}
		if len(named) > 0 && !named[i] {
			skipped = append(skipped, Skipped{e, "not asked for"})
			continue
		}
		key := groupOf(e)
		j, ok := best[key]
		switch {
		case !ok:
			best[key] = i
			continue
		case len(named) > 0:
			return nil, nil, fmt.Errorf("%s and %s: %w: name one of them", entries[j].Base(), e.Base(), ErrAmbiguous)
		case newer(e, entries[j]):
			best[key], i, j = i, j, i
		}
		skipped = append(skipped, Skipped{entries[i], "older than " + entries[j].Base()})
	}
	for _, i := range best {
		chosen = append(chosen, entries[i])
	}
	byName := func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) }
	slices.SortFunc(chosen, byName)
	slices.SortStableFunc(skipped, func(a, b Skipped) int { return byName(a.Entry, b.Entry) })
	return chosen, skipped, nil
}

// named returns the indices of the entries that c.Files names: as they are, or without extension, or by their manifest.
func (c Criteria) named(entries []Entry) (map[int]bool, error) {
	found := map[int]bool{}
	for _, f := range c.Files {
		exact := filepath.Clean(f)
		export := strings.TrimSuffix(strings.TrimSuffix(exact, extManifest), extXVA) + extXVA
		i := -1
		for _, want := range []string{exact, export} { // a foreign file may have any extension
			if i < 0 {
				i = slices.IndexFunc(entries, func(e Entry) bool {
					return e.Base() == want || e.Path == want || samePath(e.Path, want)
				})
			}
		}
		if i < 0 {
			return nil, fmt.Errorf("%.200q: %w", f, ErrNotFound)
		}
		found[i] = true
	}
	return found, nil
}

func samePath(a, b string) bool {
	if filepath.Base(a) != filepath.Base(b) {
		return false
	}
	absA, errA := filepath.Abs(a)
	absB, errB := filepath.Abs(b)
	return errA == nil && errB == nil && absA == absB
}

// unfit returns why an entry cannot be chosen whatever else is there; nil when it can.
func (c Criteria) unfit(e Entry, byName bool) error {
	adoptable := c.Adopt && byName && (e.State == NoManifest || e.State == ForeignFile)
	if e.State != Complete && !adoptable {
		return fmt.Errorf("%w: %w", ErrNotComplete, e.Problem)
	}
	ours := e.State != ForeignFile
	switch {
	case ours && c.Kind != "" && e.Name.Kind != c.Kind:
		return fmt.Errorf("%w: an %s file, the mode restores %s ones", ErrCriteria, e.Name.Kind, c.Kind)
	case ours && !c.At.IsZero() && e.Name.Time.After(c.At):
		return fmt.Errorf("%w: taken after %s", ErrCriteria, c.At.UTC().Format(time.RFC3339))
	case c.DPSession != "" && (e.Manifest == nil || e.Manifest.DP.Session != c.DPSession):
		return fmt.Errorf("%w: not of Data Protector session %s", ErrCriteria, c.DPSession)
	}
	return nil
}

// groupOf returns what an entry competes with others for.
func groupOf(e Entry) string {
	if e.State == ForeignFile {
		return e.Path // nobody knows yet which VM it holds
	}
	return e.Name.UUID + "." + string(e.Name.Kind)
}

func newer(a, b Entry) bool {
	return cmp.Or(a.Name.Time.Compare(b.Name.Time), cmp.Compare(a.Base(), b.Base())) > 0
}
