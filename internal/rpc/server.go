package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
)

// HealthXAPI is the health service's name for whether XAPI answers. "" is the process itself.
const HealthXAPI = "xapi"

// maxStreams bounds the calls at one time of one connection: a transfer has a connection of its own.
const maxStreams = 64

// ServerOptions say how a server listens.
type ServerOptions struct {
	TLS      *tls.Config          // of certs; required
	Logger   hclog.Logger         // nil = none
	Registry *prometheus.Registry // nil = no metrics
	Identify Identify             // nil = what the peer's certificate says, verified at the handshake
	Buffers  mem.BufferPool       // where received bytes are put; nil = this process's own pool
}

// Server is a gRPC server with its health service, which is registered. HealthXAPI starts as NOT_SERVING.
type Server struct {
	*grpc.Server
	Health *health.Server
}

// NewServer returns a server on which services are to be registered before Serve. Calls pass, from outside to inside:
// metrics, logging, the peer's identity, errors to status, recovery from panics.
func NewServer(o ServerOptions) (*Server, error) {
	if o.TLS == nil {
		return nil, errors.New("make a gRPC server: a TLS configuration is required")
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Identify == nil {
		o.Identify = leafIdentity
	}
	unary, stream, err := o.interceptors()
	if err != nil {
		return nil, err
	}
	s := &Server{Health: health.NewServer(), Server: grpc.NewServer(
		grpc.Creds(serverTLS{credentials.NewTLS(o.TLS), newRefusals(o.Logger)}),
		grpc.ForceServerCodecV2(Codec()),
		grpc.MaxRecvMsgSize(maxMessageSize),
		grpc.MaxSendMsgSize(maxMessageSize),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(windowSize),
		grpc.StaticConnWindowSize(windowSize),
		grpc.ReadBufferSize(0), // records are read ahead below TLS
		grpc.WriteBufferSize(bufferSize),
		experimental.BufferPool(poolOr(o.Buffers)),
		grpc.ConnectionTimeout(DefaultConnectTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinTime, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(unary...),
		grpc.ChainStreamInterceptor(stream...),
	)}
	healthpb.RegisterHealthServer(s, s.Health)
	s.Health.SetServingStatus(HealthXAPI, healthpb.HealthCheckResponse_NOT_SERVING)
	return s, nil
}

// Shutdown takes no new calls, waits for those that run until ctx ends, and then cuts them off and waits for their
// handlers.
func (s *Server) Shutdown(ctx context.Context) {
	s.Health.Shutdown()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.GracefulStop()
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		s.Stop()
		<-stopped
	}
}

func (o ServerOptions) interceptors() ([]grpc.UnaryServerInterceptor, []grpc.StreamServerInterceptor, error) {
	var (
		unary  []grpc.UnaryServerInterceptor
		stream []grpc.StreamServerInterceptor
	)
	if o.Registry != nil {
		metrics := grpcprom.NewServerMetrics()
		if err := o.Registry.Register(metrics); err != nil {
			return nil, nil, fmt.Errorf("register gRPC metrics: %w", err)
		}
		unary = append(unary, metrics.UnaryServerInterceptor())
		stream = append(stream, metrics.StreamServerInterceptor())
	}
	log := callLogger(o.Logger)
	faults := faultLog{o.Logger}
	rescue := recovery.WithRecoveryHandlerContext(recovered)
	unary = append(unary, logging.UnaryServerInterceptor(log, logOptions()...), o.Identify.unary, faults.unary,
		recovery.UnaryServerInterceptor(rescue))
	stream = append(stream, logging.StreamServerInterceptor(log, logOptions()...), o.Identify.stream, faults.stream,
		recovery.StreamServerInterceptor(rescue))
	return unary, stream, nil
}
