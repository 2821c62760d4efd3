//go:build e2e && linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// binaries is where `make e2e` has built the programs.
var binaries = flag.String("binaries", "../bin", "folder with dpxen, dpxen-agent and xensim")

// site is a whole installation made of processes: a simulated pool, agents, and the commands of the controller.
type site struct {
	t      *testing.T // of the part at work
	root   *testing.T // what was started lives as long as this
	dir    string
	bin    string
	env    []string // of what is started, beside this process's
	pool   xensim.Info
	sim    *program
	agents []*program
	addrs  []string
	config string // controller.yaml
	claim  string // how long claims of the agents stand
	settle string // how long agents wait for what XAPI is at
	// loopback is where agents listen: an address of no other site, so that the port of one that was killed is still free when
	// it is started again.
	loopback string
}

// sites counts those of this process.
var sites atomic.Uint32

// siteTiming replaces what is minutes in earnest by seconds.
const (
	controllerTiming = "timing: {lease: 3s, heartbeat: 5s, backoff_min: 100ms, backoff_max: 500ms, shutdown_limit: 10s, " +
		"release_timeout: 30s, retries: 1, xapi_outage: 10s, connect_timeout: 5s, cancel_poll: 100ms, stall_limit: 20s}\n"
	agentTiming = "timing: {lease: 3s, claim: %s, progress: 200ms, stall: 20s, shutdown: 10s, late: 1s, watch: 100ms, start: 20s, " +
		"settle: %s, cleanup: 30s, sweep: 1s, drain: 500ms, stop: 20s, health: 1s, retry_min: 100ms, retry_max: 500ms}\n"
)

// newSite starts a pool and an agent beside each host, configured with dpxen's own commands. All of it ends with the test.
func newSite(t *testing.T, simArgs ...string) *site {
	t.Helper()
	s := newPool(t, simArgs...)
	s.install()
	return s
}

// patientSite is newSite for agents that are killed in a call that lasts. What a dead agent has asked for comes before its claim is
// over: a call has a limit of 2 min and a claim of 4, of which two thirds are left at least. Here a call may last 6 s, see lasting.
func patientSite(t *testing.T, simArgs ...string) *site {
	t.Helper()
	s := newPool(t, simArgs...)
	s.claim = patientClaim
	s.install()
	return s
}

// patientClaim is the claim of a patientSite.
const patientClaim = "12s"

// install configures and starts the agents of a pool.
func (s *site) install() {
	s.t.Helper()
	s.dpxen(0, "init", "--staging", s.path("staging"), "--state", s.path("state"), "--restore", s.path("restore"))
	list := "agents:\n"
	for i := range s.pool.Hosts {
		list += fmt.Sprintf("  - {name: xs%d, address: %q}\n", i+1, s.newAgent(i))
	}
	s.edit(s.config, "agents: []\n", list+controllerTiming)
}

// newPool starts a pool alone.
func newPool(t *testing.T, simArgs ...string) *site {
	t.Helper()
	bin, err := filepath.Abs(*binaries)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, root: t, dir: t.TempDir(), bin: bin, claim: "4s", settle: "3s"}
	s.loopback = fmt.Sprintf("127.%d.%d.%d", 1+(os.Getpid()>>8)%200, os.Getpid()%256, 1+sites.Add(1)%250)
	s.config = s.path("etc/controller.yaml")
	args := append([]string{"--control", "127.0.0.1:0", "--speedup", "50", "--data", s.path("xensim")}, simArgs...)
	var line string
	s.sim, line = s.start("xensim", args...)
	if err := json.Unmarshal([]byte(line), &s.pool); err != nil {
		t.Fatalf("xensim printed %q: %v", line, err)
	}
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// newAgent issues the bundle of the agent beside host i, fills it in and starts the agent.
func (s *site) newAgent(i int) (addr string) {
	s.t.Helper()
	return s.addAgent(s.pool.Hosts[i].HTTPS)
}

// addAgent is newAgent beside the host of the site's pool at an address; agents are named in their order.
func (s *site) addAgent(url string) (addr string) {
	s.t.Helper()
	name := fmt.Sprintf("xs%d", len(s.agents)+1)
	s.dpxen(0, "certs", "agent", name, "--out", s.path("etc/"+name))
	l, err := net.Listen("tcp", net.JoinHostPort(s.loopback, "0"))
	if err != nil {
		s.t.Fatal(err)
	}
	addr = l.Addr().String()
	if err := l.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.write("etc/"+name+"/xapi.password", s.pool.Password+"\n")
	var pins []string
	for _, h := range s.pool.Hosts {
		pins = append(pins, strconv.Quote(h.Fingerprint))
	}
	config := s.path("etc/" + name + "/agent.yaml")
	s.edit(config, "listen: 0.0.0.0:7443\n", "listen: "+addr+"\n")
	s.edit(config, "  url: https://127.0.0.1\n", "  url: "+url+"\n")
	s.edit(config, "  fingerprints: []\n", "  fingerprints: ["+strings.Join(pins, ", ")+"]\n")
	s.edit(config, "# Prometheus metrics", fmt.Sprintf(agentTiming, s.claim, s.settle)+"# Prometheus metrics")
	s.addrs = append(s.addrs, addr)
	s.agents = append(s.agents, nil)
	s.startAgent(len(s.agents) - 1)
	return addr
}

// startAgent starts an agent, again where it was killed.
func (s *site) startAgent(i int) {
	s.t.Helper()
	s.agents[i], _ = s.start("dpxen-agent", "--config", s.path(fmt.Sprintf("etc/xs%d/agent.yaml", i+1)))
	s.until(20*time.Second, "an agent listens", func() bool {
		if !s.agents[i].running() {
			s.t.Fatalf("the agent ended:\n%s", s.agents[i].out)
		}
		conn, err := net.DialTimeout("tcp", s.addrs[i], time.Second)
		if err == nil {
			err = conn.Close()
		}
		return err == nil
	})
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// edit replaces a piece of a file that is there once.
func (s *site) edit(path, from, to string) {
	s.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if strings.Count(string(data), from) != 1 {
		s.t.Fatalf("%s does not hold %q once:\n%s", path, from, data)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// until waits for something that must come true.
func (s *site) until(limit time.Duration, what string, holds func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("within %s it did not become true that %s", limit, what)
		}
	}
}

// program is a running process of ours.
type program struct {
	name string
	cmd  *exec.Cmd
	out  *bytes.Buffer // both outputs; only to be read when done is closed
	done chan struct{}
}

// start starts a program that ends with the test at the latest. xensim's first line is returned.
func (s *site) start(name string, args ...string) (*program, string) {
	s.t.Helper()
	return s.startPath(filepath.Join(s.bin, name), args...)
}

// startPath starts any program, ours or not.
func (s *site) startPath(path string, args ...string) (*program, string) {
	s.t.Helper()
	name := filepath.Base(path)
	p := &program{name: name, out: &bytes.Buffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Dir, p.cmd.Env = s.dir, append(os.Environ(), s.env...)
	p.cmd.Stderr = p.out
	var lines *bufio.Reader
	if name == "xensim" {
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			s.t.Fatal(err)
		}
		lines = bufio.NewReader(out)
	} else {
		p.cmd.Stdout = p.out
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var first string
	if lines != nil {
		var err error
		if first, err = lines.ReadString('\n'); err != nil {
			s.t.Errorf("%s ended before it was ready: %v", name, err)
		}
	}
	go func() {
		defer close(p.done)
		if lines != nil {
			_, _ = io.Copy(io.Discard, lines)
		}
		_ = p.cmd.Wait() // what matters is in ProcessState
	}()
	s.root.Cleanup(func() {
		p.end(s.root, syscall.SIGTERM)
		if s.root.Failed() && name != "dpxen" {
			s.t.Logf("%s %v said:\n%s", name, args, tail(p.out.String()))
		}
	})
	return p, first
}

// tail is the end of a log, as long as a person reads.
func tail(text string) string { return text[max(0, len(text)-3000):] }

func (p *program) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal %s: %v", p.name, err)
	}
}

// end sends a signal, and waits until the process is gone; it gives its exit code.
func (p *program) end(t *testing.T, sig os.Signal) int {
	t.Helper()
	p.signal(t, sig)
	return p.wait(t)
}

func (p *program) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(3 * time.Minute):
		t.Errorf("%s did not end", p.name)
		p.signal(t, syscall.SIGKILL)
		<-p.done
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *program) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// dpxen runs a command of the controller to its end; want is its exit code. It gives all that was printed.
func (s *site) dpxen(want int, args ...string) string {
	s.t.Helper()
	p := s.begin(args...)
	if got := p.wait(s.t); got != want {
		s.t.Fatalf("dpxen %s ended with %d instead of %d:\n%s", strings.Join(args, " "), got, want, p.out)
	}
	return p.out.String()
}

// begin starts a command of the controller.
func (s *site) begin(args ...string) *program {
	s.t.Helper()
	p, _ := s.start("dpxen", append([]string{"-c", s.config}, args...)...)
	return p
}

// says fails the test where a text lacks one of the pieces.
func (s *site) says(text string, pieces ...string) {
	s.t.Helper()
	for _, piece := range pieces {
		if !strings.Contains(text, piece) {
			s.t.Errorf("%q is not in:\n%s", piece, text)
		}
	}
}

// result fails the test where the last line is not such a RESULT line.
func (s *site) result(text, word string, code int, good string) {
	s.t.Helper()
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	last := lines[len(lines)-1]
	if want := fmt.Sprintf("RESULT %s code=%d good=%s session=", word, code, good); !strings.HasPrefix(last, want) {
		s.t.Errorf("the last line is %q and not %q…:\n%s", last, want, text)
	}
}

// control calls the simulator's control endpoint.
func (s *site) control(method, path string, body any, into any) {
	s.t.Helper()
	if text, err := s.try(method, path, body, into); err != nil {
		s.t.Fatalf("the simulator's %s %s: %v: %s", method, path, err, text)
	}
}

// try is control with its error.
func (s *site) try(method, path string, body any, into any) (text []byte, err error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.pool.Control+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(text, into)
	}
	return text, err
}

// dump is the truth about the pool. A disk may be deleted while its digest is made: then it is asked again.
func (s *site) dump() (state xensim.State) {
	s.t.Helper()
	for range 20 {
		state = xensim.State{}
		text, err := s.try(http.MethodGet, "/dump", nil, &state)
		if err == nil {
			return state
		}
		if !strings.Contains(string(text), "released") {
			s.t.Fatalf("the simulator's dump: %v: %s", err, text)
		}
	}
	s.t.Fatal("the simulator's disks are never at rest")
	return state
}

func (s *site) inject(f xensim.Fault) {
	s.t.Helper()
	s.control(http.MethodPost, "/fault", f, nil)
}

func (s *site) clearFault(name string) {
	s.t.Helper()
	s.control(http.MethodDelete, "/fault?name="+url.QueryEscape(name), nil, nil)
}

// scribble lets a VM's guest, or every guest where name is empty, write to its disks.
func (s *site) scribble(name string, seed int) {
	s.t.Helper()
	for _, vm := range s.dump().VMs {
		for _, d := range vm.Disks {
			if d.Type == "Disk" && !d.Empty && (name == "" || vm.Name == name) {
				form := url.Values{"vdi": {d.VDI.UUID}, "seed": {strconv.Itoa(seed)}, "n": {"4"}}
				s.control(http.MethodPost, "/scribble?"+form.Encode(), nil, nil)
			}
		}
	}
}

// vm finds a VM by its name in a dump.
func (s *site) vm(state xensim.State, name string) xensim.VMState {
	s.t.Helper()
	for _, vm := range state.VMs {
		if vm.Name == name {
			return vm
		}
	}
	s.t.Fatalf("there is no VM %q", name)
	return xensim.VMState{}
}

// facts are what a user has: VMs, their power states, contents of disks, drives, MACs.
func facts(state xensim.State) map[string]string {
	out := map[string]string{}
	for _, vm := range state.VMs {
		id := fmt.Sprintf("%q %s ", vm.Name, vm.UUID)
		out[id+"power"] = vm.PowerState
		for _, d := range vm.Disks {
			out[id+"disk "+d.UserDevice] = fmt.Sprint(d.Type, d.Mode, d.Bootable, d.VDI.Size, d.VDI.SHA256)
		}
		for _, v := range vm.VIFs {
			out[id+"MAC "+v.Device] = v.MAC + " " + v.Network
		}
	}
	return out
}

// same fails the test where the user has not what he had.
func (s *site) same(before xensim.State) {
	s.t.Helper()
	was, is := facts(before), facts(s.dump())
	for k, v := range was {
		if is[k] != v {
			s.t.Errorf("%s is %q and was %q", k, is[k], v)
		}
	}
	for k, v := range is {
		if _, ok := was[k]; !ok {
			s.t.Errorf("%s is %q and was not there", k, v)
		}
	}
}

// unmarked dumps the pool once no mark of finished work is left, or when their time is out.
func (s *site) unmarked() xensim.State {
	s.t.Helper()
	for end := time.Now().Add(marksTime); ; time.Sleep(100 * time.Millisecond) {
		state, marked := s.dump(), false
		for key, value := range state.PoolOtherConfig {
			marked = marked || isMark(key, value)
		}
		if !marked || time.Now().After(end) {
			return state
		}
	}
}

// leftovers are all things of ours on the hosts and unfinished ones in the staging folder.
func (s *site) leftovers() []string {
	s.t.Helper()
	state, out := s.unmarked(), []string(nil)
	for key, value := range state.PoolOtherConfig {
		if strings.HasPrefix(key, "dpxen:") {
			out = append(out, "journal entry "+key+" "+value)
		}
	}
	for _, vm := range slices.Concat(state.Snapshots, state.Templates) {
		if vm.Name != "house template" { // the user's own
			out = append(out, "snapshot or carrier "+vm.Name)
		}
	}
	for _, d := range state.Orphans {
		out = append(out, "disk "+d.UUID+" "+d.Name)
	}
	for _, vm := range state.VMs {
		if len(vm.Blocked) > 0 {
			out = append(out, fmt.Sprintf("blocked operations of %s: %v", vm.Name, vm.Blocked))
		}
		for key := range vm.Config {
			if strings.HasPrefix(key, "dpxen:") {
				out = append(out, "key "+key+" of VM "+vm.Name)
			}
		}
	}
	partial, err := os.ReadDir(s.path("staging/.dpxen/partial"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Fatal(err)
	}
	for _, e := range partial {
		out = append(out, "partial file "+e.Name())
	}
	return out
}

// clean fails the test where something of ours is left.
func (s *site) clean() {
	s.t.Helper()
	for _, what := range s.leftovers() {
		s.t.Errorf("left behind: %s", what)
	}
	s.control(http.MethodGet, "/invariants", nil, nil)
}

// staged gives the complete files of the staging folder, of one VM and kind where the pattern says so.
func (s *site) staged(pattern string) []string {
	s.t.Helper()
	files, err := filepath.Glob(s.path("staging/" + pattern + ".xva"))
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}

// client reaches the pool as an administrator's tools would.
func (s *site) client() *xapi.Client {
	s.t.Helper()
	cfg := xapi.Config{URL: s.pool.Hosts[0].HTTPS, Username: s.pool.Username, Originator: "e2e",
		PasswordFile: s.path("etc/xs1/xapi.password")}
	for _, h := range s.pool.Hosts {
		cfg.Fingerprints = append(cfg.Fingerprints, h.Fingerprint)
	}
	c, err := xapi.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			s.t.Error(err)
		}
	})
	return c
}
