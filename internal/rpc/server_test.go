package rpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestHandlersKnowTheirCaller(t *testing.T) {
	a := newAuthority(t, certs.Options{})
	var unary, stream certs.Identity
	_, address := serve(t, rpc.ServerOptions{TLS: a.agentTLS(t)}, &service{
		getHost: func(ctx context.Context) (*agentv1.GetHostResponse, error) {
			unary, _ = rpc.PeerIdentity(ctx)
			return &agentv1.GetHostResponse{Agent: "xs1"}, nil
		},
		backup: func(s grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
			stream, _ = rpc.PeerIdentity(s.Context())
			return rpc.Errorf(rpc.Busy, "three transfers are running").About("web-01", "xs1")
		},
	})
	client := agentv1.NewAgentServiceClient(dial(t, rpc.DialOptions{Address: address, TLS: a.controllerTLS(t)}))
	reply, err := client.GetHost(t.Context(), &agentv1.GetHostRequest{})
	if err != nil || reply.GetAgent() != "xs1" {
		t.Fatalf("GetHost: %v, %v", reply, err)
	}
	s, err := client.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Recv()
	var e *rpc.Error
	if !errors.As(err, &e) || e.Reason != rpc.Busy || e.VM != "web-01" || e.Host != "xs1" || e.Msg != "three transfers are running" ||
		status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Backup: got %+v", err)
	}
	if want := (certs.Identity{Role: certs.Controller, Name: "main"}); unary != want || stream != want {
		t.Errorf("caller: unary %v, stream %v, want %v", unary, stream, want)
	}
	if _, ok := rpc.PeerIdentity(t.Context()); ok {
		t.Error("an identity without a caller")
	}
}

func TestCallsWithoutIdentityAreRefused(t *testing.T) {
	a := newAuthority(t, certs.Options{})
	revoked := false
	_, address := serve(t, rpc.ServerOptions{
		TLS: a.agentTLS(t),
		Identify: func(cs tls.ConnectionState) (certs.Identity, error) {
			if revoked {
				return certs.Identity{}, fmt.Errorf("controller main: %w", certs.ErrRevoked)
			}
			return certs.IdentityOf(cs.PeerCertificates[0])
		},
	}, &service{
		getHost: func(context.Context) (*agentv1.GetHostResponse, error) { return &agentv1.GetHostResponse{}, nil },
		backup: func(grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
			t.Error("the handler was reached")
			return nil
		},
	})
	client := agentv1.NewAgentServiceClient(dial(t, rpc.DialOptions{Address: address, TLS: a.controllerTLS(t)}))
	if _, err := client.GetHost(t.Context(), &agentv1.GetHostRequest{}); err != nil {
		t.Fatal(err)
	}
	revoked = true
	if _, err := client.GetHost(t.Context(), &agentv1.GetHostRequest{}); !errors.Is(err, rpc.Peer) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("unary: got %v", err)
	}
	s, err := client.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, rpc.Peer) || status.Code(err) != codes.PermissionDenied {
		t.Errorf("stream: got %v", err)
	}
}

func TestFaultsAreLoggedUnderAnIDAndNotSent(t *testing.T) {
	a := newAuthority(t, certs.Options{})
	log := &logBuffer{}
	registry := prometheus.NewRegistry()
	_, address := serve(t, rpc.ServerOptions{TLS: a.agentTLS(t), Logger: log.logger(), Registry: registry}, &service{
		getHost: func(context.Context) (*agentv1.GetHostResponse, error) { panic("hunter2 in GetHost") },
		check:   func(context.Context) error { return errors.New("hunter2 in Check") },
		backup: func(grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
			panic(errors.New("hunter2 in Backup"))
		},
	})
	client := agentv1.NewAgentServiceClient(dial(t, rpc.DialOptions{Address: address, TLS: a.controllerTLS(t)}))
	_, fromGetHost := client.GetHost(t.Context(), &agentv1.GetHostRequest{})
	_, fromCheck := client.Check(t.Context(), &agentv1.CheckRequest{})
	s, err := client.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, fromBackup := s.Recv()
	id := regexp.MustCompile(`internal error ([A-Z0-9]{10}), see the agent's log`)
	for call, err := range map[string]error{"GetHost": fromGetHost, "Check": fromCheck, "Backup": fromBackup} {
		if !errors.Is(err, rpc.Internal) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v", call, err)
			continue
		}
		found := id.FindStringSubmatch(err.Error())
		if found == nil {
			t.Errorf("%s: no id in %q", call, err)
			continue
		}
		line := regexp.MustCompile(`.*"id":"` + found[1] + `".*`).FindString(log.String())
		if !strings.Contains(line, "hunter2 in "+call) || !strings.Contains(line, "/"+call) || !strings.Contains(line, "controller main") {
			t.Errorf("%s: logged %q", call, line)
		}
	}
	if n := strings.Count(log.String(), `"finished call"`); n != 3 {
		t.Errorf("%d finished calls are logged, want 3: panics must pass the logging interceptor", n)
	}
	if n := handled(t, registry, "Internal"); n != 3 {
		t.Errorf("metrics counted %v calls as Internal, want 3", n)
	}
}

// handled returns how many calls ended with code by grpc_server_handled_total.
func handled(t *testing.T, registry *prometheus.Registry, code string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var n float64
	for _, f := range families {
		if f.GetName() != "grpc_server_handled_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "grpc_code" && l.GetValue() == code {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

func TestHealth(t *testing.T) {
	a := newAuthority(t, certs.Options{})
	server, address := serve(t, rpc.ServerOptions{TLS: a.agentTLS(t)}, &service{})
	client := healthpb.NewHealthClient(dial(t, rpc.DialOptions{Address: address, TLS: a.controllerTLS(t)}))
	check := func(service string, want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		got, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || got.GetStatus() != want {
			t.Errorf("%q: got %v, %v, want %v", service, got.GetStatus(), err, want)
		}
	}
	check("", healthpb.HealthCheckResponse_SERVING)
	check(rpc.HealthXAPI, healthpb.HealthCheckResponse_NOT_SERVING)
	server.Health.SetServingStatus(rpc.HealthXAPI, healthpb.HealthCheckResponse_SERVING)
	check(rpc.HealthXAPI, healthpb.HealthCheckResponse_SERVING)
	if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown service: %v", err)
	}
}

func TestShutdownWaitsForHandlersThenCutsThemOff(t *testing.T) {
	a := newAuthority(t, certs.Options{})
	entered, left := make(chan struct{}), make(chan struct{})
	server, address := serve(t, rpc.ServerOptions{TLS: a.agentTLS(t)}, &service{
		backup: func(s grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
			close(entered)
			<-s.Context().Done()
			close(left)
			return s.Context().Err()
		},
	})
	client := agentv1.NewAgentServiceClient(dial(t, rpc.DialOptions{Address: address, TLS: a.controllerTLS(t)}))
	stream, err := client.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	server.Shutdown(ctx)
	select {
	case <-left:
	default:
		t.Error("Shutdown returned before the handler had")
	}
	if _, err := stream.Recv(); !errors.Is(err, rpc.Unreachable) {
		t.Errorf("client: got %v, want Unreachable", err)
	}
}

func TestServersThatCannotBe(t *testing.T) {
	if _, err := rpc.NewServer(rpc.ServerOptions{}); err == nil {
		t.Error("a server without TLS")
	}
	a := newAuthority(t, certs.Options{})
	o := rpc.ServerOptions{TLS: a.agentTLS(t), Registry: prometheus.NewRegistry()}
	if _, err := rpc.NewServer(o); err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.NewServer(o); err == nil {
		t.Error("metrics registered twice in one registry")
	}
}
