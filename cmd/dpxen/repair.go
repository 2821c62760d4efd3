package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) repairCommand() *cobra.Command {
	var f repairFlags
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Finish or undo what sessions that died have left",
		Long: "repair has the agents finish or undo what sessions that died, or could not clean up, have left in the pools:\n" +
			"VMs that are off, snapshots, carriers, disks half exchanged. It touches nothing else, and may be repeated.\n\n" +
			"What cannot be touched yet, because an agent's claim still stands or XAPI still works on it, is waited for as long as\n" +
			"--wait says: two leases by default, which are 4 minutes unless timing.lease is set. A guest that may still shut down\n" +
			"is not waited for, the agents watch it. Where an agent has died, or XAPI has left one without an answer, the last wait\n" +
			"is for what XAPI may still do late (\"waits  remove what comes late to the journal\"): the VMs are in order and free by\n" +
			"then, and Ctrl-C does no harm, for the agents remove it too. pre-exec, cancel and rerun wait likewise where a session\n" +
			"that died is repaired first.\n\n" +
			"Exit code: 0 nothing is left, 3 something waits or failed or an agent does not answer, 20 a VM is not in its\n" +
			"former power state; where no agent answers 12, 10 or 6.",
		Example: "  dpxen repair --dry-run\n  dpxen repair\n  dpxen repair --wait 0",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.waitSet = cmd.Flags().Changed("wait")
			return a.repair(cmd.Context(), f)
		},
	}
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only tell what would be done")
	cmd.Flags().DurationVar(&f.wait, "wait", 0, "repair again for `DURATION` while something is not ready yet (default: two leases)")
	return cmd
}

type repairFlags struct {
	dryRun  bool
	wait    time.Duration
	waitSet bool
}

func (a *app) repair(ctx context.Context, f repairFlags) error {
	c, err := a.controller(noteLines{a})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // it has said all that was asked
	var r *controller.RepairReport
	switch {
	case f.dryRun:
		r, err = c.Repair(ctx, true)
	case f.waitSet:
		r, err = c.RepairWithin(ctx, f.wait)
	default:
		r, err = c.RepairWithin(ctx, c.RepairWait())
	}
	if err != nil {
		return err
	}
	a.tellAgents(r.Agents)
	for _, text := range r.Errors {
		a.complain(errors.New(text))
	}
	if a.json {
		if err := a.encode(r); err != nil {
			return err
		}
		return withCode(r.Code)
	}
	p := a.log()
	for _, text := range r.Notes {
		p.line("NOTE    %s", text)
	}
	for _, id := range r.Sessions {
		p.line("session %s had left work unfinished", id)
	}
	for _, s := range r.Actions {
		p.action(s, f.dryRun)
	}
	if len(r.Actions) == 0 && r.Code == exitOK {
		p.line("nothing to repair")
	}
	return withCode(r.Code)
}

// noteLines prints notes, except among JSON.
type noteLines struct{ a *app }

// Observe implements controller.Observer.
func (n noteLines) Observe(e controller.Event) {
	if e.Type == controller.EventNote && !n.a.json {
		n.a.log().line("%s", oneLine(e.Message))
	}
}

// action prints what was done, would be done, or is left for later.
func (p printer) action(s controller.SweepAction, dryRun bool) {
	text := s.Action
	if s.Object != "" {
		text += " " + s.Object
	}
	if s.VMUUID != "" {
		text = join("VM "+orDash(s.VMName)+" ("+s.VMUUID+")", text)
	}
	word, more := "left   ", ""
	switch {
	case s.Error != "":
		word, more = "FAILED ", ": "+s.Error
	case s.Waiting != "":
		word, more = "waits  ", ": "+s.Waiting
	case s.Done:
		word = "done   "
	case dryRun:
		word = "would  "
	}
	if s.Agent != "" {
		text += ", by agent " + s.Agent
	}
	p.line("%s %s%s", word, text, more)
	if s.PowerNotRestored {
		p.line("POWER   VM %s (%s) is not in its former power state", orDash(s.VMName), s.VMUUID)
	}
}
