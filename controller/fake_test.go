package controller

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// toldAgent is an agent that answers questions about what exists with what a test gave it.
type toldAgent struct {
	agentv1.UnimplementedAgentServiceServer
	mu       sync.RWMutex // of what follows, for a test that changes it: ListVMs may go on when its caller is gone
	host     *agentv1.GetHostResponse
	check    *agentv1.CheckResponse
	checkErr error
	pages    [][]*agentv1.VM
	listErr  error
	lists    atomic.Int32
	silent   bool // it never answers

	checks, refreshes atomic.Int32
	refreshed         *agentv1.RefreshSRsResponse
}

// change changes the answers once nobody gives one.
func (a *toldAgent) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

var errTest = errors.New("made up by a test")

func (a *toldAgent) RefreshSRs(context.Context, *agentv1.RefreshSRsRequest) (*agentv1.RefreshSRsResponse, error) {
	a.refreshes.Add(1)
	if a.refreshed == nil {
		return nil, errTest
	}
	return a.refreshed, nil
}

func (a *toldAgent) GetHost(ctx context.Context, _ *agentv1.GetHostRequest) (*agentv1.GetHostResponse, error) {
	if a.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return a.host, nil
}

func (a *toldAgent) Check(context.Context, *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	a.checks.Add(1)
	return a.check, a.checkErr
}

func (a *toldAgent) ListVMs(req *agentv1.ListVMsRequest, stream grpc.ServerStreamingServer[agentv1.ListVMsResponse]) error {
	a.lists.Add(1)
	a.mu.RLock()
	defer a.mu.RUnlock()
	if req.GetWithPool() && a.listErr == nil {
		if err := stream.Send(&agentv1.ListVMsResponse{Pool: a.check}); err != nil {
			return err
		}
	}
	for _, page := range a.pages {
		if err := stream.Send(&agentv1.ListVMsResponse{Vms: page}); err != nil {
			return err
		}
	}
	return a.listErr
}

// Sweep finds nothing.
func (a *toldAgent) Sweep(context.Context, *agentv1.SweepRequest) (*agentv1.SweepResponse, error) {
	return &agentv1.SweepResponse{}, nil
}

// pki is a certificate authority with the files of a controller named c1.
type pki struct {
	t     *testing.T
	dir   string
	ca    *certs.CA
	files TLSFiles
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir()}
	var err error
	if p.ca, err = certs.CreateCA(p.dir, certs.Options{}); err != nil {
		t.Fatal(err)
	}
	f := p.issue(certs.Identity{Role: certs.Controller, Name: "c1"})
	p.files = TLSFiles{CA: f.CA, Cert: f.Cert, Key: f.Key}
	return p
}

func (p *pki) issue(id certs.Identity) certs.Files {
	p.t.Helper()
	cert, key, err := p.ca.Issue(id, time.Hour)
	if err != nil {
		p.t.Fatal(err)
	}
	base := filepath.Join(p.dir, string(id.Role)+"-"+id.Name)
	f := certs.Files{CA: filepath.Join(p.dir, certs.CAFile), Cert: base + ".pem", Key: base + ".key"}
	if err := certs.WritePair(f.Cert, f.Key, cert, key); err != nil {
		p.t.Fatal(err)
	}
	return f
}

// serve starts the agent on loopback with a certificate for name, and returns its address.
func (p *pki) serve(name string, agent agentv1.AgentServiceServer, policy certs.PeerPolicy) string {
	p.t.Helper()
	source, err := certs.NewSource(p.issue(certs.Identity{Role: certs.Agent, Name: name}))
	if err != nil {
		p.t.Fatal(err)
	}
	policy.Role = certs.Controller
	server, err := rpc.NewServer(rpc.ServerOptions{TLS: source.ServerConfig(policy)})
	if err != nil {
		p.t.Fatal(err)
	}
	agentv1.RegisterAgentServiceServer(server, agent)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	p.t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it had begun
			p.t.Errorf("agent %s: %v", name, err)
		}
	})
	return listener.Addr().String()
}

// config returns a configuration with those agents, and folders of its own.
func (p *pki) config(agents ...AgentConfig) *Config {
	p.t.Helper()
	cfg := DefaultConfig()
	cfg.TLS, cfg.Agents = p.files, agents
	dir := p.t.TempDir()
	cfg.Staging, cfg.Restore, cfg.State = filepath.Join(dir, "staging"), filepath.Join(dir, "restore"), filepath.Join(dir, "state")
	if err := os.MkdirAll(cfg.Restore, 0o700); err != nil {
		p.t.Fatal(err)
	}
	cfg.Timing.ConnectTimeout, cfg.Timing.CallTimeout = 5*time.Second, 5*time.Second
	return cfg
}

func mustController(t *testing.T, cfg *Config, o Options) *Controller {
	t.Helper()
	c, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// toldHost is what an agent of this version says of itself.
func toldHost(name string) *agentv1.GetHostResponse {
	return &agentv1.GetHostResponse{Agent: name, Version: "v1", Protocol: rpc.OwnProtocol(), Time: timestamppb.Now(), XapiTransport: "https"}
}

// toldPool is pool n with hosts and one SR of each kind.
func toldPool(n, beside int, hosts ...int) *agentv1.CheckResponse {
	m := &agentv1.CheckResponse{
		Pool:     &agentv1.Pool{Uuid: testUUID(n), Name: "pool", MasterUuid: testUUID(hosts[0]), ProductBrand: "XCP-ng"},
		HostUuid: testUUID(beside),
		Srs: []*agentv1.SR{
			{Uuid: testUUID(n + 900), Name: "nfs", Type: "nfs", Shared: true, PhysicalSize: 1 << 40, PhysicalUtilisation: 1 << 30},
			{Uuid: testUUID(n + 901), Name: "lvm", Type: "lvm", PhysicalSize: 100 << 30, PhysicalUtilisation: 90 << 30},
		},
		ServerTime: timestamppb.Now(),
	}
	for _, h := range hosts {
		m.Hosts = append(m.Hosts, &agentv1.Host{Uuid: testUUID(h), Name: "host-" + testUUID(h)[34:], Live: true, Enabled: true})
	}
	return m
}
