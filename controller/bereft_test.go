package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/staging"
)

// manifestOf is the manifest of an export.
func manifestOf(path string) string { return strings.TrimSuffix(path, ".xva") + ".json" }

// Somebody takes staged files away and leaves their manifests: those of the specification's sessions that are over are removed
// and told of. Nothing else is: not what belongs to a session that runs, to another specification or to nobody here, nor a
// manifest that was renamed or changed, nor one whose file is there.
func TestRemoveBereft(t *testing.T) {
	c := stateOnly(t)
	dir := stagingDir(t, c.cfg.Staging)
	over := ended(t, c, "NIGHT")
	other := ended(t, c, "OTHER")
	running := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, Folder: c.cfg.Staging, DP: &DPRecord{Spec: "NIGHT"}})
	defer func() { // it runs as long as its lock is held
		if err := running.unlock(); err != nil {
			t.Error(err)
		}
	}()
	n := 0
	staged := func(spec, of string) string {
		n++
		return stagedBackup{n: n, name: "web", mode: AllOnline, of: of, spec: spec}.stage(t, c.cfg.Staging)
	}
	taken := func(spec, of string) string {
		path := staged(spec, of)
		remove(t, path)
		return path
	}
	bereft := taken("NIGHT", over.ID)
	unknown := taken("NIGHT", "20200101T000000Z-000000")
	byHand := taken("", "20200101T000000Z-000001")
	stay := []string{unknown, byHand, taken("OTHER", other.ID), taken("NIGHT", running.id), staged("NIGHT", over.ID)}
	renamed, changed := taken("NIGHT", over.ID), taken("NIGHT", over.ID)
	data, err := os.ReadFile(manifestOf(renamed))
	if err != nil {
		t.Fatal(err)
	}
	remove(t, manifestOf(renamed))
	renamed = strings.Replace(renamed, testUUID(n-1), testUUID(n+1), 1)
	writeFile(t, manifestOf(renamed), data)
	writeFile(t, manifestOf(changed), []byte(`{"format":1}`))
	stay = append(stay, renamed, changed)

	remarks, err := cleanStaging(dir)
	want := []string{"file " + base(byHand) + " was taken away, and its manifest is no backup: bring it back, or delete the manifest " + base(manifestOf(byHand))}
	if diff := cmp.Diff(want, remarks); diff != "" || err != nil {
		t.Errorf("remarks (-want +got), %v:\n%s", err, diff)
	}
	p := &preExec{c: c, dp: DP{Spec: "NIGHT"}, spec: Spec{KeepSets: 9, KeepUnsaved: true}}
	remarks, err = p.tidy(dir)
	want = []string{"file " + base(bereft) + " of session " + over.ID + " was taken away by somebody: its manifest was removed",
		"file " + base(unknown) + " of session 20200101T000000Z-000000 was taken away by somebody; its manifest stays, as the session is not known here"}
	if diff := cmp.Diff(want, remarks); diff != "" || err != nil {
		t.Errorf("remarks (-want +got), %v:\n%s", err, diff)
	}
	if isThere(manifestOf(bereft)) {
		t.Error("the manifest is still there")
	}
	for _, path := range stay {
		if !isThere(manifestOf(path)) {
			t.Errorf("%s is gone", manifestOf(path))
		}
	}
	if !isThere(stay[4]) {
		t.Error("a file that was there is gone")
	}
}

// post-exec does the same for its specification, and keeps the files that it was told to keep.
func TestPostExecRemovesBereft(t *testing.T) {
	c := stateOnly(t)
	c.cfg.SpecDefaults.KeepSets = 1
	stagingDir(t, c.cfg.Staging)
	r := ended(t, c, "NIGHT")
	bereft := stagedBackup{n: 1, name: "web", mode: AllOnline, of: r.ID, spec: "NIGHT"}.stage(t, c.cfg.Staging)
	kept := stagedBackup{n: 2, name: "db", mode: AllOnline, of: r.ID, spec: "NIGHT"}.stage(t, c.cfg.Staging)
	remove(t, bereft)
	ok := 0
	res, err := c.PostExec(t.Context(), DP{Spec: "NIGHT", SMExit: &ok})
	if err != nil || !strings.Contains(strings.Join(res.Lines, "\n"), base(bereft)+" of session "+r.ID+" was taken away by somebody") {
		t.Errorf("got %+v, %v", res, err)
	}
	if isThere(manifestOf(bereft)) || !isThere(kept) || !isThere(manifestOf(kept)) {
		t.Error("the wrong files are there")
	}
}

// An export that comes back between the look at its manifest and the removal is not deleted.
func TestBereftFileComesBack(t *testing.T) {
	dir := stagingDir(t, t.TempDir())
	path := stagedBackup{n: 1, name: "web", mode: AllOnline}.stage(t, dir.Path())
	aside := filepath.Join(t.TempDir(), "aside")
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	e := staging.Inspect(path)
	if !e.Bereft() {
		t.Fatalf("%+v", e)
	}
	if err := os.Rename(aside, path); err != nil {
		t.Fatal(err)
	}
	if err := dir.Remove(e); err != nil || !isThere(path) {
		t.Errorf("%v, there: %v", err, isThere(path))
	}
}
