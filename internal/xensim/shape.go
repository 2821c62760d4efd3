package xensim

import (
	"errors"
	"io"
	"net"
	"time"
)

// fast gives the connection under a stream, on which a writer may gather.
func (s *stream) fast() io.Writer {
	if c, ok := s.Conn.(*conn); ok {
		return c.plain()
	}
	return s.Conn
}

// asFailure finds an API error that did not come from the network.
func asFailure(err error, f **Failure) bool {
	var ne *net.OpError
	if errors.As(err, &ne) {
		return false
	}
	return errors.As(err, f)
}

// shaped limits a writer to the bandwidth of its host, and of each transfer.
func (t *transfer) shaped(w io.Writer) io.Writer {
	p := t.pool
	if p.lane(t.host.ref) != nil {
		w = &onHost{t: t, w: w}
	}
	if p.cfg.Bandwidth <= 0 {
		return w
	}
	return &limited{p: p, w: w, begin: time.Now()}
}

// shapedReader limits a reader, and stalls it where a fault says so.
func (t *transfer) shapedReader(r io.Reader) io.Reader {
	p := t.pool
	if p.lane(t.host.ref) != nil {
		r = &onHost{t: t, r: r}
	}
	f, stall := p.hit("import-stall", "")
	if p.cfg.Bandwidth <= 0 && !stall {
		return r
	}
	return &limited{p: p, r: r, begin: time.Now(), stall: stall, fault: f}
}

// limited passes bytes at no more than the pool's bandwidth.
type limited struct {
	p     *Pool
	w     io.Writer
	r     io.Reader
	begin time.Time
	n     int64
	stall bool
	fault Fault
}

func (l *limited) pace(n int) error {
	l.n += int64(n)
	if l.stall && l.n >= l.fault.After {
		l.stall = false
		if err := l.p.wait(l.p.ctx, l.fault.Delay); err != nil {
			return err
		}
	}
	if l.p.cfg.Bandwidth <= 0 {
		return nil
	}
	due := time.Duration(float64(l.n) / float64(l.p.cfg.Bandwidth) * float64(time.Second))
	if early := due - time.Since(l.begin); early > time.Millisecond {
		t := time.NewTimer(early)
		defer t.Stop()
		select {
		case <-t.C:
		case <-l.p.ctx.Done():
			return l.p.ctx.Err()
		}
	}
	return nil
}

// Write passes b on, then waits as long as it should have taken.
func (l *limited) Write(b []byte) (int, error) {
	n, err := l.w.Write(b)
	if err == nil {
		err = l.pace(n)
	}
	return n, err
}

// Read reads, then waits as long as it should have taken.
func (l *limited) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if perr := l.pace(n); err == nil {
		err = perr
	}
	return n, err
}
