package main

import (
	"cmp"
	"math"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID|last",
		Short:   "Show all about one session",
		Long:    "show prints the report of a session, also of one that runs or has died: numbers, failures with what to do,\nand each VM.",
		Example: "  dpxen show last\n  dpxen show --json 20261122T203000Z-3fa91c",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.with(func(c *controller.Controller) error { return a.show(c, args[0]) })
		},
	}
}

func (a *app) show(c *controller.Controller, arg string) error {
	id, err := sessionID(c, arg, func(controller.SessionSummary) bool { return true })
	if err != nil {
		return err
	}
	r, err := c.Session(id)
	if err != nil {
		return err
	}
	if a.json {
		return a.encode(r)
	}
	return a.text().report(r)
}

// report prints a whole report.
func (p printer) report(r *controller.Report) error {
	p.line("state     %s", r.State)
	p.line("started   %s", moment(r.Started))
	if !r.Ended.IsZero() {
		p.line("ended     %s", moment(r.Ended))
	}
	p.line("version   %s", r.Version)
	if r.DPSession != "" {
		p.line("dp        session %s, specification %s", r.DPSession, orDash(r.DPSpec))
	}
	p.ending(r, math.MaxInt)
	if len(r.VMs) > 0 {
		p.line("")
		if err := p.results(r); err != nil {
			return err
		}
	}
	for _, i := range r.Unfinished() {
		p.line("unfinished: %s of VM %s (%s) by agent %s since %s", i.Action, i.VMName, i.VMUUID, i.Agent, moment(i.Time))
	}
	if r.Result != "" {
		p.line("%s", r.Result)
	}
	return nil
}

// results prints a row for each VM.
func (p printer) results(r *controller.Report) error {
	l := labelsOf(r)
	rows := [][]string{{"VM", "STATUS", "SIZE", "TOOK", "RETRIES", "POWER", "AGENT", "FILE"}}
	for _, vm := range r.VMs {
		power := orDash(vm.PowerBefore)
		if vm.PowerAfter != "" && vm.PowerAfter != vm.PowerBefore {
			power += " -> " + vm.PowerAfter
		}
		if vm.DowntimeSeconds > 0 {
			power += ", down " + seconds(vm.DowntimeSeconds)
		}
		bytes, time := "", ""
		if vm.Bytes > 0 {
			bytes = size(vm.Bytes)
		}
		if vm.Seconds > 0 {
			time = seconds(vm.Seconds)
		}
		file := vm.File
		if vm.NewUUID != "" {
			file = join(cmp.Or(file, "new VM"), "new UUID "+vm.NewUUID)
		}
		rows = append(rows, []string{l.of(vm), string(vm.Status), bytes, time, strconv.Itoa(vm.Retries), power, vm.Agent, file})
	}
	return p.table(rows)
}
