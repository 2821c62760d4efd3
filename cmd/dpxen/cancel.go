package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID|last",
		Short: "Ask a running session to end, and wait until it has",
		Long: "cancel asks a session, or the last one that runs, to end, waits while it cleans up, and prints what\n" +
			"came of it. What a session that died has left is repaired, as by `dpxen repair`: after an agent's death that may take\n" +
			"two leases, 4 minutes.\n\n" +
			"Exit code: 0 the session is over and has left nothing, 20 a VM is not in its former power state, 3 something\n" +
			"is left for `dpxen repair`, 2 there is no such session, 130 the wait was cancelled.",
		Example: "  dpxen cancel last",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(func(c *controller.Controller) error { return a.cancel(cmd.Context(), c, args[0]) })
		},
	}
}

func (a *app) cancel(ctx context.Context, c *controller.Controller, arg string) error {
	id, err := sessionID(c, arg, func(s controller.SessionSummary) bool { return s.State == controller.StateRunning })
	if err != nil {
		return err
	}
	r, err := c.Cancel(ctx, id)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.encode(r); err != nil {
			return err
		}
		return withCode(overCode(r))
	}
	p := a.log()
	p.ending(r, remarksShown)
	p.line("%s", r.Result)
	return withCode(overCode(r))
}

// overCode is 0 for a session that is over with nothing left, whatever came of it.
func overCode(r *controller.Report) int {
	switch {
	case r.Code == controller.CodePower:
		return controller.CodePower
	case r.State == controller.StateRunning, len(r.Unfinished()) > 0:
		return controller.CodeSome
	}
	return exitOK
}
