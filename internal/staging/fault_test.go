package staging

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// faulty is the real file system with one step that fails; counted over all steps that change something.
type faulty struct {
	osFS
	fail    error // what the step gives; nil = none fails
	at      int   // the step, from 1
	dead    bool  // every later step fails too: the process was killed
	free    int64 // reported by Room when not 0
	discard bool  // writes go nowhere
	steps   []string
}

func (f *faulty) step(what, path string) error {
	f.steps = append(f.steps, what+" "+filepath.Base(path))
	if f.fail != nil && (len(f.steps) == f.at || f.dead && len(f.steps) > f.at) {
		return fmt.Errorf("step %d, %s: %w", len(f.steps), f.steps[len(f.steps)-1], f.fail)
	}
	return nil
}

func (f *faulty) Create(path string, perm fs.FileMode) (file, error) {
	if err := f.step("create", path); err != nil {
		return nil, err
	}
	under, err := f.osFS.Create(path, perm)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file: under, f: f, path: path}, nil
}

func (f *faulty) RenameNew(from, to string) error {
	if err := f.step("rename", to); err != nil {
		return err
	}
	return f.osFS.RenameNew(from, to)
}

func (f *faulty) Replace(from, to string) error {
	if err := f.step("replace", to); err != nil {
		return err
	}
	return f.osFS.Replace(from, to)
}

func (f *faulty) Remove(path string) error {
	if err := f.step("remove", path); err != nil {
		return err
	}
	return f.osFS.Remove(path)
}

func (f *faulty) SyncDir(dir string) error {
	if err := f.step("syncdir", dir); err != nil {
		return err
	}
	return f.osFS.SyncDir(dir)
}

func (f *faulty) Room(dir string) (free, total int64, err error) {
	if f.free > 0 {
		return f.free, f.free, nil
	}
	return f.osFS.Room(dir)
}

type faultyFile struct {
	file
	f    *faulty
	path string
}

// Write fails after half of its bytes.
func (w *faultyFile) Write(b []byte) (int, error) {
	if w.f.discard {
		return len(b), nil
	}
	if err := w.f.step("write", w.path); err != nil {
		n, werr := w.file.Write(b[:len(b)/2])
		if errors.Is(err, io.ErrShortWrite) {
			return n, werr // short without a word
		}
		return n, errors.Join(err, werr)
	}
	return w.file.Write(b)
}

func (w *faultyFile) Sync() error {
	if err := w.f.step("sync", w.path); err != nil {
		return err
	}
	return w.file.Sync()
}

func (w *faultyFile) Stat() (fs.FileInfo, error) {
	if err := w.f.step("stat", w.path); err != nil {
		return nil, err
	}
	return w.file.Stat()
}

// Close frees the descriptor in any case, as the system does.
func (w *faultyFile) Close() error {
	return errors.Join(w.file.Close(), w.f.step("close", w.path))
}

// steps runs a whole transfer that does not fail and returns what it did.
func steps(t *testing.T, data []byte) []string {
	t.Helper()
	sys := &faulty{}
	if _, err := write(t, open(t, sys), onlineManifest(), data, 700<<10); err != nil {
		t.Fatal(err)
	}
	return sys.steps
}

// What a power cut may leave depends on the order of the syncs: data before their name, the export's name before the
// manifest's, and both names before Commit returns.
func TestOrderOfSyncs(t *testing.T) {
	m := onlineManifest()
	got := strings.Join(steps(t, random(1500<<10)), "\n")
	dir := strings.Fields(got)[0]
	if dir != "create" {
		t.Fatalf("first step of\n%s", got)
	}
	n := name(t, m)
	var last int
	for _, want := range []string{
		"create " + n.XVA(), "write " + n.XVA(), "sync " + n.XVA(), "stat " + n.XVA(), "close " + n.XVA(),
		"create " + n.Manifest(), "write " + n.Manifest(), "sync " + n.Manifest(), "close " + n.Manifest(),
		"rename " + n.XVA(), "syncdir", "rename " + n.Manifest(), "syncdir",
	} {
		i := strings.Index(got[last:], want)
		if i < 0 {
			t.Fatalf("no %q in its place in\n%s", want, got)
		}
		last += i + len(want)
	}
	if i, j := strings.LastIndex(got, "write "+n.XVA()), strings.Index(got, "sync "+n.XVA()); i > j {
		t.Errorf("written after the sync:\n%s", got)
	}
}

func TestEveryStepMayFail(t *testing.T) {
	data := random(1500 << 10)
	all := steps(t, data)
	for at, what := range all {
		for _, fail := range append(wearing, full, tooLong, io.ErrShortWrite) {
			if errors.Is(fail, io.ErrShortWrite) && !strings.HasPrefix(what, "write") {
				continue
			}
			d := open(t, nil)
			d.sys = &faulty{fail: fail, at: at + 1}
			_, err := write(t, d, onlineManifest(), data, 700<<10)
			if !errors.Is(err, fail) {
				t.Errorf("%s: got %v, want %v", what, err, fail)
			}
			if got, want := errors.Is(err, ErrNoRoom), isFull(fail) || isTooLong(fail); got != want {
				t.Errorf("%s: ErrNoRoom is %v for %v", what, got, err)
			}
			if left := files(t, d); len(left) != 0 {
				t.Errorf("%s failed (%v), left %v", what, fail, left)
			}
		}
	}
}

// A process that is killed leaves whole files under final names or none, and the next session gets over it.
func TestKilledAtEveryStep(t *testing.T) {
	data := random(1500 << 10)
	killed := errors.New("killed")
	for at, what := range steps(t, data) {
		d := open(t, nil)
		d.sys = &faulty{fail: killed, at: at + 1, dead: true}
		if _, err := write(t, d, onlineManifest(), data, 700<<10); !errors.Is(err, killed) {
			t.Fatalf("%s: got %v", what, err)
		}
		next, err := Open(d.Path(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := next.CleanPartials(); err != nil {
			t.Fatal(err)
		}
		entries, err := next.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.State != Complete && e.State != NoManifest {
				t.Errorf("killed at %s: %s is %s", what, e.Base(), e.State)
			}
			if got, err := os.ReadFile(e.Path); err != nil || !bytes.Equal(got, data) {
				t.Errorf("killed at %s: %s has %d bytes, %v, want %d", what, e.Base(), len(got), err, len(data))
			}
			if err := next.Remove(e); err != nil {
				t.Error(err)
			}
		}
		if left := files(t, next); len(left) != 0 {
			t.Errorf("killed at %s: left %v after cleaning up", what, left)
		}
		if _, err := write(t, next, onlineManifest(), data, 700<<10); err != nil {
			t.Errorf("killed at %s: the next session: %v", what, err)
		}
	}
}

func TestRemoveKilledAtEveryStep(t *testing.T) {
	killed := errors.New("killed")
	for at := 1; ; at++ {
		d := open(t, nil)
		e := store(t, d, onlineManifest(), []byte("disk"))
		sys := &faulty{fail: killed, at: at, dead: true}
		d.sys = sys
		if err := d.Remove(e); err == nil {
			if at != 5 {
				t.Errorf("Remove took %d steps, want 4: %v", at-1, sys.steps)
			}
			return
		}
		if left := Inspect(e.Path).State; left != Complete && left != NoManifest && len(files(t, d)) != 0 {
			t.Errorf("killed at %v: %s", sys.steps, left)
		}
		d.sys = osFS{}
		if err := errors.Join(d.Remove(e), d.Remove(e)); err != nil {
			t.Errorf("again: %v", err)
		}
	}
}

func TestWriteDurableKeepsTheOldWhenAStepFails(t *testing.T) {
	for at := 1; ; at++ {
		path := filepath.Join(t.TempDir(), "ID.json")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		sys := &faulty{fail: full, at: at}
		err := writeDurable(sys, path, []byte("new"), 0o600)
		if err == nil {
			return
		}
		if !errors.Is(err, ErrNoRoom) {
			t.Errorf("%v: got %v, want %v", sys.steps, err, ErrNoRoom)
		}
		want := "old"
		if strings.HasPrefix(sys.steps[at-1], "syncdir") {
			want = "new"
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%v: holds %q, %v, want %q", sys.steps, got, err, want)
		}
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
			t.Errorf("%v: %d files, %v, want 1", sys.steps, len(left), err)
		}
	}
}
