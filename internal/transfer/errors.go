package transfer

// reasoned is a sentinel that has a reason code of its own on the wire. Package rpc reads the code by the method alone
// and gives back an error that matches the sentinel on the other side.
type reasoned struct{ reason, text string }

func (e *reasoned) Error() string { return e.text }

// WireReason returns the reason code: an upper case word.
func (e *reasoned) WireReason() string { return e.reason }

// What a caller decides on. They match with errors.Is, also across the wire.
var (
	// ErrSuperseded: a stream with a higher attempt took over, or this one was detached. The handler ends quietly.
	ErrSuperseded error = &reasoned{"SUPERSEDED", "superseded by a newer stream of the same transfer"}
	// ErrOffset: the offset is not one that this end can go on from or that was sent; the transfer starts anew.
	ErrOffset error = &reasoned{"OFFSET", "offset outside of what can be sent again"}
	// ErrGone: the transfer is not known, because its lease ran out or the agent was started anew.
	ErrGone error = &reasoned{"SESSION_GONE", "transfer not known (its lease ran out or the agent was started anew)"}
	// ErrChecksum: the logical stream's length or CRC-32C differ between the ends.
	ErrChecksum error = &reasoned{"CHUNK", "stream differs between sender and receiver"}
	// ErrAborted: the sender was aborted without another reason.
	ErrAborted error = &reasoned{"CANCELLED", "transfer aborted"}
	// ErrFrame: a frame is larger than FrameSize.
	ErrFrame error = &reasoned{"INVALID", "frame larger than 1 MiB"}
)
