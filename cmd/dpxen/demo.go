package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// demoTimeout bounds the whole demo; it takes less than a minute on two cores.
const demoTimeout = 10 * time.Minute

func (a *app) demoCommand() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Back up and restore a simulated pool of two hosts, and compare every disk",
		Long: "demo starts a simulated pool of two XenServer hosts (xensim), an agent beside each (dpxen-agent), and runs\n" +
			"this program's own commands against them: all four modes of backup and restore, on real data. It compares\n" +
			"every disk with what was backed up, checks identities and power states, that nothing is left on the hosts,\n" +
			"and leaves nothing running. It needs no configuration; the other programs are looked for beside this one.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.demo(cmd.Context(), keep)
		},
	}
	cmd.Flags().StringVar(&keep, "keep", "", "keep all files in `DIR`, and print the commands that repeat each step by hand")
	return cmd
}

// demo is `dpxen demo`.
func (a *app) demo(ctx context.Context, keep string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	d := &demo{app: a, dir: keep, began: time.Now()}
	if keep == "" {
		if d.dir, err = os.MkdirTemp("", "dpxen-demo-"); err != nil {
			return fmt.Errorf("create the demo's folder: %w", err)
		}
		defer os.RemoveAll(d.dir)
	} else if d.dir, err = emptyFolder(keep); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, part := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"A pool of two hosts, an agent beside each, and a controller", d.setUp},
		{"Online: snapshots of running machines", func(ctx context.Context) error { return d.round(ctx, "allOnline") }},
		{"Offline: whole machines, shut down and started again", func(ctx context.Context) error { return d.round(ctx, "allOffline") }},
		{"Selected machines", d.selected},
		{"A machine that was deleted", d.deleted},
		{"A file that was damaged", d.damaged},
		{"Nothing left behind", d.nothingLeft},
	} {
		d.title(part.title)
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("demo: %s: %w", strings.ToLower(part.title[:1])+part.title[1:], err)
		}
	}
	d.summary(keep)
	return nil
}

// emptyFolder makes the folder to keep, which must not hold anything yet.
func emptyFolder(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("--keep: %w", err)
	}
	if entries, err := os.ReadDir(abs); err == nil && len(entries) > 0 {
		return "", usagef("--keep %s: the folder is not empty", dir)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return "", fmt.Errorf("--keep: %w", err)
	}
	return abs, nil
}

// demo is one run of it.
type demo struct {
	*app
	dir       string
	self      string // this program
	config    string
	pool      poolInfo
	processes []*process
	commands  []string // what was run, for repeating by hand
	checks    []string // what was found right
	began     time.Time
	section   int
}

func (d *demo) title(text string) {
	d.section++
	fmt.Fprintf(d.out, "\n%d. %s\n%s\n", d.section, text, strings.Repeat("-", len(text)+3))
}

// right tells, and remembers, that something is as it should be.
func (d *demo) right(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.checks = append(d.checks, text)
	fmt.Fprintf(d.out, "  ok: %s\n", text)
}

// summary is what a user sees last.
func (d *demo) summary(keep string) {
	fmt.Fprintf(d.out, "\nAll is as it should be, in %.0f s:\n", time.Since(d.began).Seconds())
	for _, c := range d.checks {
		fmt.Fprintf(d.out, "  - %s\n", c)
	}
	if keep == "" {
		return
	}
	fmt.Fprintf(d.out, "\nThe files are in %s. To repeat each step by hand:\n\n"+
		"  # the pool has new certificates each time it is started: let the agents trust it\n"+
		"  sed -i 's/^  fingerprints:.*/  insecure: true/' %s\n\n"+
		"  # the pool and the agents, each in a terminal of its own\n", d.dir, d.path("etc")+"/xs*/agent.yaml")
	for _, p := range d.processes {
		fmt.Fprintf(d.out, "  %s\n", p.line)
	}
	fmt.Fprintf(d.out, "\n  # then\n")
	for _, c := range d.commands {
		fmt.Fprintf(d.out, "  %s\n", c)
	}
}
