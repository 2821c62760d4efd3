package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Timing of minutes becomes seconds, so that leases end and sweeps happen many times in one history.
const (
	controllerTiming = "timing: {lease: 1500ms, heartbeat: 5s, backoff_min: 100ms, backoff_max: 300ms, shutdown_limit: 3s, " +
		"release_timeout: 12s, retries: %d, connect_timeout: 3s, call_timeout: 10s, cancel_poll: 100ms, stall_limit: 8s}\n"
	agentTiming = "timing: {lease: 1500ms, claim: 2s, progress: 200ms, stall: 8s, shutdown: 3s, late: 500ms, watch: 100ms, start: 8s, " +
		"settle: 2s, cleanup: 12s, sweep: %s, drain: 300ms, stop: 8s, health: 500ms, retry_min: 100ms, retry_max: 300ms}\n"
)

// How often agents sweep on their own account. Where they seldom do, what a dry run tells can be held against what is done.
const (
	oftenSwept  = "400ms"
	seldomSwept = "10m"
)

// maxSocketPath is as long as the path of a unix socket may be.
const maxSocketPath = 100

// site is an installation made of processes: a simulated pool, agents, and the controller's commands.
type site struct {
	bin, dir string
	pool     poolInfo
	sim      *process
	config   string // controller.yaml
	rival    string // configuration of another controller, with folders of its own
	habits   habits
	loopback string // where agents listen
	mounts   []string
	log      func(format string, args ...any)

	mu     sync.Mutex // of agents: disturbances restart them
	agents []*agentProcess
	runs   int // of dpxen, for the names of logs
}

// habits are settings that differ from site to site.
type habits struct {
	sweep   string   // how often agents sweep
	retries int      // attempts at a VM beyond the first
	ways    []string // how agents reach XAPI: https, http, unix; the first agent the first way and so on
}

// newSite starts a pool and an agent beside each host, configured by dpxen's own commands.
func newSite(bin, dir string, own habits, log func(string, ...any), simArgs ...string) (*site, error) {
	s := &site{bin: bin, dir: dir, log: log, config: filepath.Join(dir, "etc", "controller.yaml"), habits: own,
		rival: filepath.Join(dir, "etc", "rival.yaml"), loopback: ownLoopback()}
	args := append([]string{"--control", "127.0.0.1:0", "--data", s.path("xensim")}, simArgs...)
	if slices.Contains(own.ways, "unix") && len(s.path("sockets/xen1.sock")) <= maxSocketPath {
		if err := os.Mkdir(s.path("sockets"), 0o700); err != nil {
			return nil, err
		}
		args = append(args, "--socket", s.path("sockets"))
	}
	sim, line, err := spawn(dir, s.path("xensim.log"), true, nil, filepath.Join(bin, "xensim"), args...)
	if err != nil {
		return nil, err
	}
	s.sim = sim
	if err := json.Unmarshal([]byte(line), &s.pool); err != nil {
		return s, fmt.Errorf("xensim printed %q: %w", line, err)
	}
	if err := s.must("init", "--staging", s.path("staging"), "--state", s.path("state"), "--restore", s.path("restore")); err != nil {
		return s, err
	}
	list := "agents:\n"
	for i := range s.pool.Hosts {
		a, err := s.newAgent(i)
		if err != nil {
			return s, err
		}
		list += fmt.Sprintf("  - {name: %s, address: %q}\n", a.name, a.front.addr())
	}
	if err := edit(s.config, "agents: []\n", list+fmt.Sprintf(controllerTiming, s.habits.retries)); err != nil {
		return s, err
	}
	if err := edit(s.config, "specs: {}\n", dpSpecs); err != nil {
		return s, err
	}
	if err := s.addRival(); err != nil {
		return s, err
	}
	for _, a := range s.agents {
		if err := s.startAgent(a, ""); err != nil {
			return s, err
		}
	}
	return s, s.agentsListen(20 * time.Second)
}

func (s *site) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// close ends all processes.
func (s *site) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.agents {
		a.proc.end()
		a.front.close()
		a.back.close()
	}
	s.sim.end()
	for _, m := range s.mounts {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil {
			s.log("unmount %s: %v", m, err)
		}
	}
}

// addRival configures another controller for the same agents.
func (s *site) addRival() error {
	data, err := os.ReadFile(s.config)
	if err != nil {
		return err
	}
	text := string(data)
	for _, folder := range []string{"staging", "state", "restore"} {
		own := s.path(folder)
		if strings.Count(text, own) == 0 {
			return fmt.Errorf("%s does not name %s", s.config, own)
		}
		text = strings.ReplaceAll(text, own, s.path("rival-"+folder))
	}
	return os.WriteFile(s.rival, []byte(text), 0o600)
}

// smallFolder makes a file system of its own with so many KiB, where this process may; else it is empty.
func (s *site) smallFolder(kib int) string {
	dir := s.path(fmt.Sprintf("small-%d", s.runs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return ""
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=0700", kib)); err != nil {
		return ""
	}
	s.mounts = append(s.mounts, dir)
	return dir
}

// edit replaces a piece of a file that is there once.
func edit(path, from, to string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.Count(string(data), from) != 1 {
		return fmt.Errorf("%s does not hold %q once", path, from)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600)
}

func failpoints(points string) []string {
	if points == "" {
		return nil
	}
	return []string{"DPXEN_FAILPOINTS=" + points}
}

// launch is how a command of the controller is started.
type launch struct {
	config string   // configuration; the site's own where empty
	limit  int      // size of files that it may write, in KiB; none where 0
	env    []string // beside what this process has
}

// begin starts a command of the controller.
func (s *site) begin(l launch, args ...string) (*process, error) {
	s.mu.Lock()
	s.runs++
	log := s.path(fmt.Sprintf("dpxen-%03d-%s.log", s.runs, args[0]))
	s.mu.Unlock()
	if l.config == "" {
		l.config = s.config
	}
	args = append([]string{"-c", l.config}, args...)
	path := filepath.Join(s.bin, "dpxen")
	if l.limit > 0 {
		args = append([]string{"-c", fmt.Sprintf(`ulimit -f %d; exec "$0" "$@"`, l.limit), path}, args...)
		path = "/bin/bash"
	}
	p, _, err := spawn(s.dir, log, false, l.env, path, args...)
	return p, err
}

// run runs a command to its end; its output is returned.
func (s *site) run(limit time.Duration, args ...string) (string, int, error) {
	return s.runAs(launch{}, limit, args...)
}

// runAs is run for a command that is started in a way of its own.
func (s *site) runAs(l launch, limit time.Duration, args ...string) (string, int, error) {
	p, err := s.begin(l, args...)
	if err != nil {
		return "", 0, err
	}
	if !p.wait(limit) {
		p.signal(os.Kill)
		<-p.done
		return "", -1, fmt.Errorf("dpxen %s did not end within %s", strings.Join(args, " "), limit)
	}
	out, err := os.ReadFile(p.log)
	return string(out), p.code(), err
}

// must is run for commands that have to succeed.
func (s *site) must(args ...string) error {
	out, code, err := s.run(time.Minute, args...)
	if err == nil && code != 0 {
		err = fmt.Errorf("dpxen %s ended with %d: %s", strings.Join(args, " "), code, out)
	}
	return err
}
