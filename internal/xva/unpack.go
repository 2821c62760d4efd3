package xva

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd stream may ask for: that of zstd's own
// --long. XAPI's streams ask for 2 MiB.
const maxWindow = 128 << 20

// magicBytes is how many bytes tell plain, gzip and zstd apart.
const magicBytes = 4

// sniff tells how an archive is packed from its first magicBytes bytes. What is
// neither gzip nor zstd is read as a plain archive.
func sniff(head []byte) Compression {
	switch {
	case len(head) >= 2 && head[0] == 0x1F && head[1] == 0x8B:
		return Gzip
	case len(head) >= 4 && head[0] == 0x28 && head[1] == 0xB5 && head[2] == 0x2F && head[3] == 0xFD:
		return Zstd
	}
	return Plain
}

// unpacker gives the tar stream of an archive.
type unpacker struct {
	kind Compression
	src  *source
	raw  *bufio.Reader
	gz   *gzip.Reader
	zs   *zstd.Decoder
	end  *zstdFrame
}

// source remembers an error of the underlying reader, so that it is not taken
// for a fault of the file.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// newUnpacker looks at the first bytes of r.
func newUnpacker(r io.Reader) (*unpacker, error) {
	u := &unpacker{src: &source{r: r}}
	u.raw = bufio.NewReaderSize(u.src, 32<<10)
	head, err := u.raw.Peek(magicBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading XVA: %w", err)
	}
	u.kind = sniff(head)
	switch u.kind {
	case Gzip:
		// Of a bufio.Reader the decompressor takes not a byte too many.
		if u.gz, err = gzip.NewReader(u.raw); err != nil {
			return nil, u.fault(err)
		}
		u.gz.Multistream(false)
	case Zstd:
		u.end = &zstdFrame{r: u.raw}
		u.zs, err = zstd.NewReader(u.end, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(1<<62))
		if err != nil {
			return nil, u.fault(err)
		}
	}
	return u, nil
}

// Read gives bytes of the tar stream. io.EOF comes only at the end of the
// compressed stream, and after it nothing.
func (u *unpacker) Read(p []byte) (int, error) {
	var n int
	var err error
	switch u.kind {
	case Gzip:
		n, err = u.gz.Read(p)
	case Zstd:
		n, err = u.zs.Read(p)
		if errors.Is(err, io.EOF) && u.end.err != nil {
			// The decoder takes a header cut short for an end.
			err = u.end.err
		}
	default:
		n, err = u.raw.Read(p)
		if err != nil && !errors.Is(err, io.EOF) {
			err = fmt.Errorf("reading XVA: %w", err)
		}
		return n, err
	}
	if errors.Is(err, io.EOF) {
		if _, more := u.raw.ReadByte(); more == nil {
			return n, bad(ErrTrailing, "something follows the %s stream", u.kind)
		} else if !errors.Is(more, io.EOF) {
			return n, fmt.Errorf("reading XVA: %w", more)
		}
	} else if err != nil {
		err = u.fault(err)
	}
	return n, err
}

// fault turns a decompressor's error into ours.
func (u *unpacker) fault(err error) error {
	var fe *FormatError
	switch {
	case u.src.err != nil:
		return fmt.Errorf("reading XVA: %w", u.src.err)
	case errors.As(err, &fe):
		return fe
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return bad(ErrTruncated, "%s stream ends too early", u.kind)
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, zstd.ErrCRCMismatch):
		return bad(ErrChecksum, "%s stream: %v", u.kind, err)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return bad(ErrUnsupported, "zstd stream needs a window of more than %d bytes", maxWindow)
	}
	return bad(ErrFormat, "%s stream: %v", u.kind, err)
}

func (u *unpacker) close() {
	if u.zs != nil {
		u.zs.Close()
	}
}

// zstdFrame passes on the bytes of one zstd frame and ends where it ends, since
// a decoder would go on with the next. It knows the frame's outer form only (RFC
// 8878 section 3.1.1).
type zstdFrame struct {
	r     *bufio.Reader
	state zstdPart
	left  int  // bytes to pass on before the next part
	check bool // a checksum follows the last block
	err   error
}

type zstdPart int

const (
	zstdHeader zstdPart = iota
	zstdBlock
	zstdLast
	zstdEnd
)

// Read passes on the next bytes of the frame. Only at its end it gives io.EOF.
func (f *zstdFrame) Read(p []byte) (int, error) {
	for f.left == 0 {
		if f.err != nil {
			return 0, f.err
		}
		if f.state == zstdEnd {
			return 0, io.EOF
		}
		f.err = noEOF(f.part())
	}
	n, err := f.r.Read(p[:min(len(p), f.left)])
	f.left -= n
	f.err = noEOF(err)
	return n, f.err
}

// part finds out how long the next part of the frame is.
func (f *zstdFrame) part() error {
	switch f.state {
	case zstdHeader:
		head, _ := f.r.Peek(zstd.HeaderMaxSize)
		var h zstd.Header
		if err := h.Decode(head); err != nil {
			return err
		}
		if h.Skippable {
			return bad(ErrUnsupported, "zstd stream that begins with a skippable frame")
		}
		f.left, f.check, f.state = h.HeaderSize, h.HasCheckSum, zstdBlock
	case zstdBlock:
		b, err := f.r.Peek(3)
		if err != nil {
			return err
		}
		v := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		f.left = 3 + v>>3
		if v>>1&3 == 1 {
			f.left = 3 + 1 // a repeated byte
		}
		if v&1 == 1 {
			f.state = zstdLast
		}
	case zstdLast:
		f.state = zstdEnd
		if f.check {
			f.left = 4
		}
	}
	return nil
}

// noEOF is for where an end of the bytes comes too early.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
