package staging

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	if err := Probe(dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := Probe(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if same, known := SameFileSystem(dir, filepath.Dir(dir)); !same || !known {
		t.Errorf("a folder and its parent: %v, %v", same, known)
	}
	if _, known := SameFileSystem(dir, filepath.Join(dir, "none")); known {
		t.Error("a folder that is not there is said to be known")
	}
}

// Whoever writes a file again makes another arrival of it, even with the same bytes and times.
func TestArrival(t *testing.T) {
	dir := t.TempDir()
	name := "web." + "00000000-0000-4000-8000-000000000001" + ".online.20261122T203000Z"
	path := filepath.Join(dir, name+".xva")
	arrival := func() Arrival {
		t.Helper()
		a, err := Inspect(path).Arrival()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	writeText(t, path, "export")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	first := arrival()
	if again := arrival(); again != first || first.Time.IsZero() {
		t.Errorf("untouched: %+v and %+v", first, again)
	}
	for _, step := range []func(){
		func() { writeText(t, filepath.Join(dir, name+".json"), "{}") },
		func() {
			unlink(t, path)
			writeText(t, path, "export")
			if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		step()
		next := arrival()
		if next.ID == first.ID || next.Time.Before(first.Time) {
			t.Errorf("written: %+v after %+v", next, first)
		}
		first = next
	}
}
