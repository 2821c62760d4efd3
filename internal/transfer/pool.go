package transfer

import (
	"sync"
	"unsafe"

	"google.golang.org/grpc/mem"
)

// alignment is that of every frame buffer, in bytes: what direct I/O and page-wise copying like.
const alignment = 4096

// framePool hands out buffers of one size. It implements mem.BufferPool, so a buffer comes back to it when the last
// reference of ring or gRPC is freed. What is never freed, because a connection broke, falls to the garbage collector.
type framePool struct {
	size int
	free sync.Pool
}

var _ mem.BufferPool = (*framePool)(nil)

// frames is the pool of all senders of this process: what one transfer gives back the next one takes, instead of memory that
// the garbage collector has not yet found.
var frames = newFramePool(FrameSize)

func newFramePool(size int) *framePool {
	p := &framePool{size: size}
	p.free.New = func() any {
		b := alignedBuffer(size)
		return &b
	}
	return p
}

// alignedBuffer returns size bytes that begin at a multiple of alignment.
func alignedBuffer(size int) []byte {
	b := make([]byte, size+alignment)
	skip := 0
	if over := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % alignment); over != 0 {
		skip = alignment - over
	}
	return b[skip : skip+size : skip+size]
}

// Get returns a buffer of length bytes and the pool's capacity; a longer one than the pool's is allocated.
func (p *framePool) Get(length int) *[]byte {
	if length > p.size {
		b := make([]byte, length)
		return &b
	}
	b := p.free.Get().(*[]byte)
	*b = (*b)[:length]
	return b
}

// Put takes a buffer back.
func (p *framePool) Put(b *[]byte) {
	if cap(*b) != p.size {
		return
	}
	*b = (*b)[:p.size]
	p.free.Put(b)
}
