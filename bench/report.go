package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"
)

// roles are whose CPU and memory are told, in the tables' order; the started program is one of the middle ones.
var roles = []string{"agent", "controller", "curl", "raw TLS", "simulator"}

// text is the table in Markdown.
func (r result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", upper(r.name))
	if r.note != "" {
		fmt.Fprintf(&b, "%s\n\n", r.note)
	}
	fmt.Fprintf(&b, "| what | MiB/s | ÷ %s | CPU s/GB: agent | client | simulator | peak MiB: agent | client | allocated MB/GB: agent | client |\n", r.base)
	b.WriteString("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, name := range r.order {
		s := r.samples[name]
		self := selfOf(s)
		rate := of(s, sample.rate)
		fmt.Fprintf(&b, "| %s | %.0f (%.0f to %.0f) | %s |", name, rate.median, rate.low, rate.high, r.against(name))
		for _, role := range []string{"agent", self, "simulator"} {
			fmt.Fprintf(&b, " %s |", figure(name, role, of(s, func(one sample) float64 { return one.perGB(one.cpu[role]) }).median, "%.2f"))
		}
		for _, role := range []string{"agent", self} {
			fmt.Fprintf(&b, " %s |", figure(name, role, of(s, func(one sample) float64 { return float64(one.peak[role]) / 1024 }).high, "%.0f"))
		}
		for _, role := range []string{"agent", self} {
			fmt.Fprintf(&b, " %s |", figure(name, role, of(s, func(one sample) float64 { return one.perGB(one.alloc[role]) / 1e6 }).median, "%.1f"))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// figure leaves out what has no meaning: an agent beside curl, what curl allocates.
func figure(contender, role string, value float64, format string) string {
	if !strings.HasPrefix(contender, "dpxen") && (role == "agent" || format == "%.1f") || contender == "raw TLS" && role == "simulator" {
		return "-"
	}
	return fmt.Sprintf(format, value)
}

// against is the ratio to the base.
func (r result) against(name string) string {
	if name == r.base || name == "raw TLS" {
		return "-"
	}
	x := ratio(r.samples[name], r.samples[r.base])
	out := fmt.Sprintf("%.2f (%.2f to %.2f)", x.median, x.low, x.high)
	if name == "dpxen" && r.target != "" {
		out += ", target " + r.target
	}
	return out
}

// selfOf is who the started programs were.
func selfOf(samples []sample) string {
	for _, role := range roles[1:4] {
		if len(samples) > 0 && samples[0].cpu[role] > 0 {
			return role
		}
	}
	return "controller"
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

const (
	beginMark = "<!-- made by make bench: begin -->\n"
	endMark   = "<!-- made by make bench: end -->\n"
)

// page is the document's part about transfers.
func page(cfg *settings, done []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## Transfers\n\nMade by `make bench` on %s with %s, %s, %d CPUs, all processes on one machine, simulator included. Each table\n", time.Now().UTC().Format(time.DateOnly),
		cfg.version, runtime.Version(), runtime.NumCPU())
	fmt.Fprintf(&b, "alternates its contenders for %d rounds, each begun by another one, each\nrun on memory touched before; figures are medians, with the lowest and the highest in parentheses, ratios are taken round by round.\n", cfg.rounds)
	b.WriteString("Seconds are of whole commands: dpxen's include planning, snapshot, proof of every block, digest, fsync and manifest; curl's\n" +
		"file is neither proven nor synced. \"Client\" is the controller or curl. Memory is the highest peak of any round, resident, in MiB;\n" +
		"GB are 10^9 bytes. The simulator's waits are divided by 50, so that what is seen is the data's way.\n\n")
	b.WriteString("![dpxen beside curl](performance.svg)\n\n")
	for _, r := range done {
		b.WriteString(r.text())
		b.WriteString("\n")
	}
	return b.String()
}

// writeDocument puts the page between its marks, or at the end of the document.
func writeDocument(path, page string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = []byte("# Performance\n\n"), nil
	}
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(data), beginMark)
	after := ""
	if found {
		if _, after, found = strings.Cut(rest, endMark); !found {
			return fmt.Errorf("%s has no end of what is made by bench", path)
		}
	} else {
		before += "\n"
	}
	return os.WriteFile(path, []byte(before+beginMark+page+endMark+after), 0o644) //nolint:gosec // a document
}
