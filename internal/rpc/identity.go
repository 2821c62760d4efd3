package rpc

import (
	"context"
	"crypto/tls"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/dpxen/dpxen/certs"
)

type identityKey struct{}

// PeerIdentity returns who is calling. The server's interceptor has put it there, once a call; without it no handler is
// reached.
func PeerIdentity(ctx context.Context) (certs.Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(certs.Identity)
	return id, ok
}

// WithPeerIdentity returns a context with that caller, for tests of handlers.
func WithPeerIdentity(ctx context.Context, id certs.Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// Identify reads the identity of an accepted connection's peer; certs' Source has one that checks the certificate again.
type Identify func(tls.ConnectionState) (certs.Identity, error)

// leafIdentity is the identity of the certificate that the TLS handshake has verified.
func leafIdentity(cs tls.ConnectionState) (certs.Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return certs.Identity{}, certs.ErrNoCertificate
	}
	return certs.IdentityOf(cs.PeerCertificates[0])
}

// withIdentity reads the peer's identity into the context; a call without one is refused.
func (i Identify) withIdentity(ctx context.Context) (context.Context, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, Errorf(Peer, "call refused: no connection known")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, Errorf(Peer, "call refused: the connection has no TLS")
	}
	id, err := i(info.State)
	if err != nil {
		return nil, Errorf(Peer, "call refused: %w", err)
	}
	return WithPeerIdentity(ctx, id), nil
}

func (i Identify) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := i.withIdentity(ctx)
	if err != nil {
		return nil, ToStatus(err)
	}
	return handler(ctx, req)
}

func (i Identify) stream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := i.withIdentity(s.Context())
	if err != nil {
		return ToStatus(err)
	}
	return handler(srv, &serverStream{s, ctx})
}

// serverStream is a stream with a context of ours.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context that holds the caller's identity.
func (s *serverStream) Context() context.Context { return s.ctx }
