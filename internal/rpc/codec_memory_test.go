package rpc_test

import (
	"bytes"
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

func TestUnmarshalKeepsItsReferences(t *testing.T) {
	for _, c := range []struct{ payload, pieces int }{
		{60, 1}, {60, 2}, {60, 3}, {60, 4}, {60, 5}, {100_000, 9}, {100_000, 16 << 10}, {100_000, 200_000}, {1, 1}, {0, 1},
	} {
		payload := pattern(c.payload)
		wire, err := proto.Marshal(frameMessage(payload))
		if err != nil {
			t.Fatal(err)
		}
		pool := &poisonPool{}
		data := pool.buffers(wire, c.pieces)
		var e transfer.BackupEvent
		if err := rpc.Codec().Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		data.Free() // as gRPC does
		if got := e.Frame.Materialize(); !bytes.Equal(got, payload) {
			t.Errorf("%+v: payload was overwritten or wrong", c)
		}
		e.Free()
		if pool.out != 0 {
			t.Errorf("%+v: %d buffers were not freed", c, pool.out)
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
	wire, err := proto.Marshal(frameMessage([]byte("payload")))
	if err != nil {
		t.Fatal(err)
	}
	wire = append(wire, 0xe8, 0x04, 0x01) // an unknown field
	pool := &poisonPool{}
	data := pool.buffers(wire, len(wire))
	var e transfer.BackupEvent
	if err := rpc.Codec().Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	data.Free()
	if got := string(e.Frame.Materialize()); got != "payload" || pool.out != 0 {
		t.Errorf("got %q with %d buffers not freed", got, pool.out)
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
	wire, err := proto.Marshal(frameMessage(pattern(rpc.MaxFrame)))
	if err != nil {
		t.Fatal(err)
	}
	data := pool.buffers(wire, 16<<10)
	// The slice of buffers; now and then the pool of buffer heads is empty.
	if n := testing.AllocsPerRun(100, func() {
		var e transfer.BackupEvent
		if err := codec.Unmarshal(data, &e); err != nil {
			t.Fatal(err)
		}
		e.Free()
	}); n > 4 {
		t.Errorf("unmarshal: %.1f allocations a frame", n)
	}
}
