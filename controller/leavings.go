package controller

import (
	"slices"

	"github.com/dpxen/dpxen/internal/staging"
)

// leavings are what transfers that were killed have left in a staging folder.
type leavings struct {
	partials []string // unfinished files
	// halfway are exports under their final names whose manifests still lie among the unfinished files: they were on their way
	// into the folder when their session was killed. They are no backups.
	halfway []staging.Entry
	strange []staging.Entry // exports without any manifest; they may be somebody's
	alone   []staging.Entry // manifests without their exports, of sessions that were not for Data Protector
}

// findLeavings looks for them. Nobody may be at work in the folder.
func findLeavings(dir *staging.Dir) (l leavings, err error) {
	entries, err := dir.List()
	if err != nil {
		return l, err
	}
	if l.partials, err = dir.Partials(); err != nil {
		return l, err
	}
	for _, e := range entries {
		switch {
		case e.Bereft() && e.Manifest.DP == (staging.DPSession{}):
			l.alone = append(l.alone, e)
		case e.State != staging.NoManifest:
		case slices.Contains(l.partials, e.Name.Manifest()):
			l.halfway = append(l.halfway, e)
		default:
			l.strange = append(l.strange, e)
		}
	}
	return l, nil
}

// remove removes all but what is strange or alone. The caller holds the folder's lock. What an export is told by goes last: killed in
// between, the next one knows it again.
func (l leavings) remove(dir *staging.Dir) error {
	for _, e := range l.halfway {
		if err := dir.Remove(e); err != nil {
			return err
		}
	}
	_, err := dir.CleanPartials()
	return err
}

// actions are what remove does, in words.
func (l leavings) actions() []SweepAction {
	var all []SweepAction
	for _, e := range l.halfway {
		all = append(all, SweepAction{Action: "remove the file that has no manifest yet", Object: e.Path})
	}
	for _, name := range l.partials {
		all = append(all, SweepAction{Action: "remove the unfinished file", Object: name})
	}
	return all
}

// cleanStaging removes what transfers that were killed have left in the staging folder, and returns remarks about it. The
// caller holds the lock.
func cleanStaging(dir *staging.Dir) ([]string, error) {
	l, err := findLeavings(dir)
	if err != nil {
		return nil, err
	}
	if err := l.remove(dir); err != nil {
		return nil, err
	}
	var remarks []string
	for _, e := range l.halfway {
		remarks = append(remarks, "file "+e.Base()+" was left by a session that was killed, and was removed")
	}
	for _, e := range l.strange {
		remarks = append(remarks, "file "+e.Base()+" has no manifest and is no backup: verify and adopt it, or delete it")
	}
	for _, e := range l.alone {
		remarks = append(remarks, "file "+e.Base()+" was taken away, and its manifest is no backup: bring it back, or delete the manifest "+e.Name.Manifest())
	}
	return remarks, nil
}
