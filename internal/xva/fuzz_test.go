package xva

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// seeds are archives that a fuzzer starts from.
func seeds(f *testing.F) [][]byte {
	f.Helper()
	plain, _ := tiny(f)
	gnu := append(bytes.Clone(plain), make([]byte, 9216)...)
	return [][]byte{plain, pack(f, plain, Gzip), pack(f, plain, Zstd), gnu, plain[:len(plain)-1024], {}, []byte("<appliance version=\"0.1\"/>")}
}

// mended gives a plain archive the checksums that its changed bytes ask for, of
// headers and of chunks: without it no change would get past the first of them.
func mended(b []byte) []byte {
	b = bytes.Clone(b)
	var chunk []byte
	for pos := 0; pos+tarBlock <= len(b); {
		h := (*[tarBlock]byte)(b[pos:])
		if *h == [tarBlock]byte{} || sniff(b) != Plain {
			break
		}
		copy(h[148:], "0000000\x00")
		putOctal(h[148:155], headerSum(h))
		pos += tarBlock
		size, ok := parseOctal(h[124:136])
		if !ok || size > int64(len(b)-pos) {
			break
		}
		data, name := b[pos:pos+int(size)], cString(h[:100])
		switch {
		case strings.HasSuffix(name, XXHash.Suffix()):
			copy(data, XXHash.Sum(chunk))
		case strings.HasSuffix(name, SHA1.Suffix()):
			copy(data, SHA1.Sum(chunk))
		default:
			chunk = data
		}
		pos = min(pos+int(padded(size)), len(b))
	}
	return b
}

// maxFuzzDisk bounds the disks that fuzzing writes out in memory.
const maxFuzzDisk = 1 << 20

// FuzzReader: whatever comes in, a Reader ends without a panic, its chunks lie
// within their disks, and its end is proven by the whole being verified.
func FuzzReader(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend {
			b = mended(b)
		}
		r, err := NewReader(bytes.NewReader(b), ReaderOptions{})
		if err == nil {
			defer r.Close()
			err = readToEnd(t, r)
		}
		if err != nil && !IsBad(err) {
			t.Fatalf("error without a type: %v", err)
		}
		if _, other := Verify(bytes.NewReader(b), ReaderOptions{}); (other == nil) != (err == nil) {
			t.Fatalf("Reader says %v, Verify says %v", err, other)
		}
	})
}

func readToEnd(t *testing.T, r *Reader) error {
	t.Helper()
	sizes := map[string]int64{}
	disks, err := r.OVA().Disks()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		sizes[d.Dir] = d.Size
	}
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if b.Offset < 0 || b.Offset+b.Length > sizes[b.Dir] || int64(len(b.Data)) != b.Length {
			t.Fatalf("chunk %d of %s: %d bytes at %d on a disk of %d", b.Number, b.Dir, len(b.Data), b.Offset, sizes[b.Dir])
		}
		if b.Checksum.Sum(b.Data) != b.Sum {
			t.Fatalf("chunk %d of %s passed with a wrong checksum", b.Number, b.Dir)
		}
	}
}

// FuzzVerifier: a Verifier judges like Verify, however its input is cut.
func FuzzVerifier(f *testing.F) {
	for i, s := range seeds(f) {
		f.Add(s, uint16(i*100+1), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, b []byte, portion uint16, exact bool) {
		o := ReaderOptions{RequireExactEnd: exact}
		got, err := push(b, o, int(portion)+1)
		want, other := Verify(bytes.NewReader(b), o)
		if (err == nil) != (other == nil) {
			t.Fatalf("Verifier says %v, Verify says %v", err, other)
		}
		if err != nil {
			if !IsBad(err) {
				t.Fatalf("error without a type: %v", err)
			}
			return
		}
		if got.ArchiveBytes != want.ArchiveBytes || got.Blocks != want.Blocks || got.Checksum != want.Checksum || got.Compression != want.Compression {
			t.Fatalf("reports differ: %+v and %+v", got, want)
		}
	})
}

// FuzzOVA: an ova.xml that is read can be written and read again, and what is
// made of it for a host is well-formed and holds only the disks asked for.
func FuzzOVA(f *testing.F) {
	f.Add(testOVA(testDisk{"Ref:1", 1 << 20}, testDisk{"Ref:2", 512}))
	f.Add([]byte(`<?xml version="1.0"?><value><struct><member><name>version</name><value/></member></struct></value>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOVA(b)
		if err != nil {
			if !IsBad(err) {
				t.Fatalf("error without a type: %v", err)
			}
			return
		}
		first, err := o.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseOVA(first)
		if err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
		if second, err := again.Bytes(); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("writing is not stable (%v)", err)
		}
		_ = o.VM()
		disks, err := o.Disks()
		if err != nil || len(disks) == 0 {
			return
		}
		dirs := dirsOf(disks)[:1]
		if disks[0].Suspend {
			return
		}
		carrier, err := o.Carrier(CarrierSpec{Nonce: "n", Disks: dirs})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := o.Whole(WholeSpec{Disks: dirs, ImportNonce: "n", DropMACs: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, made := range [][]byte{carrier, whole} {
			m, err := ParseOVA(made)
			if err != nil {
				t.Fatal(err)
			}
			if left, err := m.Disks(); err != nil || len(left) != 1 || left[0].Dir != dirs[0] || left[0].Size != disks[0].Size {
				t.Fatalf("asks for %+v (%v)", left, err)
			}
		}
	})
}

// FuzzRewrite: whatever is good is rewritten to the length foretold, is good
// again, and has the same disks, for this reader and for an importer.
func FuzzRewrite(f *testing.F) {
	for i, s := range seeds(f) {
		f.Add(s, uint8(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, choice uint8) {
		b = mended(b)
		rep, err := Verify(bytes.NewReader(b), ReaderOptions{})
		if err != nil {
			return
		}
		var dirs []string
		for i, d := range rep.Disks {
			if d.Size > maxFuzzDisk {
				return
			}
			if choice&(1<<(i%8)) != 0 && !d.Suspend {
				dirs = append(dirs, d.Dir)
			}
		}
		ova, err := rep.OVA.Whole(WholeSpec{Disks: dirs})
		if err != nil {
			t.Fatal(err)
		}
		if RewriteFill(rep, dirs) > 64<<20 {
			return
		}
		var out bytes.Buffer
		if err := Rewrite(&out, bytes.NewReader(b), rep, ova, dirs, RewriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if want := RewriteLength(rep, ova, dirs); int64(out.Len()) != want {
			t.Fatalf("%d bytes, RewriteLength said %d", out.Len(), want)
		}
		was, err := disksOf(b, ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		is, err := disksOf(out.Bytes(), ReaderOptions{RequireExactEnd: true})
		if err != nil || !equalDisks(is, only(was, dirs)) {
			t.Fatalf("disks differ (%v)", err)
		}
		if model, err := importModel(out.Bytes()); err != nil || !equalDisks(model, is) {
			t.Fatalf("an importer would make other disks of it (%v)", err)
		}
	})
}
