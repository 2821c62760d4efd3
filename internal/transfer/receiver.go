package transfer

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// PiecesWriter is a writer that takes a frame in the pieces in which it came from the network, which saves a copy. It keeps
// none of them, and returns how many bytes it wrote in all.
type PiecesWriter interface {
	WritePieces(pieces [][]byte) (int, error)
}

// Receiver is the consuming end of one logical stream: what was written, its CRC-32C, and who may write. Writes are one
// after the other; a writer that blocks holds up the next Attach, since only its return tells the offset.
type Receiver struct {
	w      io.Writer
	pieces PiecesWriter  // w, if it is one
	list   [][]byte      // of a frame's pieces, for the next frame again
	buf    []byte        // one aligned frame, made when first needed
	turn   chan struct{} // 1: held while writing; guards buf, list and the changes of offset, crc and err
	frame  int
	mu     sync.Mutex
	offset int64
	crc    uint32
	err    error // of w; ends the transfer
	last   uint32
	holder *Intake
}

// NewReceiver returns a receiver that writes the logical stream to w, one frame a call: by WritePieces if w is a PiecesWriter,
// else by Write.
func NewReceiver(w io.Writer) *Receiver {
	pieces, _ := w.(PiecesWriter)
	return &Receiver{w: w, pieces: pieces, turn: make(chan struct{}, 1), frame: FrameSize}
}

// Intake is one stream's right to write to a Receiver.
type Intake struct {
	r       *Receiver
	evicted chan struct{}
}

// Attach begins a stream, evicts the one before, waits for a write of it that is under way, and returns the offset that
// the stream goes on from. attempt counts from 1; ErrSuperseded unless it is higher than all before.
func (r *Receiver) Attach(attempt uint32) (*Intake, int64, error) {
	return r.AttachContext(context.Background(), attempt)
}

// AttachContext is Attach bounded by ctx: for a writer that may block. When ctx ends, the attempt is used up.
func (r *Receiver) AttachContext(ctx context.Context, attempt uint32) (*Intake, int64, error) {
	if err := failpoint.Hit("transfer/receiver/before-attach"); err != nil {
		return nil, 0, err
	}
	i, err := r.take(attempt)
	if err != nil {
		return nil, 0, err
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		i.Detach()
		return nil, 0, fmt.Errorf("wait for the write of an earlier stream: %w", ctx.Err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, 0, r.err
	}
	if r.holder != i {
		return nil, 0, ErrSuperseded
	}
	return i, r.offset, nil
}

// take makes a new intake the holder.
func (r *Receiver) take(attempt uint32) (*Intake, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	if attempt <= r.last {
		return nil, fmt.Errorf("attach attempt %d after %d: %w", attempt, r.last, ErrSuperseded)
	}
	r.last = attempt
	r.evict()
	r.holder = &Intake{r: r, evicted: make(chan struct{})}
	return r.holder, nil
}

// evict ends the current intake. r.mu is held.
func (r *Receiver) evict() {
	if r.holder != nil {
		close(r.holder.evicted)
		r.holder = nil
	}
}

// Write writes a frame and returns the offset behind it, which may be acknowledged. It takes over the reference to
// frame. The error is ErrSuperseded when another stream took over, ErrFrame when frame is larger than FrameSize, or the
// writer's, which is final.
func (i *Intake) Write(frame mem.BufferSlice) (int64, error) {
	defer frame.Free()
	r := i.r
	if frame.Len() > r.frame {
		return 0, fmt.Errorf("write a frame of %d bytes: %w", frame.Len(), ErrFrame)
	}
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	if err := i.usable(); err != nil {
		return 0, err
	}
	if err := failpoint.Hit("transfer/receiver/before-write"); err != nil {
		return 0, err
	}
	size := frame.Len()
	crc, n, err := r.pass(frame, size)
	if err == nil && n != size {
		err = io.ErrShortWrite
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.offset += int64(n)
	r.crc = crc
	if err != nil {
		r.err = fmt.Errorf("write received bytes at %d: %w", r.offset, err)
		return r.offset, r.err
	}
	return r.offset, nil
}

// pass hands a frame of that size to the writer, and returns the CRC-32C of all bytes up to the n that were written.
func (r *Receiver) pass(frame mem.BufferSlice, size int) (crc uint32, n int, err error) {
	switch {
	case size == 0:
		return r.crc, 0, nil
	case r.pieces == nil:
		r.list = append(r.list[:0], r.gather(frame))
		n, err = r.w.Write(r.list[0])
	default:
		r.list = r.list[:0]
		for _, b := range frame {
			r.list = append(r.list, b.ReadOnlyData())
		}
		n, err = r.pieces.WritePieces(r.list)
	}
	n = min(max(n, 0), size)
	crc = r.crc
	for left, i := n, 0; left > 0; i++ {
		piece := r.list[i][:min(left, len(r.list[i]))]
		crc = crc32.Update(crc, crcTable, piece)
		left -= len(piece)
	}
	clear(r.list) // they are the frame's, which is freed
	return crc, n, err
}

// gather returns the bytes of frame in one piece: as they lie, or copied into the receiver's own buffer.
func (r *Receiver) gather(frame mem.BufferSlice) []byte {
	if len(frame) == 1 {
		return frame[0].ReadOnlyData()
	}
	if r.buf == nil {
		r.buf = alignedBuffer(r.frame)
	}
	return r.buf[:frame.CopyTo(r.buf)]
}

// usable returns why this intake may not write, or nil.
func (i *Intake) usable() error {
	i.r.mu.Lock()
	defer i.r.mu.Unlock()
	if i.r.err != nil {
		return i.r.err
	}
	if i.r.holder != i {
		return ErrSuperseded
	}
	return nil
}

// Evicted is closed when a newer intake took over or this one was detached.
func (i *Intake) Evicted() <-chan struct{} { return i.evicted }

// Detach ends this intake: later writes are ErrSuperseded. It may be repeated, and does nothing to a newer one.
func (i *Intake) Detach() {
	i.r.mu.Lock()
	defer i.r.mu.Unlock()
	if i.r.holder == i {
		i.r.evict()
	}
}

// Totals returns the length in bytes and the CRC-32C of what was written so far.
func (r *Receiver) Totals() (bytes int64, crc32c uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.offset, r.crc
}

// Check compares what was written with the sender's totals; ErrChecksum when they differ.
func (r *Receiver) Check(bytes int64, crc32c uint32) error {
	n, crc := r.Totals()
	if n != bytes || crc != crc32c {
		return fmt.Errorf("received %d bytes with CRC-32C %08x, sent were %d with %08x: %w", n, crc, bytes, crc32c, ErrChecksum)
	}
	return nil
}
