package staging

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// earlyFor returns an early file whose steps are small, and what it asks the system for; fail is what the calls give.
func earlyFor(t *testing.T, fail error) (f *earlyFile, calls *[]string) {
	t.Helper()
	under, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { under.Close() })
	calls = &[]string{}
	note := func(what string) func(int, int64, int64, int) error {
		return func(_ int, off, n int64, flags int) error {
			*calls = append(*calls, fmt.Sprintf("%s %d+%d %d", what, off, n, flags))
			return fail
		}
	}
	return &earlyFile{File: under, step: 8, lag: 16, calls: earlyCalls{note("sync"), note("advise")}}, calls
}

func TestEarlyWritingStaysBehindTheWriter(t *testing.T) {
	f, calls := earlyFor(t, nil)
	for range 8 {
		if n, err := f.Write(make([]byte, 5)); n != 5 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	begin, wait := unix.SYNC_FILE_RANGE_WRITE, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER
	want := []string{fmt.Sprintf("sync 0+10 %d", begin), fmt.Sprintf("sync 10+10 %d", begin), fmt.Sprintf("sync 20+10 %d", begin),
		fmt.Sprintf("sync 0+14 %d", wait), fmt.Sprintf("advise 0+14 %d", unix.FADV_DONTNEED), fmt.Sprintf("sync 30+10 %d", begin),
		fmt.Sprintf("sync 14+10 %d", wait), fmt.Sprintf("advise 14+10 %d", unix.FADV_DONTNEED)}
	if !slices.Equal(*calls, want) {
		t.Errorf("asked for\n%q, want\n%q", *calls, want)
	}
}

// What the system says of a failed write-out it says once: it must come out of Write.
func TestEarlyWritingTellsOfErrors(t *testing.T) {
	f, _ := earlyFor(t, unix.EIO)
	_, err := f.Write(make([]byte, 8))
	if path := new(fs.PathError); !errors.Is(err, unix.EIO) || !errors.As(err, &path) || path.Path != f.Name() {
		t.Errorf("got %v", err)
	}
	if !isFull(&fs.PathError{Err: unix.ENOSPC}) {
		t.Error("a full disk is not known as such")
	}
	f, calls := earlyFor(t, unix.ENOSYS)
	for range 20 {
		if _, err := f.Write(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	if len(*calls) != 1 {
		t.Errorf("asked %d times for what there is not", len(*calls))
	}
}

// TestEarlyWritingOnTheRealSystem writes a file for which all calls are made, and reads it again.
func TestEarlyWritingOnTheRealSystem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	under, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer under.Close()
	f := &earlyFile{File: under, step: 1 << 16, lag: 1 << 17, calls: earlyCalls{unix.SyncFileRange, unix.Fadvise}}
	var want []byte
	for i := range 40 {
		b := bytes.Repeat([]byte{byte(i)}, 33_333)
		want = append(want, b...)
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if !f.off && f.onDisk == 0 {
		t.Error("nothing was written early")
	}
}

func TestNothingIsEarlyInMemory(t *testing.T) {
	f, err := os.CreateTemp("/dev/shm", "dpxen-early-")
	if err != nil {
		t.Skip("no file system in memory: ", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, is := early(f).(*earlyFile); is {
		t.Error("a file in memory is written out early")
	}
}

// lateFS leaves it all to the sync at the end.
type lateFS struct{ osFS }

func (lateFS) Create(path string, perm fs.FileMode) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
}

// BenchmarkFourFiles writes four files of 512 MiB beside each other at 171 MiB/s each, as XAPI gives them, and tells how long the
// longest sync took, and all of it. TMPDIR says on which disk.
func BenchmarkFourFiles(b *testing.B) {
	for _, c := range []struct {
		name string
		sys  fileSystem
	}{{"late", lateFS{}}, {"early", osFS{}}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(4 * 512 << 20)
			var longest time.Duration
			for b.Loop() {
				dir := b.TempDir()
				done := make(chan time.Duration, 4)
				for i := range 4 {
					go func() { done <- writeShaped(b, c.sys, filepath.Join(dir, fmt.Sprint(i)), 512+32*i) }()
				}
				for range 4 {
					longest = max(longest, <-done)
				}
				os.RemoveAll(dir)
			}
			b.ReportMetric(longest.Seconds()*1000, "ms-longest-sync")
		})
	}
}

// writeShaped writes so many MiB and returns how long the sync took.
func writeShaped(b *testing.B, sys fileSystem, path string, mib int) time.Duration {
	f, err := sys.Create(path, 0o600)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer f.Close()
	buf := bytes.Repeat([]byte("a backup's bytes"), 1<<16)
	began := time.Now()
	for i := range mib {
		if _, err := f.Write(buf); err != nil {
			b.Error(err)
			return 0
		}
		time.Sleep(time.Until(began.Add(time.Duration(i+1) * time.Second / 171)))
	}
	began = time.Now()
	if err := f.Sync(); err != nil {
		b.Error(err)
	}
	return time.Since(began)
}
