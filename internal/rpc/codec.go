package rpc

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	encproto "google.golang.org/grpc/encoding/proto" // registers the stock codec too
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// MaxFrame is the most that a frame carries, in bytes; a packed one is no longer than that itself.
const MaxFrame = 1 << 20

// ErrFrameSize says that a frame larger than MaxFrame was to be sent or has come.
var ErrFrameSize = errors.New("frame larger than 1 MiB")

// FrameCarrier is what SendMsg and RecvMsg get where frames travel: on the wire a message that is a oneof, whose field 1 is
// an agentv1.Frame and whose field 6 an agentv1.PackedFrame. The types are package transfer's.
type FrameCarrier interface {
	// FramePayload returns the payload to send and whether this is a frame. The codec takes references of its own.
	FramePayload() (mem.BufferSlice, bool)
	// SetFramePayload gets a received frame's payload, not nil; ownership passes to the message.
	SetFramePayload(mem.BufferSlice)
	// SetPackedPayload gets a received packed frame's payload, still packed, as SetFramePayload does.
	SetPackedPayload(mem.BufferSlice)
	// Proto returns the generated message, for all else: to send what it holds, or to receive into it.
	Proto() proto.Message
}

// The tags, all length-delimited: of frames in their oneof, and of the one field of either.
const (
	frameTag   = 1<<3 | byte(protowire.BytesType)
	packedTag  = 6<<3 | byte(protowire.BytesType)
	payloadTag = 1<<3 | byte(protowire.BytesType)
)

// maxHeader is the most bytes before the payload: twice a tag and a length, which may be written longer than needed.
const maxHeader = 2 * (1 + 10)

// codec is byte-compatible with the generated messages in both directions.
type codec struct{ stock encoding.CodecV2 }

// Codec returns the codec that all connections and servers of dpxen use. It bears the stock codec's name. Messages that
// are FrameCarriers move their payload by reference; all others go to the stock codec.
func Codec() encoding.CodecV2 { return codec{stock: encoding.GetCodecV2(encproto.Name)} }

// Name returns "proto".
func (c codec) Name() string { return encproto.Name }

// Marshal encodes v. A frame becomes a header of a few bytes and references to the payload's buffers.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	carrier, ok := v.(FrameCarrier)
	if !ok {
		return c.stock.Marshal(v)
	}
	payload, ok := carrier.FramePayload()
	if !ok {
		return c.stock.Marshal(carrier.Proto())
	}
	size := payload.Len()
	if size > MaxFrame {
		return nil, fmt.Errorf("send a frame of %d bytes: %w", size, ErrFrameSize)
	}
	out := make(mem.BufferSlice, 1, 1+len(payload))
	out[0] = mem.SliceBuffer(frameHeader(size))
	payload.Ref()
	return append(out, payload...), nil
}

// frameHeader returns what stands before size bytes of payload. An empty frame has no data field: so the generated
// messages are written.
func frameHeader(size int) []byte {
	header := make([]byte, 0, maxHeader)
	header = append(header, frameTag)
	if size == 0 {
		return append(header, 0)
	}
	header = protowire.AppendVarint(header, uint64(1+protowire.SizeBytes(size)))
	header = append(header, payloadTag)
	return protowire.AppendVarint(header, uint64(size))
}

// Unmarshal decodes data, which gRPC frees afterwards. A message that is a frame or a packed one and nothing else is handed
// over by reference; one in an unusual spelling is decoded by the stock codec and handed over as well.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	carrier, ok := v.(FrameCarrier)
	if !ok {
		if err := checkElements(data, v); err != nil {
			return err
		}
		return c.stock.Unmarshal(data, v)
	}
	if f, ok := parseFrame(data); ok {
		if f.size > MaxFrame {
			return tooLarge(f.size)
		}
		f.handOver(carrier, behind(data, f.header))
		return nil
	}
	m := carrier.Proto()
	if err := checkElements(data, m); err != nil {
		return err
	}
	if err := c.stock.Unmarshal(data, m); err != nil {
		return err
	}
	f, payload, ok := decodedFrame(m)
	if !ok {
		return nil
	}
	if len(payload) > MaxFrame {
		return tooLarge(len(payload))
	}
	f.handOver(carrier, mem.BufferSlice{mem.SliceBuffer(payload)})
	return nil
}

func tooLarge(size int) error {
	return fmt.Errorf("received a frame of %d bytes: %w", size, ErrFrameSize)
}

// frame is a received one: plain or packed, by its tag, and how many bytes stand before its payload and are its payload.
type frame struct {
	tag          byte
	header, size int
}

// handOver gives the payload, and the reference to it, to who receives.
func (f frame) handOver(carrier FrameCarrier, payload mem.BufferSlice) {
	if f.tag == packedTag {
		carrier.SetPackedPayload(payload)
		return
	}
	carrier.SetFramePayload(payload)
}

// decodedFrame tells whether a decoded message is a frame of either kind.
func decodedFrame(m proto.Message) (f frame, payload []byte, ok bool) {
	oneof, ok := m.(interface {
		GetFrame() *agentv1.Frame
		GetPacked() *agentv1.PackedFrame
	})
	switch {
	case !ok:
		return frame{}, nil, false
	case oneof.GetFrame() != nil:
		return frame{tag: frameTag}, oneof.GetFrame().GetData(), true
	case oneof.GetPacked() != nil:
		return frame{tag: packedTag}, oneof.GetPacked().GetZstd(), true
	}
	return frame{}, nil, false
}

// parseFrame tells whether data is one frame, plain or packed, with one field and nothing else, or an empty one.
func parseFrame(data mem.BufferSlice) (frame, bool) {
	var first [maxHeader]byte
	total := data.Len()
	b := first[:data.CopyTo(first[:])]
	if len(b) == 0 || b[0] != frameTag && b[0] != packedTag {
		return frame{}, false
	}
	outer := lengthAfterTag(b, b[0])
	if outer.n == 0 || outer.value != uint64(total-outer.n) {
		return frame{}, false
	}
	if outer.value == 0 {
		return frame{tag: b[0], header: outer.n}, true
	}
	inner := lengthAfterTag(b[outer.n:], payloadTag)
	header := outer.n + inner.n
	if inner.n == 0 || inner.value != uint64(total-header) {
		return frame{}, false
	}
	return frame{tag: b[0], header: header, size: total - header}, true
}

// prefix is a parsed tag and length: n bytes, 0 when it was none.
type prefix struct {
	n     int
	value uint64
}

func lengthAfterTag(b []byte, tag byte) prefix {
	if len(b) == 0 || b[0] != tag {
		return prefix{}
	}
	value, n := protowire.ConsumeVarint(b[1:])
	if n < 0 {
		return prefix{}
	}
	return prefix{1 + n, value}
}

// behind returns references to what follows the first n bytes of data.
func behind(data mem.BufferSlice, n int) mem.BufferSlice {
	out := make(mem.BufferSlice, 0, len(data))
	for _, b := range data {
		size := b.Len()
		if n >= size {
			n -= size
			continue
		}
		out = append(out, b.Slice(n, size)) // a reference of its own, also when it is the whole
		n = 0
	}
	return out
}
