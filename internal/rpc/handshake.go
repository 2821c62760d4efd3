package rpc

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

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

// clientTLS is TLS of the dialling side that waits for the server's verdict and notes why a handshake failed.
//
// In TLS 1.3 the client's handshake is over before the server has looked at its certificate. The refusal comes as an
// alert where the first bytes are expected, and gRPC, which writes first, would often see a broken pipe instead. So the
// handshake lasts until the first byte: a gRPC server sends its settings at once (RFC 9113 section 3.4), without waiting
// for the client's.
type clientTLS struct {
	credentials.TransportCredentials
	errors *handshakeErrors
}

// ClientHandshake does the handshake and notes certificate trouble.
func (c clientTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := joinRecords(raw, func(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
		return c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	})
	if err == nil {
		conn, err = awaitFirstByte(ctx, conn)
	}
	if err == nil {
		return conn, info, nil
	}
	if typed := certs.Explain(err); certificateTrouble(typed) {
		c.errors.last.Store(&handshakeError{text: err.Error(), typed: typed})
	}
	return nil, nil, err
}

// Clone returns a copy that notes into the same place.
func (c clientTLS) Clone() credentials.TransportCredentials {
	return clientTLS{c.TransportCredentials.Clone(), c.errors}
}

// startedConn is a connection whose first byte was read.
type startedConn struct {
	net.Conn
	first []byte
}

// Read returns the first byte, then reads on.
func (c *startedConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// awaitFirstByte reads a byte until ctx ends. On an error conn is closed.
func awaitFirstByte(ctx context.Context, conn net.Conn) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	first := make([]byte, 1)
	n, err := conn.Read(first)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline in the past is set, or is being set
	}
	if err != nil {
		_ = conn.Close()
		if ctxErr := ctx.Err(); ctxErr != nil {
			err = ctxErr
		}
		return nil, fmt.Errorf("wait for the server: %w", err)
	}
	return &startedConn{conn, first[:n]}, nil
}
