// Command dpxen is the controller: it backs up and restores XenServer VMs through the agents beside their hosts, and
// is what Data Protector starts as pre-exec and post-exec.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "development"

func main() { os.Exit(program()) }

// program runs with the process's own arguments and streams. The first signal cancels, and what was begun is cleaned up;
// the second one ends the process at once. A reader of our output that goes away is no reason to leave VMs shut down.
func program() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signal.Ignore(syscall.SIGPIPE)
	ending := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup wants it ignored
		ending = append(ending, syscall.SIGHUP)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, ending...)
	go func() {
		<-signals
		signal.Reset(ending...)
		_, _ = os.Stderr.WriteString("dpxen: cancelling, cleaning up; a second signal ends at once and leaves the rest to dpxen repair\n")
		cancel()
	}()
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
