package xva

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
)

// mustVerify verifies an archive that is to be good.
func mustVerify(tb testing.TB, b []byte) *Report {
	tb.Helper()
	rep, err := Verify(bytes.NewReader(b), ReaderOptions{RequireExactEnd: true})
	if err != nil {
		tb.Fatal(err)
	}
	return rep
}

// mustRewrite rewrites a good archive and checks all that is promised of it.
func mustRewrite(tb testing.TB, src []byte, rep *Report, ova []byte, dirs []string) []byte {
	tb.Helper()
	var out bytes.Buffer
	if err := Rewrite(&out, bytes.NewReader(src), rep, ova, dirs, RewriteOptions{}); err != nil {
		tb.Fatal(err)
	}
	if want := RewriteLength(rep, ova, dirs); int64(out.Len()) != want {
		tb.Fatalf("rewritten archive has %d bytes, RewriteLength said %d", out.Len(), want)
	}
	got := mustVerify(tb, out.Bytes())
	if !bytes.Equal(got.RawOVA, ova) || got.Compression != Plain {
		tb.Fatal("rewritten archive has another ova.xml or is packed")
	}
	return out.Bytes()
}

func TestRewrite(t *testing.T) {
	for _, kind := range []ChecksumKind{XXHash, SHA1} {
		for _, comp := range []Compression{Plain, Gzip, Zstd} {
			if kind == SHA1 && comp != Plain {
				continue
			}
			plain, want := sample(t, kind)
			src := pack(t, plain, comp)
			rep := mustVerify(t, src)
			for _, dirs := range [][]string{{"Ref:7"}, {"Ref:10"}, {"Ref:7", "Ref:10"}} {
				t.Run(fmt.Sprint(kind, comp, dirs), func(t *testing.T) {
					ova, err := rep.OVA.Carrier(CarrierSpec{Nonce: "n1", Disks: dirs, SRUUID: "sr"})
					if err != nil {
						t.Fatal(err)
					}
					out := mustRewrite(t, src, rep, ova, dirs)
					got, err := disksOf(out, ReaderOptions{RequireExactEnd: true})
					if err != nil {
						t.Fatal(err)
					}
					if !equalDisks(got, only(want, dirs)) {
						t.Error("disks differ")
					}
					if model, err := importModel(out); err != nil || !equalDisks(model, got) {
						t.Errorf("an importer would make other disks of it (%v)", err)
					}
				})
			}
		}
	}
}

// TestRewriteVerbatim: with all disks and the same ova.xml a plain archive of
// our own writer comes out as it was.
func TestRewriteVerbatim(t *testing.T) {
	src, _ := sample(t, XXHash)
	rep := mustVerify(t, src)
	if out := mustRewrite(t, src, rep, rep.RawOVA, []string{"Ref:10", "Ref:7"}); !bytes.Equal(out, src) {
		t.Error("archive differs")
	}
}

// TestRewriteSmallFirstDisk: a disk smaller than BlockSize first would make an
// importer measure the gaps of the next one wrongly, so they are filled.
func TestRewriteSmallFirstDisk(t *testing.T) {
	const mib = BlockSize
	ova := testOVA(testDisk{"Ref:1", 4096}, testDisk{"Ref:2", 5*mib + 512})
	a, tail := randomBytes(1, mib), randomBytes(2, 512)
	want := map[string][]byte{"Ref:1": randomBytes(3, 4096), "Ref:2": slices.Concat(a, make([]byte, 2*mib), a, make([]byte, mib), tail)}
	src := archive(t, ova, SHA1, testBlock{"Ref:1", 0, want["Ref:1"]},
		testBlock{"Ref:2", 0, a}, testBlock{"Ref:2", 1, nil}, testBlock{"Ref:2", 4, a}, testBlock{"Ref:2", 6, tail})
	rep := mustVerify(t, src)
	for _, c := range []struct {
		dirs []string
		fill int64
	}{{[]string{"Ref:1", "Ref:2"}, 3 * mib}, {[]string{"Ref:2"}, 0}, {[]string{"Ref:1"}, 0}} {
		newOVA, err := rep.OVA.Carrier(CarrierSpec{Nonce: "n", Disks: c.dirs})
		if err != nil {
			t.Fatal(err)
		}
		if got := RewriteFill(rep, c.dirs); got != c.fill {
			t.Errorf("%v: RewriteFill = %d, want %d", c.dirs, got, c.fill)
		}
		out := mustRewrite(t, src, rep, newOVA, c.dirs)
		if got, err := disksOf(out, ReaderOptions{}); err != nil || !equalDisks(got, only(want, c.dirs)) {
			t.Errorf("%v: disks differ (%v)", c.dirs, err)
		}
		if got, err := importModel(out); err != nil || !equalDisks(got, only(want, c.dirs)) {
			t.Errorf("%v: an importer would make other disks of it (%v)", c.dirs, err)
		}
	}
}

func only(disks map[string][]byte, dirs []string) map[string][]byte {
	out := maps.Clone(disks)
	maps.DeleteFunc(out, func(dir string, _ []byte) bool { return !slices.Contains(dirs, dir) })
	return out
}

func TestRewriteRefuses(t *testing.T) {
	src, _ := sample(t, XXHash)
	rep := mustVerify(t, src)
	carrier := func(dirs ...string) []byte {
		b, err := rep.OVA.Carrier(CarrierSpec{Nonce: "n", Disks: dirs})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		ova  []byte
		dirs []string
	}{
		"no ova.xml":   {[]byte("<value/>"), []string{"Ref:7"}},
		"other disk":   {carrier("Ref:10"), []string{"Ref:7"}},
		"disk more":    {carrier("Ref:7"), []string{"Ref:7", "Ref:10"}},
		"disk less":    {carrier("Ref:7", "Ref:10"), []string{"Ref:7"}},
		"other size":   {testOVA(testDisk{"Ref:7", 4 << 20}), []string{"Ref:7"}},
		"unknown disk": {testOVA(testDisk{"Ref:8", 4 << 20}), []string{"Ref:8"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Rewrite(&out, bytes.NewReader(src), rep, c.ova, c.dirs, RewriteOptions{}); err == nil || out.Len() > 0 || IsBad(err) {
				t.Errorf("wrote %d bytes, %v", out.Len(), err)
			}
		})
	}
}

// TestRewriteOfChangedFile: a file that is not the one that was verified gives
// an error, never a wrong length.
func TestRewriteOfChangedFile(t *testing.T) {
	const mib = BlockSize
	src, _ := sample(t, XXHash)
	rep := mustVerify(t, src)
	a, z := randomBytes(1, mib), make([]byte, mib)
	ten := []testBlock{{"Ref:10", 0, a}, {"Ref:10", 2, nil}, {"Ref:10", 3, nil}, {"Ref:10", 5, a}, {"Ref:10", 7, a}}
	for name, blocks := range map[string][]testBlock{
		"chunk more":  {{"Ref:10", 0, a}, {"Ref:10", 1, z}, {"Ref:10", 2, a}, {"Ref:10", 4, a}, {"Ref:10", 5, a}},
		"chunk less":  {{"Ref:10", 0, a}, {"Ref:10", 5, a}},
		"other order": {{"Ref:10", 0, a[:1000]}, {"Ref:10", 1, a}},
	} {
		t.Run(name, func(t *testing.T) {
			changed := archive(t, rep.RawOVA, XXHash, append(blocks, testBlock{"Ref:7", 0, z}, testBlock{"Ref:7", 3, a[:1024]})...)
			var out bytes.Buffer
			err := Rewrite(&out, bytes.NewReader(changed), rep, rep.RawOVA, []string{"Ref:7", "Ref:10"}, RewriteOptions{})
			if !IsBad(err) || int64(out.Len()) >= RewriteLength(rep, rep.RawOVA, []string{"Ref:7", "Ref:10"}) {
				t.Errorf("wrote %d bytes, %v", out.Len(), err)
			}
		})
	}
	good := archive(t, rep.RawOVA, XXHash, append(ten, testBlock{"Ref:7", 0, z}, testBlock{"Ref:7", 1, z}, testBlock{"Ref:7", 3, a[:1024]})...)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	if err := Rewrite(&bytes.Buffer{}, bytes.NewReader(flipped), rep, rep.RawOVA, []string{"Ref:7", "Ref:10"}, RewriteOptions{}); !errors.Is(err, ErrChecksum) {
		t.Errorf("flipped bit: %v", err)
	}
	if err := Rewrite(&failingWriter{left: 2 * mib}, bytes.NewReader(good), rep, rep.RawOVA, []string{"Ref:7", "Ref:10"}, RewriteOptions{}); !errors.Is(err, errFull) || IsBad(err) {
		t.Errorf("full writer: %v", err)
	}
	mustRewrite(t, good, rep, rep.RawOVA, []string{"Ref:7", "Ref:10"})
}

func BenchmarkRewrite(b *testing.B) {
	src := bigArchive(b, XXHash, 32)
	rep := mustVerify(b, src)
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Rewrite(&discard{}, bytes.NewReader(src), rep, rep.RawOVA, []string{"Ref:1"}, RewriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (*discard) Write(p []byte) (int, error) { return len(p), nil }
