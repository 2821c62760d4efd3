package xapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// session is a login that is in use.
type session struct {
	ref string   // a secret
	at  endpoint // where calls go: the master

	mu   sync.Mutex // guards pool
	pool *Pool      // Ref and Master only; kept as long as the session
}

// attempt is a login under way. All who need a session wait for the same one.
type attempt struct {
	done chan struct{}
	s    *session
	err  error
}

const (
	apiVersion = "1.1" // of login_with_password; hosts look at it no more
	maxHops    = 4     // from host to host until the master, or the host that sees the SR, is found
)

// open gives the current session and logs in if there is none.
func (c *Client) open(ctx context.Context) (*session, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClosed
	}
	if s := c.current; s != nil {
		c.mu.Unlock()
		return s, nil
	}
	a := c.attempt
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		c.attempt = a
		// The login serves others too, so it outlives this caller; its exchanges are bounded each.
		go c.attend(context.WithoutCancel(ctx), a)
	}
	c.mu.Unlock()
	select {
	case <-a.done:
		return a.s, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("log in: %w", context.Cause(ctx))
	}
}

// attend carries out a login.
func (c *Client) attend(ctx context.Context, a *attempt) {
	a.s, a.err = c.logIn(ctx)
	c.mu.Lock()
	c.attempt = nil
	if a.err == nil {
		c.current = a.s
	}
	c.mu.Unlock()
	close(a.done)
}

// drop forgets a session that is of no use any more, unless another has taken its place.
func (c *Client) drop(s *session, masterToo bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == s {
		c.current = nil
	}
	if masterToo {
		c.master = nil
	}
}

// logOut ends the session, if there is one.
func (c *Client) logOut(ctx context.Context) error {
	c.mu.Lock()
	s := c.current
	c.current = nil
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.t.Cancel)
	defer cancel()
	if _, err := c.exchange(ctx, s.at, terms{limit: c.t.Call}, "session.logout", []any{s.ref}); err != nil {
		return fmt.Errorf("log out: %w", scrub(err, s.ref))
	}
	return nil
}

// logIn logs in at the configured host, or where that sends to, or at another host of the pool when it is away.
func (c *Client) logIn(ctx context.Context) (*session, error) {
	password := ""
	if c.cfg.PasswordFile != "" {
		var err error
		if password, err = readPassword(c.cfg.PasswordFile); err != nil {
			return nil, err
		}
	}
	var first error
	for _, at := range c.candidates() {
		s, err := c.logInAt(ctx, at, password)
		if err == nil {
			return s, nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrCertificate) {
			break
		}
	}
	return nil, fmt.Errorf("log in: %w", first)
}

// candidates are the hosts to try a login at, in this order.
func (c *Client) candidates() []endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []endpoint
	if c.master != nil && c.cfg.PasswordFile != "" {
		out = append(out, *c.master)
	}
	out = append(out, c.base)
	if c.base.scheme == schemeUnix && (c.dial.trust == nil || c.cfg.PasswordFile == "") {
		return out
	}
	for address := range c.known {
		if e, err := c.member(address); err == nil && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out
}

// member gives the endpoint of another host by the address that XAPI tells: over TLS, unless http is configured.
func (c *Client) member(address string) (endpoint, error) {
	scheme := c.base.scheme
	if scheme == schemeUnix {
		scheme = schemeHTTPS
	}
	e, err := newEndpoint(scheme, address)
	if e.port == "" {
		e.port = c.base.port // a pool behind another port than XAPI's own
	}
	return e, err
}

// masterAt gives the master's endpoint as told by HOST_IS_SLAVE. It must be one of the pool's hosts as far as these
// are known; who answers there is checked by TLS.
func (c *Client) masterAt(address string) (endpoint, error) {
	e, err := c.member(address)
	if err != nil {
		return endpoint{}, fmt.Errorf("%w: address of the master: %w", ErrProtocol, err)
	}
	if e.scheme == schemeHTTPS && c.dial.trust == nil {
		return endpoint{}, fmt.Errorf("master %s: %w", e, errNoTrust)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for known := range c.known {
		if e.isAt(known) {
			return e, nil
		}
	}
	if len(c.known) > 0 {
		return endpoint{}, fmt.Errorf("%w: sent to the master %s, which is no host of the pool", ErrProtocol, e)
	}
	return e, nil
}

// logInAt logs in at a host or at the master that it names.
func (c *Client) logInAt(ctx context.Context, at endpoint, password string) (*session, error) {
	for range maxHops {
		ref, err := c.password(ctx, at, password)
		if err == nil {
			return &session{ref: ref, at: at}, nil
		}
		err = scrub(err, password)
		if !hasCode(err, "HOST_IS_SLAVE") {
			return nil, err
		}
		var e *Error
		errors.As(err, &e)
		if at, err = c.masterAt(e.param(0)); err != nil {
			return nil, err
		}
		if c.cfg.PasswordFile == "" {
			return nil, fmt.Errorf("the master %s wants a password: %w: password_file is not set", at, ErrConfig)
		}
	}
	return nil, fmt.Errorf("%w: sent from host to host for the master", ErrProtocol)
}

// password calls login_with_password. Releases before 6.2 know no originator.
func (c *Client) password(ctx context.Context, at endpoint, password string) (string, error) {
	const method = "session.login_with_password"
	user := c.cfg.Username
	if user == "" {
		user = "root"
	}
	v, err := c.exchange(ctx, at, terms{limit: c.t.Call}, method, []any{user, password, apiVersion, c.cfg.Originator})
	if hasCode(err, "MESSAGE_PARAMETER_COUNT_MISMATCH") {
		v, err = c.exchange(ctx, at, terms{limit: c.t.Call}, method, []any{user, password})
	}
	if err != nil {
		return "", err
	}
	ref, err := v.Ref()
	if err == nil && ref.Null() {
		err = malformed("login without a session")
	}
	return string(ref), err
}

// toMaster reacts to HOST_IS_SLAVE on a session: the next one is opened at the master. Without a password the
// session of the socket is used there: it holds in the whole pool.
func (c *Client) toMaster(s *session, address string) error {
	e, err := c.masterAt(address)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != s {
		return nil
	}
	if c.cfg.PasswordFile == "" {
		if s.at == e {
			return fmt.Errorf("%w: the master %s calls itself a member", ErrProtocol, e)
		}
		c.current = &session{ref: s.ref, at: e}
		return nil
	}
	c.current = nil
	if c.base.scheme == schemeUnix {
		c.master = &e
	}
	return nil
}
