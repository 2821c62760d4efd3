// Command reliability lets whole installations of dpxen live through random histories of backups, restores, kills, cuts
// and faults, each from a seed, and holds them against what must never happen. It knows dpxen only from outside: its
// programs, what they print, the files that they leave, and the simulator's own word on the pool.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/dpxen/dpxen/reliability/ledger"
)

// settings are what the flags say.
type settings struct {
	bin, work, ledgerPath, document string
	duration                        time.Duration
	seed                            uint64
	histories, rounds               int
	verbose, rollback               bool
	points                          []string // names of failpoints
	flips                           int64
	fuzz                            time.Duration
	cases                           int64
}

func main() {
	cfg := &settings{}
	flag.StringVar(&cfg.bin, "binaries", "bin/reliability", "folder with dpxen, dpxen-agent and xensim, built with -tags failpoints")
	flag.StringVar(&cfg.work, "work", "reliability/work", "folder for the sites; those of failed histories stay")
	flag.StringVar(&cfg.ledgerPath, "ledger", "reliability/ledger.jsonl", "file that the run is appended to; empty for none")
	flag.StringVar(&cfg.document, "document", "RELIABILITY.md", "document that is made of the ledger")
	flag.DurationVar(&cfg.duration, "for", 5*time.Minute, "how long histories are begun")
	flag.Uint64Var(&cfg.seed, "seed", 0, "seed of the first history; the next ones count up (0: random)")
	flag.IntVar(&cfg.histories, "histories", 0, "so many histories, whatever the time (0: until the time is up)")
	flag.IntVar(&cfg.rounds, "rounds", 8, "rounds of a history; each ends with a repair and a check of everything")
	flag.BoolVar(&cfg.verbose, "v", false, "print what happens")
	flag.BoolVar(&cfg.rollback, "rollback", true, "let XAPI lose the last writes to its database, too")
	points := flag.String("failpoints", "docs/failpoints.md", "document that lists failpoints, at which processes fail too; empty for none")
	flag.Int64Var(&cfg.flips, "flips", 0, "no histories: so many wrong bits in staged files, proven against dpxen verify")
	flag.DurationVar(&cfg.fuzz, "fuzz", 0, "no histories: each fuzz target for so long")
	flag.Int64Var(&cfg.cases, "cases", 0, "no histories: so many cases of each property, or as many as --for allows")
	render := flag.Bool("render", false, "only make the document from the ledger")
	flag.Parse()
	if *points != "" {
		var err error
		if cfg.points, err = pointNames(*points); err != nil {
			fmt.Fprintln(os.Stderr, "reliability:", err)
			os.Exit(1)
		}
	}
	if err := run(cfg, *render); err != nil {
		fmt.Fprintln(os.Stderr, "reliability:", err)
		os.Exit(1)
	}
}

// errViolations ends the program with 1 after everything was said.
var errViolations = errors.New("something that must never happen has happened")

func run(cfg *settings, render bool) error {
	if render {
		return ledger.Render(cfg.ledgerPath, cfg.document)
	}
	if cfg.seed == 0 {
		cfg.seed = uint64(rand.Uint32())
	}
	var err error
	if cfg.bin, err = filepath.Abs(cfg.bin); err != nil {
		return err
	}
	began := time.Now()
	total := newTally()
	switch {
	case cfg.flips > 0:
		err = runFlips(cfg, total)
	case cfg.fuzz > 0:
		err = runFuzz(cfg, total)
	case cfg.cases > 0:
		err = runCases(cfg, total)
	default:
		err = runHistories(cfg, total)
	}
	if len(total.all()) == 0 {
		return err
	}
	tell(total, time.Since(began))
	if cfg.ledgerPath == "" {
		return err
	}
	e := ledger.Entry{Date: began.UTC().Truncate(time.Second), Commit: commit(), Seed: cfg.seed, Seconds: time.Since(began).Seconds(), Counts: total.all()}
	return errors.Join(err, ledger.Append(cfg.ledgerPath, e), ledger.Render(cfg.ledgerPath, cfg.document))
}

// commit names the code that runs.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func tell(t *tally, took time.Duration) {
	counts := t.all()
	var kinds []string
	for k := range counts {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	for _, k := range kinds {
		fmt.Printf("%8d %s\n", counts[k], k)
	}
	fmt.Printf("%8.0f seconds\n", took.Seconds())
}

// runHistories lives history after history until the time is up.
func runHistories(cfg *settings, total *tally) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	end := time.Now().Add(cfg.duration)
	failed := 0
	for n := uint64(0); ; n++ {
		if cfg.histories > 0 && n >= uint64(cfg.histories) || cfg.histories == 0 && !time.Now().Before(end) {
			break
		}
		seed := cfg.seed + n
		h, err := newHistory(cfg, seed)
		if err != nil {
			return err
		}
		began := time.Now()
		err = h.run()
		total.merge(h.counts)
		_ = h.out.Close() // it is read by people
		if err != nil {
			h.problems = append(h.problems, "the harness could not go on: "+err.Error())
		}
		if len(h.problems) == 0 {
			fmt.Printf("history %d: good, %s\n", seed, time.Since(began).Round(time.Second))
			if err := os.RemoveAll(h.dir); err != nil {
				return err
			}
		} else {
			failed++
			total.add("violations", int64(len(h.problems)))
			fmt.Printf("history %d: FAILED\n", seed)
			for _, p := range h.problems {
				fmt.Println("    " + p)
			}
			fmt.Printf("  its folder is %s\n  to repeat: make reliability RELIABILITYFLAGS='--seed %d --histories 1 --rounds %d --rollback=%t'\n",
				h.dir, seed, cfg.rounds, cfg.rollback)
		}
		select {
		case <-stop:
			end, cfg.histories = time.Time{}, 0
		default:
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d histories failed: %w", failed, errViolations)
	}
	return nil
}
