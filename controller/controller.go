package controller

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// Options of a Controller; the zero value is good.
type Options struct {
	Observer  Observer         // told what happens; nil = nobody
	Now       func() time.Time // this machine's clock; time.Now when nil
	Version   string           // of the program, for reports and manifests
	DPSession string           // Data Protector's session, for reports and manifests
	DPSpec    string           // its backup specification, likewise

	Protocol *agentv1.ProtocolRange // the versions that it speaks; rpc.OwnProtocol when nil
}

func (o Options) protocol() *agentv1.ProtocolRange {
	if o.Protocol == nil {
		return rpc.OwnProtocol()
	}
	return o.Protocol
}

// Controller runs sessions over the agents of a configuration. Its methods may be called from several goroutines, but one
// session at a time.
type Controller struct {
	cfg *Config
	o   Options
	tls *tls.Config

	pacer *pacer // of all transfers; nil = no limit

	observing sync.Mutex // one event at a time

	mu     sync.Mutex
	agents []*agentConn // in the order of the configuration; dialled when first needed
}

// New makes a controller of a configuration that Validate accepts. It reads the TLS files but talks to nobody. Its errors
// are a *ConfigError for files that cannot be read and an *AuthError for certificates that cannot be used.
func New(cfg *Config, o Options) (*Controller, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	source, err := certs.NewSource(certs.Files{CA: cfg.TLS.CA, Cert: cfg.TLS.Cert, Key: cfg.TLS.Key, CRL: cfg.TLS.CRL})
	var path *fs.PathError
	switch {
	case errors.As(err, &path):
		return nil, &ConfigError{File: cfg.file, Faults: []Fault{{Key: "tls", Msg: err.Error()}}}
	case err != nil:
		return nil, &AuthError{Failure{What: "this controller's certificate", Err: err, Advice: "see dpxen certs list"}}
	}
	if id := source.Identity(); id.Role != certs.Controller {
		return nil, &AuthError{Failure{What: fmt.Sprintf("%s is the certificate of %s", cfg.TLS.Cert, id),
			Advice: "give tls.cert and tls.key a controller's"}}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Controller{cfg: cfg, o: o, tls: source.ClientConfig(certs.PeerPolicy{Role: certs.Agent}), pacer: newPacer(cfg.Limits.Bandwidth)}
	for _, a := range cfg.Agents {
		c.agents = append(c.agents, &agentConn{name: a.Name, address: a.Address, pool: canonicalUUID(a.Pool), tls: c.tls, timing: cfg.Timing})
	}
	return c, nil
}

// Config returns the configuration; it must not be changed.
func (c *Controller) Config() *Config { return c.cfg }

// Close closes the connections to the agents.
func (c *Controller) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all error
	for _, a := range c.agents {
		all = errors.Join(all, a.close())
	}
	return all
}

// emit tells the observer, filling in version and time.
func (c *Controller) emit(e Event) {
	if c.o.Observer == nil {
		return
	}
	c.observing.Lock()
	defer c.observing.Unlock()
	e.V, e.Time = EventVersion, c.o.Now().UTC()
	c.o.Observer.Observe(e)
}
