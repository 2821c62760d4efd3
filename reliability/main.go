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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dpxen/dpxen/reliability/ledger"
)

// settings are what the flags say.
type settings struct {
	bin, work, ledgerPath, document string
	duration                        time.Duration
	parallel, storms                int
	seed                            uint64
	histories, rounds               int
	verbose, rollback               bool
	points                          []string // names of failpoints
	flips                           int64
	fuzz                            time.Duration
	targets                         string // of fuzzing, a regular expression
	cases                           int64
}

func main() {
	cfg := &settings{}
	flag.StringVar(&cfg.bin, "binaries", "bin/reliability", "folder with dpxen, dpxen-agent and xensim, built with -tags failpoints")
	flag.StringVar(&cfg.work, "work", "reliability/work", "folder for the sites; those of failed histories stay (damaged files: in memory, where that may be)")
	flag.StringVar(&cfg.ledgerPath, "ledger", "reliability/ledger.jsonl", "file that the run is appended to; empty for none")
	flag.StringVar(&cfg.document, "document", "RELIABILITY.md", "document that is made of the ledger")
	flag.IntVar(&cfg.parallel, "parallel", 0, "histories, or readers of damaged files, beside each other, or workers of a fuzz target (0: three a core, one a core, one)")
	flag.DurationVar(&cfg.duration, "for", 5*time.Minute, "how long histories are begun")
	flag.Uint64Var(&cfg.seed, "seed", 0, "seed of the first history; the next ones count up (0: random)")
	flag.IntVar(&cfg.histories, "histories", 0, "so many histories, whatever the time (0: until the time is up)")
	flag.IntVar(&cfg.rounds, "rounds", 8, "rounds of a history; each ends with a repair and a check of everything")
	flag.IntVar(&cfg.storms, "storms", 40, "of a hundred steps, how many are storms of kills")
	flag.BoolVar(&cfg.verbose, "v", false, "print what happens")
	flag.BoolVar(&cfg.rollback, "rollback", true, "let XAPI lose the last writes to its database, too")
	points := flag.String("failpoints", "docs/failpoints.md", "document that lists failpoints, at which processes fail too; empty for none")
	flag.Int64Var(&cfg.flips, "flips", 0, "no histories: so many wrong bits in staged files, proven against dpxen verify")
	flag.DurationVar(&cfg.fuzz, "fuzz", 0, "no histories: each fuzz target for so long; each is recorded when it has ended, or was interrupted")
	flag.StringVar(&cfg.targets, "targets", "", "with --fuzz: targets whose names (package.Target) match this `regexp`; the least fuzzed first")
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
	if cfg.parallel < 0 {
		return fmt.Errorf("--parallel %d: that is less than none", cfg.parallel)
	}
	began, code := time.Now(), commit()
	total := newTally()
	watchSignals()
	switch {
	case cfg.flips > 0:
		err = runFlips(cfg, total)
	case cfg.fuzz > 0:
		return runFuzz(cfg, code)
	case cfg.cases > 0:
		err = runCases(cfg, total)
	default:
		err = runHistories(cfg, total)
	}
	return errors.Join(err, record(cfg, began, code, total))
}

// record tells what has happened and appends it to the ledger.
func record(cfg *settings, began time.Time, commit string, t *tally) error {
	counts := t.all()
	if len(counts) == 0 {
		return nil
	}
	tell(t, time.Since(began))
	if cfg.ledgerPath == "" {
		return nil
	}
	e := ledger.Entry{Date: began.UTC().Truncate(time.Second), Commit: commit, Seed: cfg.seed, Seconds: time.Since(began).Seconds(), Counts: counts}
	return errors.Join(ledger.Append(cfg.ledgerPath, e), ledger.Render(cfg.ledgerPath, cfg.document))
}

// interrupted is true once the program was told to end: what is under way comes to its end, and nothing more is begun.
var interrupted atomic.Bool

func stopped() bool { return interrupted.Load() }

// watchSignals lets the first signal end the run in good order; a second one ends the program.
func watchSignals() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		interrupted.Store(true)
		signal.Stop(stop)
		fmt.Println("ends after what is under way")
	}()
}

// memory is a folder in memory with room for what is not kept, or the one that was named.
func memory(work string) string {
	const folder, room = "/dev/shm", 2 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(folder, &fs); err != nil || int64(fs.Bavail)*fs.Bsize < room { //nolint:gosec // no file system is that large
		return work
	}
	return filepath.Join(folder, "dpxen-reliability")
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
