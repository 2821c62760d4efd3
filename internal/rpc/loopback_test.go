package rpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// authority issues certificates in a folder of its own.
type authority struct {
	ca  *certs.CA
	dir string
}

func newAuthority(t testing.TB, o certs.Options) *authority {
	t.Helper()
	dir := t.TempDir()
	ca, err := certs.CreateCA(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{ca, dir}
}

// source issues a certificate to id and loads it.
func (a *authority) source(t testing.TB, id certs.Identity) *certs.Source {
	t.Helper()
	certPEM, keyPEM, err := a.ca.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := certs.Files{
		CA: filepath.Join(a.dir, certs.CAFile), CRL: filepath.Join(a.dir, certs.CRLFile),
		Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"),
	}
	if err := certs.WritePair(f.Cert, f.Key, certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	s, err := certs.NewSource(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (a *authority) agentTLS(t testing.TB, allow ...string) *tls.Config {
	t.Helper()
	s := a.source(t, certs.Identity{Role: certs.Agent, Name: "xs1"})
	return s.ServerConfig(certs.PeerPolicy{Role: certs.Controller, Allow: allow})
}

func (a *authority) controllerTLS(t testing.TB) *tls.Config {
	t.Helper()
	s := a.source(t, certs.Identity{Role: certs.Controller, Name: "main"})
	return s.ClientConfig(certs.PeerPolicy{Role: certs.Agent})
}

// logBuffer is a writer that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: l, Level: hclog.Debug, JSONFormat: true})
}

// service answers GetHost, Check, Backup and ListVMs with functions.
type service struct {
	agentv1.UnimplementedAgentServiceServer
	getHost func(context.Context) (*agentv1.GetHostResponse, error)
	check   func(context.Context) error
	backup  func(grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error
}

func (s *service) GetHost(ctx context.Context, _ *agentv1.GetHostRequest) (*agentv1.GetHostResponse, error) {
	return s.getHost(ctx)
}

func (s *service) Check(ctx context.Context, _ *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	return &agentv1.CheckResponse{}, s.check(ctx)
}

func (s *service) Backup(stream grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
	return s.backup(stream)
}

// serve starts a server with impl on a free port and returns it with its address.
func serve(t testing.TB, o rpc.ServerOptions, impl agentv1.AgentServiceServer) (*rpc.Server, string) {
	t.Helper()
	s, err := rpc.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	agentv1.RegisterAgentServiceServer(s, impl)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, l.Addr().String()
}

func dial(t testing.TB, o rpc.DialOptions) *grpc.ClientConn {
	t.Helper()
	if o.ServerName == "" {
		o.ServerName = "xs1"
	}
	conn, err := rpc.Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
