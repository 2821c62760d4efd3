package e2e

import (
	"net"
	"sync"
	"testing"
	"time"

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
	links   map[*link]bool
	delay   time.Duration // of every piece that passes
	came    int           // connections that trouble came to
	down    int64         // bytes to the controller so far
	up      int64         // bytes to the agent so far
	cuts    []int64       // totals of cutUp or cutDown at which all connections break, ascending
	cutUp   bool          // cuts are of bytes to the agent
	hole    int64         // bytes to the controller after which this connection and its like say nothing more; 0 = never
	holed   bool          // it has happened
}

// link is a connection through the proxy.
type link struct {
	near, far net.Conn      // of who dialled, and of whom he wanted
	silent    chan struct{} // closed: what comes is swallowed
	parted    chan struct{} // closed: the end of one side is no news to the other
	once      [2]sync.Once  // of silent and parted
}

// hush swallows everything from here on.
func (l *link) hush() { l.once[0].Do(func() { close(l.silent) }) }

// part lets the sides end without each other.
func (l *link) part() { l.once[1].Do(func() { close(l.parted) }) }

func (l *link) close() {
	_ = l.near.Close()
	_ = l.far.Close()
}

// through puts a proxy before the agent of that number.
func (c *cell) through(i int) *proxy {
	c.t.Helper()
	p := newProxy(c.t, c.cfg.Agents[i].Address)
	c.cfg.Agents[i].Address = p.addr()
	return p
}

// newProxy starts a proxy before any address; it ends with the test.
func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listener: l, target: target, links: map[*link]bool{}}
	p.done.Go(p.accept)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		p.cutAll()
		p.done.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

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
		l := &link{near: near, far: far, silent: make(chan struct{}), parted: make(chan struct{})}
		p.mu.Lock()
		p.links[l] = true
		p.mu.Unlock()
		p.done.Go(func() { p.pass(l, far, near, true) })
		p.done.Go(func() { p.pass(l, near, far, false) })
	}
}

// pass copies one direction until a side ends.
func (p *proxy) pass(l *link, to, from net.Conn, up bool) {
	defer func() {
		select {
		case <-l.parted:
			_ = from.Close()
		default:
			l.close()
		}
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.count(l, int64(n), up) {
				return
			}
			time.Sleep(p.lateness())
			select {
			case <-l.silent: // swallowed
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
func (p *proxy) count(l *link, n int64, up bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := &p.down
	if up {
		total = &p.up
	}
	*total += n
	if p.hole > 0 && !up && !p.holed && p.down >= p.hole {
		p.holed = true
		l.hush()
	}
	if len(p.cuts) > 0 && up == p.cutUp && *total >= p.cuts[0] {
		p.cuts = p.cuts[1:]
		p.cutLocked()
		return false
	}
	return true
}

func (p *proxy) cutLocked() {
	for l := range p.links {
		l.part() // both are ended here
		l.close()
	}
	clear(p.links)
}

// reset ends a side with RST.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // fails for one that is gone
	}
	_ = c.Close()
}

// trouble lets something happen to all connections that there are: cut, reset, blackhole, near gone and far gone (one side
// is reset, the other hears nothing of it); late is for those to come as well. New ones pass.
func (p *proxy) trouble(kind string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		p.came++
		switch kind {
		case "cut":
			l.close()
		case "reset":
			reset(l.near)
			reset(l.far)
		case "blackhole":
			l.hush()
		case "near gone":
			l.hush()
			l.part()
			reset(l.near)
		case "far gone":
			l.hush()
			l.part()
			reset(l.far)
		case "late":
			p.delay = 3 * time.Millisecond
		default:
			p.t.Errorf("no such trouble: %s", kind)
		}
	}
}

// troubled tells whether trouble came to any connection.
func (p *proxy) troubled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.came > 0
}

// lateness is how long a piece takes.
func (p *proxy) lateness() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay
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
