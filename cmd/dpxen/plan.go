package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) planCommand() *cobra.Command {
	var f backupFlags
	var o planOutput
	cmd := &cobra.Command{
		Use:   "plan --mode MODE [selectors]",
		Short: "Show what a backup would do, VM by VM, and why",
		Long: "plan asks the agents and says for each VM whether a backup with the same flags would take it and why, by which\n" +
			"agent, with which of its disks, how much room it needs, and by earlier backups how long it takes and for how long\n" +
			"it is off; then what may go wrong: long chains of snapshots, storage without room, exports that take more than a day,\n" +
			"guests without tools, high availability. DRIFT lists VMs that no set or specification covers, that were never backed\n" +
			"up, or not for longer than max_age of the configuration. It changes nothing.\n\n" + selectorHelp +
			"\nExit code: 0 every chosen VM would be begun, 3 some would, else why none can be: 2, 12, 10, 6 or 1.",
		Example: "  dpxen plan --mode allOnline\n" +
			"  dpxen plan --mode allOnline --save tonight.plan\n" +
			"  dpxen plan --mode offline --vm 'db-*' --tag gold --exclude db-test",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request(cmd)
			if err != nil {
				return err
			}
			return a.with(func(c *controller.Controller) error { return a.plan(cmd.Context(), c, req, o) })
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&o.all, "all", false, "print every name and every disk")
	cmd.Flags().StringVar(&o.save, "save", "", "write the plan into `FILE`, for dpxen backup --plan FILE")
	return cmd
}

// planOutput is what becomes of a plan.
type planOutput struct {
	all  bool   // print every name and disk
	save string // file to write it into
}

// plan makes a plan, prints and saves it.
func (a *app) plan(ctx context.Context, c *controller.Controller, req controller.Request, o planOutput) error {
	p, err := c.Plan(ctx, req)
	if err != nil {
		return err
	}
	a.tellAgents(p.Agents)
	refused := p.Preflight()
	code := codeOf(refused)
	if refused == nil && (p.Runnable < p.Selected || len(p.Missing) > 0 ||
		slices.ContainsFunc(p.Agents, func(s controller.AgentStatus) bool { return !s.OK })) {
		code = controller.CodeSome
	}
	if o.save != "" {
		if err := c.SavePlan(p, absolute(o.save)); err != nil {
			return err
		}
	}
	if a.json {
		if err := a.encode(p); err != nil {
			return err
		}
		return withCode(code)
	}
	if err := a.log().plan(p, o.all); err != nil {
		return err
	}
	return withCode(code)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
