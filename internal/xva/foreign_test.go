package xva

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// tarEntry is an entry of an archive made by the standard library's tar writer.
type tarEntry struct {
	name string
	data string
	kind byte
	pax  map[string]string
}

func tarOf(tb testing.TB, format tar.Format, entries ...tarEntry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Size: int64(len(e.data)), Mode: 0o644, Format: format, Typeflag: tar.TypeReg, Uname: "root"}
		if e.pax != nil {
			h.PAXRecords, h.Format = e.pax, tar.FormatPAX
		}
		if e.kind != 0 {
			h.Typeflag = e.kind
		}
		err := w.WriteHeader(h)
		if e.data != "" {
			_, more := w.Write([]byte(e.data))
			err = errors.Join(err, more)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// entriesOf gives the entries of disk chunks with their checksums.
func entriesOf(kind ChecksumKind, blocks ...testBlock) []tarEntry {
	var entries []tarEntry
	for _, b := range blocks {
		name := blockName(b.dir, b.number)
		entries = append(entries, tarEntry{name: name, data: string(b.data)}, tarEntry{name: name + kind.Suffix(), data: kind.Sum(b.data)})
	}
	return entries
}

// TestForeignWriters reads what others write: ustar with two-megabyte tails as
// Xen Orchestra does, GNU and POSIX repacks padded to whole records.
func TestForeignWriters(t *testing.T) {
	const mib = BlockSize
	a := randomBytes(1, mib)
	ova := tarEntry{name: "ova.xml", data: string(testOVA(testDisk{"Ref:002", 3 * mib}, testDisk{"Ref:010", mib}))}
	chunks := entriesOf(XXHash, testBlock{"Ref:002", 0, a}, testBlock{"Ref:002", 2, append(a[:mib-512:mib-512], make([]byte, 512)...)}, testBlock{"Ref:010", 0, a})
	want := map[string][]byte{"Ref:002": append(append(bytes.Clone(a), make([]byte, mib)...), chunks[2].data...), "Ref:010": a}
	for name, c := range map[string]struct {
		format tar.Format
		tail   int
	}{"XO": {tar.FormatUSTAR, 0}, "GNU": {tar.FormatGNU, 7 * 512}, "POSIX": {tar.FormatPAX, 10240}} {
		t.Run(name, func(t *testing.T) {
			entries := append([]tarEntry{ova}, chunks...)
			if c.format == tar.FormatPAX {
				for i := range entries {
					entries[i].pax = map[string]string{"mtime": "1735689600.123456789", "comment": "repacked"}
				}
			}
			b := append(tarOf(t, c.format, entries...), make([]byte, c.tail)...)
			got, err := disksOf(b, ReaderOptions{})
			if err != nil || !equalDisks(got, want) {
				t.Fatalf("disks differ (%v)", err)
			}
			_, err = push(b, ReaderOptions{RequireExactEnd: true}, 100_000)
			if (c.tail == 0) != (err == nil) || c.tail > 0 && !errors.Is(err, ErrTrailing) {
				t.Errorf("with an exact end required: %v", err)
			}
			rep, err := Verify(bytes.NewReader(b), ReaderOptions{})
			if err != nil || rep.ArchiveBytes != int64(len(b)) {
				t.Fatal(rep, err)
			}
			out := mustRewrite(t, b, rep, rep.RawOVA, []string{"Ref:002", "Ref:010"})
			if got, err := importModel(out); err != nil || !equalDisks(got, want) {
				t.Errorf("rewritten disks differ (%v)", err)
			}
		})
	}
}

// TestPaxRecords: path and size count, other records do not, and none that
// change the meaning of the data pass.
func TestPaxRecords(t *testing.T) {
	ova := tarEntry{name: "ova.xml", data: string(testOVA(testDisk{"R", 600}))}
	data := strings.Repeat("x", 600)
	sum := tarEntry{name: "R/00000000.xxhash", data: XXHash.Sum([]byte(data))}
	good := tarOf(t, tar.FormatUSTAR, ova, tarEntry{name: "R/00000000", data: data}, sum)
	chunkAt := int64(tarBlock) + padded(int64(len(ova.data)))
	with := func(kind byte, records string, edit func(h *[tarBlock]byte)) []byte {
		var pax, chunk [tarBlock]byte
		putV7Header(&pax, "PaxHeader", int64(len(records)), 0)
		pax[156] = kind
		putOctal(pax[148:155], headerSum(&pax))
		copy(chunk[:], good[chunkAt:])
		if edit != nil {
			edit(&chunk)
			putOctal(chunk[148:155], headerSum(&chunk))
		}
		b := append(bytes.Clone(good[:chunkAt]), pax[:]...)
		b = append(b, records...)
		b = append(b, make([]byte, padding(int64(len(records))))...)
		b = append(b, chunk[:]...)
		return append(b, good[chunkAt+tarBlock:]...)
	}
	record := func(s string) string {
		n := len(s) + 2
		for range 2 { // its own digits count
			n = len(s) + 2 + len(strconv.Itoa(n))
		}
		return fmt.Sprintf("%d %s\n", n, s)
	}
	for _, c := range []struct {
		name    string
		archive []byte
		kind    error
	}{
		{"none", good, nil},
		{"mtime", with('x', record("mtime=12345"), nil), nil},
		{"path", with('x', record("path=R/00000000"), func(h *[tarBlock]byte) { copy(h[:], "some/0ther") }), nil},
		{"size", with('x', record("size=600"), func(h *[tarBlock]byte) { putOctal(h[124:135], 0) }), nil},
		{"global", with('g', record("comment=x"), nil), nil},
		{"global path", with('g', record("path=R/00000000"), nil), ErrUnsupported},
		{"sparse", with('x', record("GNU.sparse.major=1"), nil), ErrUnsupported},
		{"bad size", with('x', record("size=-1"), nil), ErrFormat},
		{"bad length", with('x', "99 mtime=1\n", nil), ErrFormat},
		{"no equals sign", with('x', record("mtime"), nil), ErrFormat},
		{"no newline", with('x', "11 mtime=1x", nil), ErrFormat},
		{"too long", with('x', record("comment="+strings.Repeat("x", 66000)), nil), ErrFormat},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := push(c.archive, ReaderOptions{RequireExactEnd: true}, 1000)
			if c.kind == nil && err != nil || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %v", err, c.kind)
			}
		})
	}
}

// TestRefused holds archives that are wrong as a whole to the kind of fault and
// to what is said of it.
func TestRefused(t *testing.T) {
	const mib = BlockSize
	a, z := randomBytes(1, mib), make([]byte, mib)
	two := testOVA(testDisk{"Ref:1", 2 * mib}, testDisk{"Ref:10", 2*mib + 512})
	one, ten := []testBlock{{"Ref:1", 0, a}, {"Ref:1", 1, z}}, []testBlock{{"Ref:10", 0, a}, {"Ref:10", 2, a[:512]}}
	blocks := func(list ...[]testBlock) []byte {
		var all []testBlock
		for _, l := range list {
			all = append(all, l...)
		}
		return archive(t, two, XXHash, all...)
	}
	good := blocks(one, ten)
	end := len(good) - 2*tarBlock
	entries := append([]tarEntry{{name: "ova.xml", data: string(two)}}, entriesOf(XXHash, append(one, ten...)...)...)
	edited := func(edit func(e []tarEntry) []tarEntry) []byte {
		return tarOf(t, tar.FormatUSTAR, edit(append([]tarEntry(nil), entries...))...)
	}
	sumEdit := func(from, to string) []byte {
		return edited(func(e []tarEntry) []tarEntry {
			e[2].data = strings.Replace(e[2].data, from, to, 1)
			return e
		})
	}
	for _, c := range []struct {
		name    string
		archive []byte
		kind    error
		says    string
	}{
		{"empty file", nil, ErrTruncated, ""},
		{"text", []byte(strings.Repeat("hello world ", 100)), ErrFormat, "tar header"},
		{"zeros", make([]byte, 10240), ErrFormat, "without ova.xml"},
		{"appliance", []byte("<?xml version=\"1.0\"?>\n<appliance version=\"0.1\">" + strings.Repeat(" ", 1000)), ErrUnsupported, "appliance"},
		{"appliance in tar", tarOf(t, tar.FormatUSTAR, tarEntry{name: "ova.xml", data: `<appliance version="0.1"/>`}), ErrUnsupported, "appliance"},
		{"no ova.xml", tarOf(t, tar.FormatUSTAR, entries[1:]...), ErrFormat, "first entry"},
		{"single disk export", tarOf(t, tar.FormatUSTAR, tarEntry{name: "vdi/00000000", data: "x"}), ErrUnsupported, "single disk"},
		{"directory first", tarOf(t, tar.FormatUSTAR, tarEntry{name: "vm/", kind: tar.TypeDir}), ErrFormat, "plain files"},
		{"directory entry", edited(func(e []tarEntry) []tarEntry {
			return append(e[:1:1], append([]tarEntry{{name: "Ref:1/", kind: tar.TypeDir}}, e[1:]...)...)
		}), ErrFormat, "plain files"},
		{"link", edited(func(e []tarEntry) []tarEntry { e[1] = tarEntry{name: e[1].name, kind: tar.TypeSymlink}; return e }), ErrFormat, "plain files"},
		{"GNU long name", tarOf(t, tar.FormatGNU, entries[0], tarEntry{name: "R/" + strings.Repeat("0", 150), data: "x"}), ErrUnsupported, "extension"},
		{"foreign entry", edited(func(e []tarEntry) []tarEntry { return append(e[:3:3], tarEntry{name: "notes.txt", data: "x"}) }), ErrFormat, "no chunk"},
		{"second ova.xml", edited(func(e []tarEntry) []tarEntry { return append(e[:3:3], e[0]) }), ErrFormat, "no chunk"},
		{"stray checksum", edited(func(e []tarEntry) []tarEntry { return append(e[:3:3], e[2]) }), ErrFormat, "follows no chunk"},
		{"checksum missing", edited(func(e []tarEntry) []tarEntry { return append(e[:2:2], e[3:]...) }), ErrFormat, "not followed by its checksum"},
		{"checksum missing at the end", tarOf(t, tar.FormatUSTAR, entries[:len(entries)-1]...), ErrFormat, "not followed by its checksum"},
		{"checksum of another chunk", edited(func(e []tarEntry) []tarEntry { e[2].name = e[4].name; return e }), ErrFormat, "not followed by its checksum"},
		{"checksum lower case", edited(func(e []tarEntry) []tarEntry { e[2].data = strings.ToLower(e[2].data); return e }), ErrChecksum, "chunk 0"},
		{"checksum wrong", sumEdit(entries[2].data[:1], "x"), ErrChecksum, "chunk 0"},
		{"checksum with newline", edited(func(e []tarEntry) []tarEntry { e[2].data += "\n"; return e }), ErrFormat, "checksum of 17 bytes"},
		{"name with nine digits", edited(func(e []tarEntry) []tarEntry { e[1].name = "Ref:1/000000000"; return e }), ErrFormat, "no chunk"},
		{"no disks' data", blocks(), ErrMissingData, "Ref:1"},
		{"disk missing", blocks(one), ErrMissingData, "Ref:10"},
		{"first disk missing", blocks(ten), ErrMissingData, "Ref:1"},
		{"order of disks", blocks(ten, one), ErrMissingData, "Ref:1"},
		{"last chunk missing", blocks(one, ten[:1]), ErrMissingData, "1048576 of its 2097664"},
		{"last chunk of first disk missing", blocks(one[:1], ten), ErrMissingData, "1048576 of its 2097152"},
		{"first chunk missing", blocks(one[1:], ten), ErrMissingData, "begins with chunk 1"},
		{"first chunk empty", blocks([]testBlock{{"Ref:1", 0, nil}}, one, ten), ErrFormat, "chunk 0 is empty"},
		{"chunk twice", blocks(one[:1], one), ErrFormat, "chunk 0 after chunk 0"},
		{"chunks backwards", blocks(one, []testBlock{{"Ref:10", 0, a}, {"Ref:10", 2, nil}, {"Ref:10", 1, a}}), ErrFormat, "chunk 1 after chunk 2"},
		{"chunk too many", blocks(one, []testBlock{{"Ref:1", 2, a}}, ten), ErrFormat, "already complete"},
		{"keep-alive after the end", blocks(one, ten, []testBlock{{"Ref:10", 3, nil}}), ErrFormat, "already complete"},
		{"gap reaches the end", blocks(one, []testBlock{{"Ref:10", 0, a}, {"Ref:10", 3, nil}}), ErrFormat, "beyond"},
		{"tail too long", blocks(one, []testBlock{{"Ref:10", 0, a}, {"Ref:10", 2, a}}), ErrFormat, "beyond"},
		{"chunk far beyond", blocks(one, []testBlock{{"Ref:10", 0, a}, {"Ref:10", MaxBlockNumber, a}}), ErrFormat, "beyond"},
		{"unknown disk", blocks(one, []testBlock{{"Ref:100", 0, a}}), ErrFormat, "does not have"},
		{"HTTP answer after a cut", append(bytes.Clone(good[:end]), "HTTP/1.1 500 Internal Error\r\nConnection: close\r\n\r\n<html></html>"...), ErrTruncated, "500 Internal Error"},
		{"HTTP answer, long", append(bytes.Clone(good[:end]), "HTTP/1.1 500 Internal Error\r\n"+strings.Repeat("x", 1000)...), ErrTruncated, "500 Internal Error"},
		{"one zero block", good[:end+tarBlock], ErrTruncated, ""},
		{"data between the zero blocks", append(bytes.Clone(good[:end+tarBlock]), good[:tarBlock]...), ErrFormat, "one zero block alone"},
		{"data after the end", append(bytes.Clone(good), "x"...), ErrTrailing, "something other"},
		{"second archive", append(bytes.Clone(good), good...), ErrTrailing, "something other"},
		{"endless zeros", append(bytes.Clone(good), make([]byte, MaxTail+1)...), ErrTrailing, "more than"},
		{"two gzip members", append(pack(t, good, Gzip), pack(t, good, Gzip)...), ErrTrailing, "gzip"},
		{"zeros after gzip", append(pack(t, good, Gzip), 0), ErrTrailing, "gzip"},
		{"two zstd frames", append(pack(t, good, Zstd), pack(t, good, Zstd)...), ErrTrailing, "zstd"},
		{"zeros after zstd", append(pack(t, good, Zstd), 0), ErrTrailing, "zstd"},
		{"gzip of a cut archive", pack(t, good[:end], Gzip), ErrTruncated, ""},
		{"zstd of a cut archive", pack(t, good[:end], Zstd), ErrTruncated, ""},
		{"zstd window", bigWindow(t, good), ErrUnsupported, "window"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Verify(bytes.NewReader(c.archive), ReaderOptions{})
			if !errors.Is(err, c.kind) || !IsBad(err) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("Verify: %v; want %v saying %q", err, c.kind, c.says)
			}
			if _, err := push(c.archive, ReaderOptions{}, 1<<20); !errors.Is(err, c.kind) {
				t.Errorf("Verifier: %v; want %v", err, c.kind)
			}
		})
	}
	if _, err := Verify(bytes.NewReader(append(bytes.Clone(good), make([]byte, MaxTail)...)), ReaderOptions{}); err != nil {
		t.Errorf("zero padding refused: %v", err)
	}
}

// bigWindow is a zstd frame that says it needs more memory than is given.
func bigWindow(t *testing.T, plain []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(256<<20), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // written in portions, so that the size is not known beforehand
		if _, err := w.Write(plain[:len(plain)/2]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
