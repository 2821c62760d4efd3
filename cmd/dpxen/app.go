package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/profile"
)

// Exit codes that the command line itself gives; those of a session are package controller's.
const (
	exitOK        = controller.CodeOK
	exitUsage     = controller.CodeUsage
	exitIntegrity = controller.CodeIntegrity
)

// app is what all commands share.
type app struct {
	out, err io.Writer
	version  string
	terminal bool // out is one: bars, and names as they are

	configPath string
	staging    string
	state      string
	json       bool
	profile    string // folder for profiles of this process
	wire       string // in place of the configuration's wire_compression

	stopProfile func() error

	dp *controller.DP // what Data Protector said, in its own commands
}

// codeError ends the program with a code when all was said already.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usagef is a mistake in what was typed: exit code 2.
func usagef(format string, args ...any) error {
	return &controller.UsageError{Failure: controller.Failure{Err: fmt.Errorf(format, args...)}}
}

// run is the program as a function: it prints to out and errOut and returns the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	a := &app{out: out, err: errOut, version: version, terminal: isTerminal(out)}
	root := a.root()
	root.SetArgs(args)
	err := a.execute(ctx, root)
	if err == nil {
		return exitOK
	}
	code, err := exitCode(err)
	a.complain(err)
	return code
}

// execute runs the command, and its profile where one is asked for.
func (a *app) execute(ctx context.Context, root *cobra.Command) (err error) {
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.profile == "" {
			return nil
		}
		stop, err := profile.Start(a.profile, "dpxen")
		if err != nil {
			return usagef("%w", err)
		}
		a.stopProfile = stop
		return nil
	}
	err = root.ExecuteContext(ctx)
	if a.stopProfile != nil {
		if failed := a.stopProfile(); failed != nil {
			fmt.Fprintf(a.err, "dpxen: profile: %v\n", failed) // it does not change what the command has come to
		}
	}
	return err
}

// exitCode takes an error apart into the code and what is still to be printed.
func exitCode(err error) (int, error) {
	if code, ok := errors.AsType[codeError](err); ok {
		return int(code), nil
	}
	return codeOf(err), err
}

// codeOf is the code of an error that brings none: by its class, as for a session that could not begin.
func codeOf(err error) int { return controller.ExitCode(nil, err) }

// withCode is nil for code 0; else it ends the program with the code and prints nothing more.
func withCode(code int) error {
	if code == exitOK {
		return nil
	}
	return codeError(code)
}

// commands returns every command.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.initCommand(),
		a.certsCommand(),
		a.hostsCommand(),
		a.vmsCommand(),
		a.planCommand(),
		a.backupCommand(),
		a.restoreCommand(),
		a.verifyCommand(),
		a.sessionsCommand(),
		a.showCommand(),
		a.cancelCommand(),
		a.rerunCommand(),
		a.repairCommand(),
		a.preExecCommand(),
		a.postExecCommand(),
		a.dpSpecCommand(),
		a.doctorCommand(),
		a.demoCommand(),
		a.versionCommand(),
	}
}

// addWire adds the flag of commands that move VMs' bytes.
func (a *app) addWire(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.wire, "wire-compression", "", "compress between agents and this client: `METHOD` zstd or none (default: the configured one)")
}

// load reads the configuration with what the command line sets in its place.
func (a *app) load() (*controller.Config, error) {
	if _, err := os.Stat(a.configPath); errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("there is no configuration %s: make one with `dpxen init`, or name it with --config", a.configPath)
	}
	return controller.LoadConfig(a.configPath, func(c *controller.Config) {
		if a.wire != "" {
			c.WireCompression = a.wire
		}
		for _, o := range []struct {
			path *string
			flag string
		}{{&c.Staging, a.staging}, {&c.State, a.state}} {
			if o.flag != "" {
				*o.path = absolute(o.flag)
			}
		}
	})
}

// absolute makes a path of the command line absolute. It stays as it is where the working folder is gone, which the
// configuration's check or the first use of it then tells.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// controller makes the controller of the configuration; whoever gets one closes it.
func (a *app) controller(observer controller.Observer) (*controller.Controller, error) {
	cfg, err := a.load()
	if err != nil {
		return nil, err
	}
	o := controller.Options{Observer: observer, Version: a.version}
	if a.dp != nil {
		o.DPSession, o.DPSpec = cmp.Or(a.dp.Session, a.dp.SessionKey), a.dp.Spec
		cfg.Timing.Heartbeat = min(cfg.Timing.Heartbeat, dpHeartbeat)
	}
	return controller.New(cfg, o)
}

// with runs f with the controller of the configuration.
func (a *app) with(f func(*controller.Controller) error) error {
	c, err := a.controller(nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // it has said all that was asked
	return f(c)
}

// root builds the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "dpxen",
		Short: "Back up and restore XenServer and XCP-ng VMs for Data Protector",
		Long: "dpxen backs up and restores the virtual machines of XenServer and XCP-ng hosts. Agents beside the hosts\n" +
			"stream them over mutual TLS into the staging folder of this machine, which Data Protector saves.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			switch near := cmd.SuggestionsFor(strings.Join(args, " ")); {
			case len(args) == 0:
				return nil
			case len(near) > 0:
				return fmt.Errorf("unknown command %q, did you mean %s?", args[0], strings.Join(near, " or "))
			}
			return fmt.Errorf("unknown command %q", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		a.dataProtectorReads(cmd)
		return usagef("%w (see `%s --help`)", err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVarP(&a.configPath, "config", "c", defaultConfig(), "configuration `FILE`")
	flags.StringVar(&a.staging, "staging", "", "staging folder `DIR` instead of the configured one")
	flags.StringVar(&a.state, "state", "", "state folder `DIR` instead of the configured one")
	flags.BoolVar(&a.json, "json", false, "print JSON")
	flags.StringVar(&a.profile, "profile", "", "write profiles of this process into `DIR`")
	if err := flags.MarkHidden("profile"); err != nil {
		panic(err) // the flag was added above
	}
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.HiddenDefaultCmd = true
	for _, add := range a.commands() {
		root.AddCommand(add)
	}
	a.usageArgs(root)
	return root
}

// usageArgs makes wrong arguments of every command exit with 2, as wrong flags do.
func (a *app) usageArgs(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = cmd.HasParent() && strings.Contains(cmd.Use, "--")
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return c.FlagErrorFunc()(c, err)
			}
			return nil
		}
	}
	for _, child := range cmd.Commands() {
		a.usageArgs(child)
	}
}

// configDir is the folder that holds the configuration, the authority and the controller's certificate.
func (a *app) configDir() string { return filepath.Dir(a.configPath) }
