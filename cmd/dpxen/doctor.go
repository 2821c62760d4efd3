package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) doctorCommand() *cobra.Command {
	o := controller.DoctorOptions{DP: controller.DefaultDPHost()}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look whether everything that a session needs is in order",
		Long: "doctor looks at the configuration, certificates and their days left, the staging, restore and state folders,\n" +
			"sessions that died, the agents with their clocks and versions, XAPI's answer, pools and their masters, storage,\n" +
			"each specification's plan, and Data Protector's own switches on this machine. It prints a line a check, PASS,\n" +
			"WARN or FAIL, with what to do. It changes nothing but a probe file in the staging folder, which it removes, and\n" +
			"ends in time also where no agent answers.\n\n" +
			"Run it as the user that Data Protector runs the commands as.\n\n" +
			"Exit code: 0 all pass, 4 some warn, 1 one fails.",
		Example: "  dpxen doctor\n  dpxen doctor --json | jq '.checks[] | select(.status != \"PASS\")'",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.DurationVar(&o.Limit, "limit", time.Minute, "all that agents are asked takes `TIME` at most")
	flags.StringVar(&o.DP.Home, "dp-home", o.DP.Home, "folder `DIR` of Data Protector on this machine")
	flags.StringVar(&o.DP.Global, "dp-global", o.DP.Global, "`FILE` of the Cell Manager's global options, where this machine is one")
	return cmd
}

// doctorDocument is what `doctor --json` prints.
type doctorDocument struct {
	Status controller.CheckStatus `json:"status"`
	Checks []controller.Check     `json:"checks"`
}

func (a *app) doctor(ctx context.Context, o controller.DoctorOptions) error {
	cfg, err := a.load()
	if err != nil {
		cfg = nil
	}
	o.Version = a.version
	checks := controller.Doctor(ctx, cfg, err, o)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("doctor: %w", err)
	}
	code := controller.CheckCode(checks)
	status := map[int]controller.CheckStatus{exitOK: controller.CheckPass, controller.CodeWarnings: controller.CheckWarn}[code]
	if status == "" {
		status = controller.CheckFail
	}
	if a.json {
		if err := a.encode(doctorDocument{Status: status, Checks: checks}); err != nil {
			return err
		}
		return withCode(code)
	}
	p, by := a.text(), map[controller.CheckStatus]int{}
	for _, c := range checks {
		by[c.Status]++
		text := strings.TrimSpace(c.Name+" "+c.Subject) + ": " + c.Text
		if c.Advice != "" {
			text += ". Do: " + c.Advice
		}
		p.line("%s  %s", c.Status, text)
	}
	p.line("DOCTOR %s: %d PASS, %d WARN, %d FAIL", status, by[controller.CheckPass], by[controller.CheckWarn], by[controller.CheckFail])
	return withCode(code)
}
