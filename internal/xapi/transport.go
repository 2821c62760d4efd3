package xapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// dialer opens connections to hosts and checks whom it reached.
type dialer struct {
	trust   *tls.Config // nil: no TLS
	connect time.Duration
}

// errDial marks that no connection came about, so that nothing was sent.
var errDial = errors.New("no connection")

// Unanswered tells whether a call was sent, or may have been, and got no answer: XAPI may do it yet, however late.
func Unanswered(err error) bool {
	return errors.Is(err, ErrUnreachable) && !errors.Is(err, errDial) || errors.Is(err, ErrProtocol) || errors.Is(err, errGivenUp)
}

// errGivenUp marks a call that changes something, had a connection, and whose caller's time ended before the answer.
var errGivenUp = errors.New("given up")

// givenUp is err with that mark, and without another word.
type givenUp struct{ err error }

// Error is that of the error within.
func (e *givenUp) Error() string { return e.err.Error() }

// Is tells the mark.
func (e *givenUp) Is(target error) bool { return target == errGivenUp }

// Unwrap gives the error within.
func (e *givenUp) Unwrap() error { return e.err }

// errNoTrust is why a host that is to be reached over TLS is not.
var errNoTrust = fmt.Errorf("TLS is needed to reach it, and neither fingerprints nor ca is set: %w", ErrConfig)

// dial connects to a host, over TLS where its scheme says so. Errors are ErrUnreachable, and ErrCertificate too where
// the host is not the one expected.
func (d *dialer) dial(ctx context.Context, e endpoint) (net.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, d.connect)
	defer cancel()
	network, address := e.dial()
	conn, err := (&net.Dialer{}).DialContext(dctx, network, address)
	if err != nil {
		return nil, reachCause(ctx, fmt.Errorf("%w: %w: %w", ErrUnreachable, errDial, err))
	}
	if e.scheme != schemeHTTPS {
		return conn, nil
	}
	if d.trust == nil {
		conn.Close()
		return nil, errNoTrust
	}
	settings := d.trust.Clone()
	settings.ServerName = e.host
	secure := tls.Client(conn, settings)
	if err := secure.HandshakeContext(dctx); err != nil {
		conn.Close()
		return nil, reachCause(ctx, err)
	}
	return secure, nil
}

// reachError says that a host was not reached, or that the caller's time ran out.
func reachError(ctx context.Context, e endpoint, err error) error {
	return fmt.Errorf("%s: %w", e, reachCause(ctx, err))
}

// reachCause is reachError without the host's name.
func reachCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, known := range []error{ErrUnreachable, ErrProtocol, ErrConfig} {
		if errors.Is(err, known) {
			return err
		}
	}
	if errors.Is(err, ErrCertificate) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if certificateFault(err) {
		return fmt.Errorf("%w: %w: %w", ErrUnreachable, ErrCertificate, err)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// transport gives the HTTP transport for calls to one endpoint. It never follows redirects: that is http.Client's
// doing, which is not used.
func (d *dialer) transport(e endpoint) *http.Transport {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.dial(ctx, e) }
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            dial,
		DialTLSContext:         dial,
		DisableCompression:     true,
		MaxIdleConns:           laneCount,
		MaxIdleConnsPerHost:    laneCount,
		IdleConnTimeout:        10 * time.Second, // sooner than XAPI and stunnel close theirs
		MaxResponseHeaderBytes: maxHead,
	}
}

// watch is a context that ends when nothing has moved for a while: limits of whole exchanges would cut long ones.
// A limit of 0 means never.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// errIdle is why a watch ended an exchange.
var errIdle = fmt.Errorf("%w: nothing came for too long", ErrUnreachable)

func newWatch(parent context.Context, limit time.Duration) *watch {
	w := &watch{limit: limit}
	w.ctx, w.cancel = context.WithCancelCause(parent)
	if limit > 0 {
		w.timer = time.AfterFunc(limit, func() { w.cancel(errIdle) })
	}
	return w
}

// moved starts the time anew.
func (w *watch) moved() {
	if w.timer != nil {
		w.timer.Reset(w.limit)
	}
}

// stop frees what the watch holds; the exchange ends if it has not.
func (w *watch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.cancel(context.Canceled)
}

// cause gives the reason of the watch's end in place of the error that it made.
func (w *watch) cause(err error) error {
	if err != nil && w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return err
}

// watchedReader renews a watch with every read, and gives an error instead of more than max bytes.
type watchedReader struct {
	r    io.Reader
	w    *watch
	left int64
}

var errTooLarge = fmt.Errorf("%w: reply is too large", ErrProtocol)

// Read implements io.Reader.
func (r *watchedReader) Read(p []byte) (int, error) {
	r.w.moved()
	if r.left <= 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: reply cut: %w", ErrUnreachable, r.w.cause(err))
	}
	return n, err
}
