package agent

import (
	"bytes"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xensim"
)

// A restore whose frames come packed, but for those that do not get shorter, gives the disks back byte for byte.
func TestRestoreOfPackedFrames(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Content: "half"})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	b.scribble(vm)
	a := b.agent(nil)
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	packer, count := transfer.NewPacker(), 0
	p.pack = func(frame []byte) []byte {
		packed, err := packer.Pack(mem.BufferSlice{mem.SliceBuffer(frame)})
		if err != nil {
			t.Error(err)
		}
		if packed != nil {
			count++
		}
		return packed
	}
	if err := p.push(t.Context()); err != nil {
		t.Fatal(err)
	}
	if count == 0 || p.opened.GetWireCompression() != transfer.WireZstd {
		t.Errorf("%d frames were packed for an agent that takes %q", count, p.opened.GetWireCompression())
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	wantSame(t, "disks", digests(vm), digests(b.vmNow(vm.UUID)))
	b.wantClean()
	b.wantUnmarked()
}

// Packed frames that are none end the stream, and the disks stay as they were.
func TestRestoreOfBadPackedFrames(t *testing.T) {
	t.Parallel()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	b := newBench(t, xensim.Config{VMs: 2})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	changed := b.scribble(vm)
	a := b.agent(nil)
	for name, packed := range map[string][]byte{
		"garbage":           bytes.Repeat([]byte("garbage"), 50_000),
		"a bomb":            enc.EncodeAll(make([]byte, 256<<20), nil),
		"one byte too many": enc.EncodeAll(make([]byte, rpc.MaxFrame+1), nil),
		"too long":          make([]byte, rpc.MaxFrame+1),
	} {
		p := newPusher(t, a, vm.UUID, archive, kindOnline)
		p.pack = func([]byte) []byte { return packed }
		if err := p.push(t.Context()); err == nil || !strings.Contains(err.Error(), "frame") {
			t.Errorf("%s: got %v", name, err)
		}
		if out := a.release(t, p.opening.GetKey()); out.GetSucceeded() {
			t.Errorf("%s: outcome %v", name, out)
		}
		wantSame(t, "disks", digests(changed), digests(b.vmNow(vm.UUID)))
	}
	b.wantClean()
	b.wantUnmarked()
}
