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

// Receiver is the consuming end of one logical stream: what was written, its CRC-32C, and who may write. Writes are one
// after the other; a writer that blocks holds up the next Attach, since only its return tells the offset.
type Receiver struct {
	w      io.Writer
	buf    []byte        // one aligned frame, made when first needed
	turn   chan struct{} // 1: held while writing; guards buf and the changes of offset, crc and err
	frame  int
	mu     sync.Mutex
	offset int64
	crc    uint32
	err    error // of w; ends the transfer
	last   uint32
	holder *Intake
}

// NewReceiver returns a receiver that writes the logical stream to w, one frame a call.
func NewReceiver(w io.Writer) *Receiver {
	return &Receiver{w: w, turn: make(chan struct{}, 1), frame: FrameSize}
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
	data := r.gather(frame)
	n, err := 0, error(nil)
	if len(data) > 0 {
		n, err = r.w.Write(data)
	}
	if err == nil && n != len(data) {
		err = io.ErrShortWrite
	}
	n = min(max(n, 0), len(data))
	crc := crc32.Update(r.crc, crc32.MakeTable(crc32.Castagnoli), data[:n])
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
