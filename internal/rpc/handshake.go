package rpc

import (
	"context"
	"net"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"github.com/dpxen/dpxen/certs"
)

// handshakeErrors keeps a connection's last handshake error with its type, of which gRPC hands on only the text.
type handshakeErrors struct {
	last atomic.Pointer[handshakeError]
}

type handshakeError struct {
	text  string // as gRPC will quote it
	typed error
}

// matching returns the typed error that e speaks of, or nil.
func (h *handshakeErrors) matching(e *Error) error {
	if h == nil {
		return nil
	}
	last := h.last.Load()
	if last == nil || !strings.Contains(e.Msg, last.text) {
		return nil
	}
	return last.typed
}

// recordingTLS is TLS of the dialling side that notes why a handshake failed.
type recordingTLS struct {
	credentials.TransportCredentials
	errors *handshakeErrors
}

// ClientHandshake does the handshake and notes certificate trouble.
func (r recordingTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	tlsConn, info, err := r.TransportCredentials.ClientHandshake(ctx, authority, conn)
	if err != nil {
		if typed := certs.Explain(err); certificateTrouble(typed) {
			r.errors.last.Store(&handshakeError{text: err.Error(), typed: typed})
		}
	}
	return tlsConn, info, err
}

// Clone returns a copy that notes into the same place.
func (r recordingTLS) Clone() credentials.TransportCredentials {
	return recordingTLS{r.TransportCredentials.Clone(), r.errors}
}
