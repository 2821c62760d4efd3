package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

const mib = BlockSize

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newImage(t testing.TB, s *Store, size int64, c Content) *Image {
	t.Helper()
	im, err := s.New(size, c)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func digest(t testing.TB, im *Image) string {
	t.Helper()
	d, err := im.Digest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// contents reads a whole image in pieces that do not fall on its blocks.
func contents(t testing.TB, im *Image) []byte {
	t.Helper()
	b, err := readAll(im)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readAll(im *Image) ([]byte, error) {
	b := make([]byte, im.Size())
	const piece = 5*mib + 1234
	for off := 0; off < len(b); off += piece {
		if _, err := im.ReadAt(b[off:min(off+piece, len(b))], int64(off)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func TestContents(t *testing.T) {
	s := openStore(t)
	for _, kind := range []Kind{Zero, Random, Sparse, Ext4, Half} {
		for _, size := range []int64{0, 512, mib - 512, mib, mib + 512, 33*mib + 4096} {
			c := Content{Kind: kind, Seed: 7}
			im, err := s.New(size, c)
			if kind == Ext4 && size < MinExt4Size {
				if !errors.Is(err, ErrSize) {
					t.Errorf("%v of %d bytes: error %v, want ErrSize", kind, size, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			data := contents(t, im)
			if int64(len(data)) != size {
				t.Fatalf("%v of %d bytes: read %d", kind, size, len(data))
			}
			sum := sha256.Sum256(data)
			if got := digest(t, im); got != hex.EncodeToString(sum[:]) {
				t.Errorf("%v of %d bytes: Digest differs from what ReadAt gives", kind, size)
			}
			if again := newImage(t, s, size, c); digest(t, again) != digest(t, im) {
				t.Errorf("%v of %d bytes is not the same twice", kind, size)
			}
			checkBlocks(t, im, data)
			if other := newImage(t, s, size, Content{kind, 8}); kind != Zero && size > mib && digest(t, other) == digest(t, im) {
				t.Errorf("%v of %d bytes is the same for two seeds", kind, size)
			}
		}
	}
	if s.Stored() != 0 {
		t.Errorf("%d bytes stored for disks that nobody wrote", s.Stored())
	}
}

// checkBlocks compares ReadBlock, its zero flag and Utilisation with the bytes.
func checkBlocks(t *testing.T, im *Image, data []byte) {
	t.Helper()
	buf := make([]byte, BlockSize)
	var used int64
	for i := int64(0); i*BlockSize < int64(len(data)); i++ {
		want := data[i*BlockSize : min(int64(len(data)), (i+1)*BlockSize)]
		got, zero, err := im.ReadBlock(i, buf)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block %d differs (error %v)", i, err)
		}
		isZero := len(bytes.Trim(want, "\x00")) == 0
		if zero != isZero {
			t.Fatalf("block %d: zero is %v, want %v", i, zero, isZero)
		}
		if !isZero {
			used += int64(len(want))
			if !im.Allocated(i) {
				t.Errorf("block %d has data but is not allocated", i)
			}
		}
	}
	// A short tail may be the zero front of a block that is not zero.
	if got := im.Utilisation(); got < used || got > used+BlockSize {
		t.Errorf("Utilisation is %d, want %d", got, used)
	}
	if _, _, err := im.ReadBlock(blocks(im.Size()), buf); !errors.Is(err, ErrRange) {
		t.Errorf("reading behind the end: error %v, want ErrRange", err)
	}
}

func TestSparseMix(t *testing.T) {
	g, err := newSparse(Content{Sparse, 3})
	if err != nil {
		t.Fatal(err)
	}
	const n = 8192
	sorts := map[int]int{}
	run, longest := 0, 0
	for i := range int64(n) {
		k := g.(sparse).sort(i)
		sorts[k]++
		if run++; k != unwritten {
			run = 0
		}
		longest = max(longest, run)
	}
	data := n - sorts[unwritten] - sorts[writtenZeros]
	if data < n/5 || data > n*3/10 {
		t.Errorf("%d of %d blocks have data, want a quarter", data, n)
	}
	if longest < 32 {
		t.Errorf("the longest run of unwritten blocks is %d", longest)
	}
	for k := unwritten; k <= halfNoise; k++ {
		if sorts[k] < n/100 {
			t.Errorf("only %d blocks of sort %d", sorts[k], k)
		}
	}
	for _, seed := range []uint64{4, 5} { // first block with and without data
		g, err := newSparse(Content{Sparse, seed})
		if err != nil {
			t.Fatal(err)
		}
		if g.zero(0) != (seed%2 == 1) || !g.allocated(0) {
			t.Errorf("seed %d: first block: zero %v, allocated %v", seed, g.zero(0), g.allocated(0))
		}
	}
}

// TestModel compares an image, its snapshots and sizes with plain slices.
func TestModel(t *testing.T) {
	s := openStore(t)
	rapid.Check(t, func(t *rapid.T) {
		type pair struct {
			im   *Image
			want []byte
		}
		kind := rapid.SampledFrom([]Kind{Zero, Random, Sparse, Half}).Draw(t, "kind")
		size := rapid.Int64Range(0, 3*mib).Draw(t, "size")
		im, err := s.New(size, Content{kind, 1})
		if err != nil {
			t.Fatal(err)
		}
		want, err := readAll(im)
		if err != nil {
			t.Fatal(err)
		}
		all := []*pair{{im, want}}
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			p := rapid.SampledFrom(all).Draw(t, "image")
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				snap, err := p.im.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, &pair{snap, bytes.Clone(p.want)})
			case 1:
				size := rapid.Int64Range(0, 3*mib).Draw(t, "new size")
				if err := p.im.Resize(size); err != nil {
					t.Fatal(err)
				}
				p.want = append(p.want[:min(size, int64(len(p.want))):min(size, int64(len(p.want)))],
					make([]byte, max(0, size-int64(len(p.want))))...)
			default:
				off := rapid.IntRange(0, len(p.want)).Draw(t, "offset")
				n := rapid.IntRange(0, len(p.want)-off).Draw(t, "length")
				data := make([]byte, n)
				if rapid.Bool().Draw(t, "data") {
					for i := range data[:min(n, 1)] {
						data[i] = byte(off%251 + 1)
					}
					for k := 1; k < n; k *= 2 {
						copy(data[k:], data[:k])
					}
				}
				if k, err := p.im.WriteAt(data, int64(off)); err != nil || k != n {
					t.Fatalf("wrote %d of %d: %v", k, n, err)
				}
				copy(p.want[off:], data)
			}
		}
		for i, p := range all {
			got, err := readAll(p.im)
			if err != nil || !bytes.Equal(got, p.want) {
				t.Fatalf("image %d differs (error %v)", i, err)
			}
			if err := p.im.Release(); err != nil {
				t.Fatal(err)
			}
		}
		if s.Stored() != 0 {
			t.Fatalf("%d bytes are stored after all was released", s.Stored())
		}
	})
}

// TestWritingBack copies disks block by block onto empty ones, as an import does.
func TestWritingBack(t *testing.T) {
	s := openStore(t)
	var all []*Image
	for _, kind := range []Kind{Random, Sparse, Ext4, Half} {
		for seed := range uint64(3) {
			all = append(all, newImage(t, s, 20*mib+512, Content{kind, seed}))
		}
	}
	for k, from := range all {
		to := newImage(t, s, from.Size(), Content{})
		copyImage(t, to, from)
		if digest(t, to) != digest(t, from) {
			t.Errorf("copy of image %d differs", k)
		}
	}
	if s.Stored() != 0 {
		t.Errorf("writing back took %d bytes", s.Stored())
	}

	// What a guest wrote is stored once, however often it is copied.
	if err := all[0].Scribble(1, 3); err != nil {
		t.Fatal(err)
	}
	stored := s.Stored()
	if stored == 0 || stored > 3*mib {
		t.Errorf("three pieces take %d bytes", stored)
	}
	for range 2 {
		to := newImage(t, s, all[0].Size(), Content{})
		copyImage(t, to, all[0])
		if digest(t, to) != digest(t, all[0]) {
			t.Error("copy of the scribbled image differs")
		}
	}
	if s.Stored() != stored {
		t.Errorf("copies grew the store from %d to %d bytes", stored, s.Stored())
	}
}

func copyImage(t *testing.T, to, from *Image) {
	t.Helper()
	buf := make([]byte, BlockSize)
	for i := range blocks(from.Size()) {
		data, _, err := from.ReadBlock(i, buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.WriteAt(data, i*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrittenZeros(t *testing.T) {
	im := newImage(t, openStore(t), 3*mib, Content{Random, 1})
	if err := im.Resize(5 * mib); err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(make([]byte, mib), mib); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, BlockSize)
	for i, want := range []struct{ zero, allocated bool }{
		{false, true}, {true, true}, {false, true}, {true, false}, {true, false},
	} {
		_, zero, err := im.ReadBlock(int64(i), buf)
		if err != nil || zero != want.zero || im.Allocated(int64(i)) != want.allocated {
			t.Errorf("block %d: zero %v, allocated %v (%v)", i, zero, im.Allocated(int64(i)), err)
		}
	}
	if got := im.Utilisation(); got != 2*mib {
		t.Errorf("Utilisation is %d", got)
	}
	if im.Allocated(5) || im.Allocated(-1) {
		t.Error("a block outside the disk is allocated")
	}
}

func TestRange(t *testing.T) {
	s := openStore(t)
	im := newImage(t, s, mib+512, Content{Random, 1})
	if n, err := im.WriteAt(make([]byte, 1024), mib); n != 512 || !errors.Is(err, ErrRange) {
		t.Errorf("writing over the end: %d, %v", n, err)
	}
	if n, err := im.WriteAt([]byte{1}, mib+512); n != 0 || !errors.Is(err, ErrRange) {
		t.Errorf("writing at the end: %d, %v", n, err)
	}
	if _, err := im.WriteAt([]byte{1}, -1); !errors.Is(err, ErrRange) {
		t.Errorf("writing before the start: %v", err)
	}
	if n, err := im.ReadAt(make([]byte, 1024), mib); n != 512 || !errors.Is(err, io.EOF) {
		t.Errorf("reading over the end: %d, %v", n, err)
	}
	if _, err := im.ReadAt(make([]byte, 1), -1); !errors.Is(err, ErrRange) {
		t.Errorf("reading before the start: %v", err)
	}
	if _, _, err := im.ReadBlock(0, make([]byte, 10)); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("reading into a short buffer: %v", err)
	}
	for _, size := range []int64{-1, MaxSize + 1} {
		if _, err := s.New(size, Content{}); !errors.Is(err, ErrSize) {
			t.Errorf("New(%d): %v", size, err)
		}
		if err := im.Resize(size); !errors.Is(err, ErrSize) {
			t.Errorf("Resize(%d): %v", size, err)
		}
	}
	if _, err := s.New(1, Content{Kind: 99}); err == nil {
		t.Error("a disk of no kind was made")
	}
}

func TestReleased(t *testing.T) {
	s := openStore(t)
	im := newImage(t, s, mib, Content{Random, 1})
	for range 2 {
		if err := im.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := im.ReadBlock(0, make([]byte, mib)); !errors.Is(err, ErrReleased) {
		t.Errorf("reading: %v", err)
	}
	if _, err := im.Snapshot(); !errors.Is(err, ErrReleased) {
		t.Errorf("snapshot: %v", err)
	}
	if err := im.Resize(mib); !errors.Is(err, ErrReleased) {
		t.Errorf("resize: %v", err)
	}

	im = newImage(t, s, mib, Content{Random, 1})
	if err := im.Scribble(1, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := im.ReadBlock(0, make([]byte, mib)); !errors.Is(err, ErrReleased) {
		t.Errorf("reading a stored block of a closed store: %v", err)
	}
	if err := im.Scribble(2, 1); !errors.Is(err, ErrReleased) {
		t.Errorf("writing to a closed store: %v", err)
	}
	if err := im.Release(); err != nil {
		t.Errorf("releasing after closing: %v", err)
	}
}

func TestStoreLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := newImage(t, s, mib, Content{}).Scribble(1, 5); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	if _, err := OpenStore(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("store in a missing folder: %v", err)
	}
}

func TestScribble(t *testing.T) {
	s := openStore(t)
	digests := map[string]bool{}
	for _, size := range []int64{0, 100, 4096, 5 * mib} {
		for _, seed := range []uint64{1, 1, 2} {
			im := newImage(t, s, size, Content{Sparse, 1})
			if err := im.Scribble(seed, 10); err != nil {
				t.Fatal(err)
			}
			digests[digest(t, im)] = true
		}
	}
	if want := 1 + 3*2; len(digests) != want { // an empty disk stays as it is
		t.Errorf("%d different disks, want %d", len(digests), want)
	}
}

// TestConcurrent is for the race detector: snapshots are read while the original
// is written, and images come and go.
func TestConcurrent(t *testing.T) {
	s := openStore(t)
	im := newImage(t, s, 6*mib, Content{Sparse, 2})
	done := make(chan error)
	const workers = 4
	for w := range workers {
		go func() {
			done <- func() error {
				rng := rand.New(rand.NewPCG(uint64(w), 0))
				for range 8 {
					if err := im.Scribble(rng.Uint64(), 2); err != nil {
						return err
					}
					snap, err := im.Snapshot()
					if err != nil {
						return err
					}
					first, err := snap.Digest(context.Background())
					if err != nil {
						return err
					}
					if again, err := snap.Digest(context.Background()); err != nil || again != first {
						return errors.Join(errors.New("a snapshot changed"), err)
					}
					if err := snap.Release(); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := im.Release(); err != nil {
		t.Fatal(err)
	}
	if s.Stored() != 0 {
		t.Errorf("%d bytes are left", s.Stored())
	}
}

func TestKind(t *testing.T) {
	for k := Zero; k <= Half; k++ {
		if got, err := ParseKind(k.String()); err != nil || got != k {
			t.Errorf("%v reads as %v (%v)", k, got, err)
		}
	}
	if _, err := ParseKind("vhd"); err == nil {
		t.Error("vhd was taken")
	}
}

func TestDigestCancelled(t *testing.T) {
	im := newImage(t, openStore(t), mib, Content{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := im.Digest(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
}
