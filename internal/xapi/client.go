package xapi

import (
	"context"
	"errors"
	"net/http"
	"sync"
)

// laneCount is how many calls may run at once. Long work runs in tasks, so few are enough for many VMs.
const laneCount = 8

// Client speaks to one pool. Its methods may be called from any number of goroutines.
type Client struct {
	cfg  Config
	t    Timeouts
	base endpoint // as configured
	dial *dialer

	lanes chan *lane // idle ones; nil entries are not made yet

	done chan struct{} // closed by Close

	mu         sync.Mutex // guards what follows; never held during I/O
	current    *session
	attempt    *attempt  // the login under way
	master     *endpoint // told by the socket of a member
	transports map[endpoint]*http.Transport
	known      map[string]struct{} // addresses in the pool's host records
	closed     bool
}

// New checks the settings, and that the password file can be used. It does not connect: the first call logs in.
// Errors are ErrConfig.
func New(cfg Config) (*Client, error) {
	base, trust, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	t := cfg.Timeouts.withDefaults()
	c := &Client{
		cfg: cfg, t: t, base: base,
		dial:       &dialer{trust: trust, connect: t.Connect},
		lanes:      make(chan *lane, laneCount),
		done:       make(chan struct{}),
		transports: map[endpoint]*http.Transport{},
	}
	for range laneCount {
		c.lanes <- nil
	}
	return c, nil
}

// errClosed is what calls get after Close.
var errClosed = errors.New("client of XAPI is closed")

// Close logs out, within Timeouts.Cancel, and frees everything. It waits for running calls until ctx ends. Streams
// are closed by their owners. A second Close does nothing.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	running := c.attempt
	c.mu.Unlock()
	if running != nil {
		select {
		case <-running.done:
		case <-ctx.Done():
		}
	}
	err := c.logOut(ctx)
	close(c.done)
	for range laneCount {
		select {
		case l := <-c.lanes:
			if l != nil {
				l.close()
			}
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, tr := range c.transports {
		tr.CloseIdleConnections()
	}
	return err
}

// transport gives the one transport for calls to an endpoint.
func (c *Client) transport(e endpoint) *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	tr := c.transports[e]
	if tr == nil {
		tr = c.dial.transport(e)
		c.transports[e] = tr
	}
	return tr
}

// rememberHosts notes the addresses of the pool's hosts.
func (c *Client) rememberHosts(hosts map[Ref]Host) {
	known := make(map[string]struct{}, len(hosts))
	for _, h := range hosts {
		if h.Address != "" {
			known[h.Address] = struct{}{}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = known
}
