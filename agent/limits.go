package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/time/rate"
)

// Bounds of what a file may set.
const (
	minMemory    = 64 << 20
	minBandwidth = 64 << 10
	maxNice      = 19
)

// gcPercent is how much the heap may grow between two collections. Nearly all of it is windows, bytes that the collector need not
// look through, so that collecting often costs little and spares the host the memory of windows that are no longer used.
const gcPercent = 25

// ByteSize is a number of bytes; in a file a number, or one with a unit such as 256MiB.
type ByteSize int64

// String writes it with a unit.
func (b ByteSize) String() string { return humanize.IBytes(uint64(max(0, b))) }

// sizeHook reads a ByteSize.
func sizeHook(_, to reflect.Type, data any) (any, error) {
	s, ok := data.(string)
	if !ok || to != reflect.TypeFor[ByteSize]() {
		return data, nil
	}
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<62 {
		return nil, fmt.Errorf("%q is no number of bytes, such as 256MiB", s)
	}
	return ByteSize(n), nil
}

func (l *LimitsConfig) validate(add func(key, format string, a ...any)) {
	if l.Memory != 0 && l.Memory < minMemory {
		add("limits.memory", "must be at least %s; absent for no limit", ByteSize(minMemory))
	}
	if l.CPUs < 0 {
		add("limits.cpus", "must be at least 1; absent for all")
	}
	if l.Nice < 0 || l.Nice > maxNice {
		add("limits.nice", "must be between 1 and %d; absent for what the agent was started with", maxNice)
	}
	if l.Bandwidth != 0 && l.Bandwidth < minBandwidth {
		add("limits.bandwidth", "must be at least %s a second; absent for no limit", ByteSize(minBandwidth))
	}
}

// String tells the limits that are set.
func (l *LimitsConfig) String() string {
	out := []string{fmt.Sprintf("%d transfers", l.Transfers)}
	if l.Memory > 0 {
		out = append(out, fmt.Sprintf("%s of memory", l.Memory))
	}
	if l.CPUs > 0 {
		out = append(out, fmt.Sprintf("%d CPUs at a time", l.CPUs))
	}
	if l.Nice > 0 {
		out = append(out, fmt.Sprintf("nice %d", l.Nice))
	}
	if l.Bandwidth > 0 {
		out = append(out, fmt.Sprintf("%s a second", l.Bandwidth))
	}
	return strings.Join(out, ", ")
}

// Apply puts the limits of the process in force: memory, CPUs and niceness. It is for a program's start; Bandwidth and Transfers
// are the Agent's own.
func (l *LimitsConfig) Apply() error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if l.Memory > 0 {
		debug.SetMemoryLimit(int64(l.Memory))
	}
	if l.CPUs > 0 {
		runtime.GOMAXPROCS(l.CPUs)
	}
	if l.Nice > 0 {
		if err := beNice(l.Nice); err != nil {
			return fmt.Errorf("limits.nice: %w", err)
		}
	}
	return nil
}

// limiter returns what all transfers together are paced by; nil = nothing.
func (l *LimitsConfig) limiter() *rate.Limiter {
	if l.Bandwidth <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(l.Bandwidth), int(min(max(l.Bandwidth/8, 16<<10), 1<<20)))
}

// paced reads from r no faster than the limiter lets it, waiting after what was read; ctx ends the waiting.
type paced struct {
	ctx context.Context //nolint:containedctx // a Read has none, and this one lives for one copy
	r   io.Reader
	l   *rate.Limiter
}

// pace returns r, paced where there is a limit.
func pace(ctx context.Context, r io.Reader, l *rate.Limiter) io.Reader {
	if l == nil {
		return r
	}
	return &paced{ctx, r, l}
}

// Read reads at most as much as may pass at once.
func (p *paced) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), p.l.Burst())])
	if n > 0 {
		if waited := p.l.WaitN(p.ctx, n); waited != nil && err == nil {
			err = context.Cause(p.ctx)
		}
	}
	return n, err
}
