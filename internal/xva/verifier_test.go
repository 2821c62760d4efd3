package xva

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

// TestVerifierStops: a fault comes out of Write as soon as it is known, and
// again afterwards.
func TestVerifierStops(t *testing.T) {
	plain, _ := sample(t, XXHash)
	plain[len(plain)/2] ^= 1
	for _, comp := range []Compression{Plain, Gzip, Zstd} {
		// In a synctest bubble the test fails if the goroutine stays behind.
		synctest.Test(t, func(t *testing.T) {
			v := NewVerifier(ReaderOptions{RequireExactEnd: true})
			b := pack(t, plain, comp)
			var err error
			n := 0
			for n < len(b) && err == nil {
				var took int
				took, err = v.Write(b[n:min(n+4096, len(b))])
				n += took
				synctest.Wait() // a compressed archive is looked at beside
			}
			if !errors.Is(err, ErrChecksum) || n == len(b) {
				t.Errorf("%s: after %d of %d bytes: %v", comp, n, len(b), err)
			}
			if _, err := v.Write(b); !errors.Is(err, ErrChecksum) {
				t.Errorf("%s: second Write: %v", comp, err)
			}
			if rep, err := v.Close(); rep != nil || !errors.Is(err, ErrChecksum) {
				t.Errorf("%s: Close: %v", comp, err)
			}
			if _, err := v.Close(); err == nil || IsBad(err) {
				t.Errorf("%s: second Close: %v", comp, err)
			}
			v.Abort()
		})
	}
}

// TestVerifierAbort: Abort at any time leaves no goroutine behind.
func TestVerifierAbort(t *testing.T) {
	plain, _ := tiny(t)
	for _, comp := range []Compression{Plain, Gzip, Zstd} {
		b := pack(t, plain, comp)
		for _, n := range []int{0, 1, 4, 20, len(b) / 2, len(b)} {
			synctest.Test(t, func(t *testing.T) {
				v := NewVerifier(ReaderOptions{})
				if _, err := v.Write(b[:n]); err != nil {
					t.Fatal(err)
				}
				v.Abort()
				if _, err := v.Write(b); err == nil || IsBad(err) {
					t.Errorf("Write after Abort: %v", err)
				}
				v.Abort()
			})
		}
	}
}

func TestVerifierOVA(t *testing.T) {
	plain, _ := sample(t, XXHash)
	v := NewVerifier(ReaderOptions{})
	if _, ok := v.OVA(); ok {
		t.Error("ova.xml before the first byte")
	}
	if _, err := v.Write(plain[:100_000]); err != nil {
		t.Fatal(err)
	}
	if o, ok := v.OVA(); !ok || o.VM().Name != "web ünï & <co>" {
		t.Error("no ova.xml after it has passed")
	}
	v.Abort()
}

// TestSourceErrors: what the source says is not blamed on the file.
func TestSourceErrors(t *testing.T) {
	errDisk := errors.New("disk on fire")
	plain, _ := tiny(t)
	for _, comp := range []Compression{Plain, Gzip, Zstd} {
		b := pack(t, plain, comp)
		for n := 0; n < len(b); n += 61 {
			r := io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(errDisk))
			if _, err := Verify(r, ReaderOptions{}); !errors.Is(err, errDisk) || IsBad(err) {
				t.Fatalf("%s: error after %d bytes came as %v", comp, n, err)
			}
		}
		for name, r := range map[string]io.Reader{
			"byte by byte": iotest.OneByteReader(bytes.NewReader(b)), "data and end at once": iotest.DataErrReader(bytes.NewReader(b)),
		} {
			if _, err := Verify(r, ReaderOptions{RequireExactEnd: true}); err != nil {
				t.Errorf("%s, %s: %v", comp, name, err)
			}
		}
	}
	r := io.MultiReader(strings.NewReader(string(plain[:len(plain)-1024])+"HTTP/1.0 500 Internal Error\r\n"+strings.Repeat("x", 600)), iotest.ErrReader(errDisk))
	if _, err := Verify(r, ReaderOptions{}); !errors.Is(err, ErrTruncated) {
		t.Errorf("an answer of the host and then an error gave %v", err)
	}
}

func TestReaderAfterItsEnd(t *testing.T) {
	plain, _ := tiny(t)
	r, err := NewReader(bytes.NewReader(plain), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Report() != nil {
		t.Error("a report before the end")
	}
	for err == nil {
		_, err = r.Next()
	}
	if _, again := r.Next(); !errors.Is(err, io.EOF) || !errors.Is(again, io.EOF) {
		t.Errorf("end: %v, then %v", err, again)
	}
	if rep := r.Report(); rep == nil || rep.Checksum != "mixed" || rep.Blocks != 4 || rep.ZeroLength != 1 {
		t.Errorf("report %+v", rep)
	}
	r.Close()
	if r, err = NewReader(bytes.NewReader(plain), ReaderOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := r.Next(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Next after Close: %v", err)
	}
}

// TestLargeChunks: chunks longer than BlockSize are verified without being held.
func TestLargeChunks(t *testing.T) {
	const size = 3 * BlockSize
	data := randomBytes(1, size)
	ova := testOVA(testDisk{"Ref:1", 3 * size})
	for _, kind := range []ChecksumKind{XXHash, SHA1} {
		b := archive(t, ova, kind, testBlock{"Ref:1", 0, data}, testBlock{"Ref:1", 2, data})
		if _, err := push(b, ReaderOptions{}, 100_000); err != nil {
			t.Error(err)
		}
		disks, err := disksOf(b, ReaderOptions{})
		if err != nil || !bytes.Equal(disks["Ref:1"][2*size:], data) {
			t.Errorf("disk differs (%v)", err)
		}
		b[len(b)/2] ^= 1
		if _, err := push(b, ReaderOptions{}, 100_000); !errors.Is(err, ErrChecksum) {
			t.Error(err)
		}
	}
	ova = testOVA(testDisk{"Ref:1", 100 << 20})
	b := archive(t, ova, XXHash)[:tarBlock+padded(int64(len(ova)))]
	var h [tarBlock]byte
	putV7Header(&h, "Ref:1/00000000", MaxBlock+1, 0)
	if _, err := push(append(b, h[:]...), ReaderOptions{}, 1000); !errors.Is(err, ErrFormat) {
		t.Errorf("immense chunk: %v", err)
	}
}

// sparseArchive gives an archive of a disk of n chunks without holding it.
func sparseArchive(w io.Writer, ova []byte, n int64, data []byte) error {
	x := NewWriter(w, WriterOptions{})
	sum := XXHash.Sum(data)
	err := x.WriteOVA(ova)
	for i := int64(0); i < n && err == nil; i++ {
		err = x.WriteBlockSum("Ref:1", i, data, sum)
	}
	return errors.Join(err, x.Close())
}

// TestConstantMemory passes a gigabyte through a Verifier. One that can read again keeps no chunk, not even the first.
func TestConstantMemory(t *testing.T) {
	const chunks = 1024
	data := randomBytes(1, BlockSize)
	ova := testOVA(testDisk{"Ref:1", chunks * BlockSize})
	for name, c := range map[string]struct {
		past io.ReaderAt
		most uint64
	}{"keeping": {nil, 16 << 20}, "reading again": {bytes.NewReader(nil), BlockSize}} { // the writer takes half of that
		v := NewVerifier(ReaderOptions{RequireExactEnd: true, Past: c.past})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := sparseArchive(v, ova, chunks, data); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		rep, err := v.Close()
		if err != nil || rep.Disks[0].DataBytes != chunks*BlockSize {
			t.Fatal(rep, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > c.most {
			t.Errorf("%s: allocated %d bytes for a gigabyte", name, got)
		}
	}
}

// TestChecksumsThatChange: the algorithm may change from chunk to chunk. A chunk whose algorithm was not the expected one is
// read again at the end, once for each archive, and is proven like all others.
func TestChecksumsThatChange(t *testing.T) {
	ova := testOVA(testDisk{"Ref:1", 5 * BlockSize})
	for name, kinds := range map[string][]ChecksumKind{
		"from one to the other": {XXHash, XXHash, SHA1, SHA1, SHA1}, "back": {SHA1, XXHash, XXHash, SHA1, XXHash},
		"the last":  {XXHash, XXHash, XXHash, XXHash, SHA1},
		"in turn":   {SHA1, XXHash, SHA1, XXHash, SHA1},
		"the first": {SHA1, XXHash, XXHash, XXHash, XXHash},
	} {
		var buf bytes.Buffer
		w := NewWriter(&buf, WriterOptions{})
		errs := []error{w.WriteOVA(ova)}
		var starts []int
		for i, kind := range kinds {
			w.o.Checksum = kind
			starts = append(starts, buf.Len()+tarBlock)
			errs = append(errs, w.WriteBlock("Ref:1", int64(i), randomBytes(uint64(i), BlockSize)))
		}
		if err := errors.Join(append(errs, w.Close())...); err != nil {
			t.Fatal(err)
		}
		b := buf.Bytes()
		for _, portion := range []int{1 << 14, 1<<20 + 7, len(b)} {
			if rep, err := push(b, ReaderOptions{RequireExactEnd: true}, portion); err != nil || rep.Blocks != 5 {
				t.Errorf("%s: %+v, %v", name, rep, err)
			}
		}
		for i, start := range starts {
			bad := bytes.Clone(b)
			bad[start+i*1000] ^= 4
			for _, past := range []io.ReaderAt{nil, bytes.NewReader(bad)} {
				if rep, err := pushOnce(bad, ReaderOptions{Past: past}, 1<<20); !errors.Is(err, ErrChecksum) {
					t.Errorf("%s, damage in chunk %d: %+v, %v", name, i, rep, err)
				}
			}
		}
	}
}

// TestPastThatFails: what cannot be read again is not proven, and is no fault of the file.
func TestPastThatFails(t *testing.T) {
	ova := testOVA(testDisk{"Ref:1", 2 * BlockSize})
	var buf bytes.Buffer
	w := NewWriter(&buf, WriterOptions{})
	errs := []error{w.WriteOVA(ova), w.WriteBlock("Ref:1", 0, randomBytes(1, BlockSize))}
	w.o.Checksum = SHA1
	errs = append(errs, w.WriteBlock("Ref:1", 1, randomBytes(2, BlockSize)), w.Close())
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, past := range []io.ReaderAt{bytes.NewReader(buf.Bytes()[:BlockSize]), bytes.NewReader(nil)} {
		if rep, err := pushOnce(buf.Bytes(), ReaderOptions{Past: past}, 1<<20); err == nil || IsBad(err) {
			t.Errorf("%+v, %v", rep, err)
		}
	}
}
