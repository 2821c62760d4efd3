package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"google.golang.org/grpc/mem"
)

// Run is the body of a stream's handler, on either side: it runs lead and the others beside each other and returns what
// lead returns. It returns earlier when another one fails, with its error; when evicted is closed, with ErrSuperseded;
// and when ctx ends, with its error. That another one returns nil or io.EOF ends nothing: the other side has sent all,
// or the stream is broken, and what broke it comes from receiving.
//
// The context that they get ends when Run returns, but Run does not wait for them: a goroutine that receives from or
// sends on a stream ends only when the stream does, that is when the handler returns (server) or when the stream's
// context is cancelled (client). So call Run last. A panic in one of them is raised again in Run.
func Run(ctx context.Context, evicted <-chan struct{}, lead func(context.Context) error,
	others ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	led := start(ctx, lead)
	failed := make(chan outcome, len(others))
	for _, f := range others {
		go func() {
			o := call(ctx, f)
			if o.panicked != nil || (o.err != nil && !errors.Is(o.err, io.EOF)) {
				failed <- o
			}
		}()
	}
	select {
	case o := <-led:
		return o.result()
	case o := <-failed:
		return prefer(led, o).result()
	case <-evicted:
		return prefer(led, outcome{err: ErrSuperseded}).result()
	case <-ctx.Done():
		return prefer(led, outcome{err: ctx.Err()}).result()
	}
}

// prefer returns lead's outcome when it is there as well: the cause, where both saw the stream break.
func prefer(led <-chan outcome, o outcome) outcome {
	select {
	case l := <-led:
		return l
	default:
		return o
	}
}

type outcome struct {
	err      error
	panicked any
}

func (o outcome) result() error {
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.err
}

func start(ctx context.Context, f func(context.Context) error) <-chan outcome {
	c := make(chan outcome, 1)
	go func() { c <- call(ctx, f) }()
	return c
}

func call(ctx context.Context, f func(context.Context) error) (o outcome) {
	defer func() {
		if p := recover(); p != nil {
			o.panicked = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	return outcome{err: f(ctx)}
}

// Pump sends an attachment's frames until the logical stream has ended; then it returns nil and the caller sends the
// summary. send must not keep frame: Pump frees it. Errors are those of Attachment.Next and of send, as they are.
func Pump(ctx context.Context, a *Attachment, send func(frame mem.BufferSlice) error) error {
	for {
		frame, err := a.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = send(frame)
		frame.Free()
		if err != nil {
			return err
		}
	}
}

// Serialize returns send made safe for several goroutines, one message after the other: a gRPC stream takes only one
// SendMsg at a time, and frames, acknowledgements and progress come from different goroutines.
func Serialize(send func(m any) error) func(m any) error {
	var mu sync.Mutex
	return func(m any) error {
		mu.Lock()
		defer mu.Unlock()
		return send(m)
	}
}
