package main

import (
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// proxy stands between two parts of dpxen on the network and breaks what passes.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	network  string // of listener and target
	target   string
	refuse   bool          // new connections are reset
	hole     bool          // nothing passes, nothing breaks
	oneWay   bool          // nothing passes towards the target, nothing breaks
	delay    time.Duration // of each piece
	conns    map[net.Conn]bool
}

// newProxy listens at an address and passes to target, both of TCP or both unix sockets.
func newProxy(network, address, target string) (*proxy, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, network: network, target: target, conns: map[net.Conn]bool{}}
	go p.accept()
	return p, nil
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(near)
	}
}

func (p *proxy) serve(near net.Conn) {
	p.mu.Lock()
	target, refuse := p.target, p.refuse
	p.mu.Unlock()
	if refuse {
		reset(near)
		return
	}
	far, err := net.Dial(p.network, target)
	if err != nil {
		reset(near)
		return
	}
	p.mu.Lock()
	p.conns[near], p.conns[far] = true, true
	p.mu.Unlock()
	go p.pass(far, near, true)
	p.pass(near, far, false)
	p.mu.Lock()
	delete(p.conns, near)
	delete(p.conns, far)
	p.mu.Unlock()
}

// pass copies one direction until a side ends.
func (p *proxy) pass(to, from net.Conn, up bool) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			for p.holds(up) {
				time.Sleep(20 * time.Millisecond)
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// holds tells whether pieces of that direction must wait, after the delay of a slow network.
func (p *proxy) holds(up bool) bool {
	p.mu.Lock()
	delay, held := p.delay, p.hole || p.oneWay && up
	p.mu.Unlock()
	if !held && delay > 0 {
		time.Sleep(delay)
	}
	return held
}

// reset ends a connection with RST.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // a connection that is gone needs none
	}
	_ = c.Close()
}

// cut ends every connection, with RST or in good order.
func (p *proxy) cut(hard bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if hard {
			reset(c)
		} else {
			_ = c.Close()
		}
	}
	clear(p.conns)
}

// heal lets everything pass. Connections that were held go on.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.hole, p.oneWay, p.delay = false, false, false, 0
}

func (p *proxy) close() {
	_ = p.listener.Close()
	p.cut(true)
}

// netFaults are what can happen on a network.
var netFaults = []string{"cut", "reset", "refuse", "blackhole", "half-open", "delay"}

// trouble begins a fault and returns what ends it; nil where it is over at once.
func (p *proxy) trouble(kind string, rng *rand.Rand) func() {
	set := func(f func()) func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		f()
		return p.heal
	}
	switch kind {
	case "cut":
		p.cut(false)
		return nil
	case "reset":
		p.cut(true)
		return nil
	case "refuse":
		end := set(func() { p.refuse = true })
		p.cut(rng.IntN(2) == 0)
		return end
	case "blackhole":
		return set(func() { p.hole = true })
	case "half-open":
		return set(func() { p.oneWay = true })
	default:
		d := time.Duration(1+rng.IntN(30)) * time.Millisecond
		return set(func() { p.delay = d })
	}
}
