package xva

import (
	"errors"
	"fmt"
	"io"
)

// Reader reads an archive chunk by chunk, checking all that can be checked from
// the bytes: tar headers, ova.xml, order, numbers, checksums, that every disk of
// ova.xml is whole, and the end. A Reader is for one goroutine.
type Reader struct {
	u    *unpacker
	s    *scanner
	buf  []byte
	rest []byte // of buf, not yet scanned
	end  error  // why no more can be read: io.EOF or an error
	err  error
	done bool
}

// readBuffer is the portion in which archives are read.
const readBuffer = 128 << 10

// NewReader looks at how the archive is packed (plain, or as a whole one gzip
// member or one zstd frame) and reads its ova.xml. Faults of the file are
// *FormatError; errors of r come wrapped. A Reader that is given up before its
// end should be closed.
func NewReader(r io.Reader, o ReaderOptions) (*Reader, error) {
	return newReader(r, o, MaxBlock)
}

func newReader(r io.Reader, o ReaderOptions, keep int64) (*Reader, error) {
	u, err := newUnpacker(r)
	if err != nil {
		return nil, err
	}
	o.Past = nil // whoever reads has no way to read again, and gets the chunks
	rd := &Reader{u: u, s: newScanner(o, keep), buf: make([]byte, readBuffer)}
	if _, err := rd.until(evOVA); err != nil {
		rd.Close()
		return nil, err
	}
	return rd, nil
}

// OVA gives the ova.xml.
func (r *Reader) OVA() *OVA { return r.s.ova }

// RawOVA gives the bytes of ova.xml, which must not be changed.
func (r *Reader) RawOVA() []byte { return r.s.raw }

// Compression tells how the archive is packed.
func (r *Reader) Compression() Compression { return r.u.kind }

// Next gives the next chunk, whose checksum was found right. io.EOF comes only
// after all disks were complete and the archive had its proper end.
func (r *Reader) Next() (*Block, error) {
	more, err := r.until(evBlock)
	if err != nil {
		return nil, err
	}
	if !more {
		return nil, io.EOF
	}
	return &r.s.cur, nil
}

// Report gives what was found, after Next returned io.EOF; before, it is nil.
func (r *Reader) Report() *Report {
	if !r.done {
		return nil
	}
	return r.s.result(r.u.kind)
}

// Close frees what a decompressor holds. It does not close the source.
func (r *Reader) Close() {
	r.u.close()
	if r.err == nil {
		r.err = errors.New("xva: reader is closed")
	}
}

// until reads up to an event; false is the proven end of the archive.
func (r *Reader) until(want event) (bool, error) {
	for r.err == nil && !r.done {
		for len(r.rest) > 0 {
			n, ev, err := r.s.feed(r.rest)
			r.rest = r.rest[n:]
			if err != nil {
				r.err = err
				return false, err
			}
			if ev == want {
				return true, nil
			}
		}
		if r.err = r.fill(); r.err != nil {
			return false, r.err
		}
	}
	return false, r.err
}

// fill reads the next portion, or concludes the archive. An error of the source
// counts only after what was read before it: that may tell more, as of a host
// that broke off.
func (r *Reader) fill() error {
	switch {
	case errors.Is(r.end, io.EOF):
		if err := r.s.finish(); err != nil {
			return err
		}
		r.done = true
		r.u.close()
		return nil
	case r.end != nil:
		return r.end
	}
	for range 100 {
		var n int
		n, r.end = r.u.Read(r.buf)
		r.rest = r.buf[:n]
		if n > 0 || r.ended() {
			return nil
		}
	}
	return fmt.Errorf("reading XVA: %w", io.ErrNoProgress)
}

// ended tells whether the source has given its last bytes.
func (r *Reader) ended() bool { return r.end != nil }

// Verify reads a whole archive and tells what is in it, or what is wrong with
// it. Its memory does not depend on the archive's size.
func Verify(r io.Reader, o ReaderOptions) (*Report, error) {
	rd, err := newReader(r, o, BlockSize)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	for {
		if _, err := rd.Next(); errors.Is(err, io.EOF) {
			return rd.Report(), nil
		} else if err != nil {
			return nil, err
		}
	}
}
