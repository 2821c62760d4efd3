package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) planCommand() *cobra.Command {
	var f backupFlags
	cmd := &cobra.Command{
		Use:   "plan --mode MODE [selectors]",
		Short: "Show what a backup would do, VM by VM, and why",
		Long: "plan asks the agents and says for each VM whether a backup with the same flags would take it and why, by which\n" +
			"agent, and about how much room it needs. It changes nothing.\n\n" + selectorHelp +
			"\nExit code: 0 every chosen VM would be begun, 3 some would, else why none can be: 2, 12, 10, 6 or 1.",
		Example: "  dpxen plan --mode allOnline\n" +
			"  dpxen plan --mode offline --vm 'db-*' --tag gold --exclude db-test",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request(cmd)
			if err != nil {
				return err
			}
			return a.with(func(c *controller.Controller) error { return a.plan(cmd.Context(), c, req) })
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) plan(ctx context.Context, c *controller.Controller, req controller.Request) error {
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
	if a.json {
		if err := a.encode(p); err != nil {
			return err
		}
		return withCode(code)
	}
	a.text().plan(p)
	return withCode(code)
}

// plan prints the VMs that are chosen, those that are not, and the sum.
func (p printer) plan(plan *controller.Plan) {
	for i := range plan.VMs {
		if vm := &plan.VMs[i]; vm.Chosen {
			p.plannedVM(vm)
		}
	}
	for _, vm := range plan.VMs {
		if !vm.Chosen {
			p.line("not      %s (%s): %s", place(vm.Pool, vm.Name), vm.UUID, vm.Why)
		}
	}
	for _, m := range plan.Missing {
		p.line("MISSING  %s: %s", m.Asked, m.Error)
	}
	for _, w := range plan.Warnings {
		p.line("WARN     %s", w)
	}
	for _, n := range plan.Notes {
		p.line("note     %s", n)
	}
	p.line("")
	p.line("%s chosen, %d would be begun; about %s at most, %s free in %s", plural(plan.Selected, "VM"), plan.Runnable,
		size(plan.Bytes), size(plan.Room.Free), plan.Room.Folder)
}

// plannedVM prints one VM that is chosen.
func (p printer) plannedVM(vm *controller.PlannedVM) {
	word := "backup  "
	if vm.Refused != "" {
		word = "REFUSED "
	}
	p.line("%s %s (%s): %s", word, place(vm.Pool, vm.Name), vm.UUID, vm.Why)
	if vm.Refused != "" {
		p.line("           refused: %s", vm.Refused)
	}
	if vm.Advice != "" {
		p.line("           do: %s", vm.Advice)
	}
	p.line("           %s; %s", vm.Power, vm.Action)
	p.line("           by agent %s, %s, about %s at most", orDash(vm.Agent), plural(len(vm.Disks), "disk"), size(vm.Bytes))
	for _, d := range vm.Disks {
		p.line("           disk %s %s: %s on %s, about %s", d.UserDevice, d.Name, size(d.Size), d.SRName, size(d.Bytes))
	}
	for _, w := range slices.Concat(vm.Warnings, vm.Risks) {
		p.line("           warning: %s", w)
	}
	for _, n := range vm.Notes {
		p.line("           note: %s", n)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
