package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// program is a process of its own, measured by the operating system's accounting.
type program struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, once done
	out  *bytes.Buffer
}

// launch starts a program whose output is kept for the case that it fails.
func launch(path string, args ...string) (*program, error) {
	p := &program{cmd: exec.Command(path, args...), done: make(chan struct{}), out: &bytes.Buffer{}}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.await()
	return p, nil
}

// launchTelling starts a program whose first line on standard output says that it is ready.
func launchTelling(path string, args ...string) (*program, string, error) {
	p := &program{cmd: exec.Command(path, args...), done: make(chan struct{}), out: &bytes.Buffer{}}
	p.cmd.Stderr = p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, "", err
	}
	line, err := bufio.NewReader(pipe).ReadString('\n')
	go p.await()
	if err != nil {
		<-p.done
		return nil, "", fmt.Errorf("%s: %w: %s", filepath.Base(path), err, p.out)
	}
	return p, line, nil
}

func (p *program) await() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// wait waits for the end; a code other than 0 and those of also is an error.
func (p *program) wait(also ...int) error {
	<-p.done
	for _, code := range also {
		if p.cmd.ProcessState.ExitCode() == code {
			return nil
		}
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w:\n%s", strings.Join(p.cmd.Args, " "), p.err, p.out)
	}
	return nil
}

// stop ends a service.
func (p *program) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it fails only when the process has ended
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// usage is what a process has taken of the machine.
type usage struct {
	cpu  float64 // seconds, user and system
	peak int64   // KiB resident
}

// now reads a running process's CPU time so far and its peak since the last forget.
func (p *program) now() (usage, error) {
	var u usage
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return u, err
	}
	// The name, in parentheses, may hold anything; utime and stime are the 12th and 13th fields after it.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += float64(ticks) / 100 // USER_HZ is 100 on Linux
	}
	u.peak = p.peak()
	return u, nil
}

// peak is the most memory that a running process has had, in KiB, and 0 when it has ended.
func (p *program) peak() int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return n
		}
	}
	return 0
}

// forget begins the peak anew.
func (p *program) forget() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// ended is the usage of programs that run to their end: CPU summed up, the peaks too, for they run at the same time.
func ended(programs []*program, also ...int) (usage, error) {
	peaks := make([]int64, len(programs))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i, p := range programs {
		for running := true; running; {
			for j, other := range programs {
				peaks[j] = max(peaks[j], other.peak())
			}
			select {
			case <-p.done:
				running = false
			case <-tick.C:
			}
		}
		if err := programs[i].wait(also...); err != nil {
			return usage{}, err
		}
	}
	var u usage
	for i, p := range programs {
		u.cpu += (p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()).Seconds()
		u.peak += peaks[i]
	}
	return u, nil
}
