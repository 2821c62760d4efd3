package transfer

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"google.golang.org/grpc/mem"
)

// frame is a small frame that is large enough for mem to count its references.
const frame = 2048

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8 ^ i*31)
	}
	return b
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func mustAttach(t *testing.T, s *Sender, attempt uint32, offset int64) *Attachment {
	t.Helper()
	a, err := s.Attach(attempt, offset)
	if err != nil {
		t.Fatalf("attach attempt %d at %d: %v", attempt, offset, err)
	}
	return a
}

// drain acknowledges and returns what a hands out until the stream has ended.
func drain(t *testing.T, a *Attachment, offset int64) []byte {
	t.Helper()
	var out []byte
	for {
		b, err := a.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b.Materialize()...)
		b.Free()
		if err := a.Ack(offset + int64(len(out))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsReadIsSent(t *testing.T) {
	for _, n := range []int{0, 1, frame - 1, frame, frame + 1, 10*frame + 7} {
		pool := &countingPool{}
		s := newSender(3*frame, frame, pool)
		data := pattern(n)
		produced := make(chan error, 1)
		go func() {
			read, err := s.ReadFrom(iotest.HalfReader(bytes.NewReader(data)))
			if err == nil && read != int64(n) {
				err = errors.New("wrong count")
			}
			s.Finish()
			produced <- err
		}()
		got := drain(t, mustAttach(t, s, 1, 0), 0)
		if err := <-produced; err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
		if total, crc := s.Totals(); total != int64(n) || crc != castagnoli(data) {
			t.Errorf("%d bytes: totals %d, %08x", n, total, crc)
		}
		if pool.out != 0 || pool.peak > 3 {
			t.Errorf("%d bytes: %d buffers were not freed, at most %d were out", n, pool.out, pool.peak)
		}
	}
}

func TestWindowSizes(t *testing.T) {
	for window, slots := range map[int64]int{
		0: DefaultWindow / FrameSize, -1: DefaultWindow / FrameSize, 1: 1, FrameSize: 1, 3*FrameSize - 1: 2, 1 << 40: MaxWindow / FrameSize,
	} {
		if s := NewSender(window); s.slots != slots || s.frame != FrameSize {
			t.Errorf("window %d: %d slots of %d", window, s.slots, s.frame)
		}
	}
}

func TestAFullRingStopsTheProducer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSender(2*frame, frame, newFramePool(frame))
		source := &countingReader{}
		done := make(chan error, 1)
		go func() {
			_, err := s.ReadFrom(source)
			done <- err
		}()
		synctest.Wait()
		if source.read != 2*frame {
			t.Fatalf("read %d bytes ahead with a window of %d", source.read, 2*frame)
		}
		a := mustAttach(t, s, 1, 0)
		for range 2 {
			b, err := a.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			b.Free()
		}
		synctest.Wait()
		if source.read != 2*frame {
			t.Fatalf("read %d bytes before an acknowledgement", source.read)
		}
		for _, c := range []struct{ ack, read int64 }{{frame - 1, 2 * frame}, {frame, 3 * frame}, {frame - 1, 3 * frame}, {2 * frame, 4 * frame}} {
			if err := a.Ack(c.ack); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if source.read != c.read {
				t.Errorf("after acknowledging %d: read %d, want %d", c.ack, source.read, c.read)
			}
		}
		broken := errors.New("broken")
		s.Abort(broken)
		s.Abort(errors.New("another"))
		if err := <-done; !errors.Is(err, broken) {
			t.Errorf("the producer got %v", err)
		}
		if _, err := a.Next(t.Context()); !errors.Is(err, broken) {
			t.Errorf("the attachment got %v", err)
		}
		if _, err := s.Attach(2, frame); !errors.Is(err, broken) {
			t.Errorf("a new attachment got %v", err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, broken) {
			t.Errorf("a write got %v", err)
		}
	})
}

// countingReader never ends; it counts what was read.
type countingReader struct{ read int64 }

func (r *countingReader) Read(p []byte) (int, error) {
	n := min(len(p), frame/2)
	r.read += int64(n)
	return n, nil
}

func TestReadingHoldsNoLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSender(2*frame, frame, newFramePool(frame))
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := s.ReadFrom(r)
			done <- err
		}()
		synctest.Wait() // in Read
		a := mustAttach(t, s, 1, 0)
		if err := a.Ack(0); err != nil {
			t.Error(err)
		}
		s.Progress()
		broken := errors.New("the export broke")
		w.CloseWithError(broken)
		if err := <-done; !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAReaderThatReturnsNothing(t *testing.T) {
	s := newSender(frame, frame, newFramePool(frame))
	if _, err := s.ReadFrom(nothing{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

func TestWritesGatherUntilFlush(t *testing.T) {
	pool := &countingPool{}
	s := newSender(4*frame, frame, pool)
	a := mustAttach(t, s, 1, 0)
	write := func(b string) {
		t.Helper()
		if n, err := s.Write([]byte(b)); n != len(b) || err != nil {
			t.Fatalf("write %d: %d, %v", len(b), n, err)
		}
	}
	write("little ")
	if b, err := a.take(); b != nil || err != nil {
		t.Errorf("sent before it was flushed: %v, %v", b, err)
	}
	write("more")
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := next(t, a); got != "little more" {
		t.Errorf("got %q", got)
	}
	write(strings.Repeat("x", frame+5))
	if got := next(t, a); got != strings.Repeat("x", frame) {
		t.Errorf("got %d bytes", len(got))
	}
	s.Finish()
	s.Finish()
	if got := next(t, a); got != "xxxxx" {
		t.Errorf("got %q", got)
	}
	if _, err := s.Write([]byte("y")); !errors.Is(err, ErrFinished) {
		t.Errorf("write after the end: %v", err)
	}
	if _, err := a.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	s.Abort(nil)
	if pool.outstanding() != 0 {
		t.Errorf("%d buffers were not freed", pool.outstanding())
	}
	if err := s.Err(); !errors.Is(err, ErrAborted) {
		t.Errorf("aborted for %v", err)
	}
}

func next(t *testing.T, a *Attachment) string {
	t.Helper()
	b, err := a.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	return string(b.Materialize())
}

func TestAttaching(t *testing.T) {
	s := newSender(4*frame, frame, newFramePool(frame))
	if _, err := s.Write(pattern(3 * frame)); err != nil {
		t.Fatal(err)
	}
	first := mustAttach(t, s, 1, 0)
	next(t, first)
	if err := first.Ack(frame / 2); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		attempt uint32
		offset  int64
		want    error
	}{
		{0, frame, ErrSuperseded}, {1, frame, ErrSuperseded}, {2, frame/2 - 1, ErrOffset}, {2, 3*frame + 1, ErrOffset}, {2, -1, ErrOffset},
	} {
		if _, err := s.Attach(c.attempt, c.offset); !errors.Is(err, c.want) {
			t.Errorf("attempt %d at %d: got %v, want %v", c.attempt, c.offset, err, c.want)
		}
	}
	if next(t, first) != string(pattern(3 * frame)[frame:2*frame]) {
		t.Error("a refused attachment disturbed the one that stood")
	}
	second := mustAttach(t, s, 7, frame+10)
	select {
	case <-first.Evicted():
	default:
		t.Error("the first one was not told")
	}
	if _, err := first.Next(t.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the first one's Next: %v", err)
	}
	if err := first.Ack(2 * frame); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the first one's Ack: %v", err)
	}
	first.Detach() // does nothing to the second
	if _, acked := s.Progress(); acked != frame+10 {
		t.Errorf("acknowledged %d, want what the second one attached at", acked)
	}
	if got := next(t, second); got != string(pattern(3 * frame)[frame+10:2*frame]) {
		t.Errorf("goes on with %d wrong bytes", len(got))
	}
	if err := second.Ack(2*frame + 1); !errors.Is(err, ErrOffset) {
		t.Errorf("acknowledged what was not sent: %v", err)
	}
	if err := second.Ack(-1); !errors.Is(err, ErrOffset) {
		t.Errorf("acknowledged below zero: %v", err)
	}
	second.Detach()
	second.Detach()
	if _, err := second.Next(t.Context()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("after Detach: %v", err)
	}
	s.Finish()
	third := mustAttach(t, s, 8, 3*frame)
	if _, err := third.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("attached at the end: %v", err)
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type result struct {
			b   mem.BufferSlice
			err error
		}
		start := func(ctx context.Context, a *Attachment) <-chan result {
			c := make(chan result, 1)
			go func() {
				b, err := a.Next(ctx)
				c <- result{b, err}
			}()
			synctest.Wait()
			return c
		}
		s := newSender(4*frame, frame, newFramePool(frame))
		a := mustAttach(t, s, 1, 0)
		c := start(t.Context(), a)
		s.Write(pattern(frame))
		if r := <-c; r.err != nil || r.b.Len() != frame {
			t.Errorf("woken by data: %d bytes, %v", r.b.Len(), r.err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		c = start(ctx, a)
		cancel()
		if r := <-c; !errors.Is(r.err, context.Canceled) {
			t.Errorf("woken by the context: %v", r.err)
		}
		c = start(t.Context(), a)
		b := mustAttach(t, s, 2, frame)
		if r := <-c; !errors.Is(r.err, ErrSuperseded) {
			t.Errorf("woken by a newer one: %v", r.err)
		}
		c = start(t.Context(), b)
		s.Finish()
		if r := <-c; !errors.Is(r.err, io.EOF) {
			t.Errorf("woken by the end: %v", r.err)
		}
	})
}

func TestAbortFreesWhatNobodyAcknowledged(t *testing.T) {
	pool := &countingPool{}
	s := newSender(4*frame, frame, pool)
	s.Write(pattern(3*frame + 1))
	a := mustAttach(t, s, 1, 0)
	b, err := a.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Abort(nil)
	if got := b.Materialize(); !bytes.Equal(got, pattern(3 * frame)[:frame]) {
		t.Error("abort overwrote a buffer that is being sent")
	}
	b.Free()
	s.Finish() // gives back the last, unfinished buffer
	if pool.outstanding() != 0 {
		t.Errorf("%d buffers were not freed", pool.outstanding())
	}
}
