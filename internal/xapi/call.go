package xapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

// rpcPath is where XML-RPC is posted to.
const rpcPath = "/RPC2"

// Call makes a call and gives its result. The session is put before the arguments, which may be string, Ref, int,
// int64, float64, bool, time.Time, slices of strings and references, map[string]string and Record. It logs in when
// needed, again when the session is gone, and follows the pool's master. Calls that only read are repeated once when
// the connection breaks; others never are. When ctx ends, the answer to a call that changes something is waited for
// Timeouts.Cancel more: XAPI carries it out in any case, and whoever cleans up next has to see what it did. Failures that
// XAPI answers are *Error.
func (c *Client) Call(ctx context.Context, method string, args ...any) (Value, error) {
	caller := ctx
	if !readsOnly(method) && !strings.HasPrefix(method, "task.") {
		if ctx.Err() != nil {
			return Value{}, fmt.Errorf("%s: %w", method, context.Cause(ctx))
		}
		var stop context.CancelFunc
		ctx, stop = grace(ctx, c.t.Cancel)
		defer stop()
	}
	v, err := c.call(ctx, terms{limit: c.t.Call}, method, args)
	if err != nil && caller.Err() != nil && !isAnswer(err) {
		late := Unanswered(err)
		err = fmt.Errorf("%w (%v)", context.Cause(caller), err) //nolint:errorlint // what the caller asked for is over, whatever came after
		if late {
			err = &givenUp{err}
		}
	}
	if err != nil {
		return Value{}, fmt.Errorf("%s: %w", method, err)
	}
	return v, nil
}

// terms are how a reply is awaited and read.
type terms struct {
	limit   time.Duration   // for a silent host; 0 means none but the context's
	keep    map[string]bool // the fields that are wanted, of a map of records; nil = all
	changes bool            // the call may change something
}

// call is Call on terms of its own.
func (c *Client) call(ctx context.Context, on terms, method string, args []any) (Value, error) {
	v, err := c.callAgain(ctx, on, method, args)
	c.tell(ctx, method, args, err)
	return v, err
}

// callAgain makes a call, and makes it again where nothing can have come of it or it only reads.
func (c *Client) callAgain(ctx context.Context, on terms, method string, args []any) (Value, error) {
	reread := readsOnly(method)
	on.changes = !reread
	for tries := 3; ; tries-- {
		s, err := c.open(ctx)
		if err == nil {
			err = c.admit(ctx, method) // again each time: XAPI may have been restarted in between
		}
		if err != nil {
			return Value{}, err
		}
		v, err := c.exchange(ctx, s.at, on, method, append([]any{s.ref}, args...))
		if err == nil {
			return v, nil
		}
		err = scrub(err, s.ref)
		if errors.Is(err, errDial) {
			c.drop(s, true) // another host may be the master now
		}
		switch {
		case tries <= 1:
			return Value{}, err
		case errors.Is(err, errDial): // nothing was sent
		case hasCode(err, "SESSION_INVALID"):
			c.drop(s, s.at != c.base)
		case hasCode(err, "HOST_IS_SLAVE"):
			var e *Error
			errors.As(err, &e)
			if err := c.toMaster(s, e.param(0)); err != nil {
				return Value{}, err
			}
		case reread && errors.Is(err, ErrUnreachable) && !errors.Is(err, errIdle) && !errors.Is(err, ErrCertificate):
			reread = false
		default:
			return Value{}, err
		}
	}
}

// readsOnly reports whether a call changes nothing, by XAPI's naming of its calls.
func readsOnly(method string) bool {
	_, verb, _ := strings.Cut(method, ".")
	return strings.HasPrefix(verb, "get_")
}

// exchange makes one call at one host, through a client of the library.
func (c *Client) exchange(ctx context.Context, at endpoint, on terms, method string, args []any) (Value, error) {
	if !methodName.MatchString(method) {
		return Value{}, fmt.Errorf("%q is no method of XAPI", method)
	}
	encoded, err := encodeArgs(args)
	if err != nil {
		return Value{}, err
	}
	l, err := c.takeLane(ctx)
	if err != nil {
		return Value{}, err
	}
	defer func() { c.lanes <- l }()
	var v Value
	err = l.call(method, encoded, func(body []byte) error {
		var err error
		v, err = c.post(ctx, at, on, body)
		return err
	})
	return v, err
}

// takeLane waits for a client of the library that is idle.
func (c *Client) takeLane(ctx context.Context) (*lane, error) {
	select {
	case l := <-c.lanes:
		if l != nil {
			return l, nil
		}
		l, err := newLane()
		if err != nil {
			c.lanes <- nil
		}
		return l, err
	case <-c.done:
		return nil, errClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// post sends one request and decodes its reply.
func (c *Client) post(ctx context.Context, at endpoint, on terms, body []byte) (Value, error) {
	w := newWatch(ctx, on.limit)
	defer w.stop()
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(w.ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	failed := func(err error) error {
		err = reachError(ctx, at, w.cause(err))
		if ctx.Err() != nil && on.changes && connected.Load() {
			return &givenUp{err}
		}
		return err
	}
	scheme := at.scheme
	if scheme == schemeUnix {
		scheme = schemeHTTP
	}
	req, err := http.NewRequestWithContext(traced, http.MethodPost, scheme+"://"+at.authority()+rpcPath, bytes.NewReader(body))
	if err != nil {
		return Value{}, fmt.Errorf("%s: %w", at, err)
	}
	req.Header.Set("Content-Type", "text/xml")
	req.Header.Set("User-Agent", userAgent)
	resp, err := c.transport(at).RoundTrip(req)
	if err != nil {
		return Value{}, failed(err)
	}
	defer resp.Body.Close()
	reply := &watchedReader{r: resp.Body, w: w, left: maxReply}
	if resp.StatusCode != http.StatusOK {
		return Value{}, fmt.Errorf("%s: %w", at, statusError(resp.StatusCode, readPage(reply)))
	}
	v, err := decodeRecords(reply, on.keep)
	var answer *Error
	switch {
	case errors.As(err, &answer):
		return Value{}, err
	case err != nil:
		return Value{}, failed(err)
	}
	return v, nil
}

// readPage reads the beginning of an error page.
func readPage(r io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(r, maxPage))
	if err != nil && len(b) == 0 {
		return err.Error()
	}
	return string(b)
}

// secretText keeps secrets out of a message. errors.Is and As see what it came from, but it cannot be unwrapped.
type secretText struct {
	text string
	err  error
}

// Error gives the message without the secrets.
func (e *secretText) Error() string { return e.text }

// Is and As look into the error that holds them.
func (e *secretText) Is(target error) bool { return errors.Is(e.err, target) }

// As finds XAPI's failure, whose parameters are clean.
func (e *secretText) As(target any) bool {
	failure, ok := target.(**Error)
	return ok && errors.As(e.err, failure)
}

// scrub takes secrets out of an error: hosts repeat arguments in their failures.
func scrub(err error, secrets ...string) error {
	if err == nil {
		return nil
	}
	clean := func(s string) string {
		for _, secret := range secrets {
			if secret != "" && (len(secret) > 3 || s == secret) {
				s = strings.ReplaceAll(s, secret, "***")
			}
		}
		return s
	}
	var e *Error
	if errors.As(err, &e) {
		for i := range e.Params {
			e.Params[i] = clean(e.Params[i])
		}
	}
	if text := err.Error(); clean(text) != text {
		return &secretText{text: clean(text), err: err}
	}
	return err
}
