package agent

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// wireTap keeps every message and error that a controller gets from an agent.
type wireTap struct {
	mu       sync.Mutex
	heard    bytes.Buffer
	messages int
}

func (w *wireTap) add(m any, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.heard.WriteString(err.Error())
		return
	}
	w.messages++
	raw, err := rpc.Codec().Marshal(m)
	if err != nil {
		return // what the codec does not know it has not received
	}
	w.heard.Write(raw.Materialize())
	raw.Free()
}

// tapped is a stream whose received messages are kept.
type tapped struct {
	grpc.ClientStream
	tap *wireTap
}

// RecvMsg receives and keeps a message.
func (s tapped) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.tap.add(m, err)
	return err
}

// tap returns a connection to the agent as a controller's, whose messages are kept.
func (b *bench) tap(a *runningAgent, w *wireTap) *grpc.ClientConn {
	b.t.Helper()
	tls := b.controller.ClientConfig(certs.PeerPolicy{Role: certs.Agent})
	tls.ServerName = a.agent.cfg.Name
	conn, err := grpc.NewClient(a.conn.Target(), grpc.WithTransportCredentials(credentials.NewTLS(tls)),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rpc.Codec())),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
			call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := call(ctx, method, req, reply, cc, opts...)
			w.add(reply, err)
			return err
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
			open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, cc, method, opts...)
			if err != nil {
				return nil, err
			}
			return tapped{s, w}, nil
		}))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return conn
}

// Neither what a controller hears, in messages and errors, nor the log at its most talkative holds the XAPI password or a
// session's reference.
func TestPasswordStaysWithTheAgent(t *testing.T) {
	t.Parallel()
	const password = "p4ss-Secret-W0rd"
	b := newBench(t, xensim.Config{VMs: 2, Password: password})
	book, tap := &logBook{}, &wireTap{}
	b.log = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: book, JSONFormat: true})
	right := b.agent(nil)
	wrong := b.agent(func(c *Config) { c.XAPI.PasswordFile = b.write("wrong", []byte(password+"-wrong\n")) })
	for _, a := range []*runningAgent{right, wrong} {
		a.client = agentv1.NewAgentServiceClient(b.tap(a, tap))
		_, _ = a.client.GetHost(t.Context(), &agentv1.GetHostRequest{})
		_, _ = a.client.Check(t.Context(), &agentv1.CheckRequest{})
		_, _ = a.client.Sweep(t.Context(), &agentv1.SweepRequest{})
	}
	vm := b.vm(running, 0)
	p := newPuller(t, right, vm.UUID, online())
	if err := p.pull(); err != nil {
		t.Fatal(err)
	}
	wantGood(t, right.release(t, p.opening.GetKey()))
	r := newPusher(t, right, vm.UUID, p.data.Bytes(), agentv1.BackupKind_BACKUP_KIND_ONLINE)
	if err := r.push(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantGood(t, right.release(t, r.opening.GetKey()))
	p = newPuller(t, wrong, vm.UUID, online())
	if err := p.pull(); err == nil || !strings.Contains(err.Error(), "SESSION_AUTHENTICATION_FAILED") {
		t.Errorf("with the wrong password: got %v", err)
	}
	b.inject(xensim.Fault{Name: "session-invalid", Times: 1})
	b.inject(xensim.Fault{Name: "call-fails", Method: "VM.get_all_records", Times: 1, Code: "SESSION_INVALID", Params: []string{"OpaqueRef:1"}})
	p = newPuller(t, right, vm.UUID, online())
	_ = p.pull() // whether it succeeds is not asked here
	right.release(t, p.opening.GetKey())
	right.stop()
	wrong.stop()

	tap.mu.Lock()
	defer tap.mu.Unlock()
	if tap.messages < 10 {
		t.Fatalf("%d messages were heard, too few to tell", tap.messages)
	}
	for where, text := range map[string]string{"wire": tap.heard.String(), "log": book.String()} {
		for _, secret := range []string{password, "session_id="} {
			if strings.Contains(text, secret) {
				t.Errorf("%q on the %s", secret, where)
			}
		}
	}
}
