// Command plan measures how long dpxen plan takes over many hosts and VMs, and how many calls it makes of XAPI: simulated
// pools, an agent beside each of their hosts, and the controller, all as processes of their own.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// settings are what the flags say.
type settings struct {
	bin, document, version string
	profile                string
	pools, hosts, rounds   int
	totals                 []int
}

// result is what plans over one number of VMs came to.
type result struct {
	vms      int
	seconds  []float64 // of each round
	cpu      []float64 // seconds of all processes in each round
	calls    int       // of the pool that was asked the most, in any round
	methods  []string  // that were called
	lastLine string
}

func main() {
	cfg := &settings{}
	var totals string
	flag.StringVar(&cfg.bin, "binaries", "../bin", "folder with dpxen, dpxen-agent and xensim")
	flag.StringVar(&cfg.document, "document", "../docs/performance.md", "document whose part about plans is replaced; empty for none")
	flag.IntVar(&cfg.pools, "pools", 8, "pools")
	flag.IntVar(&cfg.hosts, "hosts", 8, "hosts of each pool, with an agent each")
	flag.IntVar(&cfg.rounds, "rounds", 5, "plans of each size")
	flag.StringVar(&totals, "vms", "1000,3000,10000", "numbers of VMs in all pools")
	flag.StringVar(&cfg.profile, "profile", "", "folder for the agents' profiles")
	flag.StringVar(&cfg.version, "version", "this version", "what is measured")
	flag.Parse()
	if err := run(cfg, totals); err != nil {
		fmt.Fprintln(os.Stderr, "bench-plan:", err)
		os.Exit(1)
	}
}

func run(cfg *settings, totals string) error {
	for word := range strings.SplitSeq(totals, ",") {
		var n int
		if _, err := fmt.Sscan(word, &n); err != nil || n < cfg.pools {
			return fmt.Errorf("-vms %q: want numbers of at least one VM a pool", totals)
		}
		cfg.totals = append(cfg.totals, n)
	}
	bin, err := filepath.Abs(cfg.bin)
	if err != nil {
		return err
	}
	cfg.bin = bin
	var results []result
	for _, n := range cfg.totals {
		r, err := measure(cfg, n)
		if err != nil {
			return fmt.Errorf("%d VMs: %w", n, err)
		}
		fmt.Printf("%6d VMs: %.2f s (%.2f to %.2f), %.2f s of CPU, %d calls a pool at most; %s\n", n, median(r.seconds), slices.Min(r.seconds),
			slices.Max(r.seconds), median(r.cpu), r.calls, r.lastLine)
		results = append(results, r)
	}
	if cfg.document == "" {
		return nil
	}
	return writeDocument(cfg.document, page(cfg, results))
}

// measure makes the pools and plans over them.
func measure(cfg *settings, vms int) (r result, err error) {
	s, err := newSite(cfg, vms)
	defer s.close()
	if err != nil {
		return r, err
	}
	r.vms = vms
	if _, err := s.plan(); err != nil { // the agents' first sessions with XAPI are not the plan's
		return r, err
	}
	called := map[string]bool{}
	for range cfg.rounds {
		if err := s.clearCalls(); err != nil {
			return r, err
		}
		begin, before := time.Now(), s.cpu()
		if r.lastLine, err = s.plan(); err != nil {
			return r, err
		}
		r.seconds = append(r.seconds, time.Since(begin).Seconds())
		r.cpu = append(r.cpu, (s.cpu() - before).Seconds())
		calls, err := s.calls()
		if err != nil {
			return r, err
		}
		for _, pool := range calls {
			sum := 0
			for method, n := range pool {
				sum += n
				called[method] = true
			}
			r.calls = max(r.calls, sum)
		}
	}
	for method := range called {
		r.methods = append(r.methods, method)
	}
	slices.Sort(r.methods)
	return r, nil
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

const (
	beginMark = "<!-- made by make bench-plan: begin -->\n"
	endMark   = "<!-- made by make bench-plan: end -->\n"
)

// page is the document's part about plans.
func page(cfg *settings, all []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## Plans\n\nMade by `make bench-plan` on %s with %s, %s, %d CPUs, load %s when it ended: %d simulated hosts in %d pools with an agent each,\n"+
		"all processes on one machine, simulators included. Times are of the whole command `dpxen plan --mode allOnline`, the median of %d runs with\n"+
		"the shortest and the longest; CPU is that of all these processes, the median of the runs. Calls of XAPI are counted by the simulator, of the pool with the most.\n\n",
		time.Now().UTC().Format(time.DateOnly), cfg.version, runtime.Version(), runtime.NumCPU(), load(), cfg.hosts*cfg.pools, cfg.pools, cfg.rounds)
	b.WriteString("| VMs | seconds | ms a VM | CPU seconds | XAPI calls a pool |\n|---:|---:|---:|---:|---:|\n")
	for _, r := range all {
		fmt.Fprintf(&b, "| %d | %.2f (%.2f to %.2f) | %.2f | %.2f | %d |\n", r.vms, median(r.seconds), slices.Min(r.seconds), slices.Max(r.seconds),
			1000*median(r.seconds)/float64(r.vms), median(r.cpu), r.calls)
	}
	if len(all) > 0 {
		fmt.Fprintf(&b, "\nThe calls: `%s`.\n", strings.Join(all[len(all)-1].methods, "`, `"))
	}
	return b.String()
}

// load is the machine's load average, where it tells.
func load() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "not known"
	}
	first, _, _ := bytes.Cut(data, []byte(" "))
	return string(first)
}

// writeDocument puts the page between its marks, or at the end of the document.
func writeDocument(path, page string) error {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		data, err = []byte("# Performance\n"), nil
	}
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(data), beginMark)
	after := ""
	if found {
		if _, after, found = strings.Cut(rest, endMark); !found {
			return fmt.Errorf("%s has no end of what is made by bench-plan", path)
		}
	} else {
		before += "\n"
	}
	return os.WriteFile(path, []byte(before+beginMark+page+endMark+after), 0o644) //nolint:gosec // a document
}
