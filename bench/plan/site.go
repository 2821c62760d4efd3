package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// poolInfo is what a simulator says of itself.
type poolInfo struct {
	Hosts []struct {
		HTTPS       string `json:"https"`
		Fingerprint string `json:"fingerprint"`
	} `json:"hosts"`
	Password string `json:"password"`
	Control  string `json:"control"`
}

// site is an installation over several pools.
type site struct {
	bin, dir string
	profile  string // folder for the agents' profiles, or empty
	pools    []poolInfo
	running  []*exec.Cmd
	ended    time.Duration // CPU time of commands that came to their end
}

// newSite starts the pools and the agents, and writes the controller's configuration. It is to be closed also after an error.
func newSite(cfg *settings, vms int) (*site, error) {
	dir, err := os.MkdirTemp("", "dpxen-bench-plan-")
	s := &site{bin: cfg.bin, dir: dir, profile: cfg.profile}
	if err != nil {
		return s, err
	}
	for i := range cfg.pools {
		n := vms / cfg.pools
		if i < vms%cfg.pools {
			n++
		}
		line, err := s.start("xensim", "--hosts", strconv.Itoa(cfg.hosts), "--vms", strconv.Itoa(n), "--content", "zero", "--disk-size", "1MiB",
			"--seed", strconv.Itoa(i+1), "--control", "127.0.0.1:0", "--data", s.path(fmt.Sprint("data", i)))
		if err != nil {
			return s, err
		}
		var p poolInfo
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			return s, fmt.Errorf("xensim printed %.80q: %w", line, err)
		}
		s.pools = append(s.pools, p)
	}
	if _, err := s.dpxen("init", "--staging", s.path("staging"), "--state", s.path("state"), "--restore", s.path("restore")); err != nil {
		return s, err
	}
	list := "agents:\n"
	for i := range s.pools {
		for k := range s.pools[i].Hosts {
			name := fmt.Sprintf("p%dh%d", i+1, k+1)
			address, err := s.agent(name, i, k)
			if err != nil {
				return s, err
			}
			list += fmt.Sprintf("  - {name: %s, address: %q}\n", name, address)
		}
	}
	if err := s.edit(s.path("etc/controller.yaml"), "agents: []\n", list); err != nil {
		return s, err
	}
	return s, s.ready(2 * time.Minute)
}

func (s *site) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// agent makes the bundle of the agent beside a host, and starts it.
func (s *site) agent(name string, pool, host int) (address string, err error) {
	dir := s.path("etc/" + name)
	if _, err := s.dpxen("certs", "agent", name, "--out", dir); err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	address = l.Addr().String()
	if err := l.Close(); err != nil {
		return "", err
	}
	p := s.pools[pool]
	if err := os.WriteFile(filepath.Join(dir, "xapi.password"), []byte(p.Password+"\n"), 0o600); err != nil {
		return "", err
	}
	var pins []string
	for _, h := range p.Hosts {
		pins = append(pins, strconv.Quote(h.Fingerprint))
	}
	config := filepath.Join(dir, "agent.yaml")
	for _, e := range [][2]string{
		{"listen: 0.0.0.0:7443\n", "listen: " + address + "\n"},
		{"  url: https://127.0.0.1\n", "  url: " + p.Hosts[host].HTTPS + "\n"},
		{"  fingerprints: []\n", "  fingerprints: [" + strings.Join(pins, ", ") + "]\n"},
		{"# Prometheus metrics", "timing: {health: 1h, sweep: 1h}\n# Prometheus metrics"}, // what agents do beside is not the plan's
	} {
		if err := s.edit(config, e[0], e[1]); err != nil {
			return "", err
		}
	}
	args := []string{"--config", config}
	if s.profile != "" {
		args = append(args, "--profile", s.profile)
	}
	_, err = s.start("dpxen-agent", args...)
	return address, err
}

func (s *site) edit(path, from, to string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.Count(string(data), from) != 1 {
		return fmt.Errorf("%s does not hold %q once", path, from)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600)
}

// start starts a service that ends with the site; a simulator's first line is returned.
func (s *site) start(name string, args ...string) (line string, err error) {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if name != "xensim" {
		err = cmd.Start()
	} else {
		var out io.ReadCloser
		if out, err = cmd.StdoutPipe(); err == nil {
			if err = cmd.Start(); err == nil {
				line, err = bufio.NewReader(out).ReadString('\n')
			}
		}
	}
	if cmd.Process != nil {
		s.running = append(s.running, cmd)
	}
	if err != nil {
		return "", fmt.Errorf("start %s: %w", name, err)
	}
	return line, nil
}

// dpxen runs a command of the controller. A code of 3, which an agent that is not there gives, is an error as well.
func (s *site) dpxen(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(s.bin, "dpxen"), append([]string{"--config", s.path("etc/controller.yaml")}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if cmd.ProcessState != nil {
		s.ended += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	if err != nil {
		return "", fmt.Errorf("dpxen %s: %w: %.400s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

// ready waits until every agent answers, and knows where it stands.
func (s *site) ready(limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(time.Second) {
		_, err := s.dpxen("hosts")
		if err == nil {
			time.Sleep(2 * time.Second)
			return nil
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// plan makes a plan and returns its last line.
func (s *site) plan() (string, error) {
	out, err := s.dpxen("plan", "--mode", "allOnline")
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1], nil
}

func (s *site) clearCalls() error {
	for _, p := range s.pools {
		req, err := http.NewRequest(http.MethodDelete, p.Control+"/calls", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil {
			return err
		}
	}
	return nil
}

// calls are those of each pool since they were cleared, by method.
func (s *site) calls() ([]map[string]int, error) {
	var all []map[string]int
	for _, p := range s.pools {
		resp, err := http.Get(p.Control + "/calls")
		if err != nil {
			return nil, err
		}
		var one map[string]int
		err = json.NewDecoder(resp.Body).Decode(&one)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// close ends all that was started.
func (s *site) close() {
	var wait sync.WaitGroup
	for _, cmd := range s.running {
		wait.Go(func() {
			if s.profile != "" {
				_ = cmd.Process.Signal(syscall.SIGTERM) // profiles are written at the end
				time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
			} else {
				_ = cmd.Process.Kill() // nothing of it is to be kept
			}
			_ = cmd.Wait()
		})
	}
	wait.Wait()
	_ = os.RemoveAll(s.dir) // a temporary folder
}
