// Command bench measures dpxen against curl, which is what a user would do without it, on one machine and in one run: a
// simulated pool, an agent and the controller as processes of their own. It knows dpxen from outside only.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// settings are what the flags say.
type settings struct {
	bin, work, memory string
	document, plot    string
	rounds            int
	size, four        string
	only, profiles    string
	agent             string
	large             bool
	version           string
}

func main() {
	if len(os.Args) == 3 {
		if done, err := raw(os.Args[1], os.Args[2]); done {
			if err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				os.Exit(1)
			}
			return
		}
	}
	cfg := &settings{}
	flag.StringVar(&cfg.bin, "binaries", "../bin", "folder with dpxen, dpxen-agent and xensim")
	flag.StringVar(&cfg.work, "disk", os.TempDir(), "folder on a disk, for staging and the simulator's data")
	flag.StringVar(&cfg.memory, "memory", "/dev/shm", "folder in memory, for staging")
	flag.StringVar(&cfg.document, "document", "../docs/performance.md", "document whose part about transfers is replaced; empty for none")
	flag.StringVar(&cfg.plot, "plot", "../docs/performance.svg", "plot of the ratios; empty for none")
	flag.IntVar(&cfg.rounds, "rounds", 5, "runs of each contender, in turn")
	flag.StringVar(&cfg.size, "size", "2GiB", "size of one VM's disk")
	flag.StringVar(&cfg.four, "four", "1GiB", "size of the disk of each of four VMs")
	flag.StringVar(&cfg.only, "only", "", "tables whose name matches this regular expression")
	flag.StringVar(&cfg.agent, "agent", "socket", "how the agent reaches XAPI: socket, http or https")
	flag.StringVar(&cfg.profiles, "profiles", "", "folder to keep profiles of agent and controller in")
	flag.BoolVar(&cfg.large, "large", false, "measure VMs of up to 64 GiB too")
	flag.Parse()
	if err := run(cfg); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// raw is this program as one end of the raw TLS stream.
func raw(what, arg string) (bool, error) {
	switch what {
	case "raw-source":
		n, err := strconv.ParseInt(arg, 10, 64)
		if err != nil {
			return true, err
		}
		return true, rawSource(n)
	case "raw-sink":
		return true, rawSink(arg)
	}
	return false, nil
}

func run(cfg *settings) error {
	only, err := regexp.Compile(cfg.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if cfg.bin, err = filepath.Abs(cfg.bin); err != nil {
		return err
	}
	out, err := exec.Command(filepath.Join(cfg.bin, "dpxen"), "version").Output()
	if err != nil {
		return fmt.Errorf("dpxen version: %w", err)
	}
	cfg.version, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	if cfg.profiles != "" {
		if err := os.MkdirAll(cfg.profiles, 0o700); err != nil {
			return err
		}
	}
	var done []result
	for _, t := range tables(cfg) {
		if !only.MatchString(t.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s\n", t.name)
		r, err := t.measure(cfg)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		done = append(done, r)
		fmt.Println(r.text())
	}
	if cfg.document != "" {
		if err := writeDocument(cfg.document, page(cfg, done)); err != nil {
			return err
		}
	}
	if cfg.plot != "" {
		return plotRatios(cfg.plot, done)
	}
	return nil
}
