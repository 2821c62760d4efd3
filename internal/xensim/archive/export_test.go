package archive

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

// TestExportGolden compares with bytes put together by hand from reference 4.
func TestExportGolden(t *testing.T) {
	header := func(name string, size, mtime int) []byte {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000400\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00        ", size, mtime))
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%07o\x00", sum))
		return h
	}
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }
	zeros := make([]byte, mib)
	for kind, v := range map[Checksum]struct{ ext, zeros, empty string }{
		XXHash: {".xxhash", "87D2A1B6E1163EF1", "EF46DB3751D8E999"},
		SHA1:   {".checksum", "3b71f43ff30f4b15b5cd85dd9e95ebc7e84eb5a3", "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
	} {
		want := slices.Concat(
			header("ova.xml", 9, 1700000000), pad([]byte("<value/>\n")),
			header("Ref:3/00000000", mib, 0), zeros,
			header("Ref:3/00000000"+v.ext, len(v.zeros), 0), pad([]byte(v.zeros)),
			header("Ref:3/00000001", 0, 0),
			header("Ref:3/00000001"+v.ext, len(v.empty), 0), pad([]byte(v.empty)),
			header("Ref:3/00000003", mib, 0), zeros,
			header("Ref:3/00000003"+v.ext, len(v.zeros), 0), pad([]byte(v.zeros)),
			make([]byte, 1024))
		got := export(t, ExportOptions{
			OVA: []byte("<value/>\n"), OVAModTime: time.Unix(1700000000, 0), Checksum: kind,
			Disks:     []ExportDisk{{"Ref:3", memory(make([]byte, 3*mib))}},
			KeepAlive: func(string, int64) bool { return true },
		})
		if len(got) != len(want) {
			t.Fatalf("%d bytes, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("differs from byte %d:\n%s", i, hex.Dump(got[i&^511:][:512]))
			}
		}
	}
}

func TestExportRules(t *testing.T) {
	two, zero := pattern(2*mib, 'x'), make([]byte, mib)
	sparse := memory(slices.Concat(zero, zero, two[:mib], zero, zero, zero, two, zero)) // data in 2, 6, 7 of 0…8
	at := func(disk string, block int64) func(string, int64) bool {
		return func(d string, b int64) bool { return d == disk && b == block }
	}
	tests := []struct {
		name string
		o    ExportOptions
		want map[string]string
	}{
		{"first and last always", ExportOptions{Disks: []ExportDisk{{"Ref:1", sparse}}},
			map[string]string{"Ref:1": "0 2 6 7 8"}},
		{"one block of zeros", ExportOptions{Disks: []ExportDisk{{"Ref:1", memory(zero)}}},
			map[string]string{"Ref:1": "0"}},
		{"no bytes", ExportOptions{Disks: []ExportDisk{{"Ref:1", memory(nil)}}}, map[string]string{}},
		{"disk order", ExportOptions{Disks: []ExportDisk{{"Ref:7", memory(two)}, {"Ref:10", memory(zero)}}, Checksum: SHA1},
			map[string]string{"Ref:10": "0", "Ref:7": "0 1"}},
		{"keep-alive", ExportOptions{Disks: []ExportDisk{{"Ref:1", sparse}}, KeepAlive: at("Ref:1", 4)},
			map[string]string{"Ref:1": "0 2 4 7 8 9"}},
		{"keep-alive before data", ExportOptions{Disks: []ExportDisk{{"Ref:1", sparse}}, KeepAlive: at("Ref:1", 6)},
			map[string]string{"Ref:1": "0 2 6 7 8 9"}},
		{"no keep-alive at the ends", ExportOptions{Disks: []ExportDisk{{"Ref:1", memory(two)}},
			KeepAlive: func(string, int64) bool { return true }}, map[string]string{"Ref:1": "0 1"}},
		{"pairs", ExportOptions{Disks: []ExportDisk{{"Ref:1", sparse}}, ZeroPolicy: Allocated,
			KeepAlive: func(string, int64) bool { return true }}, map[string]string{"Ref:1": "0 2 3 6 7 8"}},
		{"extents", ExportOptions{Disks: []ExportDisk{{"Ref:1", sparse}}, ZeroPolicy: Extents, KeepAlive: at("Ref:1", 4)},
			map[string]string{"Ref:1": "0 2 4 6 7 8"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.OVA = []byte("<value/>")
			var last, total int64
			tt.o.Progress = func(d, n int64) {
				if d < last {
					t.Errorf("progress falls from %d to %d", last, d)
				}
				last, total = d, n
			}
			b := export(t, tt.o)
			got := map[string]string{}
			for dir, numbers := range names(t, entries(t, b)) {
				for i, n := range numbers {
					numbers[i] = strings.TrimLeft(n[:7], "0") + n[7:]
				}
				got[dir] = strings.Join(numbers, " ")
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("chunks %v, want %v", got, tt.want)
			}
			if last != total {
				t.Errorf("progress ends at %d of %d", last, total)
			}
			checkRoundTrip(t, b, tt.o.Disks)
		})
	}
}

func checkRoundTrip(t *testing.T, b []byte, disks []ExportDisk) {
	t.Helper()
	sizes := map[string]int{}
	for _, d := range disks {
		sizes[d.Dir] = int(d.Image.Size())
	}
	got, err := imported(b, sizes, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		if !bytes.Equal(got[d.Dir], d.Image.(memory)) {
			t.Errorf("disk %s comes back different", d.Dir)
		}
	}
}

// TestWrittenZeros exports an image that knows what was written.
func TestWrittenZeros(t *testing.T) {
	im := newImage(t, openStore(t), 12*mib, disk.Content{})
	for _, i := range []int64{5, 8} {
		if _, err := im.WriteAt(make([]byte, mib), i*mib); err != nil {
			t.Fatal(err)
		}
	}
	for policy, want := range map[ZeroPolicy]int{SkipZero: 2, Extents: 4, Allocated: 6} {
		b := export(t, ExportOptions{ZeroPolicy: policy, Disks: []ExportDisk{{"Ref:1", im}}})
		if got := names(t, entries(t, b))["Ref:1"]; len(got) != want {
			t.Errorf("policy %d sends %v, want %d chunks", policy, got, want)
		}
	}
}

// TestGNUTar lists an export with the tar command where there is one; with and
// without it the standard library must find the same names.
func TestGNUTar(t *testing.T) {
	b := export(t, ExportOptions{OVA: []byte("<value/>"), Disks: []ExportDisk{
		{"Ref:1", memory(pattern(mib+512, 'x'))}, {"Ref:2", memory(pattern(512, 'y'))}}})
	const want = "ova.xml\nRef:1/00000000\nRef:1/00000000.xxhash\nRef:1/00000001\nRef:1/00000001.xxhash\n" +
		"Ref:2/00000000\nRef:2/00000000.xxhash\n"
	var got strings.Builder
	for _, e := range entries(t, b) {
		fmt.Fprintln(&got, e.name)
	}
	if got.String() != want {
		t.Errorf("entries:\n%s", got.String())
	}
	tool, err := exec.LookPath("tar")
	if err != nil {
		return
	}
	file := filepath.Join(t.TempDir(), "export.xva")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), tool, "-tf", file).CombinedOutput()
	if err != nil || string(out) != want {
		t.Errorf("tar -tf: %v\n%s", err, out)
	}
}

func TestExportRefuses(t *testing.T) {
	d := memory(pattern(512, 'x'))
	err := Export(context.Background(), io.Discard, ExportOptions{Disks: []ExportDisk{{"Ref:1", d}, {"Ref:1", d}}})
	if !errors.Is(err, ErrLayout) {
		t.Errorf("one name twice: %v", err)
	}
	if err := Export(context.Background(), io.Discard, ExportOptions{Compression: 9}); err == nil {
		t.Error("a compression that is none was taken")
	}
}

// broken fails at one block.
type broken struct {
	memory
	at int64
}

var errBroken = errors.New("sector unreadable")

func (b broken) ReadBlock(i int64, buf []byte) ([]byte, bool, error) {
	if i == b.at {
		return nil, false, errBroken
	}
	return b.memory.ReadBlock(i, buf)
}

// full is a connection that breaks after some bytes.
type full struct{ left int }

var errFull = errors.New("connection reset")

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.left {
		n := f.left
		f.left = 0
		return n, errFull
	}
	f.left -= len(p)
	return len(p), nil
}

// TestExportFails ends exports by the disk, the connection and the context, and
// looks that no goroutine stays.
func TestExportFails(t *testing.T) {
	before := runtime.NumGoroutine()
	d := memory(pattern(9*mib, 'x'))
	for _, c := range []Compression{None, Gzip, Zstd} {
		o := ExportOptions{Compression: c, Disks: []ExportDisk{{"Ref:1", broken{d, 5}}}}
		if err := Export(context.Background(), io.Discard, o); !errors.Is(err, errBroken) {
			t.Errorf("%v: unreadable disk: %v", c, err)
		}
		o.Disks[0].Image = d
		for _, n := range []int{0, 100, 3*mib + 7} {
			if c != None && n > 0 {
				n = 10
			}
			if err := Export(context.Background(), &full{n}, o); !errors.Is(err, errFull) {
				t.Errorf("%v: connection of %d bytes: %v", c, n, err)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		o.Progress = func(done, _ int64) {
			if done >= 2*mib {
				cancel()
			}
		}
		if err := Export(ctx, io.Discard, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%v: cancelled: %v", c, err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}
