package rpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestCertificateTroubleIsToldFromUnreachable(t *testing.T) {
	a, other := newAuthority(t, certs.Options{}), newAuthority(t, certs.Options{Name: "other"})
	answer := &service{getHost: func(context.Context) (*agentv1.GetHostResponse, error) { return &agentv1.GetHostResponse{}, nil }}
	_, agent := serve(t, rpc.ServerOptions{TLS: a.agentTLS(t)}, answer)
	_, closed := serve(t, rpc.ServerOptions{TLS: a.agentTLS(t, "somebody-else")}, answer)
	stranger := other.controllerTLS(t)
	noCertificate := a.controllerTLS(t)
	noCertificate.GetClientCertificate = nil
	for _, c := range []struct {
		name   string
		o      rpc.DialOptions
		reason rpc.Reason
		is     error
	}{
		{"the right one", rpc.DialOptions{Address: agent, TLS: a.controllerTLS(t)}, "", nil},
		{"another agent's name", rpc.DialOptions{Address: agent, TLS: a.controllerTLS(t), ServerName: "xs2"}, rpc.Auth, certs.ErrWrongName},
		{"another authority", rpc.DialOptions{Address: agent, TLS: stranger}, rpc.Auth, certs.ErrUnknownCA},
		{"not on the allow list", rpc.DialOptions{Address: closed, TLS: a.controllerTLS(t)}, rpc.Auth, certs.ErrRefusedByPeer},
		{"no certificate of its own", rpc.DialOptions{Address: agent, TLS: noCertificate}, rpc.Auth, certs.ErrRefusedByPeer},
		{"nobody there", rpc.DialOptions{Address: freeAddress(t), TLS: a.controllerTLS(t)}, rpc.Unreachable, nil},
		{"hangs up", rpc.DialOptions{Address: hangUp(t), TLS: a.controllerTLS(t)}, rpc.Unreachable, nil},
		{"not an address", rpc.DialOptions{Address: "no-port", TLS: a.controllerTLS(t)}, rpc.Unreachable, nil},
	} {
		client := agentv1.NewAgentServiceClient(dial(t, c.o))
		_, err := client.GetHost(t.Context(), &agentv1.GetHostRequest{})
		if got := rpc.ReasonOf(err); got != c.reason || (c.is != nil && !errors.Is(err, c.is)) {
			t.Errorf("%s: got %s %v, want %s %v", c.name, got, err, c.reason, c.is)
		}
		if c.reason != "" && status.Code(err) != codes.Unavailable {
			t.Errorf("%s: code %v", c.name, status.Code(err))
		}
		if rpc.Retryable(err) != (c.reason == rpc.Unreachable) {
			t.Errorf("%s: retryable %v", c.name, rpc.Retryable(err))
		}
	}
}

// freeAddress returns an address on which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// hangUp returns the address of a listener that closes what it accepts.
func hangUp(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return l.Addr().String()
}

func TestWhoGaveUp(t *testing.T) {
	a := newAuthority(t, certs.Options{})
	_, address := serve(t, rpc.ServerOptions{TLS: a.agentTLS(t)}, &service{
		getHost: func(ctx context.Context) (*agentv1.GetHostResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		backup: func(s grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
			if err := s.Send(&agentv1.BackupResponse{}); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	open := func(ctx context.Context) (*grpc.ClientConn, grpc.BidiStreamingClient[agentv1.BackupRequest, agentv1.BackupResponse]) {
		t.Helper()
		conn := dial(t, rpc.DialOptions{Address: address, TLS: a.controllerTLS(t)})
		s, err := agentv1.NewAgentServiceClient(conn).Backup(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		return conn, s
	}

	ctx, cancel := context.WithCancel(t.Context())
	_, s := open(ctx)
	cancel()
	if _, err := s.Recv(); !errors.Is(err, rpc.Cancelled) || !errors.Is(err, context.Canceled) || rpc.Retryable(err) {
		t.Errorf("the caller gave up: got %s %v", rpc.ReasonOf(err), err)
	}

	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	client := agentv1.NewAgentServiceClient(dial(t, rpc.DialOptions{Address: address, TLS: a.controllerTLS(t)}))
	if _, err := client.GetHost(ctx, &agentv1.GetHostRequest{}); !errors.Is(err, rpc.Deadline) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's time was over: got %s %v", rpc.ReasonOf(err), err)
	}

	conn, s := open(t.Context())
	conn.Close()
	if _, err := s.Recv(); !errors.Is(err, rpc.Unreachable) || errors.Is(err, context.Canceled) || !rpc.Retryable(err) {
		t.Errorf("the connection was closed: got %s %v", rpc.ReasonOf(err), err)
	}
	if err := s.Send(&agentv1.BackupRequest{}); err == nil {
		t.Error("sent on a closed connection")
	}
}

func TestDialWantsTLSAndAddress(t *testing.T) {
	if _, err := rpc.Dial(rpc.DialOptions{Address: "127.0.0.1:1"}); err == nil {
		t.Error("a connection without TLS")
	}
	if _, err := rpc.Dial(rpc.DialOptions{TLS: &tls.Config{MinVersion: tls.VersionTLS13}}); err == nil {
		t.Error("a connection to nowhere")
	}
}
