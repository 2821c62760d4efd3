// Package e2e runs the simulator, real agents and a real controller together, over mutual TLS on loopback.
package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dpxen/dpxen/agent"
	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// cell is a whole installation: a simulated pool, an agent beside each host, a controller.
type cell struct {
	t      *testing.T
	pool   *xensim.Pool
	dir    string
	ca     *certs.CA
	agents []controller.AgentConfig
	stops  []func() // of the agents
	cfg    *controller.Config
	events *recorder
	adjust []func(*agent.Config)
	speaks [2]*agentv1.ProtocolRange // agents and controllers, where other versions are to be tried
}

// recorder keeps a session's events for the failure message.
type recorder struct {
	mu    sync.Mutex
	lines []string
	all   []controller.Event
	watch func(controller.Event) // told every event as well
}

// Observe notes the event.
func (r *recorder) Observe(e controller.Event) {
	if r.watch != nil {
		r.watch(e)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, e)
	vm := ""
	if e.VM != nil {
		vm = e.VM.Name
	}
	r.lines = append(r.lines, fmt.Sprintf("%s %s %q %s %s", e.Time.Format("05.000"), e.Type, vm, e.Phase, e.Message))
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n")
}

// newCell starts everything; it ends with the test.
func newCell(t *testing.T, sim xensim.Config, adjust ...func(*agent.Config)) *cell {
	t.Helper()
	c := &cell{t: t, dir: t.TempDir(), events: &recorder{}, adjust: adjust}
	if sim.Speedup == 0 {
		sim.Speedup = 100
	}
	if sim.DiskSize == 0 {
		sim.DiskSize = 16 << 20 // the least that holds a file system
	}
	sim.Check = true
	pool, err := xensim.New(sim)
	if err != nil {
		t.Fatal(err)
	}
	pool.Start()
	t.Cleanup(func() {
		if err := pool.CheckInvariants(); err != nil {
			t.Errorf("the simulator contradicts itself: %v", err)
		}
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	c.pool = pool
	if c.ca, err = certs.CreateCA(filepath.Join(c.dir, "ca"), certs.Options{}); err != nil {
		t.Fatal(err)
	}
	for i := range pool.Info().Hosts {
		c.stops = append(c.stops, c.startAgent(fmt.Sprintf("xs%d", i+1), i))
	}
	c.cfg = controller.DefaultConfig()
	c.cfg.Staging, c.cfg.Restore, c.cfg.State = filepath.Join(c.dir, "staging"), filepath.Join(c.dir, "restore"), filepath.Join(c.dir, "state")
	c.cfg.TLS = controller.TLSFiles(c.issue(certs.Controller, "dp1"))
	c.cfg.Agents = c.agents
	c.cfg.Timing.BackoffMin, c.cfg.Timing.BackoffMax = 100*time.Millisecond, 500*time.Millisecond
	c.cfg.Timing.CancelPoll, c.cfg.Timing.ReleaseTimeout = 100*time.Millisecond, time.Minute
	c.cfg.Timing.XAPIOutage = 10 * time.Second
	c.cfg.Timing.Lease, c.cfg.Timing.ShutdownLimit = 5*time.Second, 5*time.Second
	return c
}

// issue writes an identity's files.
func (c *cell) issue(role certs.Role, name string) certs.Files {
	c.t.Helper()
	cert, key, err := c.ca.Issue(certs.Identity{Role: role, Name: name}, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	base := filepath.Join(c.dir, string(role)+"-"+name)
	f := certs.Files{CA: filepath.Join(c.dir, "ca", certs.CAFile), Cert: base + ".pem", Key: base + ".key"}
	if err := certs.WritePair(f.Cert, f.Key, cert, key); err != nil {
		c.t.Fatal(err)
	}
	return f
}

// agentConfig is the configuration of an agent beside host i.
func (c *cell) agentConfig(name string, i int) agent.Config {
	info := c.pool.Info()
	password := filepath.Join(c.dir, "xapi.password")
	// Written once: an agent that is running reads it at every login.
	if _, err := os.Lstat(password); err != nil {
		if err := os.WriteFile(password, []byte(info.Password+"\n"), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	f := c.issue(certs.Agent, name)
	cfg := agent.Defaults()
	cfg.Name, cfg.Listen = name, "127.0.0.1:0"
	cfg.TLS = agent.TLSConfig{CA: f.CA, Cert: f.Cert, Key: f.Key}
	cfg.XAPI = agent.XAPIConfig{URL: info.Hosts[i].HTTPS, Username: info.Username, PasswordFile: password}
	for _, h := range info.Hosts {
		cfg.XAPI.Fingerprints = append(cfg.XAPI.Fingerprints, h.Fingerprint)
	}
	tm := &cfg.Timing
	tm.Progress, tm.Watch, tm.Sweep, tm.Health = 200*time.Millisecond, 100*time.Millisecond, time.Second, time.Second
	tm.RetryMin, tm.RetryMax, tm.Settle = 20*time.Millisecond, 200*time.Millisecond, 5*time.Second
	tm.Late, tm.Claim = time.Second, 8*time.Second // a claim that is not renewed for so long is lost, also on a busy machine
	tm.Drain, tm.Stop = 100*time.Millisecond, 10*time.Second
	tm.XAPI.TaskPollMin, tm.XAPI.TaskPollMax, tm.XAPI.InUsePause = 5*time.Millisecond, 50*time.Millisecond, 20*time.Millisecond
	for _, adjust := range c.adjust {
		adjust(&cfg)
	}
	return cfg
}

// startAgent starts an agent beside host i; it ends with the test, or when stop is called.
func (c *cell) startAgent(name string, i int) (stop func()) {
	c.t.Helper()
	log := hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Warn, Output: testLog{c.t}})
	a, err := agent.New(c.agentConfig(name, i), log)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.speaks[0] != nil {
		a.SetProtocol(c.speaks[0])
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("agent %s: %v", name, err)
		}
	})
	c.t.Cleanup(stop)
	c.agents = append(c.agents, controller.AgentConfig{Name: name, Address: l.Addr().String()})
	return stop
}

// testLog writes an agent's log to the test's.
type testLog struct{ t *testing.T }

// Write logs one line.
func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// controller makes a controller.
func (c *cell) controller() *controller.Controller {
	c.t.Helper()
	ctl, err := controller.New(c.cfg, controller.Options{Observer: c.events, Version: "test", Protocol: c.speaks[1]})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := ctl.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return ctl
}

// want fails the test unless the session ended with the code.
func (c *cell) want(code int, r *controller.Report, err error) {
	c.t.Helper()
	if got := controller.ExitCode(r, err); got != code {
		text := ""
		if r != nil {
			for _, vm := range r.VMs {
				text += fmt.Sprintf("\n  %q %s %s %s warnings=%q power %s>%s", vm.Name, vm.Status, vm.Reason, vm.Error, vm.Warnings, vm.PowerBefore, vm.PowerAfter)
			}
			text += fmt.Sprintf("\n  session: %q %q %s", r.Warnings, r.Error, r.Result)
		}
		c.t.Fatalf("exit code %d, want %d: %v%s\n%s", got, code, err, text, c.events)
	}
}

// state dumps the pool.
func (c *cell) state() xensim.State {
	c.t.Helper()
	s, err := c.pool.Dump(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// disks are the digests of a VM's disks by "UUID/position".
func disks(s xensim.State) map[string]string {
	out := map[string]string{}
	for _, vm := range s.VMs {
		for _, d := range vm.Disks {
			if d.Type == "Disk" && !d.Empty {
				out[vm.UUID+"/"+d.UserDevice] = d.VDI.SHA256
			}
		}
	}
	return out
}

// powers are the VMs' power states by UUID.
func powers(s xensim.State) map[string]string {
	out := map[string]string{}
	for _, vm := range s.VMs {
		out[vm.UUID] = vm.PowerState
	}
	return out
}

// marksTime is how long a mark of finished work may stay after a session: where XAPI's answer was lost, what it was asked for
// may still come, and the mark says not to act on it.
const marksTime = 30 * time.Second

// isMark tells whether an entry of the journal is such a mark.
func isMark(key, value string) bool {
	return strings.HasPrefix(key, "dpxen:take:") && strings.Contains(value, `"data":"over `)
}

// unmarked dumps the pool once no mark of finished work is left, or when their time is out.
func (c *cell) unmarked() xensim.State {
	c.t.Helper()
	for end := time.Now().Add(marksTime); ; time.Sleep(100 * time.Millisecond) {
		s := c.state()
		marked := false
		for key, value := range s.PoolOtherConfig {
			marked = marked || isMark(key, value)
		}
		if !marked || time.Now().After(end) {
			return s
		}
	}
}

// clean fails the test where anything of ours is left in the pool.
func (c *cell) clean() {
	c.t.Helper()
	c.ownerOnly()
	s := c.unmarked()
	for key, value := range s.PoolOtherConfig {
		if strings.HasPrefix(key, "dpxen:") {
			c.t.Errorf("left in the journal: %s = %s", key, value)
		}
	}
	for _, vm := range s.Snapshots {
		c.t.Errorf("left: snapshot %s", vm.Name)
	}
	for _, vm := range s.Carriers {
		c.t.Errorf("left: carrier %s", vm.Name)
	}
	for _, vdi := range s.Orphans {
		c.t.Errorf("left: disk %+v", vdi)
	}
	for _, vm := range s.VMs {
		if len(vm.Blocked) > 0 {
			c.t.Errorf("VM %q is blocked: %v", vm.Name, vm.Blocked)
		}
		for key := range vm.Config {
			if strings.HasPrefix(key, "dpxen:") {
				c.t.Errorf("VM %q has our key %s", vm.Name, key)
			}
		}
	}
}
