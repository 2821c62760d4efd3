package rpc

import (
	"sync"
	"testing"

	"google.golang.org/grpc/mem"
	"pgregory.net/rapid"
)

// TestFramePool takes and returns buffers of any sizes: none is handed out twice, and each is as long as asked for.
func TestFramePool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := &framePool{BufferPool: mem.DefaultBufferPool(), frames: sync.Pool{New: buffers.frames.New}}
		taken := map[*byte]*[]byte{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(taken) > 0 && rapid.Bool().Draw(t, "put") {
				for k, b := range taken {
					delete(taken, k)
					pool.Put(b)
					break
				}
				continue
			}
			n := rapid.OneOf(rapid.IntRange(1, 2*frameLen), rapid.SampledFrom([]int{1, frameLen / 2, frameLen/2 + 1, frameLen, frameLen + 1, 1 << 20})).Draw(t, "length")
			b := pool.Get(n)
			if len(*b) != n {
				t.Fatalf("%d bytes instead of %d", len(*b), n)
			}
			if _, twice := taken[&(*b)[0]]; twice {
				t.Fatal("a buffer was handed out twice")
			}
			taken[&(*b)[0]] = b
		}
	})
}

func BenchmarkFramePool(b *testing.B) {
	for _, p := range []struct {
		name string
		pool mem.BufferPool
	}{{"frames", buffers}, {"grpc", mem.DefaultBufferPool()}} {
		b.Run(p.name, func(b *testing.B) {
			b.SetBytes(frameLen)
			for b.Loop() {
				p.pool.Put(p.pool.Get(frameLen))
			}
		})
	}
}
