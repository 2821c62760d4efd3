package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

// TestRoundTrip exports and imports all contents, sizes and forms and compares
// digests; what comes back costs no room.
func TestRoundTrip(t *testing.T) {
	s := openStore(t)
	for _, kind := range []disk.Kind{disk.Zero, disk.Random, disk.Sparse, disk.Ext4} {
		for i, size := range []int64{512, mib - 512, 3 * mib, 16 * mib, 17*mib + 512} {
			if kind == disk.Ext4 && size < disk.MinExt4Size {
				continue
			}
			// The first disk is large enough not to meet the quirk of the unit.
			a, b := newImage(t, s, 2*mib+size%mib, disk.Content{Kind: disk.Random, Seed: 1}), newImage(t, s, size, disk.Content{Kind: kind, Seed: 2})
			o := ExportOptions{
				OVA: []byte("<value/>"), Checksum: Checksum(i % 2), ZeroPolicy: ZeroPolicy(i % 3),
				Disks:     []ExportDisk{{"Ref:12", b}, {"Ref:11", a}},
				KeepAlive: func(_ string, block int64) bool { return block%5 == 3 },
			}
			for c := None; c <= Zstd; c++ {
				// Packing random bytes takes long and shows nothing more.
				if o.Compression = c; c != None && size > 3*mib && kind != disk.Sparse && kind != disk.Ext4 {
					continue
				}
				x, y := newImage(t, s, a.Size(), disk.Content{}), newImage(t, s, b.Size(), disk.Content{})
				res, err := Import(context.Background(), bytes.NewReader(export(t, o)), ImportOptions{
					AllowXXHash: true,
					OVA: func(raw []byte) ([]Expected, error) {
						if string(raw) != "<value/>" {
							t.Errorf("ova.xml is %q", raw)
						}
						return []Expected{{"Ref:12", y.Size(), y}, {"Ref:11", x.Size(), x}}, nil
					},
				})
				if err != nil || res.Compression != c {
					t.Fatalf("%v, %d bytes, %v: %v (%v)", kind, size, c, err, res.Compression)
				}
				if digest(t, x) != digest(t, a) || digest(t, y) != digest(t, b) {
					t.Errorf("%v, %d bytes, %v: disks differ", kind, size, c)
				}
			}
		}
	}
	if s.Stored() != 0 {
		t.Errorf("what came back takes %d bytes", s.Stored())
	}
}

func ova() entry { return entry{"ova.xml", []byte("<value/>")} }

func archiveOf(t *testing.T, format tar.Format, parts ...[]entry) []byte {
	t.Helper()
	return put(t, format, append([]entry{ova()}, slices.Concat(parts...)...)...)
}

// TestOffsets shows where chunks land.
func TestOffsets(t *testing.T) {
	a, b, c := pattern(mib, 'a'), pattern(mib, 'b'), pattern(mib, 'c')
	small := pattern(512, 's')
	zeros := make([]byte, 4*mib)
	tests := []struct {
		name  string
		parts [][]entry
		sizes map[string]int
		want  map[string][]byte
	}{
		{"gap", [][]entry{block("Ref:1/00000000", a), block("Ref:1/00000003", b)},
			map[string]int{"Ref:1": 4 * mib},
			map[string][]byte{"Ref:1": slices.Concat(a, zeros[:2*mib], b)}},
		{"empty chunk", [][]entry{block("Ref:1/00000000", a), block("Ref:1/00000002", nil), block("Ref:1/00000003", b)},
			map[string]int{"Ref:1": 3 * mib},
			map[string][]byte{"Ref:1": slices.Concat(a, zeros[:mib], b)}},
		{"short tail", [][]entry{block("Ref:1/00000000", a), block("Ref:1/00000002", small)},
			map[string]int{"Ref:1": 2*mib + 512},
			map[string][]byte{"Ref:1": slices.Concat(a, zeros[:mib], small)}},
		{"padded tail", [][]entry{block("Ref:1/00000000", a), block("Ref:1/00000001", b)},
			map[string]int{"Ref:1": mib + 512},
			map[string][]byte{"Ref:1": slices.Concat(a, b[:512])}},
		{"unit of the first chunk of the file", // a gap of two is 1024 bytes on the second disk, too
			[][]entry{block("Ref:1/00000000", small), block("Ref:2/00000000", a), block("Ref:2/00000003", b), block("Ref:2/00000004", c)},
			map[string]int{"Ref:1": 512, "Ref:2": 3*mib + 1024},
			map[string][]byte{"Ref:1": small, "Ref:2": slices.Concat(a, zeros[:1024], b, c)}},
		{"unpadded names", [][]entry{block("Ref:1/0", a), block("Ref:1/2", b)},
			map[string]int{"Ref:1": 3 * mib},
			map[string][]byte{"Ref:1": slices.Concat(a, zeros[:mib], b)}},
		{"no separator checked", [][]entry{block("Ref:1x00000000", a)},
			map[string]int{"Ref:1": mib}, map[string][]byte{"Ref:1": a}},
		{"disks as strings", [][]entry{block("Ref:10/00000000", a), block("Ref:7/00000000", b)},
			map[string]int{"Ref:7": mib, "Ref:10": mib},
			map[string][]byte{"Ref:10": a, "Ref:7": b}},
		{"no disks", nil, nil, nil},
		{"disk of no bytes", nil, map[string]int{"Ref:1": 0}, nil},
		{"what follows is not read", [][]entry{block("Ref:1/00000000", a), block("whatever", nil)},
			map[string]int{"Ref:1": mib}, map[string][]byte{"Ref:1": a}},
	}
	for _, tt := range tests {
		for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
			got, err := imported(archiveOf(t, format, tt.parts...), tt.sizes,
				func(o *ImportOptions) { o.AllowPAX = format == tar.FormatPAX })
			if err != nil {
				t.Errorf("%s, %v: %v", tt.name, format, err)
			}
			for dir, want := range tt.want {
				if !bytes.Equal(got[dir], want) {
					t.Errorf("%s, %v: disk %s differs", tt.name, format, dir)
				}
			}
		}
	}
}

// TestRefusals lists what XAPI says to archives that are wrong.
func TestRefusals(t *testing.T) {
	a := pattern(mib, 'a')
	good := block("Ref:1/00000000", a)
	sized := map[string]int{"Ref:1": 2 * mib}
	const invalid = `IMPORT_ERROR INTERNAL_ERROR: [ Stream_vdi.Failure("Invalid XVA file") ]`
	tests := []struct {
		name  string
		b     []byte
		sizes map[string]int
		want  string
	}{
		{"empty", nil, nil, "IMPORT_ERROR_PREMATURE_EOF "},
		{"not an archive", pattern(4000, 'x'), nil, "IMPORT_ERROR_PREMATURE_EOF "},
		{"a plain archive of something else", put(t, tar.FormatUSTAR, entry{"readme", a}), nil, "IMPORT_ERROR_PREMATURE_EOF "},
		{"a compressed archive of something else", packed(t, put(t, tar.FormatUSTAR, entry{"readme", a}), Gzip), nil,
			"IMPORT_ERROR_UNEXPECTED_FILE ova.xml; readme"},
		{"ends before the last chunk", archiveOf(t, tar.FormatUSTAR, good), sized,
			"IMPORT_ERROR INTERNAL_ERROR: [ Tar.Header.End_of_stream ]"},
		{"another disk", archiveOf(t, tar.FormatUSTAR, block("Ref:2/00000000", a)), sized, invalid},
		{"order of disks", archiveOf(t, tar.FormatUSTAR, block("Ref:7/00000000", a), block("Ref:10/00000000", a)),
			map[string]int{"Ref:7": mib, "Ref:10": mib}, invalid},
		{"same number", archiveOf(t, tar.FormatUSTAR, good, good), sized, invalid},
		{"falling number", archiveOf(t, tar.FormatUSTAR, block("Ref:1/00000001", a), good), map[string]int{"Ref:1": 3 * mib},
			invalid},
		{"prefix of another", archiveOf(t, tar.FormatUSTAR, block("Ref:10/00000000", a)), sized,
			`IMPORT_ERROR INTERNAL_ERROR: [ Failure("int_of_string") ]`},
		{"name without number", archiveOf(t, tar.FormatUSTAR, block("Ref:1", a)), sized,
			"IMPORT_ERROR INTERNAL_ERROR: [ Invalid argument: String.sub / Bytes.sub ]"},
		{"hundred millionth chunk", archiveOf(t, tar.FormatUSTAR, good, block("Ref:1/99999999", nil), block("Ref:1/100000000", a)),
			map[string]int{"Ref:1": 2 * mib}, `IMPORT_ERROR INTERNAL_ERROR: [ Unix.Unix_error(Unix.EINVAL, "lseek", "") ]`},
		{"behind the end", archiveOf(t, tar.FormatUSTAR, good, block("Ref:1/00000009", a)), sized,
			`IMPORT_ERROR INTERNAL_ERROR: [ Unix.Unix_error(Unix.EINVAL, "lseek", "") ]`},
		{"at the end", archiveOf(t, tar.FormatUSTAR, good, block("Ref:1/00000002", a)), sized,
			`IMPORT_ERROR INTERNAL_ERROR: [ Unix.Unix_error(Unix.ENOSPC, "write", "") ]`},
		{"no checksum", archiveOf(t, tar.FormatUSTAR, good[:1], block("Ref:1/00000001", a)), sized,
			`IMPORT_ERROR INTERNAL_ERROR: [ Stream_vdi.Failure("Found unsupported checksum file: Ref:1/00000001") ]`},
		{"checksum of another", archiveOf(t, tar.FormatUSTAR, good[:1], block("Ref:1/00000001", a)[1:]), sized,
			"IMPORT_ERROR INTERNAL_ERROR: [ Not_found ]"},
		{"large chunk", archiveOf(t, tar.FormatUSTAR, block("Ref:1/00000000", pattern(17*mib, 'x'))),
			map[string]int{"Ref:1": 17 * mib},
			"IMPORT_ERROR INTERNAL_ERROR: [ chunk Ref:1/00000000 of 17825792 bytes is larger than 16777216 ]"},
		{"pax where it is not known", put(t, tar.FormatPAX, ova()), nil, "IMPORT_ERROR_PREMATURE_EOF "},
	}
	for _, tt := range tests {
		if _, err := imported(tt.b, tt.sizes, nil); code(err) != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, code(err), tt.want)
		}
	}
}

// packed compresses as an export does.
func packed(t *testing.T, b []byte, c Compression) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := compressor(&gather{w: &out}, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestChecksums(t *testing.T) {
	a, b := pattern(mib, 'a'), pattern(mib, 'b')
	wrong := block("Ref:1/00000000", a)
	wrong[0].data = b
	sizes := map[string]int{"Ref:1": mib}
	got, err := imported(archiveOf(t, tar.FormatUSTAR, wrong), sizes, nil)
	want := fmt.Sprintf(`IMPORT_ERROR INTERNAL_ERROR: [ Stream_vdi.Invalid_checksum(`+
		`"Block Ref:1/00000000 checksum failed: original = %s; recomputed = %s") ]`,
		wrong[1].data, block("", b)[1].data)
	if code(err) != want {
		t.Errorf("wrong checksum: %s, want %s", code(err), want)
	}
	if !bytes.Equal(got["Ref:1"], b) {
		t.Error("the block was not written before its checksum was looked at")
	}
	force := func(o *ImportOptions) { o.Force = true }
	if got, err = imported(archiveOf(t, tar.FormatUSTAR, wrong), sizes, force); err != nil || !bytes.Equal(got["Ref:1"], b) {
		t.Errorf("force: %v", err)
	}
	lower := block("Ref:1/00000000", a)
	lower[1].data = bytes.ToLower(lower[1].data)
	if _, err := imported(archiveOf(t, tar.FormatUSTAR, lower), sizes, nil); !strings.Contains(code(err), "Invalid_checksum") {
		t.Errorf("lower-case digits: %v", err)
	}

	old := func(o *ImportOptions) { o.AllowXXHash = false }
	_, err = imported(archiveOf(t, tar.FormatUSTAR, block("Ref:1/00000000", a)), sizes, old)
	if !strings.Contains(code(err), "Expected to find an inline checksum file, instead found a file called: Ref:1/00000000.xxhash") {
		t.Errorf("xxhash on an old host: %v", err)
	}
	sha := []entry{{"Ref:1/00000000", make([]byte, mib)}, {"Ref:1/00000000.checksum", []byte("3b71f43ff30f4b15b5cd85dd9e95ebc7e84eb5a3")}}
	if _, err := imported(archiveOf(t, tar.FormatUSTAR, sha), sizes, old); err != nil {
		t.Errorf("SHA-1 on an old host: %v", err)
	}
}

// cut is a connection that breaks with an error of its own.
type cut struct {
	io.Reader
	err error
}

func (c cut) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err == io.EOF {
		err = c.err
	}
	return n, err
}

// small is an archive of two disks of little data, and their sizes.
func small(t *testing.T) ([]byte, map[string]int) {
	t.Helper()
	o := ExportOptions{OVA: []byte("<value/>"), Disks: []ExportDisk{
		{"Ref:1", memory(pattern(1024, 'a'))}, {"Ref:2", memory(pattern(512, 'b'))}}}
	return export(t, o), map[string]int{"Ref:1": 1024, "Ref:2": 512}
}

// TestTruncation cuts an archive everywhere: only the two zero blocks at the end
// may be missing.
func TestTruncation(t *testing.T) {
	b, sizes := small(t)
	for n := range b {
		_, err := imported(b[:n], sizes, nil)
		if n >= len(b)-1024 {
			if err != nil {
				t.Errorf("without its zero blocks: %v", err)
			}
			continue
		}
		if code(err) != "IMPORT_ERROR_PREMATURE_EOF " {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if n%97 == 0 { // a reset is told apart
			_, err := Import(context.Background(), cut{bytes.NewReader(b[:n]), errFull},
				ImportOptions{AllowXXHash: true, OVA: expect(sizes)})
			if !errors.Is(err, errFull) || !strings.Contains(code(err), "ECONNRESET") {
				t.Fatalf("reset at %d: %v", n, err)
			}
		}
	}
	for _, c := range []Compression{Gzip, Zstd} {
		p := packed(t, b, c)
		for n := range len(p) - 20 {
			if _, err := imported(p[:n], sizes, nil); n < len(p)/2 && code(err) != "IMPORT_ERROR_PREMATURE_EOF " {
				t.Fatalf("%v cut at %d: %v", c, n, err)
			}
		}
	}
}

func expect(sizes map[string]int) func([]byte) ([]Expected, error) {
	return func([]byte) ([]Expected, error) {
		var all []Expected
		for dir, n := range sizes {
			all = append(all, Expected{dir, int64(n), make(memory, n)})
		}
		return all, nil
	}
}

// TestFlips changes every byte in turn: either the import fails, or the disks are
// as they were. XAPI's importer does not look at everything, but at what counts.
func TestFlips(t *testing.T) {
	b, sizes := small(t)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range b {
		flipped := bytes.Clone(b)
		flipped[i] ^= 1 << rng.IntN(8)
		got, err := imported(flipped, sizes, nil)
		var f *Failure
		if err != nil && !errors.As(err, &f) {
			t.Fatalf("byte %d: %v is not a Failure", i, err)
		}
		if err == nil && (!bytes.Equal(got["Ref:1"], pattern(1024, 'a')) || !bytes.Equal(got["Ref:2"], pattern(512, 'b'))) {
			t.Fatalf("byte %d: other disks without a word", i)
		}
	}
}

// TestStops sees that nothing is read behind the last checksum.
func TestStops(t *testing.T) {
	b, sizes := small(t)
	r := bytes.NewReader(b)
	if _, err := Import(context.Background(), r, ImportOptions{AllowXXHash: true, OVA: expect(sizes)}); err != nil {
		t.Fatal(err)
	}
	if r.Len() != 1024 {
		t.Errorf("%d bytes are left unread, want the two zero blocks", r.Len())
	}
}

type writeFails struct{ err error }

func (w writeFails) WriteAt([]byte, int64) (int, error) { return 0, w.err }

func TestErrorsOfOthers(t *testing.T) {
	b, _ := small(t)
	errOVA := errors.New("incompatible version")
	_, err := Import(context.Background(), bytes.NewReader(b), ImportOptions{
		OVA: func([]byte) ([]Expected, error) { return nil, errOVA }})
	if !errors.Is(err, errOVA) {
		t.Errorf("OVA's error comes as %v", err)
	}
	for cause, want := range map[error]string{
		errBroken:                       "VDI_IO_ERROR Device I/O error",
		&Failure{Code: "SR_FULL"}:       "SR_FULL ",
		fmt.Errorf("no: %w", errBroken): "VDI_IO_ERROR Device I/O error",
	} {
		_, err := Import(context.Background(), bytes.NewReader(b), ImportOptions{
			OVA: func([]byte) ([]Expected, error) { return []Expected{{"Ref:1", 1024, writeFails{cause}}}, nil }})
		if code(err) != want || !errors.Is(err, cause) {
			t.Errorf("%v comes as %v", cause, err)
		}
	}
}

func TestImportCancelled(t *testing.T) {
	a := pattern(mib, 'a')
	b := archiveOf(t, tar.FormatUSTAR, block("Ref:1/00000000", a), block("Ref:1/00000001", a))
	for _, after := range []int64{mib, 2 * mib} {
		ctx, cancel := context.WithCancelCause(context.Background())
		_, err := Import(ctx, bytes.NewReader(b), ImportOptions{
			AllowXXHash: true, OVA: expect(map[string]int{"Ref:1": 2 * mib}),
			Progress: func(done, total int64) {
				if total != 2*mib {
					t.Errorf("total is %d", total)
				}
				if done >= after {
					cancel(errBroken)
				}
			},
		})
		if !errors.Is(err, errBroken) {
			t.Errorf("cancelled after %d bytes: %v", after, err)
		}
	}
}

// FuzzImport looks that nothing from outside makes the importer panic.
func FuzzImport(f *testing.F) {
	o := ExportOptions{OVA: []byte("<value/>"), Disks: []ExportDisk{{"Ref:1", memory(pattern(1024, 'a'))}}}
	for c := None; c <= Zstd; c++ {
		o.Compression = c
		f.Add(export(f, o), true)
	}
	f.Add(put(f, tar.FormatPAX, ova(), entry{"Ref:1/" + strings.Repeat("0", 150), nil}), true)
	f.Add(put(f, tar.FormatGNU, ova(), entry{"Ref:1/" + strings.Repeat("0", 150), nil}), true)
	f.Fuzz(func(t *testing.T, b []byte, pax bool) {
		_, err := imported(b, map[string]int{"Ref:1": 1024, "Ref:2": 512},
			func(o *ImportOptions) { o.AllowPAX = pax; o.Force = pax })
		var failed *Failure
		if err != nil && !errors.As(err, &failed) {
			t.Errorf("%v is not a Failure", err)
		}
	})
}
