package main

import (
	"context"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/controller"
)

// dryRun prints what a restore would do.
func (a *app) dryRun(ctx context.Context, c *controller.Controller, req controller.RestoreRequest) error {
	p, err := c.PlanRestore(ctx, req)
	if err != nil {
		return err
	}
	a.tellAgents(p.Agents)
	if a.json {
		if err := a.encode(p); err != nil {
			return err
		}
		return withCode(p.Code)
	}
	a.text().restorePlan(p)
	return withCode(p.Code)
}

// restorePlan prints every VM, in the order in which they are begun, then the SRs and the sum.
func (p printer) restorePlan(plan *controller.RestorePlan) {
	for i := range plan.VMs {
		p.plannedRestore(&plan.VMs[i])
	}
	if len(plan.SRs) > 0 {
		p.line("")
	}
	for _, sr := range plan.SRs {
		free := "free room not known"
		if sr.Free >= 0 {
			free = size(sr.Free) + " free"
		}
		p.line("SR %s: about %s needed, %s", place(sr.Pool, sr.SR), size(sr.Need), free)
	}
	for _, s := range plan.Skipped {
		p.line("skipped  %s: %s", s.File, s.Reason)
	}
	for _, w := range plan.Warnings {
		p.line("warning  %s", oneLine(w))
	}
	for _, n := range plan.Notes {
		p.line("note     %s", n)
	}
	p.line("")
	p.line("%s chosen, %d would be restored, from %s in %s; nothing was changed", plural(plan.Selected, "file"), plan.Runnable,
		size(plan.Bytes), plan.Folder)
}

// plannedRestore prints one file.
func (p printer) plannedRestore(vm *controller.PlannedRestore) {
	what := fmt.Sprintf("%s (%s) from %s", place(vm.Pool, vm.Name), vm.UUID, vm.File)
	if vm.UUID == "" { // an adopted file that tells of no VM
		what = vm.File
	}
	if vm.Refused != "" {
		p.line("REFUSED  %s", what)
		p.line("           refused: %s %s", vm.Reason, oneLine(vm.Refused))
		if vm.Advice != "" {
			p.line("           do: %s", vm.Advice)
		}
	} else {
		p.line("restore  %s", what)
		p.line("           %s", vm.Action)
	}
	if vm.ToPool != "" {
		where := "pool " + vm.ToPool
		if vm.Pool != "" && vm.PoolUUID != vm.ToPoolUUID {
			where += " (it was in " + vm.Pool + ")"
		}
		if vm.ToHost != "" {
			where += ", host " + vm.ToHost
		}
		state := "not there now"
		if vm.Power != "" {
			state = vm.Power + " now"
		}
		p.line("           to %s, by agent %s; %s", where, orDash(vm.Agent), state)
	}
	for _, d := range vm.Disks {
		from := ""
		if d.FromSR != "" && d.FromSR != d.SR {
			from = " (was on " + d.FromSR + ")"
		}
		p.line("           disk %s %s: %s to SR %s%s", d.UserDevice, d.Name, size(d.Size), d.SR, from)
	}
	for _, n := range vm.NICs {
		p.line("           interface %s: %s", n.Device, nicText(n))
	}
	if vm.Starts && vm.Refused == "" {
		text := fmt.Sprintf("started at the end, order %d", vm.Order)
		if vm.StartDelay > 0 {
			text += ", then a delay of " + took(time.Duration(vm.StartDelay*float64(time.Second)))
		}
		p.line("           %s", text)
	}
	for _, w := range vm.Warnings {
		p.line("           warning: %s", oneLine(w))
	}
	for _, n := range vm.Notes {
		p.line("           note: %s", n)
	}
}

func nicText(n controller.PlannedRestoreNIC) string {
	if n.Stays {
		return "stays as the VM has it"
	}
	mac := "MAC " + n.MAC
	if n.MAC == "" {
		mac = "another MAC"
	}
	text := mac + ", network " + orDash(n.Network)
	if n.From != "" && n.From != n.Network {
		text += " (was " + n.From + ")"
	}
	return text
}
