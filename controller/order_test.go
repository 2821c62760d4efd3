package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

// at makes the controller's machine read a time.
func (c *Controller) at(now time.Time) { c.o.Now = func() time.Time { return now } }

// ended runs a session of a specification to its end, whose files Data Protector has saved.
func ended(t *testing.T, c *Controller, spec string) *Report {
	t.Helper()
	s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, Folder: c.cfg.Staging,
		DP: &DPRecord{Spec: spec, Saved: true, Closed: c.o.Now()}})
	r, err := s.finish(c.o.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// This machine's clock is set back or forward by hours between sessions: their IDs stay in order, what is kept is what was
// made last, the newest is the newest, and who reads the report is told.
func TestSessionsWhileClockJumps(t *testing.T) {
	for name, by := range map[string]time.Duration{"back": -3 * time.Hour, "forward": 3 * time.Hour, "not at all": 0} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			now := testTime
			var all []*Report
			for range 3 {
				c.at(now)
				r := ended(t, c, "NIGHT")
				stagedBackup{n: 1, name: "web", mode: AllOnline, at: testTime.Add(time.Duration(len(all)) * time.Minute), of: r.ID,
					spec: "NIGHT", pool: poolA}.stage(t, c.cfg.Staging)
				all = append(all, r)
				now = now.Add(time.Minute + by)
			}
			ids := []string{all[0].ID, all[1].ID, all[2].ID}
			if !slices.IsSorted(ids) {
				t.Errorf("IDs %v are out of order", ids)
			}
			for i, r := range all {
				if told := len(r.Warnings) == 1 && strings.Contains(r.Warnings[0], "the clock was set back"); told != (i > 0 && by < 0) {
					t.Errorf("session %d: warnings %q", i, r.Warnings)
				}
			}
			newest, err := c.newestOf("NIGHT", func(*Report) bool { return true })
			if err != nil || newest.ID != all[2].ID {
				t.Errorf("newest: got %+v, %v, want %s", newest, err, all[2].ID)
			}
			dir, err := staging.Open(c.cfg.Staging, staging.Options{})
			if err != nil {
				t.Fatal(err)
			}
			sets, _, err := c.sets(dir, "NIGHT")
			if err != nil {
				t.Fatal(err)
			}
			gone := c.surplus(sets, Spec{KeepSets: 1})
			if len(gone) != 2 || slices.ContainsFunc(gone, func(s stagedSet) bool { return s.report.ID == all[2].ID }) {
				t.Errorf("of %d sets %d would go, among them perhaps the last", len(sets), len(gone))
			}
		})
	}
}

// A session whose ID is from a clock far ahead, or is none of a time, keeps nobody from beginning another one.
func TestSessionAfterStrangeIDs(t *testing.T) {
	c := stateOnly(t)
	for _, id := range []string{"99991231T235959Z-3e7000", "20261340T999999Z-000000"} {
		c.at(testTime)
		s := mustSession(t, c, Report{Action: ActionBackup})
		writeFile(t, strings.ReplaceAll(s.path(reportExt), s.id, id), []byte("{}"))
		if _, err := s.finish(testTime, nil); err != nil {
			t.Fatal(err)
		}
	}
	r := mustSession(t, c, Report{Action: ActionBackup}).snapshot()
	if !sessionID.MatchString(r.ID) {
		t.Errorf("ID %s", r.ID)
	}
}

// The pool master's clock was set back between two backups: what is taken for the newest by its time is not, and both the
// backup and the restore say so.
func TestFilesWhileMasterClockGoesBack(t *testing.T) {
	c, dir := stateOnly(t), t.TempDir()
	c.cfg.Restore = dir
	late := stagedBackup{n: 1, name: "web", mode: AllOnline, at: testTime, of: "20261122T203000Z-000001", pool: poolA}
	late.stage(t, dir)
	d, err := staging.Open(dir, staging.Options{})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	newest := newestFiles(entries)
	for by, want := range map[time.Duration]bool{-3 * time.Hour: true, 0: true, time.Second: false} {
		name, err := staging.NewName("web", testUUID(1), KindOnline, testTime.Add(by))
		if err != nil {
			t.Fatal(err)
		}
		if got := newest.doubt(name); (got != "") != want {
			t.Errorf("taken %s after it: got %q", by, got)
		}
	}
	if got := clockDoubts(entries, testTime.Add(-time.Hour)); len(got) != 1 || !strings.Contains(got[0], "a clock was set back") {
		t.Errorf("an hour before the newest file: got %q", got)
	}
	if got := clockDoubts(entries, testTime.Add(time.Second)); len(got) != 0 {
		t.Errorf("after the newest file: got %q", got)
	}
	for _, tt := range []struct {
		of   string
		told bool
	}{{"20261122T193000Z-000001", false}, {"20261122T213000Z-000001", true}} {
		early := stagedBackup{n: 1, name: "web", mode: AllOnline, at: testTime.Add(-3 * time.Hour), of: tt.of, pool: poolA}
		path := early.stage(t, dir)
		set, err := c.RestoreFiles(RestoreRequest{Mode: AllOnline})
		if err != nil {
			t.Fatal(err)
		}
		if len(set.Items) != 1 || strings.Contains(set.Items[0].Doubt, base(path)) != tt.told {
			t.Errorf("session %s: got %+v", tt.of, set.Items)
		}
		remove(t, path)
		remove(t, strings.TrimSuffix(path, ".xva")+".json")
	}
}

// A post-exec without any ID ends the session before it however the clock was set since, and repeated soon after it is the
// same again; one whose pre-exec did not run is not taken for that because the clock was set back.
func TestPostExecWithoutID(t *testing.T) {
	const hour = time.Hour
	for name, tt := range map[string]struct {
		closed bool
		by     time.Duration
		found  bool
	}{
		"clock set back before it":       {false, -25 * hour, true},
		"clock set forward before it":    {false, 25 * hour, true},
		"repeated":                       {true, 10 * time.Minute, true},
		"repeated, clock set back a bit": {true, -10 * time.Minute, true},
		"the next night":                 {true, 24 * hour, false},
		"the next night, clock set back": {true, -24 * hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			c.at(testTime)
			ended(t, c, "NIGHT")
			last := ended(t, c, "NIGHT")
			if !tt.closed {
				if _, err := c.amend(last.ID, func(r *Report) { r.DP.Closed = time.Time{} }); err != nil {
					t.Fatal(err)
				}
			}
			c.at(testTime.Add(tt.by))
			r, err := c.preExecOf(DP{Spec: "NIGHT"})
			if err != nil || (r != nil) != tt.found || r != nil && r.ID != last.ID {
				t.Errorf("got %+v, %v, want found %v", r, err, tt.found)
			}
		})
	}
}
