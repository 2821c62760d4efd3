package rpc

import (
	"errors"
	"time"

	"google.golang.org/grpc/codes"
)

// Reason is why something was refused or failed, as it crosses the wire in ErrorInfo. It is an error itself, so
// errors.Is(err, rpc.VMBusy) asks for it.
type Reason string

// The reasons. A newer peer may send others.
const (
	VMNotFound         Reason = "VM_NOT_FOUND"        // the VM or an object it needs does not exist
	VMBusy             Reason = "VM_BUSY"             // XAPI has other operations on it; later
	VMAbsent           Reason = "VM_ABSENT"           // an in-place restore of a VM that does not exist
	SRFull             Reason = "SR_FULL"             // no room on the host's storage
	HostAuth           Reason = "HOST_AUTH"           // XAPI refused the agent's login
	XAPIUnreachable    Reason = "XAPI_UNREACHABLE"    // the agent cannot reach XAPI
	Peer               Reason = "PEER"                // this peer may not do that; never retried
	Busy               Reason = "BUSY"                // too many transfers; later
	SessionGone        Reason = "SESSION_GONE"        // the transfer is not known; a new one starts anew
	Superseded         Reason = "SUPERSEDED"          // a newer stream took over
	Offset             Reason = "OFFSET"              // cannot go on from that offset; a new one starts anew
	Chunk              Reason = "CHUNK"               // the bytes differ between the ends
	Archive            Reason = "ARCHIVE"             // the XVA archive is damaged or foreign
	PowerState         Reason = "POWER_STATE"         // the VM's power state forbids it
	ShutdownTimeout    Reason = "SHUTDOWN_TIMEOUT"    // the guest did not shut down in time
	LacksFeature       Reason = "LACKS_FEATURE"       // the guest cannot be shut down cleanly
	Claimed            Reason = "CLAIMED"             // another session works on the VM
	Moved              Reason = "MOVED"               // the VM is on another host or SR than the caller counts it for
	HostDown           Reason = "HOST_DOWN"           // a host of the pool that is needed is down or boots; later
	Conflict           Reason = "CONFLICT"            // size, type or CD conflict; a plan refused
	NewerArchive       Reason = "NEWER_ARCHIVE"       // the archive is of a newer release than the host
	ExportFailed       Reason = "EXPORT_FAILED"       // XAPI's export broke off
	ImportFailed       Reason = "IMPORT_FAILED"       // XAPI's import failed
	UnsupportedVersion Reason = "UNSUPPORTED_VERSION" // of the protocol, or a call the peer does not know
	Invalid            Reason = "INVALID"             // a request that makes no sense
	Cancelled          Reason = "CANCELLED"           // the caller gave up, or the work was cancelled
	Deadline           Reason = "DEADLINE"            // a time limit was over
	Internal           Reason = "INTERNAL"            // a fault; the text stays in the agent's log, under an id

	// Made on the client's side, never sent.
	Unreachable Reason = "UNREACHABLE" // no connection, or it broke
	Auth        Reason = "AUTH"        // certificate trouble: this end refuses the other, or is refused
)

// ErrorDomain is the domain of our ErrorInfo.
const ErrorDomain = "dpxen"

// Error returns the reason's sentence.
func (r Reason) Error() string {
	if row, ok := r.row(); ok {
		return row.says
	}
	return "reason " + string(r)
}

// Code returns the gRPC status code that stands for the reason; Unknown for a reason that this version does not know.
func (r Reason) Code() codes.Code {
	if row, ok := r.row(); ok {
		return row.code
	}
	return codes.Unknown
}

type reasonRow struct {
	code codes.Code
	says string
}

func (r Reason) row() (reasonRow, bool) {
	row, ok := reasonRows()[r]
	return row, ok
}

// reasonRows is the table of all reasons. It is asked for when something has failed, so it need not be fast.
func reasonRows() map[Reason]reasonRow {
	return map[Reason]reasonRow{
		VMNotFound:         {codes.NotFound, "not found in the pool"},
		VMBusy:             {codes.Unavailable, "busy with other operations"},
		VMAbsent:           {codes.NotFound, "the VM does not exist"},
		SRFull:             {codes.ResourceExhausted, "no room on the storage repository"},
		HostAuth:           {codes.FailedPrecondition, "XAPI refused the agent's login"},
		XAPIUnreachable:    {codes.Unavailable, "the agent cannot reach XAPI"},
		Peer:               {codes.PermissionDenied, "not allowed"},
		Busy:               {codes.ResourceExhausted, "the agent has too many transfers"},
		SessionGone:        {codes.Aborted, "the transfer is not known"},
		Superseded:         {codes.Aborted, "superseded by a newer stream"},
		Offset:             {codes.OutOfRange, "cannot go on from this offset"},
		Chunk:              {codes.DataLoss, "the bytes differ between sender and receiver"},
		Archive:            {codes.DataLoss, "the archive is damaged"},
		PowerState:         {codes.FailedPrecondition, "not in this power state"},
		ShutdownTimeout:    {codes.FailedPrecondition, "did not shut down in time"},
		LacksFeature:       {codes.FailedPrecondition, "cannot be shut down cleanly"},
		Claimed:            {codes.FailedPrecondition, "claimed by another session"},
		Moved:              {codes.Aborted, "the VM has moved"},
		HostDown:           {codes.Unavailable, "the host is down"},
		Conflict:           {codes.FailedPrecondition, "the file does not fit the VM"},
		NewerArchive:       {codes.FailedPrecondition, "the archive is newer than the host"},
		ExportFailed:       {codes.Aborted, "the export failed"},
		ImportFailed:       {codes.Aborted, "the import failed"},
		UnsupportedVersion: {codes.Unimplemented, "not supported by the other side's version"},
		Invalid:            {codes.InvalidArgument, "not a valid request"},
		Cancelled:          {codes.Canceled, "cancelled"},
		Deadline:           {codes.DeadlineExceeded, "took too long"},
		Internal:           {codes.Internal, "internal error"},
		Unreachable:        {codes.Unavailable, "not reachable"},
		Auth:               {codes.Unauthenticated, "certificate refused"},
	}
}

// ReasonOf returns the reason of the first *Error in err's chain, or of a sentinel with a method WireReason; "" when
// there is none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	var w wireReasoner
	if errors.As(err, &w) {
		return Reason(w.WireReason())
	}
	return ""
}

// wireReasoner is what the sentinels of packages below implement, which know nothing of gRPC.
type wireReasoner interface {
	error
	WireReason() string
}

// Retryable tells whether the same stream may be attached again: the transport broke, or the agent has no room now. All
// else ends the transfer; whether a new one makes sense is the caller's to know.
func Retryable(err error) bool {
	switch ReasonOf(err) {
	case Unreachable, Busy, Chunk:
		return true
	}
	return false
}

// Retry delays that go with a reason when the error has none of its own.
const defaultRetryAfter = 2 * time.Second

// retryAfter is the delay that goes onto the wire: only for reasons that are worth another try.
func (e *Error) retryAfter() time.Duration {
	if e.RetryAfter > 0 {
		return e.RetryAfter
	}
	if e.Reason == VMBusy || e.Reason == Busy {
		return defaultRetryAfter
	}
	return 0
}
