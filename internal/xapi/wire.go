package xapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// maxRequestHead is what hosts since 22.30.0 take as the head of a connection's first request, in bytes.
const maxRequestHead = 1024

// wireBuffer is the size in bytes of what is read and written at once.
const wireBuffer = 256 << 10

// query is the parameters of a stream's request in order, as name, value, name, value …
type query []string

func (q query) encode() string {
	var b strings.Builder
	for i := 0; i+1 < len(q); i += 2 {
		b.WriteByte("?&"[min(i, 1)])
		b.WriteString(q[i] + "=" + url.QueryEscape(q[i+1]))
	}
	return b.String()
}

// wire is a connection that carries one request of a stream. net/http's client is not used: it follows redirects, and
// gives up sending when the answer comes early.
type wire struct {
	conn  net.Conn
	r     *bufio.Reader
	limit *io.LimitedReader // of what r may take from conn: the head's size until the head is read
	// readIdle and writeIdle are how long no byte may move, as time.Duration; 0 = for ever.
	readIdle, writeIdle atomic.Int64
	ctx                 context.Context
	stop                func() bool
	resp                *http.Response
}

// request connects and sends the head of a request; length is that of the body to come, -1 for none. When ctx ends
// the connection is closed.
func (c *Client) request(ctx context.Context, at endpoint, method, path string, q query, length int64) (*wire, error) {
	head := method + " " + path + q.encode() + " HTTP/1.1\r\nHost: " + at.authority() + "\r\nUser-Agent: " + userAgent +
		"\r\nConnection: close\r\n"
	if length >= 0 {
		head += "Content-Length: " + strconv.FormatInt(length, 10) + "\r\n"
	}
	head += "\r\n"
	if len(head) >= maxRequestHead {
		return nil, fmt.Errorf("%s %s: head of %d bytes, hosts take less than %d: %w", method, path, len(head), maxRequestHead, ErrConfig)
	}
	conn, err := c.dial.dial(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	w := &wire{conn: conn, ctx: ctx}
	w.readIdle.Store(int64(c.t.Call))
	w.writeIdle.Store(int64(c.t.Call))
	w.limit = &io.LimitedReader{R: renewing{w}, N: maxHead}
	w.r = bufio.NewReaderSize(w.limit, wireBuffer)
	w.stop = context.AfterFunc(ctx, func() { conn.Close() })
	if _, err := w.Write([]byte(head)); err != nil {
		w.close()
		return nil, reachError(ctx, at, err)
	}
	return w, nil
}

// answer reads the head of the answer. The body is w.resp.Body.
func (w *wire) answer(method string) error {
	var resp *http.Response
	for range 5 { // of 1xx, which XAPI does not send
		var err error
		resp, err = http.ReadResponse(w.r, &http.Request{Method: method}) //nolint:bodyclose // the connection is closed by close
		if err != nil {
			return w.fault(fmt.Errorf("answer: %w", err))
		}
		if resp.StatusCode >= http.StatusOK {
			break
		}
	}
	w.limit.N = math.MaxInt64
	w.resp = resp
	return nil
}

// Write sends bytes; it fails when none moved for the idle limit.
func (w *wire) Write(p []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(deadline(&w.writeIdle)); err != nil {
		return 0, w.fault(err)
	}
	n, err := w.conn.Write(p)
	if err != nil {
		err = w.fault(err)
	}
	return n, err
}

// deadline is the time when an idle connection is given up; zero for never.
func deadline(idle *atomic.Int64) time.Time {
	if d := time.Duration(idle.Load()); d > 0 {
		return time.Now().Add(d)
	}
	return time.Time{}
}

// renewing reads from the connection with a deadline that every read renews.
type renewing struct{ w *wire }

// Read implements io.Reader.
func (r renewing) Read(p []byte) (int, error) {
	if err := r.w.conn.SetReadDeadline(deadline(&r.w.readIdle)); err != nil {
		return 0, err
	}
	return r.w.conn.Read(p)
}

// fault says whether the caller's time, the host's or the connection ended.
func (w *wire) fault(err error) error {
	switch {
	case w.ctx.Err() != nil:
		return context.Cause(w.ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: nothing moved for too long: %w", ErrUnreachable, err)
	case strings.Contains(err.Error(), "malformed HTTP"):
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// lastReads gives what the host may still say that much time, from now on.
func (w *wire) lastReads(d time.Duration) {
	w.readIdle.Store(int64(d))
	if err := w.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		w.conn.Close()
	}
}

// close ends the connection.
func (w *wire) close() {
	w.stop()
	w.conn.Close()
}

// isRedirect reports whether an answer sends elsewhere.
func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirected gives where an answer sends to: a host of the pool's records, never from TLS to plain HTTP. With http://
// configured hosts may send to https://: that is followed where fingerprints or a CA are set, and else over http at
// the same address. Of the location only the address is used: the request stays ours.
func (c *Client) redirected(ctx context.Context, from endpoint, location string) (endpoint, error) {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" || u.Scheme != schemeHTTP && u.Scheme != schemeHTTPS {
		return endpoint{}, fmt.Errorf("%w: redirected to an address that is none", ErrProtocol)
	}
	to, err := newEndpoint(u.Scheme, u.Host)
	if err != nil {
		return endpoint{}, fmt.Errorf("%w: redirected: %w", ErrProtocol, err)
	}
	switch {
	case to.scheme == schemeHTTP && from.scheme != schemeHTTP:
		return endpoint{}, fmt.Errorf("%w: redirected from %s to %s, which is not encrypted", ErrProtocol, from, to)
	case to.scheme == schemeHTTPS && from.scheme == schemeHTTP && c.dial.trust == nil:
		to.scheme = schemeHTTP
		if to.port == "" {
			to.port = c.base.port
		}
	}
	return to, c.inPool(ctx, to)
}

// inPool checks that an address is that of a host of the pool.
func (c *Client) inPool(ctx context.Context, e endpoint) error {
	if e == c.base {
		return nil
	}
	hosts, err := c.Hosts(ctx)
	if err != nil {
		return fmt.Errorf("look for %s among the pool's hosts: %w", e, err)
	}
	for _, h := range hosts {
		if e.isAt(h.Address) {
			return nil
		}
	}
	return fmt.Errorf("%w: sent to %s, which is no host of the pool", ErrProtocol, e)
}

// firstHost gives where a stream is asked for first: the host that the caller names, else the configured one.
func (c *Client) firstHost(ctx context.Context, host string) (endpoint, error) {
	if host == "" {
		return c.base, nil
	}
	e, err := parseURL(host)
	if err != nil {
		e, err = c.member(host)
	}
	switch {
	case err != nil:
		return endpoint{}, fmt.Errorf("host %q: %w: %w", host, ErrConfig, err)
	case e.scheme == schemeHTTP && c.base.scheme != schemeHTTP:
		return endpoint{}, fmt.Errorf("host %s: %w: not encrypted", e, ErrConfig)
	}
	return e, c.inPool(ctx, e)
}
