package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is a program that the demo has started and ends.
type process struct {
	cmd  *exec.Cmd
	line string
	done chan error
	log  *os.File
}

// start starts a program with its log in the demo's folder. The first line that it prints is returned where wanted.
func (d *demo) start(ctx context.Context, name, log string, wantLine bool, args ...string) (string, error) {
	path, err := d.sibling(name)
	if err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(d.dir, log))
	if err != nil {
		return "", fmt.Errorf("create the log of %s: %w", name, err)
	}
	// Not bound to ctx: it ends by stop, so that agents can clean up.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), path, args...)
	cmd.Stderr = f
	var out io.Reader
	if wantLine {
		if out, err = cmd.StdoutPipe(); err != nil {
			return "", errors.Join(err, f.Close())
		}
	} else {
		cmd.Stdout = f
	}
	if err := cmd.Start(); err != nil {
		return "", errors.Join(fmt.Errorf("start %s: %w", name, err), f.Close())
	}
	p := &process{cmd: cmd, line: shellLine(path, args), done: make(chan error, 1), log: f}
	d.processes = append(d.processes, p)
	line := ""
	if wantLine {
		lines := bufio.NewReader(out)
		line, err = lines.ReadString('\n')
		if err != nil {
			err = fmt.Errorf("%s ended before it was ready; see %s: %w", name, f.Name(), err)
		}
		go func() { _, _ = io.Copy(io.Discard, lines); p.done <- cmd.Wait() }() // it says nothing more
	} else {
		go func() { p.done <- cmd.Wait() }()
	}
	return line, err
}

// sibling finds one of our programs beside this one.
func (d *demo) sibling(name string) (string, error) {
	path := filepath.Join(filepath.Dir(d.self), name+filepath.Ext(d.self))
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not beside %s: build all programs with `make build`: %w", name, filepath.Base(d.self), err)
	}
	return path, nil
}

// stop ends everything that was started, the last first.
func (d *demo) stop() error {
	var errs []error
	for i := len(d.processes) - 1; i >= 0; i-- {
		p := d.processes[i]
		if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, p.cmd.Process.Kill()) // a system without that signal
		}
		select {
		case err := <-p.done:
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(p.cmd.Path), err))
			}
		case <-time.After(30 * time.Second):
			errs = append(errs, fmt.Errorf("%s did not end: %w", filepath.Base(p.cmd.Path), p.cmd.Process.Kill()))
		}
		errs = append(errs, p.log.Close())
	}
	return errors.Join(errs...)
}

// run runs one of this program's own commands and shows it as a user would type it. The exit code must be want.
func (d *demo) run(ctx context.Context, want int, args ...string) error {
	args = append([]string{"-c", d.config}, args...)
	line := shellLine(d.self, args)
	d.commands = append(d.commands, line)
	fmt.Fprintf(d.out, "\n$ dpxen %s\n", strings.TrimPrefix(shellLine("", args), " "))
	cmd := exec.CommandContext(ctx, d.self, args...)
	cmd.Stdout, cmd.Stderr = d.out, d.out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("run %s: %w", line, err)
	}
	if code := cmd.ProcessState.ExitCode(); code != want {
		return fmt.Errorf("%s ended with exit code %d instead of %d", line, code, want)
	}
	return nil
}

// shellLine writes a command line that a shell understands.
func shellLine(name string, args []string) string {
	parts := []string{name}
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\$`*?[]{}()<>|&;#~!") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		parts = append(parts, a)
	}
	return strings.Join(parts, " ")
}

// freePort finds a loopback address that nobody listens on.
func freePort(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil || !ok {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(addr.Port)), nil
}

// ready waits until somebody listens on an address.
func ready(ctx context.Context, addr string) error {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", addr, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
