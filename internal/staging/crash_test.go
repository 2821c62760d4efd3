package staging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A power cut leaves what a file system may leave: of data that was not synced any part, or zeros in its place; of names in
// a folder that was not synced since they changed any of the changes, in any order but that of one name's own. Both halves
// of a rename count as changes of their own. A recording file system notes every change, and every prefix of the record is
// cut off there, many times with different luck.

// recorder is the real file system with a record of all that changes it.
type recorder struct {
	osFS
	ops []recorded
}

// recorded is one change.
type recorded struct {
	what     string // mkdir, create, write, sync, rename, remove, syncdir, promise
	path, to string
	file     int // of create, write and sync
	data     []byte
	promise  func(*aftermath)
}

func (r *recorder) add(op recorded) { r.ops = append(r.ops, op) }

func (r *recorder) Mkdir(path string, perm fs.FileMode) error {
	err := r.osFS.Mkdir(path, perm)
	if err == nil {
		r.add(recorded{what: "mkdir", path: path})
	}
	return err
}

func (r *recorder) Create(path string, perm fs.FileMode) (file, error) {
	f, err := r.osFS.Create(path, perm)
	if err != nil {
		return nil, err
	}
	id := len(r.ops)
	r.add(recorded{what: "create", path: path, file: id})
	return &recordedFile{file: f, r: r, id: id}, nil
}

func (r *recorder) RenameNew(from, to string) error {
	err := r.osFS.RenameNew(from, to)
	if err == nil {
		r.add(recorded{what: "rename", path: from, to: to})
	}
	return err
}

func (r *recorder) Replace(from, to string) error {
	err := r.osFS.Replace(from, to)
	if err == nil {
		r.add(recorded{what: "rename", path: from, to: to})
	}
	return err
}

func (r *recorder) Remove(path string) error {
	err := r.osFS.Remove(path)
	if err == nil {
		r.add(recorded{what: "remove", path: path})
	}
	return err
}

func (r *recorder) SyncDir(dir string) error {
	r.add(recorded{what: "syncdir", path: dir})
	return r.osFS.SyncDir(dir)
}

// promises notes that something was promised to the caller at this point: it must hold after every crash from here on.
func (r *recorder) promises(hold func(*aftermath)) { r.add(recorded{what: "promise", promise: hold}) }

type recordedFile struct {
	file
	r  *recorder
	id int
}

func (f *recordedFile) Write(b []byte) (int, error) {
	f.r.add(recorded{what: "write", file: f.id, data: bytes.Clone(b)})
	return f.file.Write(b)
}

func (f *recordedFile) Sync() error {
	f.r.add(recorded{what: "sync", file: f.id})
	return f.file.Sync()
}

// disk is what is known of a file system's medium at one moment.
type disk struct {
	files   map[int]*diskFile
	folders map[string]*diskFolder
}

type diskFile struct {
	synced []byte
	late   [][]byte // written since, in order
}

// diskFolder has the names that are durable, and the changes that are not. A name's value is the number of a file, or of a
// folder when negative.
type diskFolder struct {
	durable map[string]int
	late    []nameChange
}

type nameChange struct {
	name string
	id   int // 0 = it is gone
}

const folderID = -1

func (d *disk) folder(path string) *diskFolder {
	f := d.folders[path]
	if f == nil {
		f = &diskFolder{durable: map[string]int{}}
		d.folders[path] = f
	}
	return f
}

// change changes a name, and returns what it meant before.
func (d *disk) change(path string, id int) (former int) {
	f, name := d.folder(filepath.Dir(path)), filepath.Base(path)
	former = f.durable[name]
	for _, c := range f.late {
		if c.name == name {
			former = c.id
		}
	}
	f.late = append(f.late, nameChange{name, id})
	return former
}

// do makes one change.
func (d *disk) do(op recorded) {
	switch op.what {
	case "mkdir":
		d.change(op.path, folderID)
	case "create":
		d.files[op.file] = &diskFile{}
		d.change(op.path, op.file)
	case "write":
		d.files[op.file].late = append(d.files[op.file].late, op.data)
	case "sync":
		f := d.files[op.file]
		f.synced, f.late = bytes.Join(append([][]byte{f.synced}, f.late...), nil), nil
	case "rename":
		id := d.change(op.path, 0)
		d.change(op.to, id)
	case "remove":
		d.change(op.path, 0)
	case "syncdir":
		f := d.folder(op.path)
		for _, c := range f.late {
			f.durable[c.name] = c.id
		}
		f.late = nil
	}
}

// crash returns what is there after a power cut: contents by path.
func (d *disk) crash(rng *rand.Rand, root string) map[string][]byte {
	left := map[string][]byte{}
	var walk func(path string)
	walk = func(path string) {
		for name, id := range d.folder(path).crash(rng) {
			switch {
			case id > 0:
				left[filepath.Join(path, name)] = d.files[id].crash(rng)
			case id == folderID:
				walk(filepath.Join(path, name))
			}
		}
	}
	walk(root)
	return left
}

// crash lets each name's late changes happen up to any of them.
func (f *diskFolder) crash(rng *rand.Rand) map[string]int {
	names, of := maps.Clone(f.durable), map[string][]int{}
	for _, c := range f.late {
		of[c.name] = append(of[c.name], c.id)
	}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		if n := rng.IntN(len(of[name]) + 1); n > 0 {
			names[name] = of[name][n-1]
		}
	}
	return names
}

// crash keeps, loses, tears or zeroes each late write.
func (f *diskFile) crash(rng *rand.Rand) []byte {
	out, at := bytes.Clone(f.synced), len(f.synced)
	for _, data := range f.late {
		kept := bytes.Clone(data)
		switch rng.IntN(4) {
		case 0:
			kept = nil
		case 1:
			kept = kept[:rng.IntN(len(kept)+1)]
		case 2:
			clear(kept)
		}
		if len(kept) > 0 {
			if gap := at - len(out); gap > 0 {
				out = append(out, make([]byte, gap)...)
			}
			out = append(out, kept...)
		}
		at += len(data)
	}
	return out
}

// aftermath is what a crash has left, on a real file system again.
type aftermath struct {
	t         *testing.T
	root      string
	did       []string // the record, for messages
	originals map[string][]byte
	states    []string
}

func (a *aftermath) errorf(format string, args ...any) {
	a.t.Helper()
	a.t.Errorf(format+"\nafter:\n  "+strings.Join(a.did, "\n  "), args...)
}

// newAftermath puts it there.
func newAftermath(t *testing.T, left map[string][]byte, from string) *aftermath {
	t.Helper()
	a := &aftermath{t: t, root: t.TempDir()}
	for path, data := range left {
		rel, err := filepath.Rel(from, path)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(a.root, rel)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), dirMode), os.WriteFile(to, data, fileMode)); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// staged are the entries that the next session sees.
func (a *aftermath) staged() []Entry {
	d, err := Open(filepath.Join(a.root, "staging"), Options{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		a.t.Fatal(err)
	}
	entries, err := d.List()
	if err != nil {
		a.t.Fatal(err)
	}
	return entries
}

// check holds that under final names there is only what is complete and proven, and that state files are whole.
func (a *aftermath) check() {
	for _, e := range a.staged() {
		if e.State != Complete && e.State != NoManifest {
			a.errorf("%s is %s: %v", e.Base(), e.State, e.Problem)
			continue
		}
		got, err := os.ReadFile(e.Path)
		if err != nil {
			a.t.Fatal(err)
		}
		if !bytes.Equal(got, a.originals[e.Base()]) {
			a.errorf("%s (%s) has %d bytes that are not the export's", e.Base(), e.State, len(got))
		}
	}
	got, err := os.ReadFile(filepath.Join(a.root, "state", "sessions", "ID.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.t.Fatal(err)
	}
	if err == nil && !slices.Contains(a.states, string(got)) {
		a.errorf("the state is %.60q, which was never written", got)
	}
}

// recover holds that the next session can work there.
func (a *aftermath) recover(n Name) {
	path := filepath.Join(a.root, "staging")
	if err := Init(path); err != nil {
		a.t.Fatal(err)
	}
	d, err := Open(path, Options{RequireMarker: true})
	if err != nil {
		a.t.Fatal(err)
	}
	lock, err := d.Lock()
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := d.CleanPartials(); err != nil {
		a.t.Fatal(err)
	}
	for _, e := range a.staged() {
		if e.Name == n {
			if err := d.Remove(e); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	if _, err := write(a.t, d, onlineManifest(), []byte("again"), 8); err != nil {
		a.errorf("the next session: %v", err)
	}
	if err := lock.Unlock(); err != nil {
		a.t.Fatal(err)
	}
	meta, err := os.ReadDir(filepath.Join(path, MetaDir))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, e := range meta {
		if strings.HasSuffix(e.Name(), ".tmp") {
			a.errorf("%s is left", e.Name())
		}
	}
}

// crashScene runs a whole life of a staging folder and a state file, and returns its record.
type crashScene struct {
	*recorder
	t         *testing.T
	root      string
	dir       *Dir
	originals map[string][]byte
	states    []string
}

// state writes the next state durably.
func (s *crashScene) state(text string) {
	s.states = append(s.states, text)
	if err := writeDurable(s, filepath.Join(s.root, "state", "sessions", "ID.json"), []byte(text), fileMode); err != nil {
		s.t.Fatal(err)
	}
	newest := len(s.states) - 1
	s.promises(func(a *aftermath) {
		got, err := os.ReadFile(filepath.Join(a.root, "state", "sessions", "ID.json"))
		if err != nil || slices.Index(a.states, string(got)) < newest {
			a.errorf("state %d was promised, and there is %.60q, %v", newest, got, err)
		}
	})
}

// second is the manifest of another VM's backup.
func second() Manifest {
	m := onlineManifest()
	m.VM.UUID = "11111111-2222-4333-8444-555555555555"
	n := must(NewName(m.VM.Name, m.VM.UUID, Online, m.Snapshot.Time))
	m.File.Name = n.XVA()
	return m
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// store stores a backup and promises it until its removal begins.
func (s *crashScene) store(m Manifest, data []byte) {
	n := name(s.t, m)
	s.originals[n.XVA()] = data
	if _, err := write(s.t, s.dir, m, data, 700<<10); err != nil {
		s.t.Fatal(err)
	}
	at := len(s.ops)
	s.promises(func(a *aftermath) {
		if s.happened("remove", n.Manifest(), at, len(a.did)) {
			return
		}
		if !slices.ContainsFunc(a.staged(), func(e Entry) bool { return e.Name == n && e.State == Complete }) {
			a.errorf("%s was promised, and is not complete", n.XVA())
		}
	})
}

// happened tells whether something was done with a file between two points of the record.
func (s *crashScene) happened(what, base string, from, to int) bool {
	return slices.ContainsFunc(s.ops[from:to], func(op recorded) bool { return op.what == what && filepath.Base(op.path) == base })
}

func newCrashScene(t *testing.T) *crashScene {
	t.Helper()
	s := &crashScene{recorder: &recorder{ops: []recorded{{what: "begin"}}}, t: t, root: t.TempDir(), originals: map[string][]byte{}}
	staging := filepath.Join(s.root, "staging")
	if err := errors.Join(makeFolders(s, filepath.Join(s.root, "state", "sessions")), initFolder(s, staging)); err != nil {
		t.Fatal(err)
	}
	dir, err := Open(staging, Options{RequireMarker: true})
	if err != nil {
		t.Fatal(err)
	}
	dir.sys, s.dir = s, dir
	return s
}

// live is the life: two backups, one of them removed later, one transfer given up, one killed, states all along.
func (s *crashScene) live() {
	t := s.t
	lock, err := s.dir.Lock()
	if err != nil {
		t.Fatal(err)
	}
	s.state(`{"begun":1}`)
	s.store(onlineManifest(), random(writeSize+4321))
	s.state(`{"first":"` + strings.Repeat("x", 5000) + `"}`)
	s.store(second(), []byte("the second one's disks"))
	gone, err := s.dir.Create(must(NewName("third", "22222222-2222-4333-8444-555555555555", Online, onlineManifest().Snapshot.Time)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Write(random(writeSize + 5)); err != nil {
		t.Fatal(err)
	}
	if err := gone.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := s.dir.Remove(Inspect(s.dir.final(name(t, onlineManifest()).XVA()))); err != nil {
		t.Fatal(err)
	}
	n, at := name(t, onlineManifest()), len(s.ops)
	s.promises(func(a *aftermath) {
		for _, e := range a.staged() {
			if e.Name == n && !s.happened("create", n.XVA(), at, len(a.did)) {
				a.errorf("%s was removed, and is there again (%s)", e.Base(), e.State)
			}
		}
	})
	s.state(`{"done":1}`)
	s.store(onlineManifest(), random(writeSize+4321)) // the same name, free again
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
}

// tries is how often each prefix of the record is cut off, with other luck each time.
const tries = 12

// TestPowerCut holds that whatever a power cut leaves of what was not synced, what was promised is there, and nothing under a
// final name is anything but complete and proven.
func TestPowerCut(t *testing.T) {
	s := newCrashScene(t)
	s.live()
	did := make([]string, 0, len(s.ops))
	d := &disk{files: map[int]*diskFile{}, folders: map[string]*diskFolder{}}
	var promised []func(*aftermath)
	seen := map[string]bool{}
	for i, op := range s.ops {
		d.do(op)
		did = append(did, fmt.Sprintf("%s %s %s", op.what, filepath.Base(op.path), filepath.Base(op.to)))
		if op.what == "promise" {
			promised = append(promised, op.promise)
		}
		for try := range tries {
			left := d.crash(rand.New(rand.NewPCG(uint64(i), uint64(try))), s.root)
			key := fingerprint(left, len(promised))
			if seen[key] {
				continue
			}
			seen[key] = true
			a := newAftermath(t, left, s.root)
			a.did, a.originals, a.states = did, s.originals, s.states
			a.check()
			for _, hold := range promised {
				hold(a)
			}
			a.recover(name(t, onlineManifest()))
			if err := os.RemoveAll(a.root); err != nil {
				t.Fatal(err)
			}
		}
		if t.Failed() {
			t.Fatalf("after change %d", i)
		}
	}
	if len(seen) < 100 {
		t.Errorf("only %d different crashes", len(seen))
	}
	t.Logf("%d changes, %d different crashes", len(s.ops), len(seen))
}

// fingerprint tells crashes apart.
func fingerprint(left map[string][]byte, promised int) string {
	sizes := map[string]string{}
	for path, data := range left {
		sizes[path] = fmt.Sprint(len(data), bytes.Count(data, []byte{0}))
	}
	text, err := json.Marshal(sizes)
	if err != nil {
		panic(err)
	}
	return fmt.Sprint(promised, string(text))
}

// The model of a power cut is no better than what it finds: each sync that matters is left out once, and must be missed.
func TestPowerCutSeesMissingSyncs(t *testing.T) {
	for _, tc := range []struct {
		name string
		lose func(op recorded) bool
	}{
		{"of data", func(op recorded) bool { return op.what == "sync" }},
		{"of the folder", func(op recorded) bool { return op.what == "syncdir" && filepath.Base(op.path) == "staging" }},
		{"of the state's folder", func(op recorded) bool { return op.what == "syncdir" && filepath.Base(op.path) == "sessions" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newCrashScene(t)
			s.live()
			bad := 0
			for try := range 200 {
				rng := rand.New(rand.NewPCG(7, uint64(try)))
				d := &disk{files: map[int]*diskFile{}, folders: map[string]*diskFolder{}}
				for _, op := range s.ops {
					if !tc.lose(op) {
						d.do(op)
					}
				}
				bad += s.lost(d.crash(rng, s.root))
			}
			if bad == 0 {
				t.Error("nothing was missed")
			}
		})
	}
}

// lost counts what is not as it was promised at the end of the life.
func (s *crashScene) lost(left map[string][]byte) (n int) {
	for base, want := range s.originals {
		manifest := strings.TrimSuffix(base, extXVA) + extManifest
		if !bytes.Equal(left[s.dir.final(base)], want) || left[s.dir.final(manifest)] == nil {
			n++
		}
	}
	if string(left[filepath.Join(s.root, "state", "sessions", "ID.json")]) != s.states[len(s.states)-1] {
		n++
	}
	return n
}
