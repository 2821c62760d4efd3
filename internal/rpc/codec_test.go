package rpc_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func frameMessage(data []byte) *agentv1.BackupResponse {
	return &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Frame{Frame: &agentv1.Frame{Data: data}}}
}

func packedMessage(data []byte) *agentv1.BackupResponse {
	return &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Packed{Packed: &agentv1.PackedFrame{Zstd: data}}}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

func sliced(b []byte, cuts ...int) mem.BufferSlice {
	var out mem.BufferSlice
	at := 0
	for _, c := range append(cuts, len(b)) {
		out = append(out, mem.SliceBuffer(b[at:c]))
		at = c
	}
	return out
}

// asMessage returns what an event says, as the generated message.
func asMessage(e *transfer.BackupEvent) *agentv1.BackupResponse {
	switch {
	case e.Frame != nil:
		return frameMessage(e.Frame.Materialize())
	case e.Packed != nil:
		return packedMessage(e.Packed.Materialize())
	}
	return e.Msg
}

// otherMessages are those that are not frames.
func otherMessages() []*agentv1.BackupResponse {
	return []*agentv1.BackupResponse{
		{},
		{Kind: &agentv1.BackupResponse_Opened{Opened: &agentv1.Opened{}}},
		{Kind: &agentv1.BackupResponse_Opened{Opened: &agentv1.Opened{Offset: 10, Resumed: true}}},
		{Kind: &agentv1.BackupResponse_Progress{Progress: &agentv1.Progress{Bytes: 1 << 40, Message: "läuft"}}},
		{Kind: &agentv1.BackupResponse_Summary{Summary: &agentv1.BackupSummary{Bytes: 7, Crc32C: 9}}},
	}
}

func TestFramesAreBytesOfTheGeneratedMessage(t *testing.T) {
	codec := rpc.Codec()
	for _, n := range []int{0, 1, 2, 125, 126, 127, 128, 16381, 16384, 1<<20 - 1, 1 << 20} {
		data := pattern(n)
		want, err := proto.Marshal(frameMessage(data))
		if err != nil {
			t.Fatal(err)
		}
		for _, payload := range []mem.BufferSlice{sliced(data), sliced(data, n/2), sliced(data, 0, n/3, n/3)} {
			got, err := codec.Marshal(&transfer.BackupEvent{Frame: payload})
			if err != nil {
				t.Fatalf("marshal a frame of %d: %v", n, err)
			}
			if !bytes.Equal(got.Materialize(), want) {
				t.Errorf("frame of %d: bytes differ from the generated message's", n)
			}
		}
		for _, cuts := range cutsOf(want) {
			var e transfer.BackupEvent
			if err := codec.Unmarshal(sliced(want, cuts...), &e); err != nil {
				t.Fatalf("unmarshal a frame of %d: %v", n, err)
			}
			if e.Frame == nil || e.Packed != nil || e.Msg != nil || !bytes.Equal(e.Frame.Materialize(), data) {
				t.Errorf("frame of %d cut at %v: got %d bytes, message %v", n, cuts, e.Frame.Len(), e.Msg)
			}
		}
	}
}

// cutsOf are places at which a message may come cut.
func cutsOf(wire []byte) [][]int {
	cuts := [][]int{nil, {1}, {len(wire) - 1}, {len(wire) / 2}}
	if len(wire) >= 4 {
		cuts = append(cuts, []int{1, 2, 3, 4})
	}
	return cuts
}

// Packed frames are sent as the generated messages that they are, and received as frames are.
func TestPackedFramesToo(t *testing.T) {
	codec := rpc.Codec()
	for _, n := range []int{0, 1, 125, 126, 128, 16381, 1<<20 - 1, 1 << 20} {
		data := pattern(n)
		want, err := proto.Marshal(packedMessage(data))
		if err != nil {
			t.Fatal(err)
		}
		got, err := codec.Marshal(&transfer.BackupEvent{Msg: packedMessage(data)})
		if err != nil || !bytes.Equal(got.Materialize(), want) {
			t.Errorf("packed frame of %d: bytes differ from the generated message's: %v", n, err)
		}
		for _, cuts := range cutsOf(want) {
			e := transfer.BackupEvent{Frame: sliced(pattern(3))} // used before
			if err := codec.Unmarshal(sliced(want, cuts...), &e); err != nil {
				t.Fatalf("unmarshal a packed frame of %d: %v", n, err)
			}
			if e.Packed == nil || e.Frame != nil || e.Msg != nil || !bytes.Equal(e.Packed.Materialize(), data) {
				t.Errorf("packed frame of %d cut at %v: got %d bytes, message %v", n, cuts, e.Packed.Len(), e.Msg)
			}
			restore := transfer.RestoreEvent{Msg: &agentv1.RestoreRequest{}}
			if err := codec.Unmarshal(sliced(want, cuts...), &restore); err != nil {
				t.Fatalf("unmarshal a packed frame of %d of a restore: %v", n, err)
			}
			if restore.Packed == nil || restore.Frame != nil || restore.Msg != nil || !bytes.Equal(restore.Packed.Materialize(), data) {
				t.Errorf("packed frame of %d of a restore: got %d bytes, message %v", n, restore.Packed.Len(), restore.Msg)
			}
		}
	}
}

func TestOtherMessagesGoTheStockWay(t *testing.T) {
	codec := rpc.Codec()
	for _, m := range otherMessages() {
		want, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := codec.Marshal(&transfer.BackupEvent{Msg: m})
		if err != nil || !bytes.Equal(got.Materialize(), want) {
			t.Errorf("%v: got %x, %v, want %x", m, got.Materialize(), err, want)
		}
		e := transfer.BackupEvent{Frame: sliced(pattern(3))} // used before
		if err := codec.Unmarshal(sliced(want), &e); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, asMessage(&e), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		var plain agentv1.BackupResponse
		if err := codec.Unmarshal(got, &plain); err != nil || !proto.Equal(&plain, m) {
			t.Errorf("plain message: got %v, %v, want %v", &plain, err, m)
		}
	}
}

func TestRestoreFramesToo(t *testing.T) {
	codec := rpc.Codec()
	want := &agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_Frame{Frame: &agentv1.Frame{Data: pattern(5000)}}}
	wire, err := codec.Marshal(&transfer.RestoreEvent{Frame: sliced(pattern(5000))})
	if err != nil {
		t.Fatal(err)
	}
	var plain agentv1.RestoreRequest
	if err := codec.Unmarshal(wire, &plain); err != nil || !proto.Equal(&plain, want) {
		t.Errorf("generated message reads a frame of %d, %v", len(plain.GetFrame().GetData()), err)
	}
	var e transfer.RestoreEvent
	if err := codec.Unmarshal(wire, &e); err != nil || !bytes.Equal(e.Frame.Materialize(), pattern(5000)) {
		t.Errorf("event reads a frame of %d, %v", e.Frame.Len(), err)
	}
	if err := codec.Unmarshal(nil, &e); err != nil || e.Frame != nil || e.Packed != nil || !proto.Equal(e.Msg, &agentv1.RestoreRequest{}) {
		t.Errorf("the empty message: got %+v, %v", e, err)
	}
}

func TestFramesAboveTheLimitAreRefused(t *testing.T) {
	codec := rpc.Codec()
	data := pattern(rpc.MaxFrame + 1)
	if _, err := codec.Marshal(&transfer.BackupEvent{Frame: sliced(data)}); !errors.Is(err, rpc.ErrFrameSize) {
		t.Errorf("marshal: got %v", err)
	}
	for what, m := range map[string]proto.Message{"plain": frameMessage(data), "packed": packedMessage(data)} {
		wire, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := codec.Unmarshal(sliced(wire), &transfer.BackupEvent{}); !errors.Is(err, rpc.ErrFrameSize) {
			t.Errorf("unmarshal %s: got %v", what, err)
		}
		wire = protowire.AppendVarint(protowire.AppendTag(wire, 90, protowire.VarintType), 1)
		if err := codec.Unmarshal(sliced(wire), &transfer.BackupEvent{}); !errors.Is(err, rpc.ErrFrameSize) {
			t.Errorf("unmarshal an unusual spelling of %s: got %v", what, err)
		}
	}
}

func TestFrameSizeIsTheSameInBothPackages(t *testing.T) {
	if rpc.MaxFrame != transfer.FrameSize {
		t.Errorf("rpc has %d, transfer has %d", rpc.MaxFrame, transfer.FrameSize)
	}
}

// compare holds that the codec reads wire as the generated message does.
func compare(t interface {
	Helper()
	Fatalf(string, ...any)
}, wire []byte, cuts ...int) {
	t.Helper()
	var want agentv1.BackupResponse
	wantErr := proto.Unmarshal(wire, &want)
	var e transfer.BackupEvent
	err := rpc.Codec().Unmarshal(sliced(wire, cuts...), &e)
	if max(len(want.GetFrame().GetData()), len(want.GetPacked().GetZstd())) > rpc.MaxFrame && wantErr == nil {
		if !errors.Is(err, rpc.ErrFrameSize) {
			t.Fatalf("frame too large: got %v", err)
		}
		return
	}
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%x: got error %v, the generated message %v", wire, err, wantErr)
	}
	if err != nil {
		return
	}
	if got := asMessage(&e); !isOne(&e) || !proto.Equal(withoutUnknown(got), withoutUnknown(&want)) {
		t.Fatalf("%x: got %+v, want %v", wire, e, &want)
	}
}

// isOne tells whether exactly one field is set, as package transfer promises, and that of a frame where it is one.
func isOne(e *transfer.BackupEvent) bool {
	switch {
	case e.Frame != nil:
		return e.Packed == nil && e.Msg == nil
	case e.Packed != nil:
		return e.Msg == nil
	}
	return e.Msg != nil && e.Msg.GetFrame() == nil && e.Msg.GetPacked() == nil
}

// withoutUnknown is a message that is a frame of either kind without what else there was in it, which is not kept; any
// other as it is.
func withoutUnknown(m *agentv1.BackupResponse) *agentv1.BackupResponse {
	switch {
	case m.GetFrame() != nil:
		return frameMessage(m.GetFrame().GetData())
	case m.GetPacked() != nil:
		return packedMessage(m.GetPacked().GetZstd())
	}
	return m
}

// unusual are spellings of frames, plain and packed, that other writers may choose, and damaged ones.
func unusual() [][]byte {
	out := append(unusualOf(frameTag), unusualOf(packedTag)...)
	data := []byte{frameTag, 3, 'a', 'b', 'c'}
	plain, packed := protowire.AppendBytes([]byte{frameTag}, data), protowire.AppendBytes([]byte{packedTag}, data)
	return append(out, slices.Concat(plain, packed), slices.Concat(packed, plain), slices.Concat(packed, plain, packed))
}

func unusualOf(tag byte) [][]byte {
	data := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("abc"))
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 77, protowire.VarintType), 5)
	wrap := func(b ...byte) []byte { return protowire.AppendBytes([]byte{tag}, b) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	opened := []byte{0x12, 0x02, 0x08, 0x05}
	return [][]byte{
		{}, {tag}, {tag, 0x00}, {tag, 0x80, 0x00}, {tag | 0x80, 0x00, 0x00}, {tag, 0x02, 0x0a, 0x00}, {tag, 0x01, 0x0a},
		{tag, 0x05, 0x0a, 0x83, 0x00, 'a', 'b'}, {tag, 0x06, 0x0a, 0x83, 0x00, 'a', 'b', 'c'}, {tag, 0x03, 0x32, 0x01, 'a'},
		{tag, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, {0x08, 0x01}, {0x0b, 0x0c}, {0x09, 1, 2, 3, 4, 5, 6, 7, 8},
		wrap(data...), wrap(join(data, data)...), wrap(join(unknown, data)...), wrap(join(data, unknown)...),
		join(wrap(data...), wrap(data...)), join(wrap(data...), wrap()), join(wrap(), wrap(data...)),
		join(wrap(data...), unknown), join(unknown, wrap(data...)), join(wrap(data...), opened), join(opened, wrap(data...)),
		join(wrap(data...), []byte{tag}), wrap(data[:4]...), wrap(0x0a, 0x04, 'a', 'b', 'c'), wrap(0x08, 0x01), {0x12, 0x02, 0xff, 0xff},
	}
}

func TestUnusualSpellings(t *testing.T) {
	for _, wire := range unusual() {
		for cut := 0; cut <= len(wire); cut++ {
			compare(t, wire, cut)
		}
	}
}

func TestCodecReadsWhatTheGeneratedMessageReads(t *testing.T) {
	field := rapid.Custom(func(t *rapid.T) []byte {
		payload := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload")
		inner := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), payload)
		inner = append(inner, rapid.SampledFrom([][]byte{nil, {0x10, 0x01}, inner, {0xff}}).Draw(t, "beside")...)
		return protowire.AppendBytes(protowire.AppendTag(nil, protowire.Number(rapid.IntRange(1, 6).Draw(t, "number")),
			protowire.BytesType), inner)
	})
	rapid.Check(t, func(t *rapid.T) {
		wire := bytes.Join(rapid.SliceOfN(field, 0, 3).Draw(t, "fields"), nil)
		wire = wire[:len(wire)-rapid.IntRange(0, min(2, len(wire))).Draw(t, "cut off")]
		a := rapid.IntRange(0, len(wire)).Draw(t, "first cut")
		compare(t, wire, a, rapid.IntRange(a, len(wire)).Draw(t, "second cut"))
	})
}
