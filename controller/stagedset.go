package controller

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dpxen/dpxen/internal/staging"
)

// stagedSet is what one session for Data Protector has in the staging folder.
type stagedSet struct {
	report  *Report
	entries []staging.Entry
}

// why says why the set is not needed any more.
func (s stagedSet) why() string {
	if s.report.DP.Saved {
		return "Data Protector has saved them"
	}
	return "Data Protector has not saved them, and keep_unsaved is not set"
}

// remove deletes the set's files and returns how many exports are gone.
func (s stagedSet) remove(dir *staging.Dir) (int, error) {
	for i, e := range s.entries {
		if err := dir.Remove(e); err != nil {
			return i, fmt.Errorf("delete staged files of session %s: %w", s.report.ID, err)
		}
	}
	return len(s.entries), nil
}

// sets returns what sessions of the specification that are over have staged, the newest first. What was staged by hand, by
// other specifications, or by sessions that this controller does not know is nobody's to delete here; of the last the
// remarks speak.
func (c *Controller) sets(dir *staging.Dir, spec string) (sets []stagedSet, remarks []string, err error) {
	entries, err := dir.List()
	if err != nil {
		return nil, nil, err
	}
	bySession := map[string][]staging.Entry{}
	for _, e := range entries {
		if e.State == staging.Complete && e.Manifest.DP.Spec == spec {
			bySession[e.Manifest.Session] = append(bySession[e.Manifest.Session], e)
		}
	}
	for id, files := range bySession {
		r, err := c.Session(id)
		if err != nil {
			remarks = append(remarks, fmt.Sprintf("%d staged files are of session %.80s, which is not known here: they stay", len(files), id))
			continue
		}
		if r.DP != nil && r.DP.Spec == spec && r.State != StateRunning {
			sets = append(sets, stagedSet{report: r, entries: files})
		}
	}
	// By their IDs, which are in order whatever this machine's clock does.
	slices.SortFunc(sets, func(a, b stagedSet) int { return cmp.Compare(b.report.ID, a.report.ID) })
	slices.Sort(remarks)
	return sets, remarks, nil
}

// removeBereft removes the manifests whose exports somebody has taken away, of sessions of the specification that are over: no
// backup is left there that any policy could keep. It tells of each, and of those that stay because nobody here knows their session.
func (c *Controller) removeBereft(dir *staging.Dir, spec string) (remarks []string, err error) {
	entries, err := dir.List()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Bereft() || e.Manifest.DP.Spec != spec {
			continue
		}
		told := fmt.Sprintf("file %s of session %.80s was taken away by somebody", e.Base(), e.Manifest.Session)
		r, err := c.Session(e.Manifest.Session)
		switch {
		case err != nil:
			remarks = append(remarks, told+"; its manifest stays, as the session is not known here")
			continue
		case r.DP == nil || r.DP.Spec != spec || r.State == StateRunning:
			continue
		}
		if err := dir.Remove(e); err != nil {
			return remarks, fmt.Errorf("remove the manifest of a file that was taken away: %w", err)
		}
		remarks = append(remarks, told+": its manifest was removed")
	}
	return remarks, nil
}

// surplus are the sets that the policy does not keep: saved ones beyond the newest keep_sets, and those that were not saved
// unless keep_unsaved.
func (c *Controller) surplus(sets []stagedSet, spec Spec) []stagedSet {
	var out []stagedSet
	saved := 0
	for _, s := range sets {
		switch {
		case s.report.DP.Saved:
			if saved++; saved > spec.KeepSets {
				out = append(out, s)
			}
		case !spec.KeepUnsaved:
			out = append(out, s)
		}
	}
	return out
}

// newestOf returns the newest backup for Data Protector of a specification that accept agrees to, or nil.
func (c *Controller) newestOf(spec string, accept func(*Report) bool) (*Report, error) {
	ids, err := c.sessionIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Backward(ids) { // the IDs begin with the time
		r, err := c.Session(id)
		if err != nil {
			continue // dpxen sessions shows it
		}
		if r.Action == ActionBackup && r.DP != nil && r.DP.Spec == spec && accept(r) {
			return r, nil
		}
	}
	return nil, nil
}

// amend changes the report of a session that is over, durably, and returns it as it then is. Another process that does so too
// is waited for.
func (c *Controller) amend(id string, change func(*Report)) (*Report, error) {
	s, err := c.takeOver(id, amendPatience)
	if err != nil {
		return nil, err
	}
	werr := s.update(change)
	if err := s.unlock(); werr == nil {
		werr = err
	}
	if werr != nil {
		return nil, werr
	}
	return s.snapshot(), nil
}
