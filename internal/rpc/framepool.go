package rpc

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// frameLen is the size of HTTP/2 frames' payloads, in bytes: gRPC neither sends nor allows larger ones.
const frameLen = 16 << 10

// framePool is where gRPC gets buffers from. gRPC's own pool clears what it hands out, which for frames, all of whose bytes
// are then read from the network, is a pass over the data for nothing.
type framePool struct {
	mem.BufferPool // for all other sizes
	frames         sync.Pool
}

var buffers = &framePool{BufferPool: mem.DefaultBufferPool(), frames: sync.Pool{New: func() any {
	b := make([]byte, frameLen)
	return &b
}}}

// poolOr returns p, or the process's own pool where p is nil.
func poolOr(p mem.BufferPool) mem.BufferPool {
	if p == nil {
		return buffers
	}
	return p
}

// Get returns a buffer of that length. One of more than half a frame may hold what another stream of this process left in it.
func (p *framePool) Get(length int) *[]byte {
	if length <= frameLen/2 || length > frameLen {
		return p.BufferPool.Get(length)
	}
	b := p.frames.Get().(*[]byte)
	*b = (*b)[:length]
	return b
}

// Put takes a buffer of Get's back.
func (p *framePool) Put(b *[]byte) {
	if cap(*b) != frameLen {
		p.BufferPool.Put(b)
		return
	}
	*b = (*b)[:frameLen]
	p.frames.Put(b)
}
