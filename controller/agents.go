package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// AgentClass says what is wrong with an agent.
type AgentClass string

// The classes.
const (
	AgentFine        AgentClass = "ok"
	AgentUnreachable AgentClass = "unreachable"    // no answer, of it or of XAPI behind it
	AgentRefused     AgentClass = "authentication" // certificates, or XAPI's password
	AgentVersion     AgentClass = "version"        // no protocol version in common
	AgentFault       AgentClass = "fault"          // it answered with something else
)

// AgentStatus is what is known of an agent after it was asked.
type AgentStatus struct {
	Name          string        `json:"name"`
	Address       string        `json:"address"`
	OK            bool          `json:"ok"`
	Class         AgentClass    `json:"class"`
	Error         string        `json:"error,omitempty"`
	Advice        string        `json:"advice,omitempty"`
	Version       string        `json:"version,omitempty"` // the program's
	Protocol      uint32        `json:"protocol,omitempty"`
	Features      []string      `json:"features,omitempty"`
	XAPI          string        `json:"xapi_transport,omitempty"` // "https", "http" or "unix"
	OpenTransfers uint32        `json:"open_transfers"`
	ClockSkew     time.Duration `json:"clock_skew_ns,omitempty"`  // its clock less ours, about
	MasterSkew    time.Duration `json:"master_skew_ns,omitempty"` // the pool master's clock less ours, about
	CertEnds      time.Time     `json:"certificate_ends,omitzero"`
	PoolUUID      string        `json:"pool_uuid,omitempty"`
	HostUUID      string        `json:"host_uuid,omitempty"` // the host it stands beside
	Warnings      []string      `json:"warnings,omitempty"`

	err error
}

// Err returns why the agent cannot be used as one of this package's errors; nil when it can.
func (s *AgentStatus) Err() error {
	f := Failure{What: fmt.Sprintf("agent %s at %s", s.Name, s.Address), Advice: s.Advice, Err: s.err}
	if f.Err == nil {
		f.Err = errors.New(s.Error)
	}
	switch s.Class {
	case AgentFine:
		return nil
	case AgentRefused:
		return &AuthError{f}
	case AgentVersion:
		return &PreflightError{f}
	case AgentUnreachable, AgentFault:
	}
	return &UnreachableError{f}
}

// agentConn is one agent of the configuration with its control connection.
type agentConn struct {
	name, address string
	pool          string // UUID of the only pool that it may speak for; empty = any
	tls           *tls.Config
	timing        Timing

	mu      sync.Mutex
	control *grpc.ClientConn
}

// dial makes a connection of its own to the agent; nothing is sent before it is used.
func (a *agentConn) dial() (*grpc.ClientConn, error) {
	conn, err := rpc.Dial(rpc.DialOptions{
		Address:        a.address,
		ServerName:     a.name,
		TLS:            a.tls,
		ConnectTimeout: a.timing.ConnectTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("dial agent %s at %s: %w", a.name, a.address, err)
	}
	return conn, nil
}

// client returns the agent's service on its control connection, which is dialled once. It is not for Backup and Restore:
// each of these has a connection of its own, see dial.
func (a *agentConn) client() (agentv1.AgentServiceClient, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.control == nil {
		conn, err := a.dial()
		if err != nil {
			return nil, err
		}
		a.control = conn
	}
	return agentv1.NewAgentServiceClient(a.control), nil
}

func (a *agentConn) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.control == nil {
		return nil
	}
	err := a.control.Close()
	a.control = nil
	return err
}

// agent returns the agent of that name, or nil.
func (c *Controller) agent(name string) *agentConn {
	for _, a := range c.agents {
		if a.name == name {
			return a
		}
	}
	return nil
}

// Agents asks every agent what it is and whether XAPI answers it, all at the same time. What is wrong with one is in its
// status; the error is ctx's.
func (c *Controller) Agents(ctx context.Context) ([]AgentStatus, error) {
	asked, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]AgentStatus, len(asked))
	for i := range asked {
		all[i] = asked[i].status
	}
	return all, nil
}

// foreignPool is an agent that speaks for another pool than the configuration has it in.
type foreignPool struct{ says, own string }

// ownPool tells whether the agent may speak for that pool.
func (a *agentConn) ownPool(says string) error {
	if a.pool == "" || says == a.pool {
		return nil
	}
	return &foreignPool{says: says, own: a.pool}
}

// Error names both pools.
func (e *foreignPool) Error() string {
	return fmt.Sprintf("it speaks for pool %s, and not for pool %s", e.says, e.own)
}

// classify says what is wrong with the agent, and what to do about it.
func (s *AgentStatus) classify(err error) {
	s.OK, s.err, s.Error = false, err, err.Error()
	if is[*foreignPool](err) {
		s.Class, s.Advice = AgentFault, "change pool: of the agent in the configuration if its host was moved to that pool; else the agent is not to be trusted"
		return
	}
	switch rpc.ReasonOf(err) {
	case rpc.UnsupportedVersion:
		s.Class, s.Advice = AgentVersion, "update the older of dpxen and dpxen-agent"
	case rpc.Auth, rpc.Peer:
		s.Class, s.Advice = AgentRefused, "compare both ends' certificates (dpxen certs list) and the agent's allow list; its log has the reason"
	case rpc.HostAuth:
		s.Class, s.Advice = AgentRefused, "check in its agent.yaml xapi.username and xapi.password_file, or, where the host's certificate is a new one, xapi.fingerprints"
	case rpc.XAPIUnreachable:
		s.Class, s.Advice = AgentUnreachable, "check that XAPI runs on its host, and xapi.url in its agent.yaml"
	case rpc.Unreachable, rpc.Deadline:
		s.Class, s.Advice = AgentUnreachable, "check that dpxen-agent runs there and that its port can be reached"
	default:
		s.Class, s.Advice = AgentFault, "see the agent's log"
	}
}
