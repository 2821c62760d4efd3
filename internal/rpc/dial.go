package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
)

// What both sides agree on. A stream's flow-control window is fixed at or above transfer's default window, so that it is
// the transfer's acknowledgements that bound what is under way.
const (
	keepaliveTime    = 20 * time.Second // a ping after so much silence
	keepaliveTimeout = 20 * time.Second // its answer
	keepaliveMinTime = 10 * time.Second // a client that pings more often is cut off
	maxMessageSize   = 2 << 20
	maxHeaderList    = 64 << 10
	windowSize       = 16 << 20
	bufferSize       = 256 << 10 // socket reads and writes: a write buffer holds 16 HTTP/2 frames
)

// DefaultConnectTimeout is how long connecting may take, TLS included.
const DefaultConnectTimeout = 20 * time.Second

// DialOptions say where to connect to and as whom.
type DialOptions struct {
	Address        string      // host:port
	ServerName     string      // the agent's name, as in its certificate; wins over TLS.ServerName
	TLS            *tls.Config // of certs; required
	ConnectTimeout time.Duration
	Buffers        mem.BufferPool // where received bytes are put; nil = this process's own pool
}

// Dial returns a connection to an agent; it connects with the first call, and again after a cut with the next call. All
// errors of its calls and streams went through FromStatus. A call on an agent that cannot be reached fails at once. A
// transfer's stream takes a connection of its own.
func Dial(o DialOptions) (*grpc.ClientConn, error) {
	if o.TLS == nil || o.Address == "" {
		return nil, errors.New("dial an agent: address and TLS configuration are required")
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = DefaultConnectTimeout
	}
	config := o.TLS.Clone()
	if o.ServerName != "" {
		config.ServerName = o.ServerName
	}
	handshake := &handshakeErrors{}
	// passthrough: the name is resolved anew for every connection, and no proxy of the environment is asked.
	conn, err := grpc.NewClient("passthrough:///"+o.Address,
		grpc.WithTransportCredentials(clientTLS{credentials.NewTLS(config), handshake}),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: o.ConnectTimeout,
			// Callers wait between attempts themselves.
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(Codec()),
			grpc.MaxCallRecvMsgSize(maxMessageSize),
			grpc.MaxCallSendMsgSize(maxMessageSize),
		),
		grpc.WithStaticStreamWindowSize(windowSize),
		grpc.WithStaticConnWindowSize(windowSize),
		grpc.WithReadBufferSize(0), // records are read ahead below TLS
		grpc.WithWriteBufferSize(bufferSize),
		experimental.WithBufferPool(poolOr(o.Buffers)),
		grpc.WithMaxHeaderListSize(maxHeaderList),
		grpc.WithUnaryInterceptor(handshake.unary),
		grpc.WithStreamInterceptor(handshake.stream),
	)
	if err != nil {
		return nil, fmt.Errorf("dial agent %s at %s: %w", config.ServerName, o.Address, err)
	}
	return conn, nil
}

func (h *handshakeErrors) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return fromStatus(ctx, invoker(ctx, method, req, reply, cc, opts...), h)
}

func (h *handshakeErrors) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, fromStatus(ctx, err, h)
	}
	return &clientStream{ClientStream: s, ctx: ctx, handshake: h}, nil
}

// clientStream gives the stream's errors their reasons.
type clientStream struct {
	grpc.ClientStream
	ctx       context.Context // of the caller; the stream's own ends with the stream
	handshake *handshakeErrors
}

// SendMsg sends m. io.EOF means that the stream is broken; RecvMsg tells why.
func (s *clientStream) SendMsg(m any) error {
	return fromStatus(s.ctx, s.ClientStream.SendMsg(m), s.handshake)
}

// RecvMsg receives into m.
func (s *clientStream) RecvMsg(m any) error {
	return fromStatus(s.ctx, s.ClientStream.RecvMsg(m), s.handshake)
}

// CloseSend ends the sending side.
func (s *clientStream) CloseSend() error {
	return fromStatus(s.ctx, s.ClientStream.CloseSend(), s.handshake)
}
