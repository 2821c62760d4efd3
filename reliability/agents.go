package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// agentProcess is an agent with the proxies before and behind it.
type agentProcess struct {
	name, addr, config string
	way                string // to XAPI: https, http or unix
	front, back        *proxy // controller to agent; agent to XAPI
	proc               *process
}

// sites counts the sites of this process.
var sites atomic.Uint32

// ownLoopback gives an address of 127.0.0.0/8 that no other site has: the port of an agent that is dead must be free when it is
// started again, and everybody else's listeners and connections are at 127.0.0.1.
func ownLoopback() string {
	pid, n := os.Getpid(), sites.Add(1)
	return fmt.Sprintf("127.%d.%d.%d", 1+(pid>>8)%200, pid%256, 1+n%250)
}

// newAgent issues the bundle of the agent beside host i and fills it in.
func (s *site) newAgent(i int) (*agentProcess, error) {
	name := fmt.Sprintf("xs%d", i+1)
	if err := s.must("certs", "agent", name, "--out", s.path("etc/"+name)); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(s.loopback, "0"))
	if err != nil {
		return nil, err
	}
	a := &agentProcess{name: name, addr: l.Addr().String(), config: s.path("etc/" + name + "/agent.yaml")}
	if err := l.Close(); err != nil {
		return nil, err
	}
	if a.front, err = newProxy("tcp", "127.0.0.1:0", a.addr); err != nil {
		return nil, err
	}
	address, err := s.reach(a, i)
	if err != nil {
		return nil, err
	}
	var pins []string
	for _, h := range s.pool.Hosts {
		pins = append(pins, strconv.Quote(h.Fingerprint))
	}
	s.agents = append(s.agents, a)
	return a, errors.Join(
		os.WriteFile(s.path("etc/"+name+"/xapi.password"), []byte(s.pool.Password+"\n"), 0o600),
		edit(a.config, "listen: 0.0.0.0:7443\n", "listen: "+a.addr+"\n"),
		edit(a.config, "  url: https://127.0.0.1\n", "  url: "+address+"\n  host: "+s.pool.Hosts[i].Name+"\n"),
		edit(a.config, "  fingerprints: []\n", "  fingerprints: ["+strings.Join(pins, ", ")+"]\n"),
		edit(a.config, "# Prometheus metrics", fmt.Sprintf(agentTiming, s.habits.sweep)+"# Prometheus metrics"))
}

// reach puts the proxy between an agent and its host's XAPI, and gives the address that the agent is to use.
func (s *site) reach(a *agentProcess, i int) (url string, err error) {
	host, socket := s.pool.Hosts[i], s.path("xapi-"+a.name+".sock")
	way := s.habits.ways[i%len(s.habits.ways)]
	if way == "unix" && (host.Socket == "" || len(socket) > maxSocketPath) {
		way = "https"
	}
	a.way = way
	switch way {
	case "unix":
		a.back, err = newProxy("unix", socket, host.Socket)
		return "unix://" + socket, err
	case "http":
		a.back, err = newProxy("tcp", "127.0.0.1:0", strings.TrimPrefix(host.HTTP, "http://"))
	default:
		a.back, err = newProxy("tcp", "127.0.0.1:0", strings.TrimPrefix(host.HTTPS, "https://"))
	}
	if err != nil {
		return "", err
	}
	return way + "://" + a.back.addr(), nil
}

// startAgent starts an agent unless it runs; points are failpoints for this life of it.
func (s *site) startAgent(a *agentProcess, points string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.proc != nil && a.proc.running() {
		return nil
	}
	var err error
	a.proc, _, err = spawn(s.dir, s.path(a.name+".log"), false, failpoints(points), filepath.Join(s.bin, "dpxen-agent"), "--config", a.config)
	return err
}

// agentOf gives an agent's present process.
func (s *site) agentOf(a *agentProcess) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.proc
}

// agentsListen waits until every agent takes connections.
func (s *site) agentsListen(limit time.Duration) error {
	end := time.Now().Add(limit)
	for _, a := range s.agents {
		for !s.listens(a, 20*time.Millisecond) {
			p := s.agentOf(a)
			if !p.running() && p.code() == failpointCode { // the step's last
				if err := s.startAgent(a, ""); err != nil {
					return err
				}
				continue
			}
			if !p.running() {
				return fmt.Errorf("agent %s ended with %d, see %s", a.name, p.code(), p.log)
			}
			if time.Now().After(end) {
				return fmt.Errorf("agent %s does not listen", a.name)
			}
		}
	}
	return nil
}

// listens waits until an agent takes connections.
func (s *site) listens(a *agentProcess, limit time.Duration) bool {
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", a.addr, time.Second)
		if err == nil {
			_ = c.Close() // only to see that it can be opened
			return true
		}
		if !s.agentOf(a).running() || time.Now().After(end) {
			return false
		}
	}
}
