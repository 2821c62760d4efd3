package staging

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"
)

// meddler is the real file system; once the first file is synced, another program has its way with it.
type meddler struct {
	osFS
	meddle func(path string)
	synced bool
}

func (m *meddler) Create(path string, perm fs.FileMode) (file, error) {
	f, err := m.osFS.Create(path, perm)
	if err != nil {
		return nil, err
	}
	return &meddledFile{file: f, m: m, path: path}, nil
}

type meddledFile struct {
	file
	m    *meddler
	path string
}

func (f *meddledFile) Sync() error {
	err := f.file.Sync()
	if !f.m.synced {
		f.m.synced = true
		f.m.meddle(f.path)
	}
	return err
}

// flip changes one bit of a file and, where that is asked for, says that it did not.
func flip(t *testing.T, path string, at int64, keepTimes bool) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	b[0] ^= 4
	if err == nil {
		_, err = f.WriteAt(b[:], at)
	}
	if err = errors.Join(err, f.Close()); err == nil && keepTimes {
		err = os.Chtimes(path, info.ModTime(), info.ModTime())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadBack(t *testing.T) {
	data := random(3<<20 + 77)
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		meddle func(path string)
		bad    bool
	}{
		{"nobody touches it", func(string) {}, false},
		{"a bit at its beginning", func(path string) { flip(t, path, 0, false) }, true},
		{"a bit at its end, and times put back", func(path string) { flip(t, path, int64(len(data))-1, true) }, true},
		{"a hole", func(path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(err)
			_, err = f.WriteAt(make([]byte, 4096), 1<<20)
			must(errors.Join(err, f.Close()))
		}, true},
		{"replaced by its own copy", func(path string) {
			must(os.Remove(path))
			must(os.WriteFile(path, data, 0o600))
		}, true},
		{"replaced by a link to its copy", func(path string) {
			must(os.Rename(path, path+".moved"))
			if err := os.Symlink(path+".moved", path); err != nil {
				t.Skip(err) // Windows asks for a privilege
			}
		}, true},
		{"removed", func(path string) { must(os.Remove(path)) }, true},
		{"times set", func(path string) { must(os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, &meddler{meddle: c.meddle})
			path, err := write(t, d, onlineManifest(), data, 1<<20)
			if (err != nil) != c.bad {
				t.Fatalf("Commit gave %v", err)
			}
			if !c.bad {
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				return
			}
			if left, err := d.List(); err != nil || len(left) != 0 {
				t.Errorf("under a final name: %v, %v", left, err)
			}
		})
	}
	t.Run("not asked for", func(t *testing.T) {
		d := open(t, &meddler{meddle: func(path string) { flip(t, path, 0, false) }})
		d.o.ReadBack = false
		if _, err := write(t, d, onlineManifest(), data, 1<<20); err != nil {
			t.Errorf("Commit gave %v", err)
		}
	})
}

// asked is a context that lets something happen when it is asked whether it has ended: before each read.
type asked struct {
	context.Context
	n int
	f func(n int) error
}

func (a *asked) Err() error {
	a.n++
	return a.f(a.n)
}

func TestReadBackWhileTouched(t *testing.T) {
	data := random(3<<20 + 77)
	cancelled := errors.New("cancelled")
	for _, c := range []struct {
		name   string
		during func(path string, n int) error // n counts from 1 in the first read
		want   error
	}{
		{"times set once", func(path string, n int) error {
			if n == 2 {
				return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))
			}
			return nil
		}, nil},
		{"times set again and again", func(path string, n int) error {
			return os.Chtimes(path, time.Unix(int64(n), 0), time.Unix(int64(n), 0))
		}, ErrMismatch},
		{"a bit that was read already", func(path string, n int) error {
			if n == 3 {
				time.Sleep(20 * time.Millisecond) // more than the clock of a file system has steps
				flip(t, path, 5, false)
			}
			return nil
		}, ErrMismatch},
		{"a bit that was not read yet", func(path string, n int) error {
			if n == 2 {
				flip(t, path, int64(len(data))-1, true)
			}
			return nil
		}, ErrMismatch},
		{"appended to", func(path string, n int) error {
			if n != 5 {
				return nil
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err == nil {
				_, err = f.Write([]byte{0})
			}
			return errors.Join(err, f.Close())
		}, ErrMismatch},
		{"cancelled", func(_ string, n int) error {
			if n == 2 {
				return cancelled
			}
			return nil
		}, cancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, nil)
			p, err := d.Create(name(t, onlineManifest()), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Write(data); err != nil {
				t.Fatal(err)
			}
			ctx := &asked{Context: t.Context(), f: func(n int) error {
				if n == 1 { // of the commit itself
					return nil
				}
				return c.during(p.path, n-1)
			}}
			_, err = p.Commit(ctx, expected(data), onlineManifest())
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if left := files(t, d); (len(left) != 0) != (c.want == nil) {
				t.Errorf("left %v", left)
			}
		})
	}
}

// A file that is longer than what stays of it in the page cache.
func TestReadBackLong(t *testing.T) {
	data := random(dropLag + 2*dropStep + 5)
	d := open(t, nil)
	if _, err := write(t, d, onlineManifest(), data, 1<<20); err != nil {
		t.Fatal(err)
	}
	d = open(t, &meddler{meddle: func(path string) { flip(t, path, dropLag+dropStep, true) }})
	if _, err := write(t, d, onlineManifest(), data, 1<<20); !errors.Is(err, ErrMismatch) {
		t.Errorf("got %v, want %v", err, ErrMismatch)
	}
}

// BenchmarkReadBack commits 1 GiB with and without reading it back, one after the other, and tells how much longer the whole
// takes. TMPDIR says on which disk.
func BenchmarkReadBack(b *testing.B) {
	data := random(64 << 20)
	took := map[bool]time.Duration{}
	b.SetBytes(1 << 30)
	for b.Loop() {
		for _, readBack := range []bool{false, true} {
			d := open(b, nil)
			d.o.ReadBack = readBack
			began := time.Now()
			p, err := d.Create(name(b, onlineManifest()), nil)
			for range 16 {
				if err == nil {
					_, err = p.Write(data)
				}
			}
			if err == nil {
				_, err = p.Commit(b.Context(), Expected{Bytes: 1 << 30}, onlineManifest())
			}
			took[readBack] += time.Since(began)
			if err = errors.Join(err, os.RemoveAll(d.Path())); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(took[true])/float64(took[false]), "times-as-long")
	b.ReportMetric(float64(b.N<<10)/(took[true]-took[false]).Seconds(), "MiB/s-read-back")
}
