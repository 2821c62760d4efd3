package transfer

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"google.golang.org/grpc/mem"
	"pgregory.net/rapid"
)

// link is one stream between the ends, as the network sees it: frames under way, acknowledgements under way.
type link struct {
	out    *Attachment
	in     *Intake
	frames []mem.BufferSlice
	acks   []int64
	ended  bool // the sender has said io.EOF
}

// wire is a whole transfer whose network does what it is told, one step after the other.
type wire struct {
	t       *rapid.T
	data    []byte
	written bytes.Buffer
	pool    *countingPool
	s       *Sender
	r       *Receiver
	attempt uint32
	now     *link
	old     []*link // given up without being told
	done    chan error
}

// newWire starts a producer that feeds data to a sender by writes, reads and flushes of any size.
func newWire(t *rapid.T) *wire {
	w := &wire{t: t, pool: &countingPool{}, done: make(chan error, 1)}
	w.data = pattern(rapid.IntRange(0, 12*frame).Draw(t, "length"))
	w.s = newSender(int64(rapid.IntRange(1, 5*frame).Draw(t, "window")), frame, w.pool)
	w.r = NewReceiver(&w.written)
	steps := rapid.SliceOfN(rapid.IntRange(1, 3*frame), 1, 6).Draw(t, "writes")
	reads := rapid.SliceOfN(rapid.Bool(), len(steps), len(steps)).Draw(t, "by reader")
	flush := rapid.Bool().Draw(t, "flush")
	go func() { w.done <- w.produce(steps, reads, flush) }()
	return w
}

func (w *wire) produce(steps []int, reads []bool, flush bool) error {
	rest := w.data
	for i := 0; len(rest) > 0; i++ {
		part := rest[:min(len(rest), steps[i%len(steps)])]
		rest = rest[len(part):]
		var err error
		if reads[i%len(reads)] {
			_, err = w.s.ReadFrom(iotest.HalfReader(bytes.NewReader(part)))
		} else {
			_, err = w.s.Write(part)
		}
		if err == nil && flush {
			err = w.s.Flush()
		}
		if err != nil {
			return err
		}
	}
	w.s.Finish()
	return nil
}

// attach begins a new stream; the one before lives on unnoticed, or is cut off.
func (w *wire) attach() {
	w.attempt += uint32(rapid.IntRange(1, 2).Draw(w.t, "attempts later"))
	in, offset, err := w.r.Attach(w.attempt)
	if err != nil {
		w.t.Fatalf("attach the receiver: %v", err)
	}
	out, err := w.s.Attach(w.attempt, offset)
	if err != nil {
		produced, acked := w.s.Progress()
		w.t.Fatalf("attach the sender at %d, has %d to %d: %v", offset, acked, produced, err)
	}
	if w.now != nil {
		w.old = append(w.old, w.now)
	}
	w.now = &link{out: out, in: in}
}

// cut ends the current stream with all that is under way.
func (w *wire) cut() {
	if w.now == nil {
		return
	}
	w.now.out.Detach()
	w.now.in.Detach()
	w.now.lose()
	w.now = nil
}

func (l *link) lose() {
	for _, f := range l.frames {
		f.Free()
	}
	l.frames, l.acks = nil, nil
}

func (w *wire) send() {
	if w.now == nil {
		return
	}
	f, err := w.now.out.take()
	switch {
	case errors.Is(err, io.EOF):
		w.now.ended = true
	case err != nil:
		w.t.Fatalf("next: %v", err)
	case f != nil:
		w.now.frames = append(w.now.frames, w.split(f)...)
	}
}

// split cuts a frame: into the pieces that HTTP/2 makes of it, or into two frames, as another sender may send it.
func (w *wire) split(f mem.BufferSlice) []mem.BufferSlice {
	how := rapid.IntRange(0, 2).Draw(w.t, "how to cut")
	if how == 0 {
		return []mem.BufferSlice{f}
	}
	defer f.Free()
	at := rapid.IntRange(0, f.Len()).Draw(w.t, "cut at")
	head, tail := f[0].Slice(0, at), f[0].Slice(at, f.Len())
	if how == 1 {
		return []mem.BufferSlice{{head, tail}}
	}
	return []mem.BufferSlice{{head}, {tail}}
}

func (w *wire) deliver() {
	if w.now == nil || len(w.now.frames) == 0 {
		return
	}
	f := w.now.frames[0]
	w.now.frames = w.now.frames[1:]
	offset, err := w.now.in.Write(f)
	if err != nil {
		w.t.Fatalf("write: %v", err)
	}
	w.now.acks = append(w.now.acks, offset)
}

// ack brings one of the acknowledgements under way; those before it are lost.
func (w *wire) ack() {
	if w.now == nil || len(w.now.acks) == 0 {
		return
	}
	n := rapid.IntRange(0, len(w.now.acks)-1).Draw(w.t, "which ack")
	offset := w.now.acks[n]
	w.now.acks = w.now.acks[n+1:]
	if err := w.now.out.Ack(offset); err != nil {
		w.t.Fatalf("ack %d: %v", offset, err)
	}
}

// haunt lets a stream that was given up wake: nothing may come of it.
func (w *wire) haunt() {
	if len(w.old) == 0 {
		return
	}
	l := w.old[0]
	w.old = w.old[1:]
	if _, err := l.out.take(); !errors.Is(err, ErrSuperseded) {
		w.t.Fatalf("an old stream sends: %v", err)
	}
	if err := l.out.Ack(int64(len(w.data))); !errors.Is(err, ErrSuperseded) {
		w.t.Fatalf("an old stream acknowledges: %v", err)
	}
	for _, f := range l.frames {
		if _, err := l.in.Write(f); !errors.Is(err, ErrSuperseded) {
			w.t.Fatalf("an old stream writes: %v", err)
		}
	}
	l.out.Detach()
	l.in.Detach()
}

// check holds what is true after every step.
func (w *wire) check() {
	synctest.Wait()
	n, crc := w.r.Totals()
	if !bytes.Equal(w.written.Bytes(), w.data[:n]) || crc != castagnoli(w.data[:n]) {
		w.t.Fatalf("after %d bytes the receiver has other bytes", n)
	}
	underway := 0
	for _, l := range append(w.old, w.now) {
		if l != nil {
			underway += len(l.frames)
		}
	}
	if out := w.pool.outstanding(); out > w.s.slots+underway {
		w.t.Fatalf("%d buffers are out, with a ring of %d and %d frames under way", out, w.s.slots, underway)
	}
}

// finish carries the transfer to its end.
func (w *wire) finish() {
	w.attach()
	for !w.now.ended {
		w.send()
		w.deliver()
		w.ack()
		w.check()
	}
	for len(w.now.frames) > 0 {
		w.deliver()
	}
	for len(w.old) > 0 {
		w.haunt()
	}
	if err := <-w.done; err != nil {
		w.t.Fatalf("produce: %v", err)
	}
	if err := w.r.Check(w.s.Totals()); err != nil {
		w.t.Fatal(err)
	}
	if n, _ := w.r.Totals(); n != int64(len(w.data)) {
		w.t.Fatalf("received %d of %d bytes", n, len(w.data))
	}
	w.cut()
	w.s.Abort(nil)
	if out := w.pool.outstanding(); out != 0 {
		w.t.Fatalf("%d buffers were not freed", out)
	}
}

func TestAnyScheduleGivesTheSameBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(t *rapid.T) { // without its Deadline, which a bubble forbids
			w := newWire(t)
			defer w.s.Abort(nil) // ends the producer when the test fails
			steps := map[string]func(){
				"attach": w.attach, "cut": w.cut, "send": w.send, "deliver": w.deliver, "ack": w.ack, "haunt": w.haunt,
			}
			names := []string{"attach", "cut", "send", "send", "send", "deliver", "deliver", "deliver", "ack", "ack", "haunt"}
			w.check()
			for _, name := range rapid.SliceOfN(rapid.SampledFrom(names), 0, 60).Draw(t, "schedule") {
				steps[name]()
				w.check()
			}
			w.finish()
		})
	})
}

func TestSendersOnOneThreadAreEnough(t *testing.T) {
	// A producer that writes all before the first stream attaches, within the window.
	pool := &countingPool{}
	s := newSender(4*frame, frame, pool)
	if _, err := s.Write(pattern(4 * frame)); err != nil {
		t.Fatal(err)
	}
	s.Finish()
	if got := drain(t, mustAttach(t, s, 1, 0), 0); !bytes.Equal(got, pattern(4*frame)) || pool.outstanding() != 0 {
		t.Errorf("got %d bytes, %d buffers were not freed", len(got), pool.outstanding())
	}
}
