package transfer

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/mem"
)

func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func returns(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

func TestRun(t *testing.T) {
	broken := errors.New("broken")
	closed := make(chan struct{})
	close(closed)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		evicted chan struct{}
		lead    func(context.Context) error
		others  []func(context.Context) error
		want    error
	}{
		"lead succeeds":    {t.Context(), nil, returns(nil), []func(context.Context) error{hang}, nil},
		"lead fails":       {t.Context(), nil, returns(broken), []func(context.Context) error{hang, hang}, broken},
		"another fails":    {t.Context(), nil, hang, []func(context.Context) error{hang, returns(broken)}, broken},
		"another is ready": {t.Context(), closed, hang, []func(context.Context) error{returns(nil), returns(io.EOF)}, ErrSuperseded},
		"evicted":          {t.Context(), closed, hang, nil, ErrSuperseded},
		"context":          {over, nil, func(context.Context) error { select {} }, nil, context.Canceled},
	} {
		if err := Run(c.ctx, c.evicted, c.lead, c.others...); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestRunPrefersWhatLeadSays(t *testing.T) {
	broken := errors.New("broken")
	led := make(chan outcome, 1)
	if o := prefer(led, outcome{err: io.ErrUnexpectedEOF}); !errors.Is(o.err, io.ErrUnexpectedEOF) {
		t.Errorf("without lead's: %v", o.err)
	}
	led <- outcome{err: broken}
	if o := prefer(led, outcome{err: io.ErrUnexpectedEOF}); !errors.Is(o.err, broken) {
		t.Errorf("with lead's: %v", o.err)
	}
}

func TestRunRaisesPanicsInItsCaller(t *testing.T) {
	for name, funcs := range map[string][2]func(context.Context) error{
		"lead":    {func(context.Context) error { panic("oh") }, hang},
		"another": {hang, func(context.Context) error { panic("oh") }},
	} {
		func() {
			defer func() {
				if p, ok := recover().(string); !ok || !strings.HasPrefix(p, "oh\n") || !strings.Contains(p, "run_test.go") {
					t.Errorf("%s: recovered %v", name, p)
				}
			}()
			err := Run(t.Context(), nil, funcs[0], funcs[1])
			t.Errorf("%s: returned %v", name, err)
		}()
	}
}

func TestPump(t *testing.T) {
	pool := &countingPool{}
	s := newSender(4*frame, frame, pool)
	s.Write(pattern(3*frame + 1))
	s.Finish()
	var got []byte
	a := mustAttach(t, s, 1, 0)
	send := func(f mem.BufferSlice) error {
		got = append(got, f.Materialize()...)
		return a.Ack(int64(len(got)))
	}
	if err := Pump(t.Context(), a, send); err != nil || !slices.Equal(got, pattern(3*frame+1)) {
		t.Errorf("sent %d bytes, %v", len(got), err)
	}
	if pool.outstanding() != 0 {
		t.Errorf("%d buffers were not freed", pool.outstanding())
	}
	s = newSender(4*frame, frame, pool)
	s.Write(pattern(frame))
	a = mustAttach(t, s, 1, 0)
	if err := Pump(t.Context(), a, func(mem.BufferSlice) error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("a broken stream must not look like the end: %v", err)
	}
	a.Detach()
	if err := Pump(t.Context(), a, nil); !errors.Is(err, ErrSuperseded) {
		t.Errorf("detached: %v", err)
	}
	s.Abort(nil)
	if pool.outstanding() != 0 {
		t.Errorf("%d buffers were not freed", pool.outstanding())
	}
}

func TestAcksKeepTheNewest(t *testing.T) {
	a := NewAcks()
	for _, offset := range []int64{1, 2, 3} {
		a.Put(offset)
	}
	if got, err := a.Next(t.Context()); got != 3 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := a.Send(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Send: got %v", err)
	}
	a.Put(4)
	a.Close()
	var sent []int64
	if err := a.Send(t.Context(), func(offset int64) error {
		sent = append(sent, offset)
		return nil
	}); err != nil || !slices.Equal(sent, []int64{4}) {
		t.Errorf("sent %v, %v", sent, err)
	}
	b := NewAcks()
	b.Put(1)
	if err := b.Send(t.Context(), func(int64) error { return errCut }); !errors.Is(err, errCut) {
		t.Errorf("got %v", err)
	}
}

func TestSerializeSendsOneAfterTheOther(t *testing.T) {
	inside, most, total := 0, 0, 0 // unguarded: the race detector watches too
	send := Serialize(func(any) error {
		inside++
		runtime.Gosched()
		most = max(most, inside)
		inside--
		total++
		return nil
	})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if err := send(nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if most != 1 || total != 800 {
		t.Errorf("%d at a time, %d in all", most, total)
	}
}

func TestEventsAreEitherFrameOrMessage(t *testing.T) {
	var b BackupEvent
	var r RestoreEvent
	for _, e := range []interface {
		FramePayload() (mem.BufferSlice, bool)
		SetFramePayload(mem.BufferSlice)
		Free()
	}{&b, &r} {
		if _, ok := e.FramePayload(); ok {
			t.Error("an empty event is a frame")
		}
		e.SetFramePayload(nil)
		if f, ok := e.FramePayload(); !ok || f.Len() != 0 {
			t.Error("an empty frame is none")
		}
	}
	if b.Proto() == nil || b.Frame != nil || r.Proto() == nil || r.Frame != nil {
		t.Error("a message is still a frame")
	}
	b.SetFramePayload(pieces("x"))
	r.SetFramePayload(pieces("x"))
	if b.Msg != nil || r.Msg != nil {
		t.Error("a frame is still a message")
	}
	b.Free()
	r.Free()
	if b.Frame != nil || r.Frame != nil {
		t.Error("freed events hold frames")
	}
}
