package main

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) vmsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "vms",
		Short: "List the VMs of every pool",
		Long: "vms lists every VM that a session could choose: no templates, snapshots or control domains.\n" +
			"PROBLEM says why a backup would be refused whatever the mode.\n\n" +
			"Exit code: 0, 3 when some agents do not work, else what is wrong with all: 12, 10 or 6.",
		Example: "  dpxen vms\n  dpxen vms --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(func(c *controller.Controller) error { return a.vms(cmd.Context(), c) })
		},
	}
}

func (a *app) vms(ctx context.Context, c *controller.Controller) error {
	inv, err := c.Inventory(ctx)
	if err != nil {
		return err
	}
	a.tellAgents(inv.Agents)
	if a.json {
		if err := a.encode(orEmpty(inv.VMs)); err != nil {
			return err
		}
		return withCode(agentsCode(inv.Agents, nil))
	}
	rows := [][]string{{"NAME", "UUID", "POWER", "POOL", "HOST", "DISKS", "SIZE", "TAGS", "AGENT", "PROBLEM"}}
	for _, vm := range inv.VMs {
		var total int64
		for _, d := range vm.Disks {
			total += d.Size
		}
		agent := ""
		if len(vm.Agents) > 0 {
			agent = vm.Agents[0]
		}
		rows = append(rows, []string{vm.Name, vm.UUID, vm.Power, vm.Pool, vm.Host, strconv.Itoa(len(vm.Disks)), size(total),
			strings.Join(vm.Tags, ","), agent, vm.Problem})
	}
	if err := a.text().table(rows); err != nil {
		return err
	}
	return withCode(agentsCode(inv.Agents, nil))
}
