package rpc

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxElements bounds the messages within one message. Two bytes on the wire make an empty one, and hundreds of bytes in
// memory: 2 MiB of them would be most of a gigabyte.
const maxElements = 1 << 16

// ErrElements says that a message with more than maxElements others in it has come.
var ErrElements = errors.New("message with too many others in it")

// checkElements looks at the wire form of a message before it is decoded. What cannot be parsed the decoder refuses.
func checkElements(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok || data.Len() <= 2*maxElements { // each takes two bytes at least
		return nil
	}
	whole := data.MaterializeToBuffer(buffers)
	defer whole.Free()
	left := maxElements
	if !elementsFit(whole.ReadOnlyData(), m.ProtoReflect().Descriptor(), &left) {
		return fmt.Errorf("received %s of %d bytes: %w", m.ProtoReflect().Descriptor().Name(), data.Len(), ErrElements)
	}
	return nil
}

// elementsFit counts left down for every message in b, which is one of that type. The types do not contain themselves, so
// the recursion is as deep as the contract is.
func elementsFit(b []byte, of protoreflect.MessageDescriptor, left *int) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return true
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return true
		}
		if field := of.Fields().ByNumber(num); field != nil && field.Message() != nil && typ == protowire.BytesType {
			if *left--; *left < 0 {
				return false
			}
			if content, _ := protowire.ConsumeBytes(b); !elementsFit(content, field.Message(), left) {
				return false
			}
		}
		b = b[size:]
	}
	return true
}
