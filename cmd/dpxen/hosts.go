package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) hostsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "hosts",
		Short: "Show which agents answer, and the hosts and storage of their pools",
		Long: "hosts asks every agent of the configuration what it is and whether XAPI answers it.\n\n" +
			"Exit code: 0 all is well, 3 some agents do not work, else what is wrong with the only ones there are:\n" +
			"12 authentication, 10 unreachable, 6 version.",
		Example: "  dpxen hosts\n  dpxen hosts --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *controller.Controller) error { return a.hosts(cmd.Context(), c) })
		},
	}
}

// hostsDocument is what `hosts --json` prints.
type hostsDocument struct {
	Agents []controller.AgentStatus `json:"agents"`
	Pools  []controller.Pool        `json:"pools"`
}

func (a *app) hosts(ctx context.Context, c *controller.Controller) error {
	inv, err := c.Inventory(ctx)
	if inv == nil {
		return err
	}
	if a.json {
		if err := a.encode(hostsDocument{Agents: orEmpty(inv.Agents), Pools: orEmpty(inv.Pools)}); err != nil {
			return err
		}
		return withCode(agentsCode(inv.Agents, err))
	}
	rows := [][]string{{"AGENT", "ADDRESS", "STATE", "VERSION", "XAPI", "POOL", "HOST"}}
	for _, s := range inv.Agents {
		pool, host := names(inv, s)
		rows = append(rows, []string{s.Name, s.Address, string(s.Class), s.Version, s.XAPI, pool, host})
	}
	p := a.text()
	if err := p.table(rows); err != nil {
		return err
	}
	for _, pool := range inv.Pools {
		if err := p.pool(poolLabel(inv, &pool), pool); err != nil {
			return err
		}
	}
	a.tellAgents(inv.Agents)
	return withCode(agentsCode(inv.Agents, err))
}

// names are those of an agent's pool and host.
func names(inv *controller.Inventory, s controller.AgentStatus) (pool, host string) {
	p := inv.PoolByUUID(s.PoolUUID)
	if p == nil {
		return "", ""
	}
	if h := p.Host(s.HostUUID); h != nil {
		host = h.Name
	}
	return poolLabel(inv, p), host
}

// poolLabel is a pool's name, with the beginning of its UUID where another one has the same.
func poolLabel(inv *controller.Inventory, p *controller.Pool) string {
	for i := range inv.Pools {
		if other := &inv.Pools[i]; other.Name == p.Name && other.UUID != p.UUID {
			return fmt.Sprintf("%s (%.*s)", p.Name, shortUUID, p.UUID)
		}
	}
	return p.Name
}

// pool prints the hosts and storage repositories of a pool.
func (p printer) pool(label string, pool controller.Pool) error {
	p.line("")
	p.line("Pool %s (%s %s)", label, pool.ProductBrand, pool.ProductVersion)
	rows := [][]string{{"  HOST", "ADDRESS", "STATE", "AGENT"}}
	for _, h := range pool.Hosts {
		rows = append(rows, []string{"  " + h.Name, h.Address, hostState(pool, h), h.Agent})
	}
	if err := p.table(rows); err != nil {
		return err
	}
	rows = [][]string{{"  STORAGE", "TYPE", "SHARED", "SIZE", "FREE"}}
	for _, sr := range pool.SRs {
		total, room := "", ""
		if free, known := sr.Free(); known {
			total, room = size(sr.Size), size(free)
		}
		shared := "no"
		if sr.Shared {
			shared = "yes"
		}
		rows = append(rows, []string{"  " + sr.Name, sr.Type, shared, total, room})
	}
	return p.table(rows)
}

func hostState(pool controller.Pool, h controller.Host) string {
	var is []string
	switch {
	case !h.Live:
		is = append(is, "not live")
	case !h.Enabled:
		is = append(is, "disabled")
	default:
		is = append(is, "enabled")
	}
	if h.UUID == pool.MasterUUID {
		is = append(is, "master")
	}
	return strings.Join(is, ", ")
}

// tellAgents says on standard error what is wrong with agents.
func (a *app) tellAgents(agents []controller.AgentStatus) {
	for i := range agents {
		a.complain(agents[i].Err())
		for _, w := range agents[i].Warnings {
			a.complain(errors.New("agent " + agents[i].Name + ": " + w))
		}
	}
}

// agentsCode is 0 when every agent works, 3 when some do, and what is wrong, as err has it, when none does.
func agentsCode(agents []controller.AgentStatus, err error) int {
	failed := func(s controller.AgentStatus) bool { return !s.OK }
	switch {
	case err != nil:
		return codeOf(err)
	case slices.ContainsFunc(agents, failed):
		return controller.CodeSome
	}
	return exitOK
}

// orEmpty makes a list that JSON shows as [] where there is none.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
