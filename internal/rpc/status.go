package rpc

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Bounds of what is sent, in bytes: trailers that are too long would break the connection and hide the reason.
const (
	maxMessage = 4 << 10
	maxName    = 512
)

// ToStatus turns what a handler returns into what is sent. An *Error anywhere in the chain keeps its reason, VM, host,
// message and delay; a sentinel with a method WireReason its reason; a context's error becomes CANCELED or
// DEADLINE_EXCEEDED; a status stays what it is. Anything else becomes INTERNAL with a random id instead of its text; the
// server's interceptor logs both.
func ToStatus(err error) error {
	st, _ := toStatus(err)
	return st.Err()
}

// toStatus also returns the id, when the text was held back.
func toStatus(err error) (*status.Status, string) {
	var (
		e        *Error
		sentinel wireReasoner
		given    interface{ GRPCStatus() *status.Status }
	)
	switch {
	case err == nil:
		return nil, ""
	case errors.As(err, &e):
		return e.status(), ""
	case errors.As(err, &sentinel):
		return (&Error{Reason: Reason(sentinel.WireReason()), Msg: sentinel.Error()}).status(), ""
	case errors.As(err, &given) && given.GRPCStatus().Code() != codes.OK:
		return given.GRPCStatus(), ""
	case errors.Is(err, context.Canceled):
		return (&Error{Reason: Cancelled}).status(), ""
	case errors.Is(err, context.DeadlineExceeded):
		return (&Error{Reason: Deadline}).status(), ""
	}
	id := rand.Text()[:10]
	return (&Error{Reason: Internal, Msg: "internal error " + id + ", see the agent's log"}).status(), id
}

func (e *Error) status() *status.Status {
	msg := e.Msg
	if msg == "" {
		msg = e.Reason.Error()
	}
	st := status.New(e.Reason.Code(), clip(msg, maxMessage))
	info := &errdetails.ErrorInfo{Reason: clip(string(e.Reason), maxName), Domain: ErrorDomain}
	about := map[string]string{keyVM: e.VM, keyHost: e.Host}
	maps.Copy(about, e.Holder.metadata())
	for key, value := range about {
		if value != "" {
			if info.Metadata == nil {
				info.Metadata = make(map[string]string, len(about))
			}
			info.Metadata[key] = clip(value, maxName)
		}
	}
	details := []protoadapt.MessageV1{info}
	if d := e.retryAfter(); d > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	}
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st
}

// Keys of ErrorInfo's metadata.
const (
	keyVM   = "vm"
	keyHost = "host"

	keyController = "holder_controller"
	keySession    = "holder_session"
	keyAgent      = "holder_agent"
	keySince      = "holder_since"
	keyUntil      = "holder_until"
)

// clip returns s as valid UTF-8, which protobuf demands, of at most n bytes.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	const ellipsis = "…"
	n -= len(ellipsis)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + ellipsis
}
