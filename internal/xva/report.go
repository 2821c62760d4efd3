package xva

// Compression is how the tar stream is packed as a whole.
type Compression string

// The kinds of packing that XAPI knows.
const (
	Plain Compression = "none"
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// Report is what a whole verification found. It is also the knowledge with
// which Rewrite and RewriteLength foretell an archive; they take only reports
// made by this package's verification of the same file.
type Report struct {
	Compression Compression
	// Checksum is "xxhash", "sha1", "mixed", or empty where there is no chunk.
	Checksum string
	// ArchiveBytes counts the decompressed tar stream, with its end blocks and
	// whatever padding followed them.
	ArchiveBytes int64
	// Blocks counts all chunks, ZeroLength those that hold nothing and only
	// kept the connection alive.
	Blocks, ZeroLength int64
	// Disks is in the archive's order.
	Disks []DiskReport
	OVA   *OVA
	// RawOVA is ova.xml as it was in the file. It must not be changed.
	RawOVA []byte

	unit int64
}

// DiskReport is what a verification found of one disk.
type DiskReport struct {
	Disk
	// Blocks counts the disk's chunks, zero-length ones too.
	Blocks int64
	// DataBytes counts the bytes in its chunks.
	DataBytes int64
	// ArchiveBytes counts the tar bytes of its chunks and checksums with
	// headers and padding, without pax records.
	ArchiveBytes int64

	first  int64 // length of chunk 0
	absent int64 // absent chunks
}

// count adds a chunk that comes after gap absent ones.
func (d *DiskReport) count(gap, length int64) {
	if d.Blocks == 0 {
		d.first = length
	}
	d.Blocks++
	d.absent += gap
	d.DataBytes += length
	d.ArchiveBytes += entryBytes(length)
}

// entryBytes gives the tar bytes of a chunk and its checksum entry.
func entryBytes(length int64) int64 { return tarBlock + padded(length) + 2*tarBlock }
