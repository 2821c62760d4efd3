package rpc

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dpxen/dpxen/certs"
)

// FromStatus turns what a call returned into an *Error: the server's, with all that it sent, or one that says what became
// of the transport (Unreachable, Auth, Cancelled …). The status stays in the chain, so status.Code works. nil, io.EOF and
// errors that are no status come back as they are.
func FromStatus(err error) error {
	var e *Error
	if err == nil || errors.Is(err, io.EOF) || errors.As(err, &e) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if sent := fromDetails(st, err); sent != nil {
		return sent
	}
	if st.Code() == codes.Unavailable {
		return unavailable(st, err)
	}
	return &Error{Reason: reasonOfCode(st.Code()), Msg: clip(st.Message(), maxMessage), cause: err}
}

// maxRetryAfter bounds what a peer may ask to wait for.
const maxRetryAfter = 5 * time.Minute

// knownReason is what the peer sent, where it is the form of a reason: a newer peer may have others, but what it says is no
// text for people. Those that are made on this side alone are not the peer's to give.
func knownReason(sent string) Reason {
	switch r := Reason(sent); {
	case r == Unreachable || r == Auth:
		return Internal
	case len(sent) == 0 || len(sent) > maxReason || strings.Trim(sent, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "":
		return Internal
	default:
		return r
	}
}

// maxReason is the longest reason that is taken from a peer, in bytes.
const maxReason = 64

// fromDetails returns what a dpxen server sent, or nil.
func fromDetails(st *status.Status, err error) *Error {
	var e *Error
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == ErrorDomain && e == nil {
				e = &Error{Reason: knownReason(d.GetReason()), VM: clip(d.GetMetadata()[keyVM], maxName),
					Host: clip(d.GetMetadata()[keyHost], maxName), Msg: clip(st.Message(), maxMessage), cause: err,
					Holder: holderFrom(d.GetMetadata())}
			}
		case *errdetails.RetryInfo:
			if e != nil && d.GetRetryDelay().IsValid() {
				e.RetryAfter = min(max(0, d.GetRetryDelay().AsDuration()), maxRetryAfter)
			}
		}
	}
	return e
}

// unavailable tells certificate trouble from a connection that could not be made or broke.
func unavailable(st *status.Status, err error) *Error {
	msg := clip(connectionText(st.Message()), maxMessage)
	if explained := certs.Explain(err); certificateTrouble(explained) {
		return &Error{Reason: Auth, Msg: msg, cause: explained}
	}
	// Certificate errors of this end lose their type in gRPC; handshakeErrors keeps them for connections made by Dial.
	if strings.Contains(st.Message(), "authentication handshake failed") &&
		(strings.Contains(msg, "certificate") || strings.Contains(msg, "x509:")) {
		return &Error{Reason: Auth, Msg: msg, cause: err}
	}
	return &Error{Reason: Unreachable, Msg: msg, cause: err}
}

// certificateTrouble tells whether err holds one of certs' reasons to refuse a peer.
func certificateTrouble(err error) bool {
	for _, sentinel := range []error{
		certs.ErrNoCertificate, certs.ErrExpired, certs.ErrUnknownCA, certs.ErrBadCertificate, certs.ErrWrongRole,
		certs.ErrWrongName, certs.ErrNotAllowed, certs.ErrRevoked, certs.ErrRevocationUnknown, certs.ErrVersion,
		certs.ErrRefusedByPeer,
	} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}

// connectionText takes gRPC's wrapping off the text of a failed connection.
func connectionText(s string) string {
	s = strings.TrimPrefix(s, "last connection error: ")
	if quoted, ok := strings.CutPrefix(s, "connection error: desc = "); ok {
		s = quoted
		if plain, err := strconv.Unquote(quoted); err == nil {
			s = plain
		}
	}
	s = strings.TrimPrefix(s, "transport: ")
	return strings.TrimPrefix(s, "Error while dialing: ")
}

// reasonOfCode is for statuses that gRPC itself made.
func reasonOfCode(c codes.Code) Reason {
	switch c {
	case codes.Canceled:
		return Cancelled
	case codes.DeadlineExceeded:
		return Deadline
	case codes.Unauthenticated, codes.PermissionDenied:
		return Peer
	case codes.Unimplemented:
		return UnsupportedVersion
	case codes.InvalidArgument:
		return Invalid
	}
	return Internal
}

// fromStatus is FromStatus with what the context tells: whether it was this side that gave up, and the typed error of the
// connection's last handshake.
func fromStatus(ctx context.Context, err error, handshake *handshakeErrors) error {
	err = FromStatus(err)
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	if sent, ok := status.FromError(e.cause); !ok || hasInfo(sent) {
		return err
	}
	c := *e
	switch {
	case ctx.Err() != nil && (e.Reason == Cancelled || e.Reason == Deadline):
		c.cause = errors.Join(ctx.Err(), e.cause)
	case e.Reason == Cancelled:
		c.Reason = Unreachable // nobody here cancelled it: the connection was closed
	case e.Reason == Unreachable || e.Reason == Auth:
		if typed := handshake.matching(e); typed != nil {
			c.Reason, c.Msg, c.cause = Auth, typed.Error(), errors.Join(typed, e.cause)
		}
	}
	return &c
}

func hasInfo(st *status.Status) bool {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == ErrorDomain {
			return true
		}
	}
	return false
}
