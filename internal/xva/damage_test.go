package xva

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
)

// tiny is an archive small enough to be damaged in every way: two disks in
// chunks of 512 bytes with a gap, a keep-alive chunk and a short tail, both
// kinds of checksum, and the shortest ova.xml that describes them.
func tiny(tb testing.TB) (plain []byte, ovaLen int) {
	tb.Helper()
	s := func(v string) Value { return text(v) }
	disk := func(i int, size int64) []Value {
		vdi, vbd := fmt.Sprintf("R%d", i), fmt.Sprintf("B%d", i)
		return []Value{
			newObject("VBD", vbd, structOf(member{"VDI", s(vdi)}, member{"type", s("Disk")})),
			newObject("VDI", vdi, structOf(member{"virtual_size", number(size)}, member{"SR", s("S")})),
		}
	}
	objects := []Value{newObject("VM", "V", structOf()), newObject("SR", "S", structOf())}
	objects = append(append(objects, disk(1, 2*512+256)...), disk(2, 188)...)
	ova := appendValue(nil, structOf(member{"version", structOf(member{"export_vsn", s("2")})}, member{"objects", set(objects...)}))
	var buf bytes.Buffer
	w := NewWriter(&buf, WriterOptions{})
	data := randomBytes(5, 512)
	err := w.WriteOVA(ova)
	for _, c := range []struct {
		b    testBlock
		kind ChecksumKind
	}{
		{testBlock{"R1", 0, data}, XXHash}, {testBlock{"R1", 1, nil}, XXHash}, {testBlock{"R1", 3, data[:256]}, SHA1},
		{testBlock{"R2", 0, data[:188]}, XXHash},
	} {
		err = errors.Join(err, w.writeChunk(c.b.dir, c.b.number, c.b.data, c.kind, c.kind.Sum(c.b.data)))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes(), len(ova)
}

// inParallel calls f for 0 to n-1 on all processors.
func inParallel(n int, f func(i int)) {
	defer debug.SetGCPercent(debug.SetGCPercent(2000)) // many small heaps
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				f(i)
			}
		})
	}
	wg.Wait()
}

// fork gives a copy of a scanner that goes its own way.
func (s *scanner) fork() *scanner {
	f := *s
	if s.place != nil {
		place := *s.place
		place.disks = slices.Clone(place.disks)
		f.place = &place
	}
	f.buf, f.body = slices.Clone(s.buf), slices.Clone(s.body)
	return &f
}

// feedAll feeds a scanner and tells it that this was all.
func feedAll(s *scanner, b []byte) error {
	for len(b) > 0 {
		n, _, err := s.feed(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return s.finish()
}

// TestTruncation: an archive cut at any byte is never good, and says why.
func TestTruncation(t *testing.T) {
	plain, _ := tiny(t)
	for _, o := range []ReaderOptions{{}, {RequireExactEnd: true}} {
		s := newScanner(o, BlockSize)
		for n := range plain {
			if err := s.fork().finish(); !errors.Is(err, ErrTruncated) || !IsBad(err) {
				t.Errorf("the first %d of %d bytes: %v", n, len(plain), err)
			}
			if _, _, err := s.feed(plain[n : n+1]); err != nil {
				t.Fatalf("byte %d: %v", n, err)
			}
		}
		if err := s.finish(); err != nil {
			t.Error(err)
		}
	}
	for comp, step := range map[Compression]int{Plain: 97, Gzip: 1, Zstd: 1} {
		b := pack(t, plain, comp)
		inParallel(len(b)/step, func(i int) {
			n := i * step
			if _, err := Verify(bytes.NewReader(b[:n]), ReaderOptions{}); !errors.Is(err, ErrTruncated) || !IsBad(err) {
				t.Errorf("%s: Verify of the first %d of %d bytes: %v", comp, n, len(b), err)
			}
			if _, err := push(b[:n], ReaderOptions{}, 1000); !errors.Is(err, ErrTruncated) || !IsBad(err) {
				t.Errorf("%s: Verifier of the first %d of %d bytes: %v", comp, n, len(b), err)
			}
		})
	}
}

// TestBitFlips: an archive with any one bit flipped is either refused, or it is
// harmless: its disks are the same, byte for byte. What the format itself leaves
// unprotected is the text within ova.xml; a flip there may change a name, and
// only the digest of the file tells.
func TestBitFlips(t *testing.T) {
	plain, ovaLen := tiny(t)
	o := ReaderOptions{RequireExactEnd: true}
	want, err := disksOf(plain, o)
	if err != nil {
		t.Fatal(err)
	}
	ovaEnd := tarBlock + int(padded(int64(ovaLen)))
	begun := newScanner(o, BlockSize)
	if n, ev, err := begun.feed(plain[:ovaEnd]); n != ovaEnd || ev != evOVA || err != nil {
		t.Fatal(n, ev, err)
	}
	passed := make([]bool, 8*len(plain))
	inParallel(len(passed), func(bit int) {
		flipped := bytes.Clone(plain)
		flipped[bit/8] ^= 1 << (bit % 8)
		s, rest := newScanner(o, BlockSize), flipped
		if bit/8 >= ovaEnd {
			s, rest = begun.fork(), flipped[ovaEnd:]
		}
		if err := feedAll(s, rest); err != nil {
			if !IsBad(err) {
				t.Errorf("bit %d: error without a type: %v", bit, err)
			}
			return
		}
		passed[bit] = true
		got, err := disksOf(flipped, o)
		if err != nil || !equalDisks(got, want) {
			t.Errorf("bit %d of byte %d: passed with other disks (%v)", bit%8, bit/8, err)
		}
	})
	checkHarmless(t, passed, ovaLen)
}

// TestBitFlipsCompressed: what passes there has the same tar stream, byte for
// byte.
func TestBitFlipsCompressed(t *testing.T) {
	plain, _ := tiny(t)
	for _, comp := range []Compression{Gzip, Zstd} {
		b := pack(t, plain, comp)
		inParallel(8*len(b), func(bit int) {
			flipped := bytes.Clone(b)
			flipped[bit/8] ^= 1 << (bit % 8)
			_, err := push(flipped, ReaderOptions{RequireExactEnd: true}, len(flipped))
			switch {
			case err != nil && !IsBad(err):
				t.Errorf("%s bit %d: error without a type: %v", comp, bit, err)
			case err == nil && !bytes.Equal(unpacked(t, flipped), plain):
				t.Errorf("%s bit %d of byte %d: passed with another archive", comp, bit%8, bit/8)
			}
		})
	}
}

// unpacked gives the tar stream of an archive.
func unpacked(tb testing.TB, b []byte) []byte {
	tb.Helper()
	u, err := newUnpacker(bytes.NewReader(b))
	if err != nil {
		tb.Error(err)
		return nil
	}
	defer u.close()
	plain, err := io.ReadAll(u)
	if err != nil {
		tb.Error(err)
	}
	return plain
}

// checkHarmless holds the flips of a plain archive that pass to those that do
// not matter: within ova.xml, and blanks for NULs and zeros in the numbers of
// tar headers.
func checkHarmless(t *testing.T, passed []bool, ovaLen int) {
	t.Helper()
	n := 0
	for bit, ok := range passed {
		if !ok {
			continue
		}
		n++
		at := bit / 8
		inNumbers := at%tarBlock >= 100 && at%tarBlock < 156
		inOVA := at >= tarBlock && at < tarBlock+ovaLen
		if !inNumbers && !inOVA {
			t.Errorf("bit %d of byte %d passed", bit%8, at)
		}
	}
	t.Logf("%d of %d flips pass", n, len(passed))
}
