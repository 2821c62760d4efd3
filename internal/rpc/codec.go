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

// MaxFrame is the most that a frame carries, in bytes.
const MaxFrame = 1 << 20

// ErrFrameSize says that a frame larger than MaxFrame was to be sent or has come.
var ErrFrameSize = errors.New("frame larger than 1 MiB")

// FrameCarrier is what SendMsg and RecvMsg get where frames travel: on the wire a message whose field 1 is an
// agentv1.Frame, in a oneof. The types are package transfer's.
type FrameCarrier interface {
	// FramePayload returns the payload to send and whether this is a frame. The codec takes references of its own.
	FramePayload() (mem.BufferSlice, bool)
	// SetFramePayload gets a received payload, not nil; ownership passes to the message.
	SetFramePayload(mem.BufferSlice)
	// Proto returns the generated message, for all that is not a frame: to send what it holds, or to receive into it.
	Proto() proto.Message
}

// frameTag is the tag of field 1, length-delimited: of the frame in its oneof, and of the data in the frame.
const frameTag = 1<<3 | byte(protowire.BytesType)

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
	header = append(header, frameTag)
	return protowire.AppendVarint(header, uint64(size))
}

// Unmarshal decodes data, which gRPC frees afterwards. A message that is a frame and nothing else is handed over by
// reference; one that is a frame in an unusual spelling is decoded by the stock codec and handed over as well.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	carrier, ok := v.(FrameCarrier)
	if !ok {
		if err := checkElements(data, v); err != nil {
			return err
		}
		return c.stock.Unmarshal(data, v)
	}
	if header, size, ok := parseFrame(data); ok {
		if size > MaxFrame {
			return fmt.Errorf("received a frame of %d bytes: %w", size, ErrFrameSize)
		}
		carrier.SetFramePayload(behind(data, header))
		return nil
	}
	m := carrier.Proto()
	if err := checkElements(data, m); err != nil {
		return err
	}
	if err := c.stock.Unmarshal(data, m); err != nil {
		return err
	}
	f, ok := m.(interface{ GetFrame() *agentv1.Frame })
	if !ok || f.GetFrame() == nil {
		return nil
	}
	payload := f.GetFrame().GetData()
	if len(payload) > MaxFrame {
		return fmt.Errorf("received a frame of %d bytes: %w", len(payload), ErrFrameSize)
	}
	carrier.SetFramePayload(mem.BufferSlice{mem.SliceBuffer(payload)})
	return nil
}

// parseFrame tells whether data is one frame with one data field and nothing else, or one empty frame, and how many bytes
// stand before its payload.
func parseFrame(data mem.BufferSlice) (header, size int, ok bool) {
	var first [maxHeader]byte
	total := data.Len()
	b := first[:data.CopyTo(first[:])]
	outer := lengthAfterTag(b)
	if outer.n == 0 || outer.value != uint64(total-outer.n) {
		return 0, 0, false
	}
	if outer.value == 0 {
		return outer.n, 0, true
	}
	inner := lengthAfterTag(b[outer.n:])
	header = outer.n + inner.n
	if inner.n == 0 || inner.value != uint64(total-header) {
		return 0, 0, false
	}
	return header, total - header, true
}

// prefix is a parsed tag and length: n bytes, 0 when it was none.
type prefix struct {
	n     int
	value uint64
}

func lengthAfterTag(b []byte) prefix {
	if len(b) == 0 || b[0] != frameTag {
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
