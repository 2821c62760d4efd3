package transfer_test

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"
	"weak"

	"google.golang.org/grpc/mem"
)

// poison is what a buffer holds that nobody owns.
const poison = 0xdb

var poisoned = bytes.Repeat([]byte{poison}, 64<<10)

// guardPool hands out buffers and finds who does not keep to the rules of ownership: what is returned twice, what is not its
// own, what is written to after it was returned, and what never comes back. Who reads what he no longer owns gets poison, and
// so other bytes than were sent. A buffer that nobody refers to any more and that did not come back is dropped: gRPC drops
// what it had queued when a connection or a call ends, and leaves it to the garbage collector.
type guardPool struct {
	mu     sync.Mutex
	idle   [][]byte
	known  map[uintptr]*guarding // by the address of the first byte
	taken  int
	faults []string
}

// guarding is what is known of a buffer. It does not keep it alive.
type guarding struct {
	buffer weak.Pointer[byte]
	out    bool
}

var _ mem.BufferPool = (*guardPool)(nil)

func newGuardPool() *guardPool { return &guardPool{known: map[uintptr]*guarding{}} }

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Get returns a buffer of length n; the one that came back last is the first to go out again.
func (p *guardPool) Get(n int) *[]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken++
	for i := len(p.idle) - 1; i >= 0; i-- {
		b := p.idle[i]
		if len(b) < n || len(b) > n+4096 {
			continue
		}
		p.idle = slices.Delete(p.idle, i, i+1)
		if n := len(b) - bytes.Count(b, []byte{poison}); n > 0 {
			p.faults = append(p.faults, fmt.Sprintf("%d bytes of a buffer of %d were written to after it had come back", n, len(b)))
		}
		p.known[addressOf(b)].out = true
		b = b[:n]
		return &b
	}
	b := make([]byte, max(n, 4096)) // more than what gRPC does not count
	p.known[addressOf(b)] = &guarding{weak.Make(unsafe.SliceData(b)), true}
	b = b[:n]
	return &b
}

// Put takes a buffer back.
func (p *guardPool) Put(b *[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	whole := (*b)[:cap(*b)]
	switch g := p.known[addressOf(whole)]; {
	case g == nil || g.buffer.Value() != unsafe.SliceData(whole):
		p.faults = append(p.faults, fmt.Sprintf("a buffer of %d bytes came back that is not of the pool", len(whole)))
	case !g.out:
		p.faults = append(p.faults, fmt.Sprintf("a buffer of %d bytes came back twice", len(whole)))
	default:
		g.out = false
		for n := 0; n < len(whole); { // the race detector makes a loop over bytes slow
			n += copy(whole[n:], poisoned)
		}
		p.idle = append(p.idle, whole)
	}
}

// gets returns how many buffers were taken.
func (p *guardPool) gets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// count returns how many buffers somebody still has, and how many were dropped.
func (p *guardPool) count() (held, dropped int) {
	runtime.GC()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.known {
		switch {
		case g.out && g.buffer.Value() != nil:
			held++
		case g.out:
			dropped++
		}
	}
	return held, dropped
}

// check waits until nobody has a buffer any more, tells what was wrong with them, and returns how many were dropped.
func (p *guardPool) check(t testing.TB, what string) int {
	t.Helper()
	held, dropped := p.count()
	for end := time.Now().Add(15 * time.Second); held > 0 && time.Now().Before(end); held, dropped = p.count() {
		time.Sleep(20 * time.Millisecond)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if held > 0 {
		t.Errorf("%s: somebody still has %d buffers of %d", what, held, p.taken)
	}
	if p.taken == 0 {
		t.Errorf("%s: no buffer was taken", what)
	}
	for _, f := range p.faults {
		t.Errorf("%s: %s", what, f)
	}
	return dropped
}

// TestGuardPoolFindsFaults holds that the tests that use it can fail.
func TestGuardPoolFindsFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*guardPool)
		want int
	}{
		{"good", func(p *guardPool) { p.Put(p.Get(5000)); p.Put(p.Get(5000)) }, 0},
		{"twice", func(p *guardPool) { b := p.Get(5000); p.Put(b); p.Put(b) }, 1},
		{"foreign", func(p *guardPool) { b := make([]byte, 5000); p.Put(&b) }, 1},
		{"written after", func(p *guardPool) { b := p.Get(5000); p.Put(b); (*b)[7] = 1; p.Get(5000) }, 1},
		{"read after", func(p *guardPool) {
			b := mem.NewBuffer(p.Get(5000), p)
			kept := b.ReadOnlyData()
			b.Free()
			if kept[3] != poison {
				p.faults = append(p.faults, "not poisoned")
			}
		}, 0},
	} {
		p := newGuardPool()
		c.do(p)
		if len(p.faults) != c.want {
			t.Errorf("%s: faults %q, want %d", c.name, p.faults, c.want)
		}
	}
}

func TestGuardPoolTellsHeldFromDropped(t *testing.T) {
	p := newGuardPool()
	kept := p.Get(5000)
	p.Get(5000)
	p.Put(p.Get(5000))
	if held, dropped := p.count(); held != 1 || dropped != 1 {
		t.Errorf("%d held and %d dropped, want one of each", held, dropped)
	}
	runtime.KeepAlive(kept)
}
