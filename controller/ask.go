package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

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
	host, err := c.firstWord(ctx, client, &agentv1.GetHostRequest{Protocol: own, Version: c.o.Version}, &from)
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

// firstWords is how often an agent is asked what it is that cannot be reached: one that is just started anew, or a cut, is not to
// cost a night's backups, and one that is gone is not waited for.
const firstWords = 3

func (c *Controller) firstWord(ctx context.Context, client agentv1.AgentServiceClient, req *agentv1.GetHostRequest,
	from *peer.Peer) (host *agentv1.GetHostResponse, err error) {
	for n := 1; ; n++ {
		host, err = client.GetHost(ctx, req, grpc.Peer(from))
		if n == firstWords || rpc.ReasonOf(err) != rpc.Unreachable {
			return host, err
		}
		select {
		case <-ctx.Done():
			return nil, err // not ctx's: what is wrong with the agent
		case <-time.After(c.cfg.Timing.BackoffMin):
		}
	}
}
