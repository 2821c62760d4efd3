package transfer

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc/mem"
)

// Attachment is one stream's hold on a Sender. One goroutine calls Next; Ack and Detach may be called from others.
type Attachment struct {
	s       *Sender
	data    chan struct{} // 1: there may be something new
	evicted chan struct{} // closed when this attachment is no longer the current one
	next    int64         // offset of the next byte to hand out; under s.mu
}

// Attach begins a stream at offset, which acknowledges all before it, and evicts the attachment before. attempt counts
// from 1. The error is ErrSuperseded unless attempt is higher than all before, ErrOffset when offset is not between what
// was acknowledged and what was produced, or Abort's; then nothing has changed.
func (s *Sender) Attach(attempt uint32, offset int64) (*Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return nil, s.err
	case attempt <= s.attempt:
		return nil, fmt.Errorf("attach attempt %d after %d: %w", attempt, s.attempt, ErrSuperseded)
	case offset < s.acked || offset > s.produced:
		return nil, fmt.Errorf("attach at byte %d, have %d to %d: %w", offset, s.acked, s.produced, ErrOffset)
	}
	s.evict()
	s.attempt = attempt
	s.release(offset)
	s.current = &Attachment{s: s, data: make(chan struct{}, 1), evicted: make(chan struct{}), next: offset}
	return s.current, nil
}

// evict ends the current attachment. The lock is held.
func (s *Sender) evict() {
	if s.current != nil {
		close(s.current.evicted)
		s.current = nil
	}
}

// Next returns the next bytes, at most FrameSize, waiting until there are some. The caller owns one reference and frees
// it. io.EOF means that the logical stream is finished and all of it has been handed out. Other errors are
// ErrSuperseded, Abort's, and ctx's.
func (a *Attachment) Next(ctx context.Context) (mem.BufferSlice, error) {
	for {
		b, err := a.take()
		if b != nil || err != nil {
			return b, err
		}
		select {
		case <-a.data:
		case <-a.evicted:
		case <-a.s.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take returns what can be had without waiting, or nil.
func (a *Attachment) take() (mem.BufferSlice, error) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := a.usable(); err != nil {
		return nil, err
	}
	for _, c := range s.ring {
		if a.next < c.end {
			b := c.buf.Slice(int(a.next-c.start), int(c.end-c.start))
			a.next = c.end
			return mem.BufferSlice{b}, nil
		}
	}
	if s.finished {
		return nil, io.EOF
	}
	return nil, nil
}

// usable returns why the attachment is over, or nil. The lock is held.
func (a *Attachment) usable() error {
	if a.s.err != nil {
		return a.s.err
	}
	if a.s.current != a {
		return ErrSuperseded
	}
	return nil
}

// Ack says that the receiver has written all bytes before offset, and frees their buffers. Acknowledgements add up; an
// older one changes nothing. One beyond what this attachment has handed out is ErrOffset.
func (a *Attachment) Ack(offset int64) error {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if err := a.usable(); err != nil {
		return err
	}
	if offset < 0 || offset > a.next {
		return fmt.Errorf("acknowledged up to byte %d, sent %d: %w", offset, a.next, ErrOffset)
	}
	a.s.release(offset)
	return nil
}

// Complete tells whether everything was handed out: the producer has finished, and nothing of it is left to be sent.
func (a *Attachment) Complete() bool {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	return a.usable() == nil && a.s.finished && a.next == a.s.produced
}

// Evicted is closed when a newer attachment took over or this one was detached.
func (a *Attachment) Evicted() <-chan struct{} { return a.evicted }

// Detach ends this attachment; the transfer waits for another. It may be repeated, and does nothing to a newer one.
func (a *Attachment) Detach() {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if a.s.current == a {
		a.s.evict()
	}
}
