// Command dpxen-agent is the service beside a XenServer host: it streams its
// pool's virtual machines to and from dpxen controllers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/term"

	"github.com/dpxen/dpxen/agent"
	"github.com/dpxen/dpxen/internal/profile"
)

// version is set by the build.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("dpxen-agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "/etc/dpxen/agent.yaml", "the configuration `file`; its limits: bound memory, CPUs, niceness and bandwidth")
	check := flags.Bool("check", false, "try the configuration, the certificates and XAPI, and exit")
	profiles := flags.String("profile", "", "write profiles of this process into the folder `dir` at its end")
	show := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return agent.CodeGood
		}
		return agent.CodeConfig
	}
	switch {
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "dpxen-agent: unexpected argument %q\n", flags.Arg(0))
		return agent.CodeConfig
	case *show:
		fmt.Fprintf(stdout, "dpxen-agent %s\n", version)
		return agent.CodeGood
	case *check:
		return runCheck(ctx, *path, stdout)
	}
	if *profiles != "" {
		stop, err := profile.Start(*profiles, "dpxen-agent")
		if err != nil {
			fmt.Fprintf(stderr, "dpxen-agent: %v\n", err)
			return agent.CodeConfig
		}
		defer func() {
			if err := stop(); err != nil {
				fmt.Fprintf(stderr, "dpxen-agent: profile: %v\n", err)
			}
		}()
	}
	return serve(ctx, *path, stderr)
}

func runCheck(ctx context.Context, path string, stdout io.Writer) int {
	code := agent.CodeGood
	for _, result := range agent.Check(ctx, path) {
		fmt.Fprintln(stdout, result)
		code = result.Code
	}
	return code
}

func serve(ctx context.Context, path string, stderr io.Writer) int {
	cfg, err := agent.LoadConfig(path)
	if err != nil {
		fmt.Fprintf(stderr, "dpxen-agent: %v\n", err)
		return agent.CodeConfig
	}
	if err := cfg.Limits.Apply(); err != nil {
		fmt.Fprintf(stderr, "dpxen-agent: %v\n", err)
		return agent.CodeConfig
	}
	log := newLogger(cfg.Log, stderr)
	a, err := agent.New(*cfg, log)
	if err != nil {
		fmt.Fprintf(stderr, "dpxen-agent: %v\n", err)
		return agent.CodeConfig
	}
	a.SetVersion(version)
	if err := a.Serve(ctx, nil); err != nil {
		log.Error("agent failed", "err", err)
		return agent.CodeFailed
	}
	return agent.CodeGood
}

// newLogger writes JSON, or text where a person reads along.
func newLogger(c agent.LogConfig, stderr io.Writer) hclog.Logger {
	file, ok := stderr.(*os.File)
	terminal := ok && term.IsTerminal(int(file.Fd()))
	return hclog.New(&hclog.LoggerOptions{Name: "dpxen-agent", Level: hclog.LevelFromString(c.Level), Output: stderr,
		JSONFormat: c.Format == "json" || (c.Format == "" && !terminal)})
}
