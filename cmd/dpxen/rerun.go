package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) rerunCommand() *cobra.Command {
	var failed string
	cmd := &cobra.Command{
		Use:   "rerun --failed ID|last",
		Short: "Run a session again for the VMs that did not become good",
		Long: "rerun begins a new session with the mode, selection and options of another one, for those of its VMs that failed,\n" +
			"were refused or cancelled, or were never begun. Restores use the same files again. What a session that died has\n" +
			"left is repaired first. VMs that an earlier rerun has made good are not done again; where none is left, nothing is\n" +
			"done and the exit code is 0. Reports and manifests name the former session. One that runs is refused (11).\n\n" +
			"After a session of Data Protector the files carry its specification and session, but Data Protector knows nothing\n" +
			"of them: see docs/data-protector.md.\n\n" + codesHelp,
		Example: "  dpxen rerun --failed last\n  dpxen rerun --failed 20261122T203000Z-3fa91c",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if failed == "" {
				return usagef("--failed is missing: name a session (see `dpxen sessions`), or last")
			}
			return a.rerun(cmd.Context(), failed)
		},
	}
	cmd.Flags().StringVar(&failed, "failed", "", "the session `ID` that is run again, or last")
	return cmd
}

func (a *app) rerun(ctx context.Context, arg string) error {
	s := &session{action: controller.ActionBackup}
	nothing := ""
	s.verdict = func(_ *controller.Report, code int) (int, string) { return code, nothing }
	return a.session(ctx, s, func(ctx context.Context, begin beginFunc) (*controller.Report, error) {
		c, err := begin()
		if err != nil {
			return nil, err
		}
		id, err := sessionID(c, arg, func(s controller.SessionSummary) bool { return s.Action != "" && s.State != controller.StateRunning })
		if err != nil {
			return nil, err
		}
		former, err := c.Former(id)
		if errors.Is(err, controller.ErrNothingToRerun) {
			nothing = "nothing to do: " + err.Error()
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		s.action, s.mode = former.Report.Action, former.Report.Mode
		return c.Rerun(ctx, former)
	})
}
