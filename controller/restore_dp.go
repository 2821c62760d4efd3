package controller

import (
	"cmp"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

// adviceOverwrite is what to do about a file that Data Protector did not put in place as it was saved.
const adviceOverwrite = "Data Protector keeps a newer file that is on disk: delete it, or choose to overwrite, then restore again, " +
	"the .xva with its .json"

// sieve leaves, of a folder's files, those that the Data Protector restore at hand has brought.
type sieve struct {
	req  RestoreRequest
	seen *arrivals
	done map[string]string // by file and arrival: when a VM was restored from it, and by which session
}

// newSieve makes the sieve, under the folder's lock, of what is in it.
func (c *Controller) newSieve(req RestoreRequest, l *arrivalsLock, entries []staging.Entry) (*sieve, error) {
	seen, err := l.look(entries)
	if err != nil {
		return nil, err
	}
	done, err := c.restoredBefore(req.AsNew)
	if err != nil {
		return nil, err
	}
	return &sieve{req: req, seen: seen, done: done}, nil
}

// doneKey names a file as it arrived once.
func doneKey(file, arrival string) string { return file + "/" + arrival }

// restoredBefore tells of every file, by doneKey, from which a VM was restored, also by hand. A VM made beside the former one
// counts for restores that make such VMs, and not for others.
func (c *Controller) restoredBefore(asNew bool) (map[string]string, error) {
	ids, err := c.sessionIDs()
	if err != nil {
		return nil, err
	}
	done := map[string]string{}
	for _, id := range ids {
		r, err := c.Session(id)
		if err != nil || r.Action != ActionRestore {
			continue // dpxen sessions shows what cannot be read
		}
		for i := range r.VMs {
			vm := &r.VMs[i]
			beside := !vm.InPlace && vm.NewUUID != vm.UUID
			if vm.Status == StatusGood && vm.Arrival != "" && beside == asNew {
				done[doneKey(vm.File, vm.Arrival)] = fmt.Sprintf("its VM was restored from it by session %s at %s", r.ID,
					cmp.Or(r.Ended, r.Started).UTC().Format(time.RFC3339))
			}
		}
	}
	return done, nil
}

// pass parts the files into those of this restore and the others, with the reasons. Files that were asked for by name are of
// it in any case.
func (s *sieve) pass(entries []staging.Entry) (keep []staging.Entry, out []SkippedFile) {
	if len(s.req.Files) > 0 {
		return entries, nil
	}
	for _, e := range entries {
		if why := s.foreign(e); why != "" {
			out = append(out, SkippedFile{File: e.Base(), Reason: why})
			continue
		}
		keep = append(keep, e)
	}
	if s.req.DPSession != "" || !s.req.At.IsZero() {
		return keep, out
	}
	return s.oneSession(keep, out)
}

// foreign says why a file is not of this restore; empty where it may be.
func (s *sieve) foreign(e staging.Entry) string {
	if e.State == staging.ForeignFile {
		return "" // said later
	}
	if m := e.Manifest; m != nil && m.DP.Spec != "" && m.DP.Spec != s.req.Spec {
		return fmt.Sprintf("it is of specification %.80q", m.DP.Spec)
	}
	at := s.seen.Files[e.Base()]
	if at.Wave == s.seen.Wave || s.req.Again {
		return ""
	}
	if why := s.done[doneKey(e.Base(), at.ID)]; why != "" {
		return why + ", and Data Protector has not written it again since"
	}
	return fmt.Sprintf("it was here before this restore (seen %s), and Data Protector has not written it since", at.Seen.Format(time.RFC3339))
}

// restored says by which session a VM was restored from the file as it is; empty where none was, or where that is to be done
// again.
func (s *sieve) restored(e staging.Entry) string {
	if s == nil || s.req.Again {
		return ""
	}
	at, err := e.Arrival()
	if err != nil {
		return ""
	}
	return s.done[doneKey(e.Base(), at.ID)]
}

// oneSession looks whether files of several sessions lie there. Where all of one came after all of the others, that one is
// what Data Protector has just restored, and the others are stale. Where they came mixed, they came together, and the newest
// of each VM is meant.
func (s *sieve) oneSession(entries []staging.Entry, out []SkippedFile) (keep []staging.Entry, _ []SkippedFile) {
	type span struct{ first, last time.Time }
	spans := map[string]*span{}
	for _, e := range entries {
		key, ok := s.sessionOf(e)
		if !ok {
			continue
		}
		at := s.seen.Files[e.Base()].time
		switch sp := spans[key]; {
		case sp == nil:
			spans[key] = &span{at, at}
		case at.Before(sp.first):
			sp.first = at
		case at.After(sp.last):
			sp.last = at
		}
	}
	last := ""
	for key, sp := range spans {
		if last == "" || sp.last.After(spans[last].last) {
			last = key
		}
	}
	for key, sp := range spans {
		if key != last && !sp.last.Before(spans[last].first) {
			return entries, out // mixed
		}
	}
	for _, e := range entries {
		if key, ok := s.sessionOf(e); ok && key != last {
			out = append(out, SkippedFile{File: e.Base(), Reason: fmt.Sprintf(
				"it is of session %.40s and lay here before the files of session %.40s came: --dp-session chooses", key, last)})
			continue
		}
		keep = append(keep, e)
	}
	return keep, out
}

// sessionOf is the session that made a file of the kind that is wanted: Data Protector's, else our own.
func (s *sieve) sessionOf(e staging.Entry) (string, bool) {
	if e.Manifest == nil || e.State != staging.Complete || s.req.Mode != "" && e.Name.Kind != s.req.Mode.Kind() {
		return "", false
	}
	return cmp.Or(e.Manifest.DP.Session, e.Manifest.Session), true
}
