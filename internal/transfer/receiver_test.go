package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/mem"
)

func pieces(parts ...string) mem.BufferSlice {
	var s mem.BufferSlice
	for _, p := range parts {
		s = append(s, mem.SliceBuffer(p))
	}
	return s
}

func TestReceiverWritesFrameByFrame(t *testing.T) {
	var calls []string
	r := NewReceiver(writerFunc(func(p []byte) (int, error) {
		calls = append(calls, string(p))
		return len(p), nil
	}))
	i, offset, err := r.Attach(1)
	if err != nil || offset != 0 {
		t.Fatal(offset, err)
	}
	for _, c := range []struct {
		frame mem.BufferSlice
		want  int64
	}{{pieces("abc"), 3}, {pieces("de", "", "fg"), 7}, {pieces(), 7}, {pieces(""), 7}, {pieces("h"), 8}} {
		if got, err := i.Write(c.frame); got != c.want || err != nil {
			t.Errorf("offset %d, %v, want %d", got, err, c.want)
		}
	}
	if got := strings.Join(calls, "|"); got != "abc|defg|h" {
		t.Errorf("written as %q", got)
	}
	want := castagnoli([]byte("abcdefgh"))
	if n, crc := r.Totals(); n != 8 || crc != want {
		t.Errorf("totals %d, %08x", n, crc)
	}
	if err := r.Check(8, want); err != nil {
		t.Error(err)
	}
	if !errors.Is(r.Check(9, want), ErrChecksum) || !errors.Is(r.Check(8, want+1), ErrChecksum) {
		t.Error("a difference passed the check")
	}
}

type piecesFunc func([][]byte) (int, error)

func (piecesFunc) Write([]byte) (int, error) {
	return 0, errors.New("a writer of pieces was given a whole")
}

func (f piecesFunc) WritePieces(p [][]byte) (int, error) { return f(p) }

// TestReceiverWritesPieces: they are handed on as they came, and the checksum goes as far as they were written.
func TestReceiverWritesPieces(t *testing.T) {
	var calls []string
	limit := 1 << 20
	r := NewReceiver(piecesFunc(func(p [][]byte) (int, error) {
		calls = append(calls, string(bytes.Join(p, []byte("+"))))
		n := min(len(bytes.Join(p, nil)), limit)
		return n, nil
	}))
	i, _, err := r.Attach(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, frame := range []mem.BufferSlice{pieces("abc"), pieces("de", "fg", "h"), pieces(), pieces("")} {
		if _, err := i.Write(frame); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(calls, "|"); got != "abc|de+fg+h" {
		t.Errorf("written as %q", got)
	}
	limit = 3
	if n, err := i.Write(pieces("ij", "kl", "mn")); n != 11 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a short write gave %d, %v", n, err)
	}
	if n, crc := r.Totals(); n != 11 || crc != castagnoli([]byte("abcdefghijk")) {
		t.Errorf("totals %d, %08x", n, crc)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestOnlyTheNewestMayWrite(t *testing.T) {
	var out bytes.Buffer
	r := NewReceiver(&out)
	first, _, err := r.Attach(1)
	if err != nil {
		t.Fatal(err)
	}
	first.Write(pieces("one"))
	if _, _, err := r.Attach(1); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the same attempt again: %v", err)
	}
	if _, err := first.Write(pieces("two")); err != nil {
		t.Errorf("a refused attempt disturbed the one that stood: %v", err)
	}
	second, offset, err := r.Attach(5)
	if err != nil || offset != 6 {
		t.Fatal(offset, err)
	}
	pool := &countingPool{}
	b := pool.Get(frame)
	if _, err := first.Write(mem.BufferSlice{mem.NewBuffer(b, pool)}); !errors.Is(err, ErrSuperseded) || pool.out != 0 {
		t.Errorf("the old one wrote: %v; %d buffers were not freed", err, pool.out)
	}
	select {
	case <-first.Evicted():
	default:
		t.Error("the old one was not told")
	}
	first.Detach()
	if offset, err := second.Write(pieces("three")); offset != 11 || err != nil {
		t.Error(offset, err)
	}
	second.Detach()
	if _, err := second.Write(pieces("four")); !errors.Is(err, ErrSuperseded) {
		t.Errorf("after Detach: %v", err)
	}
	if out.String() != "onetwothree" {
		t.Errorf("wrote %q", out.String())
	}
}

func TestFramesTooLargeAreRefused(t *testing.T) {
	r := NewReceiver(io.Discard)
	i, _, err := r.Attach(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Write(mem.BufferSlice{mem.SliceBuffer(make([]byte, FrameSize)), mem.SliceBuffer("x")}); !errors.Is(err, ErrFrame) {
		t.Errorf("got %v", err)
	}
	if n, err := i.Write(mem.BufferSlice{mem.SliceBuffer(make([]byte, FrameSize-1)), mem.SliceBuffer("x")}); n != FrameSize || err != nil {
		t.Errorf("the largest: %d, %v", n, err)
	}
}

func TestAWritersErrorIsFinal(t *testing.T) {
	full := errors.New("no space left")
	for name, c := range map[string]struct {
		n    int
		err  error
		want error
	}{"error": {2, full, full}, "short": {2, nil, io.ErrShortWrite}, "too many": {9, full, full}} {
		r := NewReceiver(writerFunc(func([]byte) (int, error) { return c.n, c.err }))
		i, _, err := r.Attach(1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.Write(pieces("abc")); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", name, err)
		}
		if n, crc := r.Totals(); n != int64(min(c.n, 3)) || crc != castagnoli([]byte("abc")[:n]) {
			t.Errorf("%s: totals %d, %08x", name, n, crc)
		}
		if _, err := i.Write(pieces("d")); !errors.Is(err, c.want) {
			t.Errorf("%s: the next write got %v", name, err)
		}
		if _, _, err := r.Attach(2); !errors.Is(err, c.want) {
			t.Errorf("%s: the next stream got %v", name, err)
		}
	}
}

func TestAttachWaitsForTheWriteUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, w := io.Pipe()
		r := NewReceiver(w)
		first, _, err := r.Attach(1)
		if err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := first.Write(pieces("abc"))
			wrote <- err
		}()
		synctest.Wait() // in the pipe's Write
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error, 1)
		go func() {
			_, _, err := r.AttachContext(ctx, 2)
			gaveUp <- err
		}()
		synctest.Wait()
		select {
		case <-first.Evicted():
		default:
			t.Error("the first one was not told at once")
		}
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("gave up with %v", err)
		}
		type attached struct {
			offset int64
			err    error
		}
		third := make(chan attached, 1)
		go func() {
			_, offset, err := r.Attach(3)
			third <- attached{offset, err}
		}()
		synctest.Wait()
		go io.Copy(io.Discard, body)
		if err := <-wrote; err != nil {
			t.Errorf("the write under way: %v", err)
		}
		if got := <-third; got.err != nil || got.offset != 3 {
			t.Errorf("the third goes on at %d, %v", got.offset, got.err)
		}
		w.Close()
	})
}
