package xva

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// pack compresses an archive as a whole.
func pack(tb testing.TB, plain []byte, kind Compression) []byte {
	tb.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch kind {
	case Gzip:
		w = gzip.NewWriter(&buf)
	case Zstd:
		var err error
		if w, err = zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1)); err != nil {
			tb.Fatal(err)
		}
	default:
		return plain
	}
	if _, err := w.Write(plain); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// push verifies through a Verifier, in portions of the given length: one that keeps chunks, and one that may read them again,
// which must come to the same, though of several faults they may tell another one.
func push(b []byte, o ReaderOptions, portion int) (*Report, error) {
	kept, keptErr := pushOnce(b, o, portion)
	o.Past = bytes.NewReader(b)
	again, err := pushOnce(b, o, portion)
	if (keptErr == nil) != (err == nil) || IsBad(keptErr) != IsBad(err) || (err == nil && !reflect.DeepEqual(kept, again)) {
		return nil, fmt.Errorf("keeping: %+v, %w; reading again: %+v, %w", kept, keptErr, again, err)
	}
	return kept, keptErr
}

func pushOnce(b []byte, o ReaderOptions, portion int) (*Report, error) {
	v := NewVerifier(o)
	for len(b) > 0 {
		n := min(portion, len(b))
		if _, err := v.Write(b[:n]); err != nil {
			v.Abort()
			return nil, err
		}
		b = b[n:]
	}
	return v.Close()
}

// disksOf reads an archive and gives the contents of its disks.
func disksOf(b []byte, o ReaderOptions) (map[string][]byte, error) {
	r, err := NewReader(bytes.NewReader(b), o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	disks := map[string][]byte{}
	list, err := r.OVA().Disks()
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if d.Size > 1<<30 {
			return nil, errors.New("test: disk too large")
		}
		disks[d.Dir] = make([]byte, d.Size)
	}
	for {
		block, err := r.Next()
		if errors.Is(err, io.EOF) {
			return disks, nil
		}
		if err != nil {
			return nil, err
		}
		if int64(len(block.Data)) != block.Length {
			return nil, fmt.Errorf("test: chunk of %d bytes says it has %d", len(block.Data), block.Length)
		}
		copy(disks[block.Dir][block.Offset:], block.Data)
	}
}

func equalDisks(a, b map[string][]byte) bool {
	return maps.EqualFunc(a, b, bytes.Equal)
}

// sample is an archive with what real ones have: two disks in lexicographic
// order, absent chunks, keep-alive chunks, a short tail.
func sample(tb testing.TB, kind ChecksumKind) (archiveBytes []byte, disks map[string][]byte) {
	tb.Helper()
	const mib = BlockSize
	ova := testOVA(testDisk{"Ref:7", 3*mib + 1024}, testDisk{"Ref:10", 6 * mib})
	ten, seven := make([]byte, 6*mib), make([]byte, 3*mib+1024)
	a, b, c, d := randomBytes(1, mib), randomBytes(2, mib), randomBytes(3, mib), randomBytes(4, 1024)
	copy(ten, a)
	copy(ten[3*mib:], b)
	copy(seven[mib:], c)
	copy(seven[3*mib:], d)
	zero := make([]byte, mib)
	return archive(tb, ova, kind,
		testBlock{"Ref:10", 0, a},
		testBlock{"Ref:10", 2, nil}, // after one absent chunk
		testBlock{"Ref:10", 3, nil},
		testBlock{"Ref:10", 5, b}, // one more absent: 3 MiB
		testBlock{"Ref:10", 7, zero},
		testBlock{"Ref:7", 0, zero},
		testBlock{"Ref:7", 1, c},
		testBlock{"Ref:7", 3, d},
	), map[string][]byte{"Ref:10": ten, "Ref:7": seven}
}

func TestVerify(t *testing.T) {
	for _, kind := range []ChecksumKind{XXHash, SHA1} {
		plain, want := sample(t, kind)
		for _, comp := range []Compression{Plain, Gzip, Zstd} {
			t.Run(fmt.Sprint(kind, comp), func(t *testing.T) {
				b := pack(t, plain, comp)
				exact := ReaderOptions{RequireExactEnd: true}
				got, err := disksOf(b, exact)
				if err != nil || !equalDisks(got, want) {
					t.Errorf("disks differ (%v)", err)
				}
				for _, portion := range []int{len(b), 4099, 511} {
					rep, err := push(b, exact, portion)
					if err != nil {
						t.Fatal(err)
					}
					checkSampleReport(t, rep, comp, kind, int64(len(plain)))
				}
				rep, err := Verify(bytes.NewReader(b), exact)
				if err != nil {
					t.Fatal(err)
				}
				checkSampleReport(t, rep, comp, kind, int64(len(plain)))
			})
		}
	}
}

func checkSampleReport(t *testing.T, rep *Report, comp Compression, kind ChecksumKind, size int64) {
	t.Helper()
	if rep.Compression != comp || rep.Checksum != kind.String() || rep.ArchiveBytes != size || rep.Blocks != 8 || rep.ZeroLength != 2 {
		t.Errorf("report %+v", rep)
	}
	if len(rep.Disks) != 2 || rep.Disks[0].Dir != "Ref:10" || rep.Disks[0].Blocks != 5 || rep.Disks[0].DataBytes != 3<<20 ||
		rep.Disks[0].ArchiveBytes != 3<<20+5*1536 || rep.Disks[1].ArchiveBytes != 2<<20+1024+3*1536 {
		t.Errorf("disks %+v", rep.Disks)
	}
	if rep.OVA == nil || !strings.Contains(string(rep.RawOVA), "web ünï") {
		t.Error("no ova.xml in the report")
	}
}
