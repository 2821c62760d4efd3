package transfer

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// BackupEvent is a BackupResponse as it is given to SendMsg and RecvMsg: either a frame, whose bytes travel by reference
// under the codec of package rpc, or any other message. Exactly one field is set; an empty frame is an empty Frame that
// is not nil. After RecvMsg the receiver owns Frame and gives it to Intake.Write or frees it. SendMsg takes references of
// its own, so the sender still owns Frame afterwards.
//
// Packed is a packed frame that was received: its bytes, still packed, for Unpacker.Unpack. The receiver owns and frees
// them. To send one, put an agentv1.PackedFrame into Msg.
type BackupEvent struct {
	Msg    *agentv1.BackupResponse
	Frame  mem.BufferSlice
	Packed mem.BufferSlice
}

// FramePayload returns the frame's bytes, without a reference, and whether this is a frame.
func (e *BackupEvent) FramePayload() (mem.BufferSlice, bool) { return e.Frame, e.Frame != nil }

// SetFramePayload makes the event a frame and takes over the reference. What the event held before is forgotten, not
// freed.
func (e *BackupEvent) SetFramePayload(b mem.BufferSlice) { *e = BackupEvent{Frame: orEmpty(b)} }

// SetPackedPayload makes the event a packed frame, as SetFramePayload makes it a frame.
func (e *BackupEvent) SetPackedPayload(b mem.BufferSlice) { *e = BackupEvent{Packed: orEmpty(b)} }

// Proto makes the event a message, if it is none, and returns it. A frame held before is forgotten, not freed.
func (e *BackupEvent) Proto() proto.Message {
	e.Frame, e.Packed = nil, nil
	if e.Msg == nil {
		e.Msg = &agentv1.BackupResponse{}
	}
	return e.Msg
}

// Free frees the frame, if there is one, and empties the event.
func (e *BackupEvent) Free() {
	e.Frame.Free()
	e.Packed.Free()
	*e = BackupEvent{}
}

// RestoreEvent is a RestoreRequest as BackupEvent is a BackupResponse; the same rules hold.
type RestoreEvent struct {
	Msg    *agentv1.RestoreRequest
	Frame  mem.BufferSlice
	Packed mem.BufferSlice
}

// FramePayload returns the frame's bytes, without a reference, and whether this is a frame.
func (e *RestoreEvent) FramePayload() (mem.BufferSlice, bool) { return e.Frame, e.Frame != nil }

// SetFramePayload makes the event a frame and takes over the reference. What the event held before is forgotten, not
// freed.
func (e *RestoreEvent) SetFramePayload(b mem.BufferSlice) { *e = RestoreEvent{Frame: orEmpty(b)} }

// SetPackedPayload makes the event a packed frame, as SetFramePayload makes it a frame.
func (e *RestoreEvent) SetPackedPayload(b mem.BufferSlice) { *e = RestoreEvent{Packed: orEmpty(b)} }

// Proto makes the event a message, if it is none, and returns it. A frame held before is forgotten, not freed.
func (e *RestoreEvent) Proto() proto.Message {
	e.Frame, e.Packed = nil, nil
	if e.Msg == nil {
		e.Msg = &agentv1.RestoreRequest{}
	}
	return e.Msg
}

// Free frees the frame, if there is one, and empties the event.
func (e *RestoreEvent) Free() {
	e.Frame.Free()
	e.Packed.Free()
	*e = RestoreEvent{}
}

func orEmpty(b mem.BufferSlice) mem.BufferSlice {
	if b == nil {
		return mem.BufferSlice{}
	}
	return b
}
