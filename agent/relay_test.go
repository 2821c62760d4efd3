package agent

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
)

func TestRelay(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 1<<20)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		r := newRelay()
		go func() {
			for rest := data; len(rest) > 0; {
				var frame [][]byte
				size := 0
				for range rnd.IntN(5) { // also none at all, and empty pieces
					n := min(rnd.IntN(1<<14), len(rest))
					piece := bytes.Clone(rest[:n])
					frame, rest, size = append(frame, piece), rest[n:], size+n
				}
				if n, err := r.WritePieces(frame); n != size || err != nil {
					t.Errorf("wrote %d of %d: %v", n, size, err)
				}
				for _, p := range frame {
					clear(p) // what was written is the writer's again
				}
			}
		}()
		got := make([]byte, 0, len(data))
		buf := make([]byte, 40_000)
		for len(got) < len(data) {
			n, err := r.Read(buf[:1+int(seed)*2000])
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("seed %d: other bytes", seed)
		}
	}
}

// TestRelayEnds: both sides end with the first error, whatever they wait for.
func TestRelayEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := errors.New("the job is over")
		r := newRelay()
		written := make(chan error)
		go func() {
			n, err := r.WritePieces([][]byte{[]byte("abc"), []byte("def")})
			if n != 4 {
				t.Errorf("%d bytes were read", n)
			}
			written <- err
		}()
		if n, err := io.ReadFull(r, make([]byte, 4)); n != 4 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		r.CloseWithError(first)
		r.CloseWithError(io.EOF)
		if err := <-written; !errors.Is(err, first) {
			t.Error(err)
		}
		if n, err := r.Write([]byte("x")); n != 0 || !errors.Is(err, first) {
			t.Error(n, err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, first) {
			t.Error(n, err)
		}
		waiting := newRelay()
		go func() {
			_, err := waiting.Read(make([]byte, 1))
			written <- err
		}()
		synctest.Wait()
		waiting.CloseWithError(first)
		if err := <-written; !errors.Is(err, first) {
			t.Error(err)
		}
	})
}
