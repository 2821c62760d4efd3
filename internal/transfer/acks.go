package transfer

import (
	"context"
	"errors"
	"io"
)

// Acks carries offsets from the goroutine that writes to the one that sends acknowledgements. Only the newest is kept,
// so writing never waits for sending, and a slow way back means fewer acknowledgements.
type Acks struct {
	newest chan int64 // 1
	end    chan struct{}
}

// NewAcks returns an empty one.
func NewAcks() *Acks { return &Acks{newest: make(chan int64, 1), end: make(chan struct{})} }

// Put says that all bytes before offset were written. It never blocks. One goroutine calls Put and Close.
func (a *Acks) Put(offset int64) {
	select {
	case <-a.newest:
	default:
	}
	a.newest <- offset // the only producer has just made room
}

// Close says that no more will come. It is called once.
func (a *Acks) Close() { close(a.end) }

// Next waits for an offset that was not returned before. The error is io.EOF after Close, or ctx's.
func (a *Acks) Next(ctx context.Context) (int64, error) {
	select {
	case offset := <-a.newest:
		return offset, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-a.end:
	}
	select {
	case offset := <-a.newest: // put before Close
		return offset, nil
	default:
		return 0, io.EOF
	}
}

// Send gives the newest offset to send, again and again. It returns nil after Close, when all was sent; ctx's error; or
// send's.
func (a *Acks) Send(ctx context.Context, send func(offset int64) error) error {
	for {
		offset, err := a.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(offset); err != nil {
			return err
		}
	}
}
