package xensim

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// Shape limits a host or an SR: Bandwidth in bytes a second that all its
// transfers share (0: none), and Latency, simulated time that each call of the
// host, or each attachment of a disk of the SR, takes more. Object is the uuid or
// the name of a host or SR.
type Shape struct {
	Object    string        `json:"object"`
	Bandwidth int64         `json:"bandwidth,omitempty"`
	Latency   time.Duration `json:"latency,omitempty"`
}

// lane is a Shape at work.
type lane struct {
	Shape
	mu   sync.Mutex
	free time.Time // when what was sent so far has passed
}

// SetShape shapes a host or SR anew; a Shape without limits lets it run free. It
// fails where there is no such object.
func (p *Pool) SetShape(s Shape) error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	for _, class := range []string{"host", "SR"} {
		for _, o := range p.db.all(class) {
			if s.Object == "" || o.uuid() != s.Object && o.name() != s.Object {
				continue
			}
			p.lanesMu.Lock()
			defer p.lanesMu.Unlock()
			delete(p.lanes, o.ref)
			if s.Bandwidth > 0 || s.Latency > 0 {
				p.lanes[o.ref] = &lane{Shape: s}
			}
			return nil
		}
	}
	return fmt.Errorf("xensim: no host or SR is %q", s.Object)
}

// lane gives the shape of a host or SR by its reference, or nil.
func (p *Pool) lane(ref string) *lane {
	p.lanesMu.Lock()
	defer p.lanesMu.Unlock()
	return p.lanes[ref]
}

// pass takes as long as n bytes need in the lane of a host or SR, behind those of
// the other transfers.
func (p *Pool) pass(ctx context.Context, ref string, n int) error {
	l := p.lane(ref)
	if l == nil || l.Bandwidth <= 0 {
		return nil
	}
	l.mu.Lock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.Bandwidth) * float64(time.Second)))
	left := time.Until(l.free)
	l.mu.Unlock()
	if left < time.Millisecond {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lag takes the latency of a host or SR.
func (p *Pool) lag(ctx context.Context, ref string) error {
	if l := p.lane(ref); l != nil && l.Latency > 0 {
		return p.wait(ctx, l.Latency)
	}
	return nil
}

// onHost makes what is written through the transfer's host pass its lane.
type onHost struct {
	t *transfer
	w io.Writer
	r io.Reader
}

// Write passes b on when the lane has room.
func (h *onHost) Write(b []byte) (int, error) {
	if err := h.t.pool.pass(h.t.ctx, h.t.host.ref, len(b)); err != nil {
		return 0, err
	}
	return h.w.Write(b)
}

// Read reads, then waits until the lane has room.
func (h *onHost) Read(b []byte) (int, error) {
	n, err := h.r.Read(b)
	if perr := h.t.pool.pass(h.t.ctx, h.t.host.ref, n); err == nil {
		err = perr
	}
	return n, err
}
