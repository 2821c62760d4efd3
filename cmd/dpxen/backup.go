package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

// codesHelp is in the help of the commands that run a session.
const codesHelp = "The last line is RESULT OK|WARN|PARTIAL|FAILED|CANCELLED|REFUSED code=N good=A/B session=ID; with --json every\n" +
	"line is an event and the last one is of type summary. Ctrl-C cancels and cleans up; so does `dpxen cancel ID`.\n\n" +
	"Exit code: 0 all good, 4 all good with warnings, 3 some VMs, 1 none; 20 a VM is not in its former power state,\n" +
	"130 cancelled, 5 damaged data; before anything is touched: 2 usage or configuration, 11 another session is at\n" +
	"work, 12 authentication, 10 unreachable, 6 no room or another obstacle.\n"

func (a *app) backupCommand() *cobra.Command {
	var f backupFlags
	cmd := &cobra.Command{
		Use:   "backup --mode MODE [selectors]",
		Short: "Back up VMs into the staging folder",
		Long: "backup exports VMs into the staging folder and proves every block on the way. Online modes export a snapshot;\n" +
			"offline modes shut a running VM down cleanly for the export and start it again.\n\n" + selectorHelp + "\n" + codesHelp,
		Example: "  dpxen backup --mode allOnline\n" +
			"  dpxen backup --mode online --vm web-01 --vm 'db-*'\n" +
			"  dpxen backup --mode offline --set tier1 --exclude db-test",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &session{action: controller.ActionBackup}
			return a.session(cmd.Context(), s, func(ctx context.Context, begin beginFunc) (*controller.Report, error) {
				req, err := f.request(cmd)
				s.mode = req.Mode
				if err != nil {
					return nil, err
				}
				c, err := begin()
				if err != nil {
					return nil, err
				}
				return c.Backup(ctx, req)
			})
		},
	}
	f.add(cmd)
	return cmd
}
