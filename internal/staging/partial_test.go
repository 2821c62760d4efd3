package staging

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
)

func open(t testing.TB, sys fileSystem) *Dir {
	t.Helper()
	d, err := Open(t.TempDir(), Options{ReadBack: true})
	if err != nil {
		t.Fatal(err)
	}
	if sys != nil {
		d.sys = sys
	}
	return d
}

func name(t testing.TB, m Manifest) Name {
	t.Helper()
	n, err := ParseName(m.File.Name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func expected(data []byte) Expected {
	sum := xxh3.Hash128(data).Bytes()
	return Expected{Bytes: int64(len(data)), Digest: hex.EncodeToString(sum[:])}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b) // never fails
	return b
}

// store puts data into d as a complete backup.
func store(t testing.TB, d *Dir, m Manifest, data []byte) Entry {
	t.Helper()
	path, err := write(t, d, m, data, len(data)+1)
	if err != nil {
		t.Fatal(err)
	}
	return Inspect(path)
}

// write goes through Create, Write in steps, and Commit.
func write(t testing.TB, d *Dir, m Manifest, data []byte, step int) (string, error) {
	t.Helper()
	p, err := d.Create(name(t, m), nil)
	if err != nil {
		return "", err
	}
	for rest := data; len(rest) > 0; {
		n := min(step, len(rest))
		if _, err := p.Write(rest[:n]); err != nil {
			return "", errors.Join(err, p.Abort())
		}
		rest = rest[n:]
	}
	return p.Commit(t.Context(), expected(data), m)
}

// files returns every file below the folder, with slashes, but for the lock's and the marker.
func files(t testing.TB, d *Dir) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(d.Path(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(d.Path(), path)
		all = append(all, filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestCommitStoresWhatWasWritten(t *testing.T) {
	c := writeSize
	for _, size := range []int{0, 1, 511, c - 1, c, c + 1, 2*c - 1, 2 * c, 3*c + 7} {
		for _, step := range []int{1 << 10, 65537, c - 1, c, c + 1, 10 * c} {
			d, m, data := open(t, nil), onlineManifest(), random(size)
			path, err := write(t, d, m, data, step)
			if err != nil {
				t.Fatalf("%d bytes in steps of %d: %v", size, step, err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes in steps of %d: %d bytes came back, %v", size, step, len(got), err)
			}
			e := Inspect(path)
			if e.State != Complete || e.Manifest.File.Digest != expected(data).Digest || e.Manifest.File.Bytes != int64(size) {
				t.Fatalf("%d bytes in steps of %d: %+v", size, step, e)
			}
			if got := files(t, d); len(got) != 2 {
				t.Fatalf("left: %v", got)
			}
		}
	}
}

func TestFilesAreForTheOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // the folder's access list rules
	}
	d := open(t, nil)
	store(t, d, onlineManifest(), []byte("disk"))
	for _, f := range files(t, d) {
		info, err := os.Stat(filepath.Join(d.Path(), f))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", f, info.Mode(), err)
		}
	}
}

func TestCommitRefuses(t *testing.T) {
	data := random(1000)
	tests := []struct {
		name string
		edit func(*Expected, *Manifest)
		want error
	}{
		{"shorter", func(e *Expected, _ *Manifest) { e.Bytes++ }, ErrMismatch},
		{"longer", func(e *Expected, _ *Manifest) { e.Bytes-- }, ErrMismatch},
		{"digest", func(e *Expected, _ *Manifest) { e.Digest = strings.Repeat("0", 64) }, ErrMismatch},
		{"manifest of another VM", func(_ *Expected, m *Manifest) { m.VM.UUID = uuid2 }, ErrContradiction},
		{"manifest of another mode", func(_ *Expected, m *Manifest) { m.Mode = "offline" }, ErrContradiction},
		{"cancelled", func(*Expected, *Manifest) {}, context.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, m, want := open(t, nil), onlineManifest(), expected(data)
			tt.edit(&want, &m)
			p, err := d.Create(name(t, m), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Write(data); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if errors.Is(tt.want, context.Canceled) {
				cancel()
			}
			if path, err := p.Commit(ctx, want, m); !errors.Is(err, tt.want) || path != "" {
				t.Errorf("got %q, %v, want %v", path, err, tt.want)
			}
			if left := files(t, d); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	m := onlineManifest()
	n := name(t, m)
	for _, there := range []string{n.XVA(), n.Manifest(), filepath.Join(MetaDir, partialName, n.XVA())} {
		d := open(t, nil)
		if err := os.WriteFile(filepath.Join(d.Path(), there), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Create(n, nil); !errors.Is(err, ErrExists) {
			t.Errorf("%s there: Create: got %v, want %v", there, err, ErrExists)
		}
	}
	// Appeared after Create.
	for _, there := range []string{n.XVA(), n.Manifest()} {
		d := open(t, nil)
		p, err := d.Create(n, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.final(there), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Commit(t.Context(), expected(nil), m); !errors.Is(err, ErrExists) {
			t.Errorf("%s appeared: Commit: got %v, want %v", there, err, ErrExists)
		}
		if got := files(t, d); len(got) != 1 || got[0] != there {
			t.Errorf("%s appeared: left %v", there, got)
		}
		if got, err := os.ReadFile(d.final(there)); err != nil || string(got) != "old" {
			t.Errorf("%s holds %q, %v", there, got, err)
		}
	}
}

func TestRenameNeverReplaces(t *testing.T) {
	for how, rename := range map[string]func(from, to string) error{
		"checked": func(from, to string) error { return renameChecked(from, to, os.Rename) },
		"system":  osFS{}.RenameNew,
	} {
		dir := t.TempDir()
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		for _, f := range []string{from, to} {
			if err := os.WriteFile(f, []byte(f), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := rename(from, to); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s over a file: got %v, want %v", how, err, fs.ErrExist)
		}
		if got, err := os.ReadFile(to); err != nil || string(got) != to {
			t.Errorf("%s: target holds %q, %v", how, got, err)
		}
		if err := errors.Join(os.Remove(to), rename(from, to)); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		if got, err := os.ReadFile(to); err != nil || string(got) != from {
			t.Errorf("%s: target holds %q, %v, want the source's", how, got, err)
		}
	}
}

func TestPartialEndsOnce(t *testing.T) {
	d, m := open(t, nil), onlineManifest()
	p, err := d.Create(name(t, m), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Abort(), p.Abort()); err != nil {
		t.Error(err)
	}
	if _, err := p.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Write after Abort: got %v, want %v", err, fs.ErrClosed)
	}
	if _, err := p.Commit(t.Context(), expected(nil), m); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Commit after Abort: got %v, want %v", err, fs.ErrClosed)
	}
	if left := files(t, d); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if p, err = d.Create(name(t, m), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(t.Context(), expected(nil), m); err != nil {
		t.Fatal(err)
	}
	if err := p.Abort(); err != nil {
		t.Error(err)
	}
	if got := files(t, d); len(got) != 2 {
		t.Errorf("Abort after Commit left %v, want the export and its manifest", got)
	}
}

func TestReservations(t *testing.T) {
	d, m := open(t, &faulty{free: 10 << 20}), onlineManifest()
	r, err := d.Reserve(6 << 20)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(n int64) {
		t.Helper()
		if _, err := d.Reserve(n); !errors.Is(err, ErrNoRoom) {
			t.Errorf("%d more: got %v, want %v", n, err, ErrNoRoom)
		}
	}
	grant := func(n int64) {
		t.Helper()
		other, err := d.Reserve(n)
		if err != nil {
			t.Errorf("%d more: %v", n, err)
			return
		}
		other.Release()
		other.Release()
	}
	refuse(4<<20 + 1)
	grant(4 << 20)
	// What is written takes from the disk, and off the reservation. The simulated disk always has as much.
	p, err := d.Create(name(t, m), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	grant(6 << 20)
	refuse(6<<20 + 1)
	// An aborted transfer will have to write it all again.
	if err := p.Abort(); err != nil {
		t.Fatal(err)
	}
	refuse(4<<20 + 1)
	r.Release()
	grant(10 << 20)
	if _, err := d.Reserve(-1); err == nil {
		t.Error("a negative reservation was granted")
	}
}

func TestRoomOfARealFileSystem(t *testing.T) {
	free, total, err := open(t, nil).Room()
	if err != nil || free <= 0 || total < free {
		t.Errorf("free %d, total %d, %v", free, total, err)
	}
}

func TestWriteFileDurable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ID.json")
	for _, data := range []string{"first", "", "second"} {
		if err := WriteFileDurable(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != data {
			t.Errorf("holds %q, %v, want %q", got, err, data)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("%d files in the folder, %v, want 1", len(left), err)
	}
	if err := WriteFileDurable(filepath.Join(path, "x"), nil, 0o600); err == nil {
		t.Error("a file below a file was written")
	}
}

func BenchmarkPartial(b *testing.B) {
	frame := random(writeSize)
	b.SetBytes(writeSize)
	sys := &faulty{free: 1 << 40, discard: true}
	d := open(b, sys)
	n, err := NewName("bench", uuid1, Online, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	p, err := d.Create(n, nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.Write(frame); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Abort(); err != nil {
		b.Fatal(err)
	}
}

// TestLargerThanEstimated: a file that outgrows its estimate gets what is free, and nothing that others have reserved.
func TestLargerThanEstimated(t *testing.T) {
	for name, tt := range map[string]struct {
		others int64
		want   error
	}{"room that nobody holds": {0, nil}, "room that others hold": {9 << 20, ErrNoRoom}} {
		t.Run(name, func(t *testing.T) {
			disk := &faulty{free: 10 << 20}
			d := open(t, disk)
			own, err := d.Reserve(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Reserve(tt.others); err != nil {
				t.Fatal(err)
			}
			p, err := d.Create(stagedName(t), own)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Write(make([]byte, 1<<20)); err != nil {
				t.Errorf("within the estimate: %v", err)
			}
			disk.free -= 1 << 20
			if _, err := p.Write(make([]byte, 2<<20)); !errors.Is(err, tt.want) {
				t.Errorf("beyond it: %v, want %v", err, tt.want)
			}
			if err := p.Abort(); err != nil {
				t.Error(err)
			}
		})
	}
}

func stagedName(t *testing.T) Name {
	t.Helper()
	return name(t, onlineManifest())
}
