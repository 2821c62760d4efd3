package transfer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/mem"
)

// WireZstd names the only compression of frames on the wire.
const WireZstd = "zstd"

// ErrPacked says that a packed frame could not be unpacked, or holds more than a frame.
var ErrPacked = errors.New("bad packed frame")

// maxSkipped bounds how many frames a Packer lets pass unseen where the ones before did not get shorter.
const maxSkipped = 16

// Packer compresses frames on their way to the wire. It is for one goroutine.
type Packer struct {
	enc    *zstd.Encoder
	in     []byte
	out    []byte
	misses int // in a row
	skip   int // frames to let pass
}

// NewPacker returns a Packer. It takes a few MiB of memory from its first frame on, and needs no closing.
func NewPacker() *Packer { return &Packer{} }

// Pack returns the bytes of frame as one zstd frame, or nil where that would not save at least a sixteenth: then the frame is to
// be sent as it is. Where nothing is to be saved, ever fewer frames are tried. What it returns is good until the next call;
// frame stays the caller's. The error is the library's.
func (p *Packer) Pack(frame mem.BufferSlice) ([]byte, error) {
	if p.skip > 0 {
		p.skip--
		return nil, nil
	}
	if p.enc == nil {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderCRC(false), zstd.WithWindowSize(FrameSize), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("compress frames: %w", err)
		}
		p.enc = enc
	}
	var data []byte
	if len(frame) == 1 {
		data = frame[0].ReadOnlyData()
	} else {
		p.in = slices.Grow(p.in[:0], frame.Len())[:frame.Len()]
		frame.CopyTo(p.in)
		data = p.in
	}
	p.out = p.enc.EncodeAll(data, p.out[:0])
	if len(p.out) > len(data)-len(data)/16 {
		p.misses++
		p.skip = min(p.misses, maxSkipped)
		return nil, nil
	}
	p.misses = 0
	return p.out, nil
}

// Unpacker restores packed frames. It is for one goroutine.
type Unpacker struct {
	dec *zstd.Decoder
	in  []byte // a packed frame that came in pieces
	buf []byte
}

// NewUnpacker returns an Unpacker. It takes a few MiB of memory from its first frame on, and needs no closing.
func NewUnpacker() *Unpacker { return &Unpacker{} }

// Unpack returns the frame in packed, which is good until the next call; freeing it does nothing. packed stays the caller's,
// who may free it at once. Whatever packed says of itself, no more than FrameSize bytes are made of it; ErrPacked when it
// holds more, is itself longer, or cannot be read.
func (u *Unpacker) Unpack(packed mem.BufferSlice) (mem.BufferSlice, error) {
	size := packed.Len()
	if size > FrameSize {
		return nil, fmt.Errorf("%w of %d bytes: %w", ErrPacked, size, ErrFrame)
	}
	if u.dec == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(FrameSize), zstd.WithDecoderMaxWindow(FrameSize), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, fmt.Errorf("uncompress frames: %w", err)
		}
		u.dec, u.buf = dec, alignedBuffer(FrameSize)
	}
	data, err := u.dec.DecodeAll(u.gather(packed, size), u.buf[:0])
	if err != nil {
		return nil, fmt.Errorf("%w of %d bytes: %w", ErrPacked, size, err)
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

// gather returns the size bytes of packed in one piece: as they lie, or copied into the unpacker's own buffer.
func (u *Unpacker) gather(packed mem.BufferSlice, size int) []byte {
	if len(packed) == 1 {
		return packed[0].ReadOnlyData()
	}
	u.in = slices.Grow(u.in[:0], size)[:size]
	packed.CopyTo(u.in)
	return u.in
}
