package rpc_test

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// pieces cuts wire into counted buffers as long as the bytes of cuts say, 0 included, and the rest; a number of 255 is a cut
// far away.
func (p *poisonPool) pieces(wire, cuts []byte) mem.BufferSlice {
	var out mem.BufferSlice
	for _, c := range cuts {
		n := int(c)
		if c == 255 {
			n = 9000
		}
		if n = min(n, len(wire)); n == 0 {
			out = append(out, mem.SliceBuffer(nil))
			continue
		}
		out = append(out, p.buffers(wire[:n], n)...)
		wire = wire[n:]
	}
	return append(out, p.buffers(wire, max(1, len(wire)))...)
}

// oneof is a generated message that may be a frame of either kind.
type oneof interface {
	proto.Message
	GetFrame() *agentv1.Frame
	GetPacked() *agentv1.PackedFrame
}

// event is one of package transfer's.
type event interface {
	rpc.FrameCarrier
	Free()
}

// packedPayload returns the payload of a packed frame that was received, and whether e is one.
func packedPayload(e event) (mem.BufferSlice, bool) {
	switch e := e.(type) {
	case *transfer.BackupEvent:
		return e.Packed, e.Packed != nil
	case *transfer.RestoreEvent:
		return e.Packed, e.Packed != nil
	}
	panic("an event of another kind")
}

// fuzzed holds that an event reads wire, whose buffers are gone as soon as Unmarshal has returned, as the generated message
// does; that it keeps nothing but the payload's buffers; and that what it has read is written as the generated message is.
func fuzzed(t *testing.T, wire, cuts []byte, want oneof, e event) {
	t.Helper()
	wantErr := proto.Unmarshal(wire, want)
	pool := &poisonPool{}
	data := pool.pieces(wire, cuts)
	err := rpc.Codec().Unmarshal(data, e)
	data.Free() // as gRPC does
	defer func() {
		if e.Free(); pool.out != 0 {
			t.Fatalf("%x: %d buffers were kept", wire, pool.out)
		}
	}()
	frame, packed := want.GetFrame(), want.GetPacked()
	payload, isFrame := e.FramePayload()
	still, isPacked := packedPayload(e)
	switch {
	case wantErr == nil && max(len(frame.GetData()), len(packed.GetZstd())) > rpc.MaxFrame:
		if !errors.Is(err, rpc.ErrFrameSize) {
			t.Fatalf("frame too large: got %v", err)
		}
	case (err == nil) != (wantErr == nil):
		t.Fatalf("%x: got error %v, the generated message %v", wire, err, wantErr)
	case err != nil:
	case isFrame != (frame != nil) || isPacked != (packed != nil):
		t.Fatalf("%x: taken for a frame: %v, for a packed one: %v", wire, isFrame, isPacked)
	case isFrame:
		if got := payload.Materialize(); !bytes.Equal(got, frame.GetData()) {
			t.Fatalf("%x: got a frame of %x, want %x", wire, got, frame.GetData())
		}
		rewritten(t, e, frame)
	case isPacked:
		if got := still.Materialize(); !bytes.Equal(got, packed.GetZstd()) {
			t.Fatalf("%x: got a packed frame of %x, want %x", wire, got, packed.GetZstd())
		}
	case !proto.Equal(e.Proto(), want):
		t.Fatalf("%x: got %v, want %v", wire, e.Proto(), want)
	}
}

// rewritten holds that a frame is written as the generated message would be.
func rewritten(t *testing.T, event rpc.FrameCarrier, frame *agentv1.Frame) {
	t.Helper()
	known := &agentv1.Frame{Data: frame.GetData()} // what else there was in it is not kept
	want, err := proto.Marshal(&agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Frame{Frame: known}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := rpc.Codec().Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Free()
	if !bytes.Equal(got.Materialize(), want) {
		t.Fatalf("written as %x, want %x", got.Materialize(), want)
	}
}

// FuzzCodec feeds messages in any number of buffers, as backups' answers and as restores' requests.
func FuzzCodec(f *testing.F) {
	cuts := [][]byte{nil, {0}, {1}, {1, 1, 1, 1}, {2, 0, 3}, {4, 255, 255}, {255}}
	for i, wire := range append(unusual(), crooked()...) {
		f.Add(wire, cuts[i%len(cuts)]) // each alone: a fuzzer begins with going through all of them
	}
	for _, m := range append(otherMessages(), frameMessage(pattern(300)), frameMessage(pattern(30_000)), frameMessage(nil),
		packedMessage(pattern(300)), packedMessage(pattern(30_000)), packedMessage(nil)) {
		wire, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, cuts[3])
		f.Add(wire, cuts[5])
	}
	f.Fuzz(func(t *testing.T, wire, cuts []byte) {
		if len(cuts) > 64 {
			cuts = cuts[:64]
		}
		var backup agentv1.BackupResponse
		fuzzed(t, wire, cuts, &backup, &transfer.BackupEvent{})
		var restore agentv1.RestoreRequest
		fuzzed(t, wire, cuts, &restore, &transfer.RestoreEvent{})
	})
}

// TestMessagesInAnyPieces goes through all that the fuzzer begins with, cut everywhere.
func TestMessagesInAnyPieces(t *testing.T) {
	for _, wire := range append(unusual(), crooked()...) {
		for _, cuts := range [][]byte{nil, {0}, {1}, {1, 1, 1, 1}, {2, 0, 3}, {4, 255, 255}, {255}} {
			var backup agentv1.BackupResponse
			fuzzed(t, wire, cuts, &backup, &transfer.BackupEvent{})
			var restore agentv1.RestoreRequest
			fuzzed(t, wire, cuts, &restore, &transfer.RestoreEvent{})
		}
	}
}

// crooked are fields of a frame's numbers with every wire type, groups, overlong tags and lengths, and several fields after
// another in either order.
func crooked() [][]byte {
	var out [][]byte
	for _, num := range []protowire.Number{1, 2, 3, 6} {
		for typ := protowire.Type(0); typ < 8; typ++ {
			field := append(protowire.AppendTag(nil, num, typ), 4, 'a', 'b', 'c', 'd', 0, 0, 0, 0)
			out = append(out, field)
			for _, tag := range []byte{frameTag, packedTag} {
				out = append(out, protowire.AppendBytes([]byte{tag}, field), append([]byte{tag, 2, frameTag, 0}, field...))
			}
		}
	}
	data := []byte{frameTag, 5, frameTag, 3, 'x', 'y', 'z'}
	group := []byte{0x1b, 0x08, 0x01, 0x1c} // field 3 as a group
	opened := []byte{0x12, 0x02, 0x08, 0x05}
	for _, parts := range [][][]byte{{data, data}, {data, opened, data}, {opened, data}, {data, opened}, {data, group}, {group, data},
		{{frameTag, 0x85, 0x80, 0x00, frameTag, 0x83, 0x00}, []byte("xy")}, {{0x8a, 0x80, 0x00, 5}, data[2:]}} {
		out = append(out, bytes.Join(parts, nil))
	}
	return out
}

// The tags of frames, plain and packed; the former is that of the payload in either as well.
const (
	frameTag  = 0x0a
	packedTag = 0x32
)
