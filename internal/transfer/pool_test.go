package transfer

import (
	"sync"
	"testing"
	"unsafe"

	"google.golang.org/grpc/mem"
)

// NewSenderFrom is NewSender with a pool of the test's own.
func NewSenderFrom(window int64, pool mem.BufferPool) *Sender {
	return newSender(window, FrameSize, pool)
}

// countingPool counts what is out and overwrites what comes back.
type countingPool struct {
	mu        sync.Mutex
	out, peak int
}

func (p *countingPool) Get(n int) *[]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out++
	p.peak = max(p.peak, p.out)
	b := alignedBuffer(n)
	return &b
}

func (p *countingPool) Put(b *[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out--
	whole := (*b)[:cap(*b)]
	for i := range whole {
		whole[i] = 0xdb
	}
}

func (p *countingPool) outstanding() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out
}

func TestFrameBuffersAreAlignedAndOfOneSize(t *testing.T) {
	p := newFramePool(FrameSize)
	for range 4 {
		b := p.Get(100)
		if len(*b) != 100 || cap(*b) != FrameSize {
			t.Fatalf("length %d, capacity %d", len(*b), cap(*b))
		}
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(*b))); at%alignment != 0 {
			t.Errorf("begins at %x", at)
		}
		buf := mem.NewBuffer(b, p)
		buf.Free()
	}
	if b := p.Get(FrameSize + 1); len(*b) != FrameSize+1 {
		t.Errorf("a longer one has %d bytes", len(*b))
	}
	short := make([]byte, 10)
	p.Put(&short) // not one of its own
	if b := p.Get(FrameSize); len(*b) != FrameSize || cap(*b) != FrameSize {
		t.Errorf("after a foreign buffer: length %d, capacity %d", len(*b), cap(*b))
	}
}
