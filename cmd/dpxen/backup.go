package main

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dpxen/dpxen/controller"
)

// codesHelp is in the help of the commands that run a session.
const codesHelp = "The last line is RESULT OK|WARN|PARTIAL|FAILED|CANCELLED|REFUSED code=N good=A/B session=ID; with --json every\n" +
	"line is an event and the last one is of type summary. Ctrl-C cancels and cleans up; so does `dpxen cancel ID`.\n\n" +
	"Exit code: 0 all good, 4 all good with warnings, 3 some VMs, or not all agents have answered, 1 none;\n" +
	"20 a VM is not in its former power state, 130 cancelled, 5 damaged data; before anything is touched: 2 usage or\n" +
	"configuration, 11 another session is at work, 12 authentication, 10 unreachable, 6 no room or another obstacle.\n"

// planHelp is in the help of backup.
const planHelp = "With --plan the mode, the VMs and all else are those of the plan that was saved. Where a VM is gone, has other\n" +
	"disks, would not be chosen any more or would be treated in another way, nothing is done and all of that is listed\n" +
	"(exit code 6). VMs that have moved within their pool are followed; VMs that would be chosen now and are not in the plan\n" +
	"are noted, and not backed up.\n"

// planned is what the flags ask for: a plan that was saved, or a mode and selectors.
func (f *backupFlags) planned(cmd *cobra.Command, file string) (controller.Request, error) {
	if !cmd.Flags().Changed("plan") {
		return f.request(cmd)
	}
	var other error
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if flag.Name != "plan" && other == nil && cmd.InheritedFlags().Lookup(flag.Name) == nil {
			other = usagef("--plan says all that is to be done: leave --%s out, or make the plan with it", flag.Name)
		}
	})
	if other != nil {
		return controller.Request{}, other
	}
	saved, err := controller.LoadPlan(file)
	if err != nil {
		return controller.Request{}, err
	}
	req := saved.Request
	req.Saved = saved
	return req, nil
}

func (a *app) backupCommand() *cobra.Command {
	var f backupFlags
	var plan string
	cmd := &cobra.Command{
		Use:   "backup --mode MODE [selectors] | --plan FILE",
		Short: "Back up VMs into the staging folder",
		Long: "backup exports VMs into the staging folder and proves every block on the way. Online modes export a snapshot;\n" +
			"offline modes shut a running VM down cleanly for the export and start it again.\n\n" + selectorHelp + "\n" + planHelp + "\n" + codesHelp,
		Example: "  dpxen backup --mode allOnline\n" +
			"  dpxen backup --mode online --vm web-01 --vm 'db-*'\n" +
			"  dpxen backup --mode offline --set tier1 --exclude db-test\n" +
			"  dpxen plan --mode offline --set tier1 --save tonight.plan && dpxen backup --plan tonight.plan",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &session{action: controller.ActionBackup}
			return a.session(cmd.Context(), s, func(ctx context.Context, begin beginFunc) (*controller.Report, error) {
				req, err := f.planned(cmd, plan)
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
	a.addWire(cmd)
	cmd.Flags().StringVar(&plan, "plan", "", "do what the plan in `FILE` says, which dpxen plan --save has written")
	return cmd
}
