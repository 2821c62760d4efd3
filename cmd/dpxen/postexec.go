package main

import (
	"cmp"
	"context"
	"errors"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) postExecCommand() *cobra.Command {
	var flags dpFlags
	cmd := &cobra.Command{
		Use:   "post-exec [--spec NAME]",
		Short: "Data Protector's post-exec: end the session that pre-exec began",
		Long: "post-exec is started by Data Protector after it has saved the staging folder. Where it says so clearly (SMEXIT 0,\n" +
			"or BDACC 0 at object level), the session's files are deleted, but for the newest keep_sets; else they stay. What a\n" +
			"pre-exec that died has left is repaired. It may run again without harm.\n\n" + dpHelp +
			"\nExit code: the session's code; 4 becomes 0 unless `warnings: fail`, 130 becomes 1; failures are -1 on Windows; 0\n" +
			"at object level, where a failure would make Data Protector call a good object aborted.\n",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{forDP: ""},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.forDataProtector(func() error { return a.postExec(cmd, &flags, nil) })
		},
	}
	flags.add(cmd, true)
	cmd.Flags().BoolVar(&flags.object, "dp-object", false, "the command is of the object level (default: where BDACC is given and SMEXIT is not)")
	a.mistyped(cmd, func(wrong error) error { return a.postExec(cmd, &flags, wrong) })
	return cmd
}

// postExec ends the session, but for a command line that is wrong.
func (a *app) postExec(cmd *cobra.Command, flags *dpFlags, wrong error) error {
	dp, err := flags.dp(cmd)
	err = cmp.Or(wrong, err)
	if err == nil && dp.Preview {
		a.log().line("preview: nothing to do")
		return nil
	}
	a.dp = &dp
	res := &controller.PostExecResult{Object: dp.ObjectLevel(), Code: codeOf(err)} // of one that cannot begin
	if err == nil {
		res, err = a.endSession(cmd.Context(), dp)
	}
	p := a.log()
	if r := res.Report; r != nil {
		p.ending(r, remarksShown)
	}
	a.complain(err)
	for _, text := range res.Lines {
		p.line("NOTE    %s", oneLine(text))
	}
	code := res.Code
	if err != nil {
		code = max(code, controller.CodeNone)
	}
	exit := dpExit(code, runtime.GOOS)
	why := "the session's result"
	if r := res.Report; r != nil && err == nil && r.State != controller.StateDone {
		why = "the session died before its end"
	}
	if res.Object && exit != 0 {
		exit, why = 0, "at object level a failure would make a good object an aborted one; the session's result is below"
	}
	p.line("%s", dpSays(exit, why))
	resultCode := code
	if res.Report != nil && err == nil && !res.Report.Ended.IsZero() { // one that died has no code before it is repaired
		resultCode = res.Report.Code
	}
	p.line("%s", controller.ResultLine(res.Report, resultCode))
	return withCode(exit)
}

// endSession has the controller end the session that pre-exec began.
func (a *app) endSession(ctx context.Context, dp controller.DP) (*controller.PostExecResult, error) {
	c, err := a.controller(nil)
	if err != nil {
		return &controller.PostExecResult{Object: dp.ObjectLevel(), Code: codeOf(err)}, err
	}
	res, err := c.PostExec(ctx, dp)
	return res, errors.Join(err, c.Close())
}
