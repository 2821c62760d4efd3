package xensim

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxFirstHead is how long the headers of the first request on a TCP connection
	// may be, in bytes with the request line (max_header_length_tcp).
	maxFirstHead = 1024
	// headReadTimeout and headTotalTimeout bound the wait for them.
	headReadTimeout  = 10 * time.Second
	headTotalTimeout = 60 * time.Second
	// tlsHandshake is the first byte of a TLS connection.
	tlsHandshake = 0x16
)

// conn is an accepted connection. Its first Read finds out whether TLS is spoken,
// makes the handshake and holds the first request's headers against XAPI's
// limits, so that one port serves both http and https.
type conn struct {
	net.Conn // as accepted
	config   *tls.Config
	// unlimited connections (unix sockets) know no TLS and no header limits.
	unlimited bool

	once   sync.Once
	secure atomic.Pointer[tls.Conn] // set by the first Read
	err    error
	ahead  []byte
}

func newConn(raw net.Conn, config *tls.Config, unlimited bool) *conn {
	return &conn{Conn: raw, config: config, unlimited: unlimited}
}

// plain gives what carries the HTTP: the TLS connection or the accepted one.
func (c *conn) plain() net.Conn {
	if t := c.secure.Load(); t != nil {
		return t
	}
	return c.Conn
}

// interim is what net/http answers to "Expect: 100-continue" when a handler reads
// the body. XAPI never sends it, and clients must go on without.
var interim = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// malformed is how net/http's answer to what is no HTTP begins; XAPI gives a page
// of its own.
var malformed = []byte("HTTP/1.1 400 Bad Request")

// Write writes what HTTP has to say.
func (c *conn) Write(p []byte) (int, error) {
	if bytes.Equal(p, interim) {
		return len(p), nil
	}
	if bytes.HasPrefix(p, malformed) && bytes.Contains(p, []byte("\r\nContent-Type: text/plain")) {
		page := errorPage("500 Internal Error", "the HTTP headers could not be parsed")
		_, err := c.plain().Write(append(pageHead("HTTP/1.1", "500 Internal Error", len(page), nil), page...))
		return len(p), err
	}
	return c.plain().Write(p)
}

// Close closes the connection, TLS in good order.
func (c *conn) Close() error { return c.plain().Close() }

// Read reads what was sniffed first.
func (c *conn) Read(p []byte) (int, error) {
	c.once.Do(c.begin)
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	if c.err != nil {
		return 0, c.err
	}
	return c.plain().Read(p)
}

func (c *conn) begin() {
	if c.unlimited {
		return
	}
	deadline := time.Now().Add(headTotalTimeout)
	buf := make([]byte, 0, maxFirstHead+1)
	n, err := c.readSome(buf[:1], deadline)
	if err != nil || n == 0 {
		c.err = err
		return
	}
	if first := buf[:1][0]; first == tlsHandshake {
		t := tls.Server(&prefixed{Conn: c.Conn, first: []byte{first}}, c.config)
		if c.err = t.Handshake(); c.err != nil { //nolint:noctx // bounded by the read deadline
			return
		}
		c.secure.Store(t)
	} else {
		buf = buf[:1]
	}
	c.err = c.firstHead(buf, deadline)
	if c.err == nil {
		c.err = c.SetReadDeadline(time.Time{})
	}
}

// firstHead reads until the end of the first request's headers.
func (c *conn) firstHead(buf []byte, deadline time.Time) error {
	for {
		if i := bytes.Index(buf, []byte("\r\n\r\n")); i >= 0 && i+4 <= maxFirstHead {
			c.ahead = withHost(buf, i)
			return nil
		} else if i >= 0 || len(buf) > maxFirstHead {
			return c.refuse("431 Request Header Fields Too Large")
		}
		n, err := c.readSome(buf[len(buf):cap(buf)], deadline)
		buf = buf[:len(buf)+n]
		if n > 0 {
			continue // TLS tells of the end together with the last bytes, and again after them
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return c.refuse("408 Request Timeout")
		}
		if err != nil {
			return err
		}
	}
}

// withHost gives a first head that lacks a Host the empty one: net/http insists on
// it, XAPI does not.
func withHost(buf []byte, end int) []byte {
	line := bytes.Index(buf, []byte("\r\n"))
	if bytes.Contains(bytes.ToLower(buf[:end]), []byte("\r\nhost:")) {
		return buf
	}
	return slices.Concat(buf[:line], []byte("\r\nHost: "), buf[line:])
}

func (c *conn) readSome(p []byte, total time.Time) (int, error) {
	deadline := time.Now().Add(headReadTimeout)
	if total.Before(deadline) {
		deadline = total
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return c.plain().Read(p)
}

func (c *conn) refuse(status string) error {
	page := errorPage(status, "")
	if _, err := c.Write(append(pageHead("HTTP/1.1", status, len(page), nil), page...)); err != nil {
		return err
	}
	// What the client still sends is read, so that it sees the answer and not a
	// reset. The end of the input then makes net/http close the connection without
	// an answer of its own.
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err == nil {
		_, _ = io.CopyN(io.Discard, c.plain(), 1<<20) // the client has its answer
	}
	return io.EOF
}

// prefixed gives back the byte by which TLS was recognised.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// listener wraps what it accepts into conns.
type listener struct {
	net.Listener
	config    *tls.Config
	unlimited bool
	refused   func() bool
}

// Accept gives the next connection; while the host is down it resets them.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if !l.refused() {
			return newConn(raw, l.config, l.unlimited), nil
		}
		if t, ok := raw.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset instead of an orderly end; else an end will do
		}
		_ = raw.Close()
	}
}
