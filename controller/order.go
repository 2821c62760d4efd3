package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

// The order of sessions and files must not depend on clocks that are set back: which sets are surplus, which session a
// post-exec ends and which file is the newest is decided by it.

// clockSlack is how far a clock may be behind what was written down before without a word about it: clocks are set by
// seconds all the time.
const clockSlack = 5 * time.Second

// lastYear is the last one whose sessions others can come after: IDs have four digits for it.
const lastYear = 9998

// timeOf returns the time that a session's ID begins with; false where it has none.
func timeOf(id string) (time.Time, bool) {
	text, millis, ok := strings.Cut(id, "-")
	at, err := time.Parse(idTimeLayout, text)
	if !ok || err != nil || len(millis) < 3 {
		return time.Time{}, false
	}
	n, err := strconv.ParseUint(millis[:3], 16, 16)
	if err != nil {
		return time.Time{}, false
	}
	return at.Add(time.Duration(n) * time.Millisecond), true
}

// inOrder returns the time for the ID of a session that begins now: after those of all sessions before it, also where this
// machine's clock has been set back since; doubt says so then.
func (c *Controller) inOrder(now time.Time) (at time.Time, doubt string, err error) {
	ids, err := c.sessionIDs()
	if err != nil {
		return now, "", err
	}
	for _, id := range slices.Backward(ids) {
		last, ok := timeOf(id)
		if !ok || last.Year() > lastYear {
			continue
		}
		if now.After(last) {
			return now, "", nil
		}
		if last.Sub(now) > clockSlack {
			doubt = fmt.Sprintf("this machine's clock says %s, but session %s began earlier and later by it: the clock was set back. "+
				"Sessions are kept in their order by their IDs; set the clock right", now.Format(time.RFC3339), id)
		}
		return last.Add(time.Millisecond), doubt, nil
	}
	return now, "", nil
}

// clockDoubts are warnings about staged files that are from the future by this machine's clock.
func clockDoubts(entries []staging.Entry, now time.Time) []string {
	var last *staging.Entry
	for i, e := range entries {
		if e.Manifest != nil && (last == nil || e.Manifest.Finished.After(last.Manifest.Finished)) {
			last = &entries[i]
		}
	}
	if last == nil || last.Manifest.Finished.Sub(now) <= clockSlack {
		return nil
	}
	return []string{fmt.Sprintf("this machine's clock says %s, but %s was finished at %s by it: a clock was set back",
		now.UTC().Format(time.RFC3339), last.Base(), last.Manifest.Finished.UTC().Format(time.RFC3339))}
}

// newestStaged are the newest files of each VM and kind, by their names.
type newestStaged map[string]staging.Entry

func fileGroup(uuid string, kind Kind) string { return uuid + "." + string(kind) }

func newestFiles(entries []staging.Entry) newestStaged {
	newest := newestStaged{}
	for _, e := range entries {
		at := fileGroup(e.Name.UUID, e.Name.Kind)
		if has, ok := newest[at]; e.State == staging.Complete && (!ok || e.Name.Time.After(has.Name.Time)) {
			newest[at] = e
		}
	}
	return newest
}

// doubt warns where a file that is taken now is older by its name than one that was taken before: the pool master's clock,
// which gives the time, was set back. A restore of the newest would take the other.
func (n newestStaged) doubt(name staging.Name) string {
	has, ok := n[fileGroup(name.UUID, name.Kind)]
	if !ok || has.Name.Time.Before(name.Time) {
		return ""
	}
	return fmt.Sprintf("the pool master's clock says %s, but %s was taken before and is later by it: a clock was set back. "+
		"A restore takes that one for the newest, unless this file is named", name.Time.UTC().Format(time.RFC3339), has.Base())
}

// outOfOrder says of a file that was left out as older than the chosen one that it was made by a later session.
func outOfOrder(chosen, left staging.Entry) string {
	a, b := chosen.Manifest, left.Manifest
	if a == nil || b == nil || left.State != staging.Complete || cmp.Compare(b.Session, a.Session) <= 0 ||
		!sessionID.MatchString(a.Session) || !sessionID.MatchString(b.Session) {
		return ""
	}
	return fmt.Sprintf("%s is taken for the newest by its time, but %s is of a later session (%s after %s): a clock was set back "+
		"between them. To restore the other, name its file", chosen.Base(), left.Base(), b.Session, a.Session)
}
