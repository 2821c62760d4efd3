package e2e

import (
	"net"
	"sync"
	"testing"

	"github.com/dpxen/dpxen/controller"
)

// proxy stands between controller and agents on the network, and breaks what passes.
type proxy struct {
	t        *testing.T
	listener net.Listener
	done     sync.WaitGroup

	mu      sync.Mutex
	target  string
	refuses bool
	conns   map[net.Conn]bool
	down    int64   // bytes to the controller so far
	up      int64   // bytes to the agent so far
	cuts    []int64 // totals of cutUp or cutDown at which all connections break, ascending
	cutUp   bool    // cuts are of bytes to the agent
	hole    int64   // bytes to the controller after which this connection and its like say nothing more; 0 = never
	holed   bool    // it has happened
}

// through puts a proxy before the agent of that number.
func (c *cell) through(i int) *proxy {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	p := &proxy{t: c.t, listener: l, target: c.cfg.Agents[i].Address, conns: map[net.Conn]bool{}}
	c.cfg.Agents[i].Address = l.Addr().String()
	p.done.Go(p.accept)
	c.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			c.t.Error(err)
		}
		p.cutAll()
		p.done.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target, refuses := p.target, p.refuses
		p.mu.Unlock()
		if refuses {
			_ = near.Close()
			continue
		}
		far, err := net.Dial("tcp", target)
		if err != nil {
			_ = near.Close()
			continue
		}
		p.mu.Lock()
		p.conns[near], p.conns[far] = true, true
		p.mu.Unlock()
		silent := make(chan struct{})
		p.done.Go(func() { p.pass(far, near, true, silent) })
		p.done.Go(func() { p.pass(near, far, false, silent) })
	}
}

// pass copies one direction until a side ends.
func (p *proxy) pass(to, from net.Conn, up bool, silent chan struct{}) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.count(int64(n), up, silent) {
				return
			}
			select {
			case <-silent: // swallowed
			default:
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// count adds bytes up; false when that was one too many.
func (p *proxy) count(n int64, up bool, silent chan struct{}) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := &p.down
	if up {
		total = &p.up
	}
	*total += n
	if p.hole > 0 && !up && !p.holed && p.down >= p.hole {
		p.holed = true
		close(silent)
	}
	if len(p.cuts) > 0 && up == p.cutUp && *total >= p.cuts[0] {
		p.cuts = p.cuts[1:]
		p.cutLocked()
		return false
	}
	return true
}

func (p *proxy) cutLocked() {
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutLocked()
}

// refuse breaks all connections and lets no new one through, or lets them again.
func (p *proxy) refuse(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = yes
	if yes {
		p.cutLocked()
	}
}

// move sends new connections to another address, and breaks the others.
func (p *proxy) move(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	p.cutLocked()
}

// arm returns an observer that sets the cuts when the first VM is begun, counted from there.
func (p *proxy) arm(cuts []int64, up bool) func(controller.Event) {
	return func(e controller.Event) {
		if e.Type != controller.EventVMStart {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		base := p.down
		if up {
			base = p.up
		}
		p.cutUp = up
		for _, at := range cuts {
			p.cuts = append(p.cuts, base+at)
		}
	}
}

// totals are the bytes that passed, and the cuts that are still to come.
func (p *proxy) totals() (down, up int64, cuts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down, p.up, len(p.cuts)
}
