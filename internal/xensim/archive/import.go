package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Expected is a disk that the importer waits for.
type Expected struct {
	// Dir is the id of the VDI in ova.xml.
	Dir string
	// Size is the virtual size in bytes: the disk is complete when it is reached.
	Size int64
	// Image takes the data. What lies behind Size is not written to it. A
	// *Failure from WriteAt is passed on as it is, any other error reads as EIO.
	Image io.WriterAt
}

// ImportOptions says how Import reads.
type ImportOptions struct {
	// OVA is called once, with the whole of ova.xml, and says which disks are to
	// follow, in any order. Its error ends the import and is passed on as it is.
	OVA func(raw []byte) ([]Expected, error)
	// Force ignores wrong checksums, as XAPI does with force=true.
	Force bool
	// AllowXXHash takes ".xxhash" entries; hosts before 8.1 do not.
	AllowXXHash bool
	// AllowPAX takes pax and GNU long-name headers; XAPI does since 24.2.0.
	AllowPAX bool
	// Progress, if any, is told after each chunk how many bytes of the disks,
	// skipped ones included, are done. It must not take long.
	Progress func(done, total int64)
	// ExportVersion, if any, is asked after OVA for export_vsn of the archive; it is
	// 2 without. Below 2 a table of the chunks' SHA-1 sums ends the archive, which
	// Table reads; with 0 there are none between the chunks.
	ExportVersion func() int
	Table         func(raw []byte) (map[string]string, error)
}

// Result says what was read.
type Result struct {
	Compression Compression
	Chunks      int64 // chunks of all disks, empty ones included
	Bytes       int64 // their bytes
}

const (
	// maxOVA bounds ova.xml, which is read into memory.
	maxOVA = 64 << 20
	// maxChunk bounds a chunk, which is read into memory. XAPI has no bound but
	// dom0's memory; nobody writes chunks of more than 1 MiB.
	maxChunk = 16 << 20
	// maxSum bounds a checksum entry, maxSums the number of those that are kept to
	// be compared with a table: 4 TiB in chunks of 1 MiB.
	maxSum  = 4096
	maxSums = 4 << 20

	ovaName = "ova.xml"
)

// Import reads an XVA stream as XAPI's importer does and writes the disks. It
// reads nothing after the last disk's last checksum entry of a plain archive;
// of a compressed one it may have read ahead. It ends with ctx between two
// chunks; a read that blocks is the caller's to unblock. Errors: *Failure for
// what XAPI reports on the task, the error of OVA, the cause of ctx.
func Import(ctx context.Context, r io.Reader, o ImportOptions) (Result, error) {
	res, err := importAll(ctx, r, o)
	if err != nil && ctx.Err() != nil { // whatever it broke in the reader or a disk
		return res, context.Cause(ctx)
	}
	return res, err
}

func importAll(ctx context.Context, r io.Reader, o ImportOptions) (Result, error) {
	in, err := open(r, o.AllowPAX)
	if err != nil {
		return Result{}, err
	}
	defer in.close()
	im := &importer{in: in, o: o, unit: -1, version: 2, res: Result{Compression: in.compression}}
	disks, err := im.ova()
	if err != nil {
		return im.res, err
	}
	if o.ExportVersion != nil {
		im.version = o.ExportVersion()
	}
	if err := im.disks(ctx, disks); err != nil || im.version >= 2 {
		return im.res, err
	}
	return im.res, im.table()
}

// ImportDisks reads the chunks of the given disks, without ova.xml and never
// compressed: the format tar of a single VDI. OVA is not used. Errors as Import's.
func ImportDisks(ctx context.Context, r io.Reader, disks []Expected, o ImportOptions) (Result, error) {
	im := &importer{in: &input{r: r, pax: o.AllowPAX, close: func() {}}, o: o, unit: -1, version: 2}
	err := im.disks(ctx, disks)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return im.res, err
}

type importer struct {
	in    *input
	o     ImportOptions
	unit  int64 // length of the first chunk of the whole file; -1 before it
	buf   []byte
	done  int64
	total int64
	res   Result
	// version is export_vsn; sums are those of all chunks where it is below 2.
	version int
	sums    map[string]string
}

func (im *importer) ova() ([]Expected, error) {
	h := im.in.first
	if h.size > maxOVA {
		return nil, internal(nil, "ova.xml of %d bytes is larger than %d", h.size, maxOVA)
	}
	raw, err := im.in.content(h.size)
	if err != nil {
		return nil, err
	}
	if err := im.in.skip(h.padding()); err != nil {
		return nil, err
	}
	return im.o.OVA(raw)
}

// disks reads all that are expected, in the order of their directories.
func (im *importer) disks(ctx context.Context, disks []Expected) error {
	slices.SortStableFunc(disks, func(a, b Expected) int { return strings.Compare(a.Dir, b.Dir) })
	for _, d := range disks {
		im.total += d.Size
	}
	for _, d := range disks {
		if err := im.disk(ctx, d); err != nil {
			return err
		}
	}
	return context.Cause(ctx) // XAPI looks once more after the data
}

// disk reads chunks until the virtual size is reached. XAPI writes at the file's
// own position but counts by names and lengths: at and offset part if the numbers
// ever fall, which the comparison as strings lets through.
func (im *importer) disk(ctx context.Context, d Expected) error {
	last, lastNumber := "-1", int64(-1)
	var offset, at int64
	for offset < d.Size {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		h, err := im.in.next()
		if err != nil {
			return err
		}
		if im.unit < 0 {
			im.unit = h.size
		}
		suffix, number, err := chunkNumber(d.Dir, last, h.name)
		if err != nil {
			return err
		}
		skipped := (number - lastNumber - 1) * im.unit
		if at += max(0, skipped); skipped > 0 && at > d.Size {
			return internal(nil, `Unix.Unix_error(Unix.EINVAL, "lseek", "")`) // as of a block device
		}
		if err := im.chunk(h, d, at); err != nil {
			return err
		}
		at += h.size
		offset += skipped + h.size
		last, lastNumber = suffix, number
		im.done += skipped + h.size
		if im.o.Progress != nil {
			im.o.Progress(im.done, im.total)
		}
	}
	return nil
}

// chunkNumber takes the number from a chunk's name. Only the prefix is compared,
// and one byte more is cut off whatever it is; a chunk of disk Ref:10 where one
// of Ref:1 should be fails by its number.
func chunkNumber(dir, last, name string) (string, int64, error) {
	if !strings.HasPrefix(name, dir) {
		return "", 0, failure("Stream_vdi.Failure", "Invalid XVA file")
	}
	if len(name) == len(dir) {
		return "", 0, internal(nil, "Invalid argument: String.sub / Bytes.sub")
	}
	suffix := name[len(dir)+1:]
	if suffix <= last {
		return "", 0, failure("Stream_vdi.Failure", "Invalid XVA file")
	}
	number, ok := parseNumber(suffix)
	if !ok {
		return "", 0, failure("Failure", "int_of_string")
	}
	return suffix, number, nil
}

// parseNumber reads decimal digits; so few that no offset overflows.
func parseNumber(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	var n int64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 1<<34 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// chunk reads one chunk, writes it at at, and only then looks at its checksum.
func (im *importer) chunk(h header, d Expected, at int64) error {
	if h.size > maxChunk {
		return internal(nil, "chunk %s of %d bytes is larger than %d", h.name, h.size, maxChunk)
	}
	if h.size > int64(len(im.buf)) {
		im.buf = make([]byte, h.size)
	}
	data := im.buf[:h.size]
	if err := im.in.read(data); err != nil {
		return err
	}
	if err := write(d, data, at); err != nil {
		return err
	}
	im.res.Chunks++
	im.res.Bytes += h.size
	// Here XAPI reads the next header first and the padding after it, which no
	// chunk of a block device has: its size is a multiple of 512.
	if err := im.in.skip(h.padding()); err != nil {
		return err
	}
	if im.version < 2 {
		if err := im.keep(h.name, data); err != nil || im.version < 1 && !im.o.AllowXXHash {
			return err
		}
	}
	return im.checksum(h.name, data)
}

// write writes as a block device does: what is behind the end is lost without a
// word, but for a write that begins there.
func write(d Expected, data []byte, at int64) error {
	if len(data) == 0 {
		return nil
	}
	if at < 0 || at >= d.Size {
		return internal(nil, `Unix.Unix_error(Unix.ENOSPC, "write", "")`)
	}
	_, err := d.Image.WriteAt(data[:min(int64(len(data)), d.Size-at)], at)
	if err == nil {
		return nil
	}
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{Code: CodeVDIIOError, Params: []string{"Device I/O error"},
		Err: fmt.Errorf("writing disk %s: %w", d.Dir, err)}
}
