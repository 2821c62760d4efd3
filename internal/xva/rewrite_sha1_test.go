package xva

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// drawArchive makes a small archive with a report of it, and what a host before 8.1 is to get of it.
func drawArchive(t *rapid.T) (src []byte, rep *Report, dirs []string, want []byte, l layout) {
	l = drawLayout(t, 1024)
	if !l.known {
		t.Skip("nobody could tell the length of its chunks")
	}
	src = write(t, l, rapid.SampledFrom([]ChecksumKind{XXHash, XXHash, SHA1}).Draw(t, "kind"))
	if rapid.Bool().Draw(t, "zstd") {
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		src = enc.EncodeAll(src, nil)
	}
	rep, err := Verify(bytes.NewReader(src), ReaderOptions{RequireExactEnd: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range rep.Disks {
		dirs = append(dirs, d.Dir)
	}
	var out bytes.Buffer
	if err := Rewrite(&out, bytes.NewReader(src), rep, rep.RawOVA, dirs, RewriteOptions{SHA1: true}); err != nil {
		t.Fatal(err)
	}
	return src, rep, dirs, out.Bytes(), l
}

// TestRewriteSHA1 holds that an old host gets the same disks, under checksums that it knows and in the length foretold.
func TestRewriteSHA1(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, rep, dirs, out, l := drawArchive(t)
		if want := RewriteLength(rep, rep.RawOVA, dirs); int64(len(out)) != want {
			t.Fatalf("%d bytes, RewriteLength said %d", len(out), want)
		}
		got, err := Verify(bytes.NewReader(out), ReaderOptions{RequireExactEnd: true})
		if err != nil {
			t.Fatal(err)
		}
		if got.Compression != Plain || got.Blocks > 0 && got.Checksum != SHA1.String() {
			t.Fatalf("%s, checksums are %s", got.Compression, got.Checksum)
		}
		if bytes.Contains(out, []byte(XXHash.Suffix()+"\x00")) {
			t.Fatal("an entry ends in .xxhash")
		}
		if disks, err := disksOf(out, ReaderOptions{RequireExactEnd: true}); err != nil || !equalDisks(disks, l.disks) {
			t.Fatalf("disks differ (%v)", err)
		}
		if disks, err := importModel(out); err != nil || !equalDisks(disks, l.disks) {
			t.Fatalf("an importer would make other disks of it (%v)", err)
		}
	})
}

// TestRewriteSHA1Damaged cuts the file at any byte, or changes any bit of it, after it was verified: whatever was written is
// the beginning of the right archive, and all of it only where the change means nothing.
func TestRewriteSHA1Damaged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src, rep, dirs, want, _ := drawArchive(t)
		changed := bytes.Clone(src)
		at := rapid.IntRange(0, len(src)-1).Draw(t, "at")
		cut := rapid.Bool().Draw(t, "cut")
		if cut {
			changed = changed[:at]
		} else {
			changed[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		var out bytes.Buffer
		err := Rewrite(&out, bytes.NewReader(changed), rep, rep.RawOVA, dirs, RewriteOptions{SHA1: true})
		if !bytes.HasPrefix(want, out.Bytes()) {
			t.Fatalf("something false was written within the first %d bytes (%v)", out.Len(), err)
		}
		if err == nil && out.Len() != len(want) {
			t.Fatalf("%d of %d bytes and no error", out.Len(), len(want))
		}
		if err != nil && !IsBad(err) {
			t.Fatalf("%v is not said of the file", err)
		}
	})
}

// TestRewriteSHA1Throughout does so all along one archive of plain chunks.
func TestRewriteSHA1Throughout(t *testing.T) {
	data := randomBytes(7, 1024)
	src := archive(t, testOVA(testDisk{"Ref:1", 3*1024 + 512}), XXHash, testBlock{"Ref:1", 0, data},
		testBlock{"Ref:1", 1, nil}, testBlock{"Ref:1", 3, data}, testBlock{"Ref:1", 4, data[:512]})
	rep := mustVerify(t, src)
	dirs := []string{"Ref:1"}
	rewrite := func(b []byte) ([]byte, error) {
		var out bytes.Buffer
		err := Rewrite(&out, bytes.NewReader(b), rep, rep.RawOVA, dirs, RewriteOptions{SHA1: true})
		return out.Bytes(), err
	}
	want, err := rewrite(src)
	if err != nil {
		t.Fatal(err)
	}
	end := len(src) - 2*tarBlock      // reading stops after the last chunk
	for at := 0; at < end; at += 13 { // 13 and 512 have no common factor: every place of a block has its turn
		out, err := rewrite(src[:at])
		if !bytes.HasPrefix(want, out) || !IsBad(err) {
			t.Fatalf("cut at %d: %d bytes, %v", at, len(out), err)
		}
		flipped := bytes.Clone(src)
		flipped[at] ^= 0x20
		if out, err = rewrite(flipped); !bytes.HasPrefix(want, out) || err == nil && len(out) != len(want) {
			t.Fatalf("flipped at %d: %d bytes, %v", at, len(out), err)
		}
	}
}
