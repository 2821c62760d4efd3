package transfer

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// The protocol's sizes in bytes, and the lease.
const (
	// FrameSize is the most that one frame carries.
	FrameSize = 1 << 20
	// DefaultWindow is how much may be under way unacknowledged.
	DefaultWindow = 16 << 20
	// MaxWindow bounds what the other side may ask for.
	MaxWindow = 64 << 20
	// DefaultLease is how long a detached transfer is kept.
	DefaultLease = 120 * time.Second
	// MaxLease bounds what the other side may ask for.
	MaxLease = 10 * time.Minute
)

// ErrFinished is what a Sender's producer gets that writes after Finish.
var ErrFinished = errors.New("write after the end of the logical stream")

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// maxEmptyReads is how many reads in a row may return nothing, as in package bufio.
const maxEmptyReads = 100

// chunk is a buffer of the ring. Its bytes never change once it is published.
type chunk struct {
	buf   mem.Buffer
	start int64 // offset of its first byte
	end   int64
}

// Sender is the producing end of one logical stream, in the agent (backup) and in the controller (restore). One
// goroutine produces (ReadFrom, Write, Flush, Finish); the others may be called from anywhere. At most window bytes of
// buffers are held, one at least.
type Sender struct {
	frame int // bytes in a buffer
	slots int // most buffers in ring and filling
	pool  mem.BufferPool

	space chan struct{} // 1: an acknowledgement made room
	done  chan struct{} // closed by Abort

	filling []byte  // the producer's own: the bytes of the buffer that is being filled
	backing *[]byte // nil when there is none
	summed  uint32  // the producer's own: the CRC-32C up to the end of filling

	mu       sync.Mutex
	ring     []chunk
	produced int64 // published bytes
	acked    int64
	crc      uint32
	finished bool
	err      error
	attempt  uint32
	current  *Attachment
}

// NewSender returns a sender with a ring of window bytes: DefaultWindow when it is not positive, MaxWindow when it is
// larger, and one frame when it is smaller than that.
func NewSender(window int64) *Sender {
	if window <= 0 {
		window = DefaultWindow
	}
	return newSender(min(window, MaxWindow), FrameSize, frames)
}

func newSender(window int64, frame int, pool mem.BufferPool) *Sender {
	return &Sender{
		frame: frame,
		slots: max(1, int(window/int64(frame))),
		pool:  pool,
		space: make(chan struct{}, 1),
		done:  make(chan struct{}),
	}
}

// ReadFrom reads r to its end into the stream and returns how many bytes that were. It blocks while the ring is full,
// and reads without holding a lock. At r's end (not an error) what was read is published; that does not end the stream,
// Finish does. After Abort it returns Abort's error at the next full buffer; to break off a read, close r.
func (s *Sender) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	for empty := 0; ; {
		if err := s.acquire(); err != nil {
			return total, err
		}
		if err := failpoint.Hit("transfer/sender/before-read"); err != nil {
			return total, err
		}
		n, err := r.Read((*s.backing)[len(s.filling):s.frame])
		if n > 0 {
			empty = 0
			total += int64(n)
			s.fill(n)
		} else if empty++; empty > maxEmptyReads && err == nil {
			err = io.ErrNoProgress
		}
		if len(s.filling) == s.frame || err != nil {
			if flushErr := s.Flush(); flushErr != nil {
				return total, flushErr
			}
		}
		if err == io.EOF { // and nothing that wraps it: a broken connection may say so too
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("read what is to be sent: %w", err)
		}
	}
}

// Write copies p into the stream. It blocks while the ring is full, and fails with Abort's error after Abort, with
// ErrFinished after Finish. The last bytes, less than a frame, wait for more, for Flush or for Finish.
func (s *Sender) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		if err := s.acquire(); err != nil {
			return written, err
		}
		n := copy((*s.backing)[len(s.filling):s.frame], p[written:])
		s.fill(n)
		written += n
		if len(s.filling) == s.frame {
			if err := s.Flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// fill counts n bytes more that stand in the buffer. The checksum goes over them while they are in the processor's cache.
func (s *Sender) fill(n int) {
	have := len(s.filling)
	s.filling = (*s.backing)[:have+n]
	s.summed = crc32.Update(s.summed, crcTable, s.filling[have:])
}

// acquire makes sure that the producer has a buffer with room, waiting for an acknowledgement when the ring is full.
func (s *Sender) acquire() error {
	for s.backing == nil {
		s.mu.Lock()
		err, full := s.err, len(s.ring) >= s.slots
		if err == nil && s.finished {
			err = ErrFinished
		}
		s.mu.Unlock()
		switch {
		case err != nil:
			return err
		case !full:
			s.backing = s.pool.Get(s.frame)
			s.filling = (*s.backing)[:0]
			return nil
		}
		select {
		case <-s.space:
		case <-s.done:
		}
	}
	return nil
}

// Flush publishes what Write has kept back. It never blocks: the buffer was counted when it was taken.
func (s *Sender) Flush() error {
	backing, n := s.backing, len(s.filling)
	s.backing, s.filling = nil, nil
	if backing == nil {
		return s.Err()
	}
	if n == 0 {
		s.pool.Put(backing)
		return s.Err()
	}
	*backing = (*backing)[:n]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		s.pool.Put(backing)
		return s.err
	}
	s.ring = append(s.ring, chunk{mem.NewBuffer(backing, s.pool), s.produced, s.produced + int64(n)})
	s.produced += int64(n)
	s.crc = s.summed
	s.signal()
	return nil
}

// Finish ends the logical stream after all that was written. It may be repeated.
func (s *Sender) Finish() {
	failpoint.Pass("transfer/sender/finish")
	if s.Flush() != nil {
		return // aborted, which ends the stream too
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = true
	s.signal()
}

// Abort ends the transfer: producer and attachments get err (ErrAborted when nil), the ring is freed. Only the first
// call counts.
func (s *Sender) Abort(err error) {
	if err == nil {
		err = ErrAborted
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	for _, c := range s.ring {
		c.buf.Free()
	}
	s.ring = nil
	close(s.done)
}

// Err returns what Abort was called with, or nil.
func (s *Sender) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Totals returns the length in bytes and the CRC-32C of the logical stream. They are final after Finish.
func (s *Sender) Totals() (bytes int64, crc32c uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.produced, s.crc
}

// Progress returns how many bytes were published and how many were acknowledged.
func (s *Sender) Progress() (produced, acked int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.produced, s.acked
}

// signal wakes the attachment. The lock is held.
func (s *Sender) signal() {
	if s.current != nil {
		wake(s.current.data)
	}
}

// release frees what is acknowledged up to offset. The lock is held.
func (s *Sender) release(offset int64) {
	if offset <= s.acked {
		return
	}
	s.acked = offset
	n := 0
	for n < len(s.ring) && s.ring[n].end <= offset {
		s.ring[n].buf.Free()
		n++
	}
	if n > 0 {
		s.ring = slices.Delete(s.ring, 0, n)
		wake(s.space)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
