package xva

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// BlockSize is the length in bytes of every chunk that XAPI writes but the last
// of a disk, which may be shorter.
const BlockSize = 1 << 20

// MaxBlockNumber is the highest number that a chunk may have: its name has eight
// digits and the importer compares names as strings.
const MaxBlockNumber = 99_999_999

// maxDiskSize is the greatest disk that chunk numbers of MaxBlock bytes could
// reach; sums of positions within it cannot overflow.
const maxDiskSize = (MaxBlockNumber + 1) * MaxBlock

// MaxBlock is the greatest chunk in bytes that is read; hosts write BlockSize.
const MaxBlock = 64 << 20

const ovaName = "ova.xml"

var zeros [1024]byte

// WriterOptions says how a Writer writes. The zero value is what a recent
// XenServer does, but for the time in ova.xml's header.
type WriterOptions struct {
	// Checksum is the kind of the checksum entries.
	Checksum ChecksumKind
	// OVAModTime is the time in the header of ova.xml; the zero time writes 0,
	// as hosts before 24.13.0 do.
	OVAModTime time.Time
}

// Writer writes an XVA stream byte for byte as XAPI does: V7 tar headers, each
// chunk followed by its checksum entry, two zero blocks at the end. It does not
// check the order of chunks or that disks are complete. A Writer is for one
// goroutine; after an error every call returns that error.
type Writer struct {
	w       io.Writer
	o       WriterOptions
	small   [4 * tarBlock]byte
	written int64
	err     error
}

// NewWriter returns a Writer to w, which is not buffered: each chunk makes three
// writes, the middle one of the caller's own data.
func NewWriter(w io.Writer, o WriterOptions) *Writer {
	return &Writer{w: w, o: o}
}

// Written gives the number of bytes written so far.
func (w *Writer) Written() int64 { return w.written }

// WriteOVA writes ova.xml, which must come first and once. b is not retained.
func (w *Writer) WriteOVA(b []byte) error {
	if w.err == nil && w.written != 0 {
		return fmt.Errorf("xva: ova.xml must be the first entry")
	}
	var mtime int64
	if !w.o.OVAModTime.IsZero() {
		mtime = w.o.OVAModTime.Unix()
	}
	putV7Header((*[tarBlock]byte)(w.small[:]), ovaName, int64(len(b)), mtime)
	w.write(w.small[:tarBlock])
	w.write(b)
	w.write(zeros[:padding(int64(len(b)))])
	return w.err
}

// WriteBlock writes a chunk and its checksum entry. dir is the id of the VDI in
// ova.xml, number the chunk's number from 0 to MaxBlockNumber; an empty data
// makes the zero-length chunk that XAPI sends to keep connections alive. data is
// neither retained nor changed.
func (w *Writer) WriteBlock(dir string, number int64, data []byte) error {
	return w.WriteBlockSum(dir, number, data, w.o.Checksum.Sum(data))
}

// WriteBlockSum is WriteBlock with a checksum known beforehand, of the Writer's
// kind. It is written as given.
func (w *Writer) WriteBlockSum(dir string, number int64, data []byte, sum string) error {
	return w.writeChunk(dir, number, data, w.o.Checksum, sum)
}

func (w *Writer) writeChunk(dir string, number int64, data []byte, kind ChecksumKind, sum string) error {
	if w.err != nil {
		return w.err
	}
	if err := checkDir(dir); err != nil {
		return err
	}
	if number < 0 || number > MaxBlockNumber {
		return fmt.Errorf("xva: block number %d of disk %s is outside 0 to %d", number, dir, MaxBlockNumber)
	}
	if len(sum) != kind.Len() {
		return fmt.Errorf("xva: checksum %q is not one of %s", sum, kind)
	}
	name := blockName(dir, number)
	small := w.small[:]
	putV7Header((*[tarBlock]byte)(small), name, int64(len(data)), 0)
	w.write(small[:tarBlock])
	w.write(data)
	pad := padding(int64(len(data)))
	clear(small[:pad])
	putV7Header((*[tarBlock]byte)(small[pad:]), name+kind.Suffix(), int64(len(sum)), 0)
	n := pad + tarBlock
	clear(small[n+copy(small[n:], sum) : n+tarBlock])
	w.write(small[:n+tarBlock])
	return w.err
}

// Close writes the two zero blocks that end the archive. It does not close the
// underlying writer. A second Close does nothing.
func (w *Writer) Close() error {
	if errors.Is(w.err, errWriterClosed) {
		return nil
	}
	w.write(zeros[:2*tarBlock])
	if w.err != nil {
		return w.err
	}
	w.err = errWriterClosed
	return nil
}

var errWriterClosed = errors.New("xva: writer is closed")

func (w *Writer) write(p []byte) {
	if w.err != nil || len(p) == 0 {
		return
	}
	n, err := w.w.Write(p)
	w.written += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.err = fmt.Errorf("writing XVA at byte %d: %w", w.written, err)
	}
}

// blockName gives the tar name of a chunk.
func blockName(dir string, number int64) string {
	return fmt.Sprintf("%s/%08d", dir, number)
}
