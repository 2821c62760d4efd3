package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// bench is a simulated pool, a certificate authority, and a controller's certificate.
type bench struct {
	t          *testing.T
	pool       *xensim.Pool
	info       xensim.Info
	dir        string
	ca         *certs.CA
	controller *certs.Source
	before     xensim.State
	names      atomic.Int32
	log        hclog.Logger // of agents; nil = the test's
}

func newBench(t *testing.T, cfg xensim.Config) *bench {
	t.Helper()
	cfg.Data = t.TempDir()
	if cfg.Speedup == 0 {
		cfg.Speedup = 1000
	}
	cfg.Check = true
	if cfg.DiskSize == 0 {
		cfg.DiskSize = 3<<20 + 4096
	}
	pool, err := xensim.New(cfg)
	if err != nil {
		t.Fatalf("simulator: %v", err)
	}
	pool.Start()
	t.Cleanup(func() { pool.Close() })
	b := &bench{t: t, pool: pool, info: pool.Info(), dir: t.TempDir()}
	if b.ca, err = certs.CreateCA(filepath.Join(b.dir, "ca"), certs.Options{}); err != nil {
		t.Fatalf("CA: %v", err)
	}
	b.write("password", []byte(b.info.Password))
	b.controller = b.source(certs.Identity{Role: certs.Controller, Name: "ctl"})
	b.before = b.dump()
	return b
}

func (b *bench) write(name string, data []byte) string {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// files issues a certificate and returns its files.
func (b *bench) files(id certs.Identity) TLSConfig {
	b.t.Helper()
	cert, key, err := b.ca.Issue(id, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	f := TLSConfig{CA: b.write(id.Name+"-ca.pem", b.ca.CertPEM()), Cert: filepath.Join(b.dir, id.Name+".pem"),
		Key: filepath.Join(b.dir, id.Name+".key")}
	if err := certs.WritePair(f.Cert, f.Key, cert, key); err != nil {
		b.t.Fatal(err)
	}
	return f
}

func (b *bench) source(id certs.Identity) *certs.Source {
	b.t.Helper()
	s, err := certs.NewSource(b.files(id).files())
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) dump() xensim.State {
	b.t.Helper()
	s, err := b.pool.Dump(context.Background())
	if err != nil {
		b.t.Fatalf("dump: %v", err)
	}
	return s
}

// inject arms a fault.
func (b *bench) inject(f xensim.Fault) {
	b.t.Helper()
	if err := b.pool.Inject(f); err != nil {
		b.t.Fatal(err)
	}
}

// vm returns the n-th VM in a power state, as it was at the beginning.
func (b *bench) vm(state string, n int) xensim.VMState {
	b.t.Helper()
	for _, vm := range b.before.VMs {
		if vm.PowerState == state {
			if n == 0 {
				return vm
			}
			n--
		}
	}
	b.t.Fatalf("the simulator has not enough VMs that are %s", state)
	return xensim.VMState{}
}

// wantClean checks that the pool is as it was: power states, disks, no journal
// key, snapshot, carrier, orphan or task of ours.
func (b *bench) wantClean() {
	b.t.Helper()
	b.wantCleanButTasks()
	if tasks := b.dump().Tasks; len(tasks) > 0 {
		b.t.Errorf("tasks are left: %v", tasks)
	}
}

// withoutMarks is config, which is the simulator's own, without the marks of finished work: they stay until its term is out.
func withoutMarks(config map[string]string) map[string]string {
	config = maps.Clone(config)
	maps.DeleteFunc(config, func(_, v string) bool { return strings.Contains(v, `"data":"`+overData) })
	return config
}

// wantCleanButTasks is wantClean where a task may be left: one whose creation was not answered is XAPI's to forget.
func (b *bench) wantCleanButTasks() {
	b.t.Helper()
	after := b.dump()
	if diff := cmp.Diff(powerStates(b.before), powerStates(after)); diff != "" {
		b.t.Errorf("power states (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(b.before.PoolOtherConfig, withoutMarks(after.PoolOtherConfig)); diff != "" {
		b.t.Errorf("pool.other_config (-before +after):\n%s", diff)
	}
	for what, n := range map[string]int{"snapshots": len(after.Snapshots), "carriers": len(after.Carriers),
		"orphaned disks": len(after.Orphans)} {
		if n != 0 {
			b.t.Errorf("%d %s are left", n, what)
		}
	}
	if err := b.pool.CheckInvariants(); err != nil {
		b.t.Errorf("the simulator's database: %v", err)
	}
}

func powerStates(s xensim.State) map[string]string {
	out := map[string]string{}
	for _, vm := range s.VMs {
		out[vm.UUID] = vm.PowerState
	}
	return out
}

// running is an agent that serves, and a controller's connection to it.
type runningAgent struct {
	agent  *Agent
	conn   *grpc.ClientConn
	client agentv1.AgentServiceClient
	stop   func()
}

// fastTiming is what tests that wait for something use.
func fastTiming() Timing {
	return Timing{Lease: time.Minute, Claim: time.Minute, Progress: 20 * time.Millisecond, Stall: time.Minute,
		Shutdown: 30 * time.Second, Late: 100 * time.Millisecond, Watch: 10 * time.Millisecond, Start: 30 * time.Second,
		Settle: 20 * time.Second, Cleanup: time.Minute, Sweep: time.Hour, Remember: time.Minute,
		Drain: 10 * time.Millisecond, Stop: 30 * time.Second, Health: time.Second,
		RetryMin: 2 * time.Millisecond, RetryMax: 20 * time.Millisecond,
		XAPI: xapi.Timeouts{Connect: 10 * time.Second, Call: 20 * time.Second, ExportHeaders: 20 * time.Second,
			TaskPollMin: time.Millisecond, TaskPollMax: 10 * time.Millisecond, Outage: 5 * time.Second, Cancel: 10 * time.Second,
			InUse: 10 * time.Second, InUsePause: 5 * time.Millisecond}}
}

// config returns the configuration of an agent beside a host.
func (b *bench) config(name string, host int) Config {
	b.t.Helper()
	cfg := Defaults()
	cfg.Name, cfg.Listen = name, "127.0.0.1:0"
	cfg.TLS = b.files(certs.Identity{Role: certs.Agent, Name: name})
	cfg.XAPI = XAPIConfig{URL: b.info.Hosts[host].HTTP, Username: b.info.Username, PasswordFile: filepath.Join(b.dir, "password")}
	cfg.Timing = fastTiming()
	return cfg
}

// agent starts an agent beside the first host; tweak may change its configuration.
func (b *bench) agent(tweak func(*Config)) *runningAgent {
	b.t.Helper()
	cfg := b.config(fmt.Sprintf("xs%d", b.names.Add(1)), 0)
	if tweak != nil {
		tweak(&cfg)
	}
	return b.start(cfg)
}

// start serves an agent until the test ends or stop is called.
func (b *bench) start(cfg Config) *runningAgent {
	b.t.Helper()
	log := b.log
	if log == nil {
		log = testLogger(b.t)
	}
	a, err := New(cfg, log)
	if err != nil {
		b.t.Fatalf("agent: %v", err)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, l) }()
	r := &runningAgent{agent: a}
	r.conn = b.dial(cfg.Name, l.Addr().String())
	r.client = agentv1.NewAgentServiceClient(r.conn)
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			b.t.Errorf("serve: %v", err)
		}
	}
	b.t.Cleanup(func() { r.stop(); r.conn.Close() })
	return r
}

// dial returns a connection of its own to an agent.
func (b *bench) dial(name, address string) *grpc.ClientConn {
	b.t.Helper()
	conn, err := rpc.Dial(rpc.DialOptions{Address: address, ServerName: name,
		TLS: b.controller.ClientConfig(certs.PeerPolicy{Role: certs.Agent})})
	if err != nil {
		b.t.Fatal(err)
	}
	return conn
}

// testLogger logs into the test's output where -v is given.
func testLogger(t *testing.T) hclog.Logger {
	if !testing.Verbose() {
		return hclog.NewNullLogger()
	}
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: testWriter{t}})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// release ends a transfer and returns its outcome.
func (r *runningAgent) release(t *testing.T, key string) *agentv1.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	reply, err := r.client.ReleaseTransfer(ctx, &agentv1.ReleaseTransferRequest{Key: key})
	if err != nil {
		t.Fatalf("release: %v", err)
	}
	if !reply.GetFound() || reply.GetOutcome() == nil {
		t.Fatalf("release: got %v, want an outcome", reply)
	}
	return reply.GetOutcome()
}

// awaitDone waits until a transfer's outcome stands.
func (r *runningAgent) awaitDone(t *testing.T, key string) outcome {
	t.Helper()
	j, ok := r.agent.jobs.Lookup(key)
	if !ok {
		t.Fatalf("transfer %s is not known", key)
	}
	out, ok := j.awaitResult(t.Context())
	if !ok {
		t.Fatalf("transfer %s did not end", key)
	}
	return out
}

func wantSame(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
