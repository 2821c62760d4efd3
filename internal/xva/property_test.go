package xva

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// layout is an archive drawn at random, with what its disks hold.
type layout struct {
	ova    []byte
	blocks []testBlock
	disks  map[string][]byte
	// known says that a reader can find out the unit, modelOK that an importer
	// finds the same.
	known, modelOK bool
}

// drawUnit gives the length of whole chunks, mostly small for speed.
func drawUnit(t *rapid.T) int64 {
	return rapid.SampledFrom([]int64{1024, 4096, 1024, 4096, 2048, BlockSize}).Draw(t, "unit")
}

// drawLayout makes disks as an exporter with chunks of unit bytes would write
// them: chunk 0 and the last always, others or not, keep-alive chunks anywhere
// but first, the last one short.
func drawLayout(t *rapid.T, unit int64) layout {
	var disks []testDisk
	contents := map[string][]byte{}
	ids := rapid.SliceOfNDistinct(rapid.IntRange(1, 120), 1, 3, rapid.ID[int]).Draw(t, "ids")
	for _, id := range ids {
		chunks := rapid.Int64Range(1, 4).Draw(t, "chunks")
		tail := rapid.SampledFrom([]int64{0, 0, 512, unit / 2}).Draw(t, "tail")
		size := max(chunks*unit-tail, 512)
		if rapid.IntRange(0, 9).Draw(t, "empty disk") == 0 {
			size = 0
		}
		disks = append(disks, testDisk{fmt.Sprintf("Ref:%d", id), size})
	}
	l := layout{ova: testOVA(disks...), disks: contents}
	slices.SortFunc(disks, func(a, b testDisk) int { return bytes.Compare([]byte(a.dir), []byte(b.dir)) })
	for _, d := range disks {
		content := make([]byte, d.size)
		contents[d.dir] = content
		number := int64(0)
		for pos := int64(0); pos < d.size; pos += unit {
			end := min(pos+unit, d.size)
			for pos > 0 && rapid.IntRange(0, 4).Draw(t, "keep-alive") == 0 {
				l.blocks = append(l.blocks, testBlock{d.dir, number, nil})
				number++
			}
			kind := rapid.SampledFrom([]string{"data", "zero", "absent"}).Draw(t, "chunk")
			if kind == "data" {
				copy(content[pos:end], randomBytes(uint64(pos)+uint64(len(l.blocks)), int(end-pos)))
			}
			if kind != "absent" || pos == 0 || end == d.size {
				l.blocks = append(l.blocks, testBlock{d.dir, number, content[pos:end:end]})
			}
			number++
		}
	}
	if len(l.blocks) > 0 {
		first := l.blocks[0]
		l.known = firstUnit(int64(len(first.data)), int64(len(contents[first.dir]))) == unit
		l.modelOK = int64(len(first.data)) == unit
	}
	return l
}

// TestPlacement: what is written at random comes back the same, and the same as
// the importer's rule has it.
func TestPlacement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLayout(t, drawUnit(t))
		if !l.known {
			return
		}
		b := write(t, l, rapid.SampledFrom([]ChecksumKind{XXHash, SHA1}).Draw(t, "checksum"))
		got, err := disksOf(b, ReaderOptions{RequireExactEnd: true})
		if err != nil || !equalDisks(got, l.disks) {
			t.Fatalf("disks differ (%v)", err)
		}
		rep, err := push(b, ReaderOptions{RequireExactEnd: true}, rapid.IntRange(1000, 100_000).Draw(t, "portion"))
		if err != nil || rep.Blocks != int64(len(l.blocks)) || rep.ArchiveBytes != int64(len(b)) {
			t.Fatalf("report %+v, %v", rep, err)
		}
		if model, err := importModel(b); l.modelOK && (err != nil || !equalDisks(model, l.disks)) {
			t.Fatalf("an importer would make other disks of it (%v)", err)
		}
	})
}

func write(t *rapid.T, l layout, kind ChecksumKind) []byte {
	var buf bytes.Buffer
	w := NewWriter(&buf, WriterOptions{Checksum: kind})
	err := w.WriteOVA(l.ova)
	for _, b := range l.blocks {
		if err == nil {
			err = w.WriteBlock(b.dir, b.number, b.data)
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestRewriteAnything: any choice of disks of any archive is rewritten to the
// length foretold, is good, and has the same disks for this reader and for an
// importer, also where a small disk comes first.
func TestRewriteAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLayout(t, drawUnit(t))
		if !l.known {
			return
		}
		src := write(t, l, XXHash)
		rep, err := Verify(bytes.NewReader(src), ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var dirs []string
		for _, d := range rep.Disks {
			if rapid.Bool().Draw(t, "take "+d.Dir) {
				dirs = append(dirs, d.Dir)
			}
		}
		ova, err := rep.OVA.Whole(WholeSpec{Disks: dirs, ImportNonce: "n"})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Rewrite(&out, bytes.NewReader(src), rep, ova, dirs, RewriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if want := RewriteLength(rep, ova, dirs); int64(out.Len()) != want {
			t.Fatalf("%d bytes, RewriteLength said %d", out.Len(), want)
		}
		if got, err := disksOf(out.Bytes(), ReaderOptions{RequireExactEnd: true}); err != nil || !equalDisks(got, only(l.disks, dirs)) {
			t.Fatalf("disks differ (%v)", err)
		}
		if got, err := importModel(out.Bytes()); err != nil || !equalDisks(got, only(l.disks, dirs)) {
			t.Fatalf("an importer would make other disks of it (%v)", err)
		}
	})
}
