//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// crashCode is the exit code of the action crash.
const crashCode = 86

type point struct {
	name, action string
	delay        time.Duration
	countdown    int
}

var (
	mu    sync.Mutex
	armed = parse(os.Getenv("DPXEN_FAILPOINTS"))
)

// parse reads the entries. A process that was told something it does not understand must not seem to have been tested.
func parse(text string) (points []*point) {
	for _, entry := range strings.FieldsFunc(text, func(r rune) bool { return r == ';' }) {
		p := &point{countdown: 1}
		name, action, _ := strings.Cut(entry, "=")
		action, times, counted := strings.Cut(action, "@")
		action, delay, _ := strings.Cut(action, ":")
		var err error
		if counted {
			p.countdown, err = strconv.Atoi(times)
		}
		if err == nil && action == "delay" {
			p.delay, err = time.ParseDuration(delay)
		}
		p.name, p.action = name, action
		if err != nil || !strings.Contains("|crash|error|panic|delay|", "|"+action+"|") {
			fmt.Fprintf(os.Stderr, "DPXEN_FAILPOINTS: %q is no failpoint: %v\n", entry, err)
			os.Exit(crashCode + 1)
		}
		points = append(points, p)
	}
	return points
}

// Hit returns an error where the place is armed to fail, and does not return where it is armed to end the process.
func Hit(name string) error {
	p := due(name)
	if p == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "failpoint hit: %s %s\n", name, p.action)
	switch p.action {
	case "crash":
		os.Exit(crashCode)
	case "panic":
		panic("failpoint " + name)
	case "delay":
		time.Sleep(p.delay)
	case "error":
		return fmt.Errorf("at %s: %w", name, ErrInjected)
	}
	return nil
}

// Pass is Hit for places that cannot fail but can end, panic or be late.
func Pass(name string) { _ = Hit(name) }

func due(name string) *point {
	mu.Lock()
	defer mu.Unlock()
	for i, p := range armed {
		if p.name != name {
			continue
		}
		if p.countdown--; p.countdown > 0 {
			return nil
		}
		armed = append(armed[:i:i], armed[i+1:]...)
		return p
	}
	return nil
}
