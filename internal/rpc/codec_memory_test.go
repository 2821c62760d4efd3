package rpc_test

import (
	"bytes"
	"errors"
	"math"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
)

// poisonPool counts what is out, overwrites what comes back, and panics where something comes back twice.
type poisonPool struct {
	mu  sync.Mutex
	out int
	had map[*byte]bool // by the first byte: whether it is out
}

func (p *poisonPool) Get(n int) *[]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out++
	b := make([]byte, n)
	if p.had == nil {
		p.had = map[*byte]bool{}
	}
	p.had[unsafe.SliceData(b)] = true
	return &b
}

func (p *poisonPool) Put(b *[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out--
	whole := (*b)[:cap(*b)]
	if !p.had[unsafe.SliceData(whole)] {
		panic("a buffer came back that was not out")
	}
	p.had[unsafe.SliceData(whole)] = false
	for i := range whole {
		whole[i] = 0xdb
	}
}

// buffers cuts data into counted buffers of size bytes, large enough that mem does count them.
func (p *poisonPool) buffers(data []byte, size int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(data) > 0 {
		n := min(size, len(data))
		b := p.Get(n + 2048)
		copy(*b, data[:n])
		*b = (*b)[:n]
		out = append(out, mem.NewBuffer(b, p))
		data = data[n:]
	}
	return out
}

// carried returns the payload of a frame of either kind.
func carried(e *transfer.BackupEvent) mem.BufferSlice {
	if e.Packed != nil {
		return e.Packed
	}
	return e.Frame
}

// bothKinds are a frame and a packed frame of that payload, as they are on the wire.
func bothKinds(t *testing.T, payload []byte) map[string][]byte {
	t.Helper()
	plain, err := proto.Marshal(frameMessage(payload))
	if err != nil {
		t.Fatal(err)
	}
	packed, err := proto.Marshal(packedMessage(payload))
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"plain": plain, "packed": packed}
}

func TestUnmarshalKeepsItsReferences(t *testing.T) {
	for _, c := range []struct{ payload, pieces int }{
		{60, 1}, {60, 2}, {60, 3}, {60, 4}, {60, 5}, {100_000, 9}, {100_000, 16 << 10}, {100_000, 200_000}, {1, 1}, {0, 1},
	} {
		payload := pattern(c.payload)
		for kind, wire := range bothKinds(t, payload) {
			pool := &poisonPool{}
			data := pool.buffers(wire, c.pieces)
			var e transfer.BackupEvent
			if err := rpc.Codec().Unmarshal(data, &e); err != nil {
				t.Fatal(err)
			}
			data.Free() // as gRPC does
			if got := carried(&e).Materialize(); !bytes.Equal(got, payload) {
				t.Errorf("%s, %+v: payload was overwritten or wrong", kind, c)
			}
			e.Free()
			if pool.out != 0 || carried(&e) != nil {
				t.Errorf("%s, %+v: %d buffers were not freed", kind, c, pool.out)
			}
		}
	}
}

func TestUnmarshalKeepsNothingOfOtherMessages(t *testing.T) {
	for _, m := range otherMessages() {
		wire, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		pool := &poisonPool{}
		data := pool.buffers(wire, 3)
		var e transfer.BackupEvent
		if err := rpc.Codec().Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		data.Free()
		if pool.out != 0 || !proto.Equal(e.Msg, m) {
			t.Errorf("%v: %d buffers were not freed, got %v", m, pool.out, e.Msg)
		}
	}
}

func TestUnusualFramesOutliveTheirBuffers(t *testing.T) {
	for kind, wire := range bothKinds(t, []byte("payload")) {
		wire = append(wire, 0xe8, 0x04, 0x01) // an unknown field
		pool := &poisonPool{}
		data := pool.buffers(wire, len(wire))
		var e transfer.BackupEvent
		if err := rpc.Codec().Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		data.Free()
		if got := string(carried(&e).Materialize()); got != "payload" || pool.out != 0 {
			t.Errorf("%s: got %q with %d buffers not freed", kind, got, pool.out)
		}
	}
}

// What is too large is refused before references are taken.
func TestFramesAboveTheLimitKeepNothing(t *testing.T) {
	for kind, wire := range bothKinds(t, pattern(rpc.MaxFrame+1)) {
		pool := &poisonPool{}
		data := pool.buffers(wire, 16<<10)
		var e transfer.BackupEvent
		err := rpc.Codec().Unmarshal(data, &e)
		data.Free()
		if !errors.Is(err, rpc.ErrFrameSize) || pool.out != 0 || carried(&e) != nil {
			t.Errorf("%s: %d buffers were not freed: %v", kind, pool.out, err)
		}
	}
}

func TestMarshalTakesReferencesOfItsOwn(t *testing.T) {
	pool := &poisonPool{}
	payload := pool.buffers(pattern(100_000), 30_000)
	wire, err := rpc.Codec().Marshal(&transfer.BackupEvent{Frame: payload})
	if err != nil {
		t.Fatal(err)
	}
	payload.Free()
	want, err := proto.Marshal(frameMessage(pattern(100_000)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(wire.Materialize(), want) {
		t.Error("bytes were overwritten before gRPC had freed them")
	}
	wire.Free()
	if pool.out != 0 {
		t.Errorf("%d buffers were not freed", pool.out)
	}
}

func TestFramesAreNeitherCopiedNorAllocated(t *testing.T) {
	codec := rpc.Codec()
	pool := &poisonPool{}
	payload := pool.buffers(pattern(rpc.MaxFrame), rpc.MaxFrame)
	out := &transfer.BackupEvent{Frame: payload}
	// The slice of buffers, the header, and the header as an interface.
	if n := testing.AllocsPerRun(100, func() {
		wire, err := codec.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		wire.Free()
	}); n > 3 {
		t.Errorf("marshal: %.1f allocations a frame", n)
	}
	for kind, wire := range bothKinds(t, pattern(rpc.MaxFrame)) {
		data := pool.buffers(wire, 16<<10)
		// The slice of buffers; now and then the pool of buffer heads is empty.
		if n := testing.AllocsPerRun(100, func() {
			var e transfer.BackupEvent
			if err := codec.Unmarshal(data, &e); err != nil {
				t.Fatal(err)
			}
			e.Free()
		}); n > 4 {
			t.Errorf("unmarshal %s: %.1f allocations a frame", kind, n)
		}
	}
}

// Packed frames are sent by copies, in buffers that are there already. Of many one is looked for that took none: a pool may
// lose what it has, to the garbage collector and to the race detector.
func TestPackedFramesAreSentFromThePool(t *testing.T) {
	const payload = rpc.MaxFrame - 1000
	codec, m := rpc.Codec(), packedMessage(pattern(payload))
	least := uint64(math.MaxUint64)
	for range 100 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		wire, err := codec.Marshal(&transfer.BackupEvent{Msg: m})
		if err != nil {
			t.Fatal(err)
		}
		wire.Free()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	if least > payload/16 {
		t.Errorf("%d bytes a frame", least)
	}
}
