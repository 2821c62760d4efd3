package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// scene is a simulated pool of one host with an agent beside it, and the controller's configuration.
type scene struct {
	bin, dir string
	stage    string // folder that backups go to
	config   string
	sim      *program
	agent    *program
	metrics  string // URL
	link     *link  // between controller and agent; nil = the machine's own
	profiles string // folder that profiles are kept in, if any
	memory   string // folder in memory
	pool     struct {
		Hosts []struct{ Name, HTTP, HTTPS, Fingerprint, Socket string }
		VMs   []struct {
			UUID, Name string
			Power      string `json:"power_state"`
		}
		Username, Password string
	}
}

// stageSettings are what scenes differ in.
type stageSettings struct {
	stage     string // parent of the staging folder
	memory    string // folder in memory
	vms       int    // that are halted, and so exported without a snapshot by curl
	size      string // of each VM's disk
	content   string
	bandwidth string  // of each stream
	agent     string  // how the agent reaches XAPI: socket, http or https
	link      float64 // bits a second between controller and agent; 0 = as they come
	profiles  string  // folder that profiles are kept in, if any
}

// newScene starts all of it.
func newScene(bin, work string, set stageSettings) (s *scene, err error) {
	s = &scene{bin: bin, profiles: set.profiles, memory: set.memory}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = os.MkdirTemp(work, "bench-"); err != nil {
		return s, err
	}
	if s.stage, err = os.MkdirTemp(set.stage, "dpxen-bench-"); err != nil {
		return s, err
	}
	s.config = s.path("etc/controller.yaml")
	// The populated VMs are running and halted ones in turn; curl needs as many halted ones as there are streams.
	args := []string{"--hosts", "1", "--vms", strconv.Itoa(3 * set.vms), "--disk-size", set.size, "--content", set.content, "--speedup", "50",
		"--data", s.path("xensim"), "--socket", s.dir, "--sr-size", "8TiB"}
	if set.bandwidth != "" {
		args = append(args, "--bandwidth", set.bandwidth)
	}
	sim, line, err := launchTelling(filepath.Join(bin, "xensim"), args...)
	if err != nil {
		return s, err
	}
	s.sim = sim
	if err := json.Unmarshal([]byte(line), &s.pool); err != nil {
		return s, err
	}
	if err := s.configure(set); err != nil {
		return s, err
	}
	args = []string{"--config", s.path("etc/xs1/agent.yaml")}
	if set.profiles != "" {
		args = append(args, "--profile", set.profiles)
	}
	s.agent, err = launch(filepath.Join(bin, "dpxen-agent"), args...)
	if err != nil {
		return s, err
	}
	return s, s.ready()
}

func (s *scene) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// configure writes what init and certs do, filled in.
func (s *scene) configure(set stageSettings) error {
	if err := s.dpxen("init", "--staging", s.stage, "--state", s.path("state"), "--restore", s.path("restore")); err != nil {
		return err
	}
	if err := s.dpxen("certs", "agent", "xs1", "--out", s.path("etc/xs1")); err != nil {
		return err
	}
	listen, err := freeAddress()
	if err != nil {
		return err
	}
	dialled := listen
	if set.link > 0 {
		if s.link, err = newLink(listen, set.link); err != nil {
			return err
		}
		dialled = s.link.address()
	}
	metrics, err := freeAddress()
	if err != nil {
		return err
	}
	s.metrics = "http://" + metrics + "/metrics"
	host := s.pool.Hosts[0]
	url := map[string]string{"socket": "unix://" + host.Socket, "http": host.HTTP, "https": host.HTTPS}[set.agent]
	agent := s.path("etc/xs1/agent.yaml")
	return errors.Join(
		edit(s.config, "agents: []\n", fmt.Sprintf("agents:\n  - {name: xs1, address: %q}\n", dialled)),
		edit(s.config, "per_host: 2\n", "per_host: 4\n"),
		// Snapshots at once: their stagger is a wait that spares the SR, and curl takes none.
		edit(s.config, "per_sr: 2\n", "per_sr: 4\n"),
		edit(s.config, "  stagger: 2s\n", "  stagger: 0s\n"),
		os.WriteFile(s.path("etc/xs1/xapi.password"), []byte(s.pool.Password+"\n"), 0o600),
		edit(agent, "listen: 0.0.0.0:7443\n", "listen: "+listen+"\nmetrics: {listen: \""+metrics+"\"}\n"),
		edit(agent, "  url: https://127.0.0.1\n", "  url: "+url+"\n  host: "+host.Name+"\n"),
		edit(agent, "  fingerprints: []\n", "  fingerprints: [\""+host.Fingerprint+"\"]\n"))
}

// ready waits for the agent.
func (s *scene) ready() error {
	end := time.Now().Add(20 * time.Second)
	for {
		err := s.dpxen("hosts")
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// close ends the processes and removes their files.
func (s *scene) close() {
	s.agent.stop()
	s.sim.stop()
	_ = s.link.close() // nobody dials any more
	for _, dir := range []string{s.dir, s.stage} {
		if dir != "" {
			_ = os.RemoveAll(dir) // the next run has folders of its own
		}
	}
}

// dpxen runs a command to its end.
func (s *scene) dpxen(args ...string) error {
	p, err := s.begin(args...)
	if err != nil {
		return err
	}
	return p.wait(4) // good with warnings is good
}

func (s *scene) begin(args ...string) (*program, error) {
	return launch(filepath.Join(s.bin, "dpxen"), append([]string{"-c", s.config}, args...)...)
}

// halted gives n VMs that are off.
func (s *scene) halted(n int) ([]string, error) {
	var out []string
	for _, vm := range s.pool.VMs {
		if vm.Power == "Halted" && len(out) < n {
			out = append(out, vm.UUID)
		}
	}
	if len(out) < n {
		return nil, fmt.Errorf("the pool has %d halted VMs instead of %d", len(out), n)
	}
	return out, nil
}

// clear empties the staging folder but for the controller's own folder, and lets the disk come to rest.
func (s *scene) clear() error {
	entries, err := os.ReadDir(s.stage)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != ".dpxen" {
			if err := os.RemoveAll(filepath.Join(s.stage, e.Name())); err != nil {
				return err
			}
		}
	}
	syscall.Sync()
	return nil
}

// allocated is how many bytes the agent has allocated in its life. A compressed answer would cost the agent a MiB more.
func (s *scene) allocated() (float64, error) {
	req, err := http.NewRequest(http.MethodGet, s.metrics, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // it is only read
	return metric(resp.Body, "go_memstats_alloc_bytes_total")
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// edit replaces the one place of a file that holds from.
func edit(path, from, to string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, after, found := strings.Cut(string(data), from)
	if !found {
		return fmt.Errorf("%s does not hold %q", path, from)
	}
	return os.WriteFile(path, []byte(before+to+after), 0o600)
}
