package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

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

// answer is what one agent said.
type answer struct {
	conn   *agentConn
	status AgentStatus
	check  *agentv1.CheckResponse // nil unless status.OK
}

// featureSurvey is that of agents which know where they stand, and tell the pool together with its VMs.
const featureSurvey = "survey"

// surveyed tells whether the agent has said where it stands, so that it need not be asked before its pool is.
func (a *answer) surveyed() bool {
	return a.check == nil && a.status.OK && a.status.PoolUUID != ""
}

// ask sends GetHost and Check to every agent.
func (c *Controller) ask(ctx context.Context) ([]answer, error) {
	return c.askAll(ctx, c.askOne)
}

func (c *Controller) askAll(ctx context.Context, one func(context.Context, *agentConn) answer) ([]answer, error) {
	all := make([]answer, len(c.agents))
	var g errgroup.Group
	for i, a := range c.agents {
		g.Go(func() error {
			all[i] = one(ctx, a)
			return nil
		})
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return nil, fmt.Errorf("ask the agents: %w", err)
	}
	return all, nil
}

func (c *Controller) askOne(ctx context.Context, a *agentConn) answer {
	return c.askMore(ctx, a, func(*AgentStatus) bool { return false })
}

// askLittle asks an agent what it is. Where it stands it is asked only if it did not say so: that costs XAPI calls, and
// agents that know it have had an answer of XAPI within their last interval of asking for it.
func (c *Controller) askLittle(ctx context.Context, a *agentConn) answer {
	return c.askMore(ctx, a, func(s *AgentStatus) bool {
		return slices.Contains(s.Features, featureSurvey) && s.PoolUUID != "" && s.HostUUID != ""
	})
}

func (c *Controller) askMore(ctx context.Context, a *agentConn, enough func(*AgentStatus) bool) answer {
	ans := answer{conn: a, status: AgentStatus{Name: a.name, Address: a.address, Class: AgentFine}}
	client, err := a.client()
	if err == nil {
		err = c.getHost(ctx, client, &ans.status)
	}
	if err == nil && enough(&ans.status) {
		if err = a.ownPool(ans.status.PoolUUID); err == nil {
			ans.status.OK = true
			return ans
		}
		ans.status.classify(err)
		return ans
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, a.timing.CallTimeout)
		defer cancel()
		ans.check, err = client.Check(ctx, &agentv1.CheckRequest{})
		if t := ans.check.GetServerTime(); err == nil && t.IsValid() {
			ans.status.MasterSkew = t.AsTime().Sub(c.o.Now())
		}
	}
	if ans.status.PoolUUID = canonicalUUID(ans.check.GetPool().GetUuid()); err == nil && ans.status.PoolUUID == "" {
		err = fmt.Errorf("it describes no pool (UUID %.80q)", ans.check.GetPool().GetUuid())
	}
	if err == nil {
		err = a.ownPool(ans.status.PoolUUID)
	}
	if err != nil {
		ans.check = nil
		ans.status.classify(err)
		return ans
	}
	ans.status.OK = true
	ans.status.HostUUID = canonicalUUID(ans.check.GetHostUuid())
	ans.status.Warnings = texts(ans.check.GetWarnings())
	return ans
}

func (c *Controller) getHost(ctx context.Context, client agentv1.AgentServiceClient, s *AgentStatus) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.ConnectTimeout)
	defer cancel()
	own := c.o.protocol()
	var from peer.Peer
	host, err := client.GetHost(ctx, &agentv1.GetHostRequest{Protocol: own, Version: c.o.Version}, grpc.Peer(&from))
	if err != nil {
		return err
	}
	if info, ok := from.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
		s.CertEnds = info.State.PeerCertificates[0].NotAfter
	}
	s.Version, s.Features = clipText(host.GetVersion()), texts(host.GetFeatures())
	s.XAPI, s.OpenTransfers = clipText(host.GetXapiTransport()), host.GetOpenTransfers()
	s.PoolUUID, s.HostUUID = canonicalUUID(host.GetPoolUuid()), canonicalUUID(host.GetHostUuid())
	if t := host.GetTime(); t.IsValid() {
		s.ClockSkew = t.AsTime().Sub(c.o.Now())
	}
	if s.Protocol, err = rpc.Negotiate(own, host.GetProtocol()); err != nil {
		return err
	}
	if said := host.GetAgent(); said != s.Name { // its certificate is of that name all the same
		return fmt.Errorf("it calls itself %.80q", said)
	}
	return nil
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
		s.Class, s.Advice = AgentRefused, "check xapi.username and xapi.password_file in its agent.yaml"
	case rpc.XAPIUnreachable:
		s.Class, s.Advice = AgentUnreachable, "check that XAPI runs on its host, and xapi.url in its agent.yaml"
	case rpc.Unreachable, rpc.Deadline:
		s.Class, s.Advice = AgentUnreachable, "check that dpxen-agent runs there and that its port can be reached"
	default:
		s.Class, s.Advice = AgentFault, "see the agent's log"
	}
}
