package staging

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInitAndOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "staging")
	if _, err := Open(dir, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of nothing: got %v, want %v", err, fs.ErrNotExist)
	}
	for range 2 {
		if err := Init(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir, Options{RequireMarker: true}); err != nil {
		t.Error(err)
	}
	// An empty mount point: nothing may be created in it.
	bare := t.TempDir()
	if _, err := Open(bare, Options{RequireMarker: true}); !errors.Is(err, ErrNoMarker) {
		t.Errorf("no marker: got %v, want %v", err, ErrNoMarker)
	}
	if left, err := os.ReadDir(bare); err != nil || len(left) != 0 {
		t.Errorf("Open without a marker left %v, %v", left, err)
	}
	file := filepath.Join(bare, "file")
	writeText(t, file, "x")
	if _, err := Open(file, Options{}); err == nil {
		t.Error("a file was opened as a folder")
	}
}

func TestOpenFollowsNoLinkInside(t *testing.T) {
	elsewhere := t.TempDir()
	for _, link := range []string{MetaDir, filepath.Join(MetaDir, partialName)} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, link)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(elsewhere, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil {
			t.Errorf("%s is a link and was opened", link)
		}
	}
	// The folder itself may be one.
	link := filepath.Join(t.TempDir(), "staging")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	d, err := Open(link, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want, err := filepath.EvalSymlinks(elsewhere); err != nil || d.Path() != want {
		t.Errorf("Path %s, %v, want %s", d.Path(), err, want)
	}
}

func TestReadOnlyCreatesNothing(t *testing.T) {
	dir := t.TempDir()
	d, err := Open(dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	_, lockErr := d.Lock()
	_, createErr := d.Create(name(t, onlineManifest()), nil)
	_, cleanErr := d.CleanPartials()
	for _, err := range []error{lockErr, createErr, cleanErr, d.Remove(Entry{})} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("got %v, want %v", err, ErrReadOnly)
		}
	}
	if _, held, err := d.Holder(); held || err != nil {
		t.Errorf("Holder: %v, %v, want none", held, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func writeText(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// spoil changes a manifest's text and signs it again.
func spoil(t testing.TB, path, old, with string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), old) {
		t.Fatalf("%q is not in %s", old, path)
	}
	writeText(t, path, string(resigned([]byte(strings.Replace(string(data), old, with, 1)))))
}

func TestStates(t *testing.T) {
	m := onlineManifest()
	n := name(t, m)
	tests := []struct {
		name  string
		spoil func(t *testing.T, data, manifest string)
		want  State
		err   error
	}{
		{"whole", func(*testing.T, string, string) {}, Complete, nil},
		{"no manifest", func(t *testing.T, _, manifest string) { unlink(t, manifest) }, NoManifest, fs.ErrNotExist},
		{"no data", func(t *testing.T, data, _ string) { unlink(t, data) }, MissingData, fs.ErrNotExist},
		{"manifest cut", func(t *testing.T, _, manifest string) { writeText(t, manifest, "{") }, ManifestDamaged, ErrManifestDamaged},
		{"manifest of tomorrow", func(t *testing.T, _, manifest string) {
			spoil(t, manifest, `"format": 1`, `"format": 2`)
		}, ManifestDamaged, ErrManifestFormat},
		{"manifest is a folder", func(t *testing.T, _, manifest string) {
			unlink(t, manifest)
			if err := os.Mkdir(manifest, 0o700); err != nil {
				t.Fatal(err)
			}
		}, ManifestDamaged, ErrIrregular},
		{"manifest is a link", func(t *testing.T, data, manifest string) {
			target := filepath.Join(t.TempDir(), "elsewhere")
			if err := errors.Join(os.Rename(manifest, target), os.Symlink(target, manifest)); err != nil {
				t.Fatal(err)
			}
		}, ManifestDamaged, ErrIrregular},
		{"data are a link", func(t *testing.T, data, _ string) {
			target := filepath.Join(t.TempDir(), "elsewhere")
			if err := errors.Join(os.Rename(data, target), os.Symlink(target, data)); err != nil {
				t.Fatal(err)
			}
		}, ForeignFile, ErrIrregular},
		{"shorter", func(t *testing.T, data, _ string) { writeText(t, data, "dis") }, Contradiction, ErrContradiction},
		{"manifest of another VM", func(t *testing.T, _, manifest string) {
			spoil(t, manifest, `"uuid": "`+uuid1, `"uuid": "`+uuid2)
		}, Contradiction, ErrContradiction},
		{"manifest of another file", func(t *testing.T, _, manifest string) {
			spoil(t, manifest, `"name": "`+n.Slug+".", `"name": "other.`)
		}, Contradiction, ErrContradiction},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t, nil)
			store(t, d, m, []byte("disk"))
			tt.spoil(t, d.final(n.XVA()), d.final(n.Manifest()))
			all, err := d.List()
			if err != nil || len(all) != 1 {
				t.Fatalf("List: %+v, %v, want one entry", all, err)
			}
			e := all[0]
			if e.State != tt.want || !errors.Is(e.Problem, tt.err) || (e.Problem == nil) != (tt.want == Complete) {
				t.Errorf("got %s, %v, want %s, %v", e.State, e.Problem, tt.want, tt.err)
			}
			if e.Base() != n.XVA() {
				t.Errorf("entry of %s, want %s", e.Base(), n.XVA())
			}
			if e.State != ForeignFile && e.Name != n {
				t.Errorf("name %+v, want %+v", e.Name, n)
			}
		})
	}
}

func unlink(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestListLeavesOthersOut(t *testing.T) {
	d := open(t, nil)
	store(t, d, onlineManifest(), []byte("disk"))
	for _, f := range []string{"README.txt", ".hidden.xva", "backup.xva", "notes.json", "web-01.online.xva"} {
		writeText(t, d.final(f), "x")
	}
	all, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all {
		got = append(got, string(e.State)+" "+e.Base())
		if e.State == ForeignFile {
			if err := d.Remove(e); !errors.Is(err, ErrName) {
				t.Errorf("Remove of %s: got %v, want %v", e.Base(), err, ErrName)
			}
		}
	}
	want := []string{"foreign file backup.xva", "foreign file notes.json", "foreign file web-01.online.xva",
		"complete " + onlineManifest().File.Name}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	elsewhere := all[0]
	elsewhere.State, elsewhere.Path = Complete, filepath.Join(t.TempDir(), elsewhere.Base())
	if err := d.Remove(elsewhere); !errors.Is(err, ErrName) {
		t.Errorf("Remove of another folder's: got %v, want %v", err, ErrName)
	}
}

func TestEntryOpen(t *testing.T) {
	d := open(t, nil)
	e := store(t, d, onlineManifest(), []byte("disk"))
	f, err := e.Open()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil || string(got) != "disk" {
		t.Errorf("read %q, %v", got, err)
	}
	writeText(t, e.Path, "another disk")
	if _, err := e.Open(); !errors.Is(err, ErrContradiction) {
		t.Errorf("another size: got %v, want %v", err, ErrContradiction)
	}
	target := filepath.Join(t.TempDir(), "secret")
	writeText(t, target, "disk")
	unlink(t, e.Path)
	if err := os.Symlink(target, e.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(); !errors.Is(err, ErrIrregular) {
		t.Errorf("link: got %v, want %v", err, ErrIrregular)
	}
	unlink(t, e.Path)
	if _, err := e.Open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: got %v, want %v", err, fs.ErrNotExist)
	}
}

func TestCleanPartials(t *testing.T) {
	d := open(t, nil)
	e := store(t, d, onlineManifest(), []byte("disk"))
	writeText(t, d.partial("a.xva"), "half")
	writeText(t, d.partial("b.json"), "half")
	got, err := d.CleanPartials()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.xva", "b.json"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if state := Inspect(e.Path).State; state != Complete || len(files(t, d)) != 2 {
		t.Errorf("left %v, the backup is %s", files(t, d), state)
	}
}
