package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// process is a program that runs on its own; what it says goes to a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // path of the file with both outputs
	done chan struct{}
}

// spawn starts a program in a folder. With first, its first line on standard output is returned and the rest discarded.
func spawn(dir, log string, first bool, env []string, path string, args ...string) (*process, string, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = out.Close() }() // the process has its own
	p := &process{name: filepath.Base(path), log: log, done: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, out
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var lines *bufio.Reader
	if first {
		p.cmd.Stdout = nil
		pipe, err := p.cmd.StdoutPipe()
		if err != nil {
			return nil, "", err
		}
		lines = bufio.NewReader(pipe)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, "", err
	}
	line := ""
	if first {
		line, err = lines.ReadString('\n')
	}
	go func() {
		defer close(p.done)
		if lines != nil {
			_, _ = io.Copy(io.Discard, lines)
		}
		_ = p.cmd.Wait() // what matters is in ProcessState
	}()
	if err != nil {
		return nil, "", fmt.Errorf("%s ended before it was ready: %w", p.name, err)
	}
	return p, line, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal tells whether the process was there to get it.
func (p *process) signal(sig os.Signal) bool {
	return p.running() && !errors.Is(p.cmd.Process.Signal(sig), os.ErrProcessDone)
}

// kill sends SIGKILL, waits for the end, and tells whether that is what the process died of.
func (p *process) kill() bool {
	if !p.signal(syscall.SIGKILL) {
		return false
	}
	<-p.done
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// wait waits for the end; false when it did not come in time.
func (p *process) wait(limit time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(limit):
		return false
	}
}

// end ends a process for good.
func (p *process) end() {
	if p == nil {
		return
	}
	p.signal(syscall.SIGCONT)
	p.signal(syscall.SIGTERM)
	if !p.wait(5 * time.Second) {
		p.signal(syscall.SIGKILL)
		<-p.done
	}
}

// code is the exit code of a process that has ended, or -1 where a signal ended it.
func (p *process) code() int { return p.cmd.ProcessState.ExitCode() }

// crashed tells whether the process ended by a signal or by a failpoint or panic, and not in a way of its own.
func (p *process) crashed() bool {
	code := p.code()
	return code == -1 || code == 2 && p.cmd.ProcessState.Exited() && p.panicked() || code == failpointCode
}

// failpointCode is what a process ends with at a failpoint of the kind crash.
const failpointCode = 86

func (p *process) panicked() bool {
	data, err := os.ReadFile(p.log)
	return err == nil && (containsAny(string(data), "\npanic: ", "\nfatal error: ", "goroutine 1 ["))
}
