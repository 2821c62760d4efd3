package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

// dpHelp is in the help of Data Protector's entry points.
const dpHelp = "What Data Protector says in its environment (DATALIST, MODE, OWNER, PREVIEW, RESTARTED, SESSIONID, SESSIONKEY, SMEXIT,\n" +
	"BDACC) is taken where it is there; a flag wins over it. Everything is printed to standard output in short ASCII\n" +
	"lines, one a minute at least.\n"

func (a *app) preExecCommand() *cobra.Command {
	var dp dpFlags
	var f backupFlags
	cmd := &cobra.Command{
		Use:   "pre-exec [--spec NAME] [--mode MODE] [selectors]",
		Short: "Data Protector's pre-exec: stage the VMs of a backup specification",
		Long: "pre-exec is started by Data Protector before it saves the staging folder. Mode, selection and policy come from\n" +
			"the configuration's section of the specification, or from spec_defaults; flags win. It repairs what a crashed\n" +
			"session left (which after an agent's death may take two leases, 4 minutes), deletes files that nobody needs any more,\n" +
			"and backs the VMs up. In a preview it prints the plan.\n\n" +
			dpHelp + "\nExit code: 0 lets Data Protector save what is staged (some VMs, with `partial: save`); else a failure, -1 on\n" +
			"Windows. The last line has the session's own code, which post-exec returns.\n",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{forDP: ""},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.forDataProtector(func() error { return a.preExec(cmd, &dp, &f) })
		},
	}
	dp.add(cmd, false)
	f.add(cmd)
	a.mistyped(cmd, func(wrong error) error { return wrong })
	return cmd
}

// forDP annotates commands that Data Protector starts: their errors too go to standard output.
const forDP = "dpxen/data-protector"

// dataProtectorReads sends errors to standard output where the command is one of Data Protector's, which on UNIX drops the
// standard error.
func (a *app) dataProtectorReads(cmd *cobra.Command) {
	spec := cmd.Flags().Lookup(specFlag)
	if _, is := cmd.Annotations[forDP]; is || spec != nil && spec.Changed {
		a.err = a.out
	}
}

// forDataProtector runs a command with output as Data Protector takes it, and its exit codes.
func (a *app) forDataProtector(run func() error) error {
	if a.json { // for a script, which takes lines as they are
		return dpError(a, run())
	}
	lines := newDPLines(a.out, dpSilence)
	a.out, a.err, a.terminal = lines, lines, false
	err := dpError(a, run())
	lines.close()
	return err
}

// mistyped makes wrong flags and arguments of a command of Data Protector's end as its other failures do: on Windows it takes
// no other exit code for one, and would save the folder as it is.
func (a *app) mistyped(cmd *cobra.Command, end func(wrong error) error) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return a.forDataProtector(func() error { return end(cmd.Parent().FlagErrorFunc()(cmd, err)) })
	})
}

// dpError prints what is still to be said of an error, and makes an exit code for Data Protector of it.
func dpError(a *app, err error) error {
	if err == nil {
		return nil
	}
	code, err := exitCode(err)
	exit := dpExit(code, runtime.GOOS)
	if a.complain(err); err != nil && !a.json { // the last line is the same as of a session, which has said its own
		a.log().line("%s", dpSays(exit, "nothing was begun"))
		a.log().line("%s", controller.ResultLine(nil, code))
	}
	return codeError(exit)
}

func (a *app) preExec(cmd *cobra.Command, flags *dpFlags, f *backupFlags) error {
	dp, wrong := flags.dp(cmd)
	a.dp = &dp
	if wrong == nil && dp.Preview {
		return a.preview(cmd, dp, f)
	}
	s := &session{action: controller.ActionBackup}
	var spec controller.Spec
	s.verdict = func(r *controller.Report, code int) (exit int, says string) {
		good := r.Counts().Good
		why := fmt.Sprintf("%s staged for it to save, post-exec returns the session's code", plural(good, "file"))
		if !spec.PartialOK(r, code) {
			exit = dpExit(max(code, 1), runtime.GOOS)
			why = fmt.Sprintf("%s staged", plural(good, "file"))
			if good > 0 {
				why += ", but the specification wants all VMs (partial: fail)"
			}
		}
		return exit, dpSays(exit, why)
	}
	return a.session(cmd.Context(), s, func(ctx context.Context, begin beginFunc) (*controller.Report, error) {
		if wrong != nil {
			return nil, wrong
		}
		c, err := begin()
		if err != nil {
			return nil, err
		}
		spec, _ = c.Config().Spec(dp.Spec)
		req, err := f.specRequest(cmd, dp.Spec, spec)
		s.mode = req.Mode
		if err != nil {
			return nil, err
		}
		return c.PreExec(ctx, dp, req)
	})
}

// preview prints what a backup would do.
func (a *app) preview(cmd *cobra.Command, dp controller.DP, f *backupFlags) error {
	return a.with(func(c *controller.Controller) error {
		spec, _ := c.Config().Spec(dp.Spec)
		req, err := f.specRequest(cmd, dp.Spec, spec)
		if err != nil {
			return err
		}
		a.log().line("preview: nothing is changed; a backup %s would do this:", req.Mode)
		err = a.plan(cmd.Context(), c, req, planOutput{})
		if code, _ := exitCodeOf(err); code == controller.CodeSome {
			return nil // Data Protector would save those that can be begun
		}
		return err
	})
}

// exitCodeOf is exitCode for an error that may be nil.
func exitCodeOf(err error) (int, error) {
	if err == nil {
		return exitOK, nil
	}
	return exitCode(err)
}

// specRequest is what the flags ask for, and the specification where they are silent.
func (f *backupFlags) specRequest(cmd *cobra.Command, name string, spec controller.Spec) (controller.Request, error) {
	f.mode = cmp.Or(f.mode, spec.Mode)
	if mode, err := controller.ParseMode(f.mode); err == nil && mode.Kind() == controller.KindOffline {
		f.offlineSnapshot = f.offlineSnapshot || spec.OfflineSnapshot
	}
	req, err := f.request(cmd)
	if err == nil && req.Selection.Empty() {
		own := req.Selection.Exclude
		req.Selection = spec.Selection(name, req.Mode)
		req.Selection.Exclude = slices.Concat(req.Selection.Exclude, own)
		if req.Selection.Empty() && !req.Mode.All() {
			err = usagef("mode %s needs to know which VMs: name a set with `select:` in the specification's section, or give --vm, --tag or --set", req.Mode)
		}
	}
	return req, err
}
