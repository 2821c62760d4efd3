package xapi

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Pool reads the record of the pool.
func (c *Client) Pool(ctx context.Context) (Pool, error) {
	pools, err := records(ctx, c, "pool", decodePool)
	if err != nil {
		return Pool{}, err
	}
	if len(pools) != 1 {
		return Pool{}, fmt.Errorf("%w: %d pools", ErrProtocol, len(pools))
	}
	for _, p := range pools {
		return p, nil
	}
	return Pool{}, nil
}

// PoolOtherConfig reads the pool's other_config.
func (c *Client) PoolOtherConfig(ctx context.Context) (map[string]string, error) {
	v, err := c.onPool(ctx, "pool.get_other_config")
	if err != nil {
		return nil, err
	}
	return v.Map()
}

// AddToPoolOtherConfig adds a key; ErrDuplicateKey when it is there. Hosts with db_idempotent_map also accept the same
// value again.
func (c *Client) AddToPoolOtherConfig(ctx context.Context, key, value string) error {
	_, err := c.onPool(ctx, "pool.add_to_other_config", key, value)
	return err
}

// RemoveFromPoolOtherConfig removes a key; one that is not there is no error.
func (c *Client) RemoveFromPoolOtherConfig(ctx context.Context, key string) error {
	_, err := c.onPool(ctx, "pool.remove_from_other_config", key)
	return err
}

// ServerTime gives the clock of the pool's master. ErrUnsupported when the host has no host.get_servertime: what to do
// then is the caller's to decide.
func (c *Client) ServerTime(ctx context.Context) (time.Time, error) {
	v, err := c.onPoolRef(ctx, "host.get_servertime", func(p *Pool) Ref { return p.Master })
	if err != nil {
		return time.Time{}, err
	}
	t, err := v.Time()
	if err == nil && t.IsZero() {
		err = fmt.Errorf("%w: host.get_servertime without a time", ErrProtocol)
	}
	return t, err
}

func (c *Client) onPool(ctx context.Context, method string, args ...any) (Value, error) {
	return c.onPoolRef(ctx, method, func(p *Pool) Ref { return p.Ref }, args...)
}

// onPoolRef makes a call on the pool or its master, whose references are kept with the session. If they hold no more
// they are read anew, once.
func (c *Client) onPoolRef(ctx context.Context, method string, which func(*Pool) Ref, args ...any) (Value, error) {
	for tries := 2; ; tries-- {
		p, fresh, err := c.poolRefs(ctx)
		if err != nil {
			return Value{}, err
		}
		v, err := c.Call(ctx, method, append([]any{which(p)}, args...)...)
		if tries > 1 && !fresh && errors.Is(err, ErrNotFound) {
			c.forgetPool()
			continue
		}
		return v, err
	}
}

// poolRefs gives the references of pool and master; fresh when they have just been read.
func (c *Client) poolRefs(ctx context.Context) (p *Pool, fresh bool, err error) {
	s, err := c.open(ctx)
	if err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	p = s.pool
	s.mu.Unlock()
	if p != nil {
		return p, false, nil
	}
	read, err := c.Pool(ctx)
	if err != nil {
		return nil, false, err
	}
	p = &Pool{Ref: read.Ref, Master: read.Master}
	if s, err = c.open(ctx); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	s.pool = p
	s.mu.Unlock()
	return p, true, nil
}

// forgetPool lets the references be read anew.
func (c *Client) forgetPool() {
	c.mu.Lock()
	s := c.current
	c.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		s.pool = nil
		s.mu.Unlock()
	}
}

// SyncDatabase makes XAPI write its database out, which it does lazily otherwise: what was written before does not get lost
// in a crash of the master (pool.sync_database; xapi_pool.ml).
func (c *Client) SyncDatabase(ctx context.Context) error {
	_, err := c.CallAsync(ctx, "write the database out", "pool.sync_database")
	return err
}
