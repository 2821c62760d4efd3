package transfer_test

import (
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// loopback is an agent on a free port behind a network that can be cut.
type loopback struct {
	network        *network
	client, server *tls.Config
	buffers        mem.BufferPool // gRPC's; nil = its own
	stop           func()         // ends the server and its handlers; may be repeated
}

// newLoopback serves impl over mutual TLS, behind a network whose first connections live for cuts bytes.
func newLoopback(t testing.TB, impl agentv1.AgentServiceServer, cuts ...int64) *loopback {
	t.Helper()
	return newLoopbackFrom(t, impl, nil, cuts...)
}

// newLoopbackFrom is newLoopback whose gRPC, on both sides, has its buffers from a pool.
func newLoopbackFrom(t testing.TB, impl agentv1.AgentServiceServer, buffers mem.BufferPool, cuts ...int64) *loopback {
	t.Helper()
	dir := t.TempDir()
	ca, err := certs.CreateCA(dir, certs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	source := func(id certs.Identity) *certs.Source {
		certPEM, keyPEM, err := ca.Issue(id, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		f := certs.Files{CA: filepath.Join(dir, certs.CAFile), Cert: filepath.Join(dir, id.Name+".pem"), Key: filepath.Join(dir, id.Name+".key")}
		if err := certs.WritePair(f.Cert, f.Key, certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		s, err := certs.NewSource(f)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	agent := source(certs.Identity{Role: certs.Agent, Name: "xs1"})
	controller := source(certs.Identity{Role: certs.Controller, Name: "main"})
	listening := agent.ServerConfig(certs.PeerPolicy{Role: certs.Controller})
	server, err := rpc.NewServer(rpc.ServerOptions{TLS: listening, Buffers: buffers})
	if err != nil {
		t.Fatal(err)
	}
	agentv1.RegisterAgentServiceServer(server, impl)
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	stop := sync.OnceFunc(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return &loopback{
		buffers: buffers, stop: stop,
		network: newNetwork(t, l.Addr().String(), cuts), server: listening,
		client: controller.ClientConfig(certs.PeerPolicy{Role: certs.Agent}),
	}
}

// dial returns a client on a connection of its own, and what closes it.
func (l *loopback) dial() (agentv1.AgentServiceClient, *grpc.ClientConn, error) {
	conn, err := rpc.Dial(rpc.DialOptions{Address: l.network.address, ServerName: "xs1", TLS: l.client, Buffers: l.buffers})
	if err != nil {
		return nil, nil, err
	}
	return agentv1.NewAgentServiceClient(conn), conn, nil
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// network forwards connections to an address and breaks each of them after a number of bytes in either direction.
type network struct {
	address string
	to      string

	mu   sync.Mutex
	cuts []int64 // bytes that the next connections live; then they live for ever
	made int
}

func newNetwork(t testing.TB, to string, cuts []int64) *network {
	t.Helper()
	l := listen(t)
	n := &network{address: l.Addr().String(), to: to, cuts: cuts}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go n.forward(conn)
		}
	}()
	return n
}

// connections returns how many were made.
func (n *network) connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.made
}

func (n *network) forward(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", n.to)
	if err != nil {
		return
	}
	defer far.Close()
	n.mu.Lock()
	n.made++
	life := int64(1) << 62
	if len(n.cuts) > 0 {
		life, n.cuts = n.cuts[0], n.cuts[1:]
	}
	n.mu.Unlock()
	over := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		io.CopyN(to, from, life)
		over <- struct{}{}
	}
	go pass(far, near)
	go pass(near, far)
	<-over // the deferred closing breaks both directions
}
