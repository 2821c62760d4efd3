// Package ledger keeps what was tried: one line of JSON for each run of the harness, and a document of their sums. Only
// runs that happened are in it.
package ledger

import (
	"bufio"
	_ "embed" // of what is said beside the numbers
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strings"
	"time"
)

// Entry is one run.
type Entry struct {
	Date    time.Time        `json:"date"`
	Commit  string           `json:"commit"` // with -dirty where files had changed
	Seed    uint64           `json:"seed"`
	Seconds float64          `json:"seconds"` // wall time
	Counts  map[string]int64 `json:"counts"`  // by kind
}

// Append adds a run at the end of the file.
func Append(path string, e Entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	return errors.Join(err, f.Close())
}

// Load reads all runs; a file that is not there has none.
func Load(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	var out []Entry
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		out = append(out, e)
	}
	return out, lines.Err()
}

// found tells what runs have found, and what they do not cover. It is written by hand.
//
//go:embed found.md
var found string

// goals of the sums, by the kinds that begin so.
var goals = []struct {
	what, prefix string
	goal         int64
}{
	{"kills (SIGKILL of a process)", "kills of", 10_000},
	{"bit flips against `dpxen verify`", "bit flips", 1_000_000},
	{"property cases", "property cases", 1_000_000},
}

// What begins the kinds that count a fuzz target's seconds, executions and processor time; the target's name follows.
const (
	FuzzSeconds = "fuzz seconds "
	FuzzRuns    = "fuzz executions "
	FuzzCPU     = "fuzz CPU seconds " // of all processes, from the runs on that counted them
)

// Sums adds up all runs of a ledger, by kind.
func Sums(path string) (map[string]int64, error) {
	entries, err := Load(path)
	if err != nil {
		return nil, err
	}
	sums, _ := sum(entries)
	return sums, nil
}

func sum(entries []Entry) (sums map[string]int64, seconds float64) {
	sums = map[string]int64{}
	for _, e := range entries {
		for k, n := range e.Counts {
			sums[k] += n
		}
		seconds += e.Seconds
	}
	return sums, seconds
}

// Render makes the document.
func Render(path, document string) error {
	entries, err := Load(path)
	if err != nil {
		return err
	}
	return os.WriteFile(document, []byte(Document(entries)), 0o644) //nolint:gosec // a document
}

// Document is what is said of runs.
func Document(entries []Entry) string {
	sums, seconds := sum(entries)
	var b strings.Builder
	b.WriteString(head)
	if len(entries) == 0 {
		b.WriteString("Nothing has been run yet.\n")
		return b.String()
	}
	fmt.Fprintf(&b, "%d runs from %s to %s, %.1f hours in all.\n\n## Against the goals\n\n| what | reached | goal |\n|---|---:|---:|\n", len(entries),
		entries[0].Date.Format(time.DateOnly), entries[len(entries)-1].Date.Format(time.DateOnly), seconds/3600)
	for _, g := range goals {
		n := int64(0)
		for k, v := range sums {
			if strings.HasPrefix(k, g.prefix) {
				n += v
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d |\n", g.what, n, g.goal)
	}
	hours := 0
	for k, v := range sums {
		if strings.HasPrefix(k, FuzzCPU) && v >= 3600 { // an hour beside other work may be worth minutes
			hours++
		}
	}
	fmt.Fprintf(&b, "| fuzz targets with an hour or more of a processor | %d | 10 |\n", hours)
	for _, part := range parts {
		b.WriteString(part.head)
		for _, k := range keys(sums) {
			if name, ok := strings.CutPrefix(k, part.prefix); ok && (part.prefix != "" || !partOf(k)) {
				fmt.Fprintf(&b, "| %s | %d |\n", name, sums[k])
			}
		}
	}
	b.WriteString("\nFuzzing:\n\n| target | seconds | executions | CPU seconds |\n|---|---:|---:|---:|\n")
	for _, k := range keys(sums) {
		if name, ok := strings.CutPrefix(k, FuzzSeconds); ok {
			fmt.Fprintf(&b, "| %s | %d | %s | %s |\n", name, sums[k], counted(sums[FuzzRuns+name]), counted(sums[FuzzCPU+name]))
		}
	}
	b.WriteString("\n" + found)
	b.WriteString("\n## Runs\n\n| date (UTC) | commit | seed | minutes | histories | kills | failpoints | network | faults | flips | cases | violations |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, e := range entries {
		c := e.Counts
		fmt.Fprintf(&b, "| %s | %s | %d | %.1f | %d | %d | %d | %d | %d | %d | %d | %d |\n", e.Date.Format("2006-01-02 15:04"), e.Commit, e.Seed, e.Seconds/60,
			c["histories"], c["kills of an agent"]+c["kills of a controller"], c["failpoints"], c["network faults"], c["xensim faults"],
			starts(c, "bit flips"), c["property cases"], c["violations"])
	}
	return b.String()
}

// parts are the tables of sums, by the beginnings of the kinds.
var parts = []struct{ head, prefix string }{
	{"\n## Sums\n\n| what | times |\n|---|---:|\n", ""},
	{"\nTrouble of the network, before an agent (towards the controller) or behind it (towards XAPI):\n\n| what | times |\n|---|---:|\n", "network: "},
	{"\nFaults of the simulator, by name ([what they do](docs/xensim.md#faults)):\n\n| fault | armed |\n|---|---:|\n", "xensim: "},
	{"\nWhat users did to their VMs meanwhile, or tried:\n\n| what | times |\n|---|---:|\n", "users: "},
}

// partOf tells whether a kind has a table of its own.
func partOf(kind string) bool {
	return strings.HasPrefix(kind, FuzzSeconds) || strings.HasPrefix(kind, FuzzRuns) || strings.HasPrefix(kind, FuzzCPU) || slices.ContainsFunc(parts, func(p struct{ head, prefix string }) bool { return p.prefix != "" && strings.HasPrefix(kind, p.prefix) })
}

// counted gives what was not counted by the first runs.
func counted(n int64) string {
	if n == 0 {
		return "not counted"
	}
	return fmt.Sprint(n)
}

const head = `# What dpxen was put through

Made by ` + "`make reliability`" + ` from ` + "`reliability/ledger.jsonl`" + `; do not edit. Each run appends what happened in it, violations
included: they were bugs, of dpxen or of the harness, that were found so, and are fixed in later commits. A kill is SIGKILL of a
separate process; failpoints inside a process are counted apart. A history is an installation of real processes (simulated
pool, agents, controllers, a network between them) whose every choice comes from a seed. Each of its rounds is some sessions
under kills, cuts and faults, then a repair, then a check of everything: power states, snapshots, disks, carriers, keys,
blocked operations, tasks, files, reports. The files are proven by a reader that shares no code with dpxen.

`

func starts(counts map[string]int64, prefix string) int64 {
	n := int64(0)
	for k, v := range counts {
		if strings.HasPrefix(k, prefix) {
			n += v
		}
	}
	return n
}

func keys(m map[string]int64) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
