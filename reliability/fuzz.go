package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dpxen/dpxen/reliability/ledger"
)

var (
	fuzzTarget = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	fuzzRuns   = regexp.MustCompile(`elapsed: (\w+), execs: (\d+)`)
)

// fuzzed is a fuzz target of the module.
type fuzzed struct {
	pkg, target string
	seconds     int64 // that earlier runs have fuzzed it
}

// name is what the ledger calls it.
func (f fuzzed) name() string { return f.pkg[strings.LastIndex(f.pkg, "/")+1:] + "." + f.target }

// fuzzTargets lists those whose names match, the least fuzzed first.
func fuzzTargets(cfg *settings) ([]fuzzed, error) {
	wanted, err := regexp.Compile(cfg.targets)
	if err != nil {
		return nil, fmt.Errorf("--targets: %w", err)
	}
	sums := map[string]int64{}
	if cfg.ledgerPath != "" {
		if sums, err = ledger.Sums(cfg.ledgerPath); err != nil {
			return nil, err
		}
	}
	list, err := goTool("list", "-f", "{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}\n{{end}}{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}\n{{end}}", "./...")
	if err != nil {
		return nil, fmt.Errorf("go list: %s: %w", list, err)
	}
	var all []fuzzed
	for _, line := range strings.Fields(strings.ReplaceAll(list, " ", "|")) {
		pkg, file, _ := strings.Cut(line, "|")
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, m := range fuzzTarget.FindAllStringSubmatch(string(data), -1) {
			f := fuzzed{pkg: pkg, target: m[1]}
			f.seconds = sums[ledger.FuzzSeconds+f.name()]
			if wanted.MatchString(f.name()) {
				all = append(all, f)
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no fuzz target matches --targets %q", cfg.targets)
	}
	slices.SortFunc(all, func(a, b fuzzed) int {
		return cmp.Or(cmp.Compare(a.seconds, b.seconds), cmp.Compare(a.name(), b.name()))
	})
	return all, nil
}

// runFuzz fuzzes target after target; what each came to goes to the ledger at once, so that an interrupt loses nothing.
func runFuzz(cfg *settings, commit string) error {
	targets, err := fuzzTargets(cfg)
	if err != nil {
		return err
	}
	for _, f := range targets {
		if stopped() {
			return nil
		}
		one, began := newTally(), time.Now()
		err := f.run(cfg, one)
		if noted := record(cfg, began, commit, one); err != nil || noted != nil {
			return errors.Join(err, noted)
		}
	}
	return nil
}

// fuzzedFor reads the last line in which the fuzzer tells how long it has run, and how often: building is not in it.
func fuzzedFor(out string) (took time.Duration, runs int64, err error) {
	all := fuzzRuns.FindAllStringSubmatch(out, -1)
	if len(all) == 0 {
		return 0, 0, nil
	}
	last := all[len(all)-1]
	if took, err = time.ParseDuration(last[1]); err != nil {
		return 0, 0, err
	}
	runs, err = strconv.ParseInt(last[2], 10, 64)
	return took, runs, err
}

// run fuzzes one target for the time that was asked for, or until the program is told to end.
func (f fuzzed) run(cfg *settings, t *tally) error {
	// Built beforehand, so that the compiler's processor time is not taken for the fuzzer's.
	if built, err := exec.Command("go", "test", "-c", "-o", os.DevNull, "-fuzz", "^"+f.target+"$", f.pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", f.name(), err, built)
	}
	var out bytes.Buffer
	cmd := exec.Command("go", "test", "-run", "^$", "-fuzz", "^"+f.target+"$", "-fuzztime", cfg.fuzz.String(),
		"-parallel", strconv.Itoa(max(1, cfg.parallel)), "-fuzzminimizetime", "20x", f.pkg)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	err, ended := error(nil), false
	for told := false; !ended; {
		select {
		case err = <-done:
			ended = true
		case <-time.After(100 * time.Millisecond):
			if stopped() && !told {
				told = true
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // go, the test and its workers; they may have ended
			}
		}
	}
	text := out.String()
	took, runs, bad := fuzzedFor(text)
	if bad != nil {
		return bad
	}
	if runs > 0 {
		t.add(ledger.FuzzSeconds+f.name(), int64(took.Seconds()))
		t.add(ledger.FuzzRuns+f.name(), runs)
		t.add(ledger.FuzzCPU+f.name(), int64((cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()))
	}
	fmt.Printf("%s: %s\n", f.name(), lastLine(text))
	if err != nil && (!stopped() || strings.Contains(text, "Failing input")) {
		t.add("violations", 1)
		fmt.Println(text)
		return fmt.Errorf("%s: %w", f.name(), errViolations)
	}
	return nil
}
