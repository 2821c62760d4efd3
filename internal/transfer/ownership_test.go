package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
)

// roughCuts are bytes that connections live, from a seed: at the borders of frames, in their headers, anywhere.
func roughCuts(seed uint64) []int64 {
	r := rand.New(rand.NewPCG(seed, 7))
	out := []int64{6000}
	for range 7 {
		out = append(out, int64(1+r.IntN(4))*mib+int64(r.IntN(40_000))-20_000)
	}
	return out
}

// guarded is a loopback whose buffers are watched: those of the rings, and those of gRPC on both sides.
type guarded struct {
	*loopback
	agent       *agent
	ring, wires *guardPool
}

func newGuarded(t *testing.T, data []byte, cuts ...int64) *guarded {
	g := &guarded{agent: newAgent(data), ring: newGuardPool(), wires: newGuardPool()}
	g.agent.pool = g.ring
	g.loopback = newLoopbackFrom(t, g.agent, g.wires, cuts...)
	return g
}

// underWay calls then once gRPC is full of frames.
func (g *guarded) underWay(then func()) {
	for g.wires.gets() < 60 {
		time.Sleep(time.Millisecond)
	}
	then()
}

// end lets go of what is still open, and holds that nobody has a buffer then. It returns how many gRPC has dropped.
func (g *guarded) end(t *testing.T) (dropped int) {
	t.Helper()
	for _, h := range g.agent.registry.All() {
		h.sender.Abort(nil)
	}
	g.stop()
	return g.ring.check(t, "ring") + g.wires.check(t, "gRPC")
}

// TestBuffersComeBack moves streams both ways on good connections: every buffer comes back to its pool, none is dropped.
func TestBuffersComeBack(t *testing.T) {
	g := newGuarded(t, testData(20*mib+12345))
	var got bytes.Buffer
	if _, err := g.backup(t.Context(), transfer.NewReceiver(&got), 1, 4*mib); err != nil || !bytes.Equal(got.Bytes(), g.agent.data) {
		t.Fatalf("backup: %d bytes, %v", got.Len(), err)
	}
	if n := g.end(t); n > 0 {
		t.Errorf("backup: %d buffers were dropped", n)
	}
	g = newGuarded(t, nil)
	s := transfer.NewSenderFrom(4*mib, g.ring)
	go func() {
		if _, err := s.ReadFrom(bytes.NewReader(testData(20*mib + 12345))); err != nil {
			t.Errorf("read: %v", err)
		}
		s.Finish()
	}()
	if _, err := g.restore(t.Context(), s, 1); err != nil {
		t.Fatal(err)
	}
	if n := g.end(t); n > 0 {
		t.Errorf("restore: %d buffers were dropped", n)
	}
}

func TestBuffersOfABackupOverABadNetwork(t *testing.T) {
	for seed := range uint64(2) {
		g := newGuarded(t, testData(20*mib+12345), roughCuts(seed)...)
		var got bytes.Buffer
		r := transfer.NewReceiver(&got)
		err := quick().Run(t.Context(), func(ctx context.Context, attempt uint32) (bool, error) {
			return g.backup(ctx, r, attempt, 4*mib)
		}, rpc.Retryable)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(got.Bytes(), g.agent.data) {
			t.Errorf("seed %d: %d bytes, which are not those that were sent", seed, got.Len())
		}
		g.end(t)
	}
}

func TestBuffersOfARestoreOverABadNetwork(t *testing.T) {
	for seed := range uint64(2) {
		g := newGuarded(t, nil, roughCuts(seed)...)
		data := testData(20*mib + 12345)
		s := transfer.NewSenderFrom(4*mib, g.ring)
		go func() {
			if _, err := s.Write(data); err != nil {
				t.Errorf("write: %v", err)
			}
			s.Finish()
		}()
		err := quick().Run(t.Context(), func(ctx context.Context, attempt uint32) (bool, error) { return g.restore(ctx, s, attempt) }, rpc.Retryable)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		h, _ := g.agent.registry.Lookup("k")
		if !bytes.Equal(h.body.Bytes(), data) {
			t.Errorf("seed %d: %d bytes, which are not those that were sent", seed, h.body.Len())
		}
		s.Abort(nil)
		g.end(t)
	}
}

// failAt is a writer whose disk is full after so many bytes.
type failAt struct{ left int }

var errFull = errors.New("full")

func (w *failAt) Write(p []byte) (int, error) {
	n := min(w.left, len(p))
	if w.left -= n; n < len(p) {
		return n, errFull
	}
	return n, nil
}

// slow is a writer that takes its time, so that frames queue up everywhere.
type slow struct{ io.Writer }

func (w slow) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	return w.Writer.Write(p)
}

func TestBuffersOfTransfersThatEndBadly(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, cancel func(), g *guarded) error
	}{
		{"cancelled in the midst", func(ctx context.Context, cancel func(), g *guarded) error {
			r := transfer.NewReceiver(slow{io.Discard})
			go g.underWay(cancel)
			_, err := g.backup(ctx, r, 1, 8*mib)
			return err
		}},
		{"the disk is full", func(ctx context.Context, _ func(), g *guarded) error {
			_, err := g.backup(ctx, transfer.NewReceiver(&failAt{3*mib + 5}), 1, 8*mib)
			return err
		}},
		{"aborted by the agent", func(ctx context.Context, _ func(), g *guarded) error {
			go g.underWay(func() {
				for _, h := range g.agent.registry.All() {
					h.sender.Abort(errFull)
				}
			})
			_, err := g.backup(ctx, transfer.NewReceiver(slow{io.Discard}), 1, 8*mib)
			return err
		}},
		{"evicted", func(ctx context.Context, _ func(), g *guarded) error {
			r := transfer.NewReceiver(slow{io.Discard})
			go g.underWay(func() { _, _, _ = r.Attach(2) })
			_, err := g.backup(ctx, r, 1, 8*mib)
			return err
		}},
		{"a restore cancelled", func(ctx context.Context, cancel func(), g *guarded) error {
			s := transfer.NewSenderFrom(8*mib, g.ring)
			defer s.Abort(nil)
			go g.underWay(cancel)
			go func() {
				for { // until Abort
					if _, err := s.Write(testData(mib)); err != nil {
						return
					}
				}
			}()
			_, err := g.restore(ctx, s, 1)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuarded(t, testData(24*mib))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if err := c.run(ctx, cancel, g); err == nil {
				t.Error("it ended well")
			}
			g.end(t)
		})
	}
}
