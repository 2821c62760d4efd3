package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func (a *app) sessionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "sessions",
		Short:   "List sessions, the newest last",
		Long:    "sessions lists the sessions of the state folder, the newest last. `dpxen show ID` has all about one.",
		Example: "  dpxen sessions\n  dpxen sessions --json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.with(a.sessions) },
	}
}

func (a *app) sessions(c *controller.Controller) error {
	all, err := c.Sessions()
	if err != nil {
		return err
	}
	if a.json {
		return a.encode(orEmpty(all))
	}
	rows := [][]string{{"SESSION", "ACTION", "MODE", "STATE", "STARTED", "TOOK", "GOOD", "CODE", "RESULT"}}
	for _, s := range all {
		if s.Error != "" {
			rows = append(rows, []string{s.ID, "", "", "unreadable", "", "", "", "", s.Error})
			continue
		}
		rows = append(rows, []string{s.ID, string(s.Action), string(s.Mode), string(s.State), moment(s.Started), lasted(s),
			fmt.Sprintf("%d/%d", s.Counts.Good, s.Counts.Selected), codeText(s), resultText(s)})
	}
	withDP(rows, all)
	return a.text().table(rows)
}

// withDP adds a column about Data Protector's sessions where there are such.
func withDP(rows [][]string, all []controller.SessionSummary) {
	if !slices.ContainsFunc(all, func(s controller.SessionSummary) bool { return s.DPSession+s.DPSpec != "" }) {
		return
	}
	result := len(rows[0]) - 1 // which may be long, and stays the last
	rows[0] = slices.Insert(rows[0], result, "DATA PROTECTOR")
	for i, s := range all {
		rows[i+1] = slices.Insert(rows[i+1], result, strings.TrimSpace(s.DPSpec+" "+s.DPSession))
	}
}

func lasted(s controller.SessionSummary) string {
	if d := s.Took(); !s.Ended.IsZero() && d >= 0 {
		return took(d)
	}
	return ""
}

func codeText(s controller.SessionSummary) string {
	if s.Result == "" {
		return ""
	}
	return fmt.Sprint(s.Code)
}

// resultText is the word of the RESULT line, and what is left to be done.
func resultText(s controller.SessionSummary) string {
	text := ""
	if s.Result != "" {
		text = controller.ResultWord(s.Code)
	}
	if s.Open > 0 && s.State != controller.StateRunning {
		text = join(text, "unfinished, run dpxen repair")
	}
	return text
}

// lastSession is what stands for the newest session.
const lastSession = "last"

// sessionID returns the ID that is meant; last is the newest session that is wanted, else the newest of all.
func sessionID(c *controller.Controller, arg string, wanted func(controller.SessionSummary) bool) (string, error) {
	if arg != lastSession {
		return arg, nil
	}
	all, err := c.Sessions()
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", usagef("there is no session yet")
	}
	for _, s := range slices.Backward(all) {
		if wanted(s) {
			return s.ID, nil
		}
	}
	return all[len(all)-1].ID, nil
}
