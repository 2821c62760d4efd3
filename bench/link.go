package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// link is a network of limited bandwidth between the controller and the agent: a proxy that all connections share.
type link struct {
	listener net.Listener
	up, down pace
}

// pace lets so many bytes a second pass, in the order of their coming.
type pace struct {
	rate float64
	mu   sync.Mutex
	free time.Time // when the next byte may pass
}

// newLink puts a link of so many bits a second before an address.
func newLink(to string, bits float64) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n := &link{listener: l, up: pace{rate: bits / 8}, down: pace{rate: bits / 8}}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return // closed
			}
			go n.join(near, to)
		}
	}()
	return n, nil
}

func (n *link) address() string { return n.listener.Addr().String() }

func (n *link) close() error {
	if n == nil {
		return nil
	}
	return n.listener.Close()
}

// join passes bytes both ways until one side ends.
func (n *link) join(near net.Conn, to string) {
	far, err := net.Dial("tcp", to)
	if err != nil {
		_ = near.Close() // who dialled sees it
		return
	}
	var both sync.WaitGroup
	both.Go(func() { n.up.pass(far, near) })
	both.Go(func() { n.down.pass(near, far) })
	both.Wait()
}

// pass copies, and closes both ends behind what it has copied.
func (p *pace) pass(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	var err error
	for err == nil {
		var k int
		k, err = from.Read(buf)
		p.wait(k)
		if _, failed := to.Write(buf[:k]); failed != nil {
			err = errors.Join(err, failed)
		}
	}
	if errors.Is(err, io.EOF) {
		if half, ok := to.(*net.TCPConn); ok && half.CloseWrite() == nil {
			return
		}
	}
	_, _ = to.Close(), from.Close() // they are broken
}

// wait waits until k bytes may have passed. What was not used of a pause is lost, but for a few milliseconds of it.
func (p *pace) wait(k int) {
	p.mu.Lock()
	if now := time.Now(); p.free.Before(now.Add(-5 * time.Millisecond)) {
		p.free = now.Add(-5 * time.Millisecond)
	}
	p.free = p.free.Add(time.Duration(float64(k) / p.rate * float64(time.Second)))
	until := p.free
	p.mu.Unlock()
	time.Sleep(time.Until(until))
}
