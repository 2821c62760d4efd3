package controller

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// What is kept of an agent's message. An agent is not trusted: what it says costs bounded memory, disk and lines of a log,
// whatever it says.
const (
	maxText     = 4 << 10   // of one text, in bytes
	maxTexts    = 100       // of a list of texts for people
	maxTags     = 1000      // of a VM or disk
	maxSettings = 256       // of a VM
	maxListed   = 256 << 20 // of all VMs of one pool, in bytes of their messages
	maxParts    = 256       // of a restore's plan
	maxActions  = 20_000    // of a sweep
	maxSteps    = 200       // changes of what an agent says it is doing that are told, for each transfer
)

// clipText returns s, or its beginning where it is longer than maxText.
func clipText(s string) string {
	if len(s) <= maxText {
		return s
	}
	const ellipsis = "…"
	n := maxText - len(ellipsis)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.Clone(s[:n]) + ellipsis
}

// texts returns what an agent has to say to people, as much of it as is kept, each text once.
func texts(all []string) []string {
	var out []string
	for i, s := range all {
		if len(out) == maxTexts {
			return append(out, fmt.Sprintf("… and %d more", len(all)-i))
		}
		out = appendNew(out, clipText(s))
	}
	return out
}

// clipped returns the first most of a list that machines read, each clipped.
func clipped(all []string, most int) []string {
	var out []string
	for _, s := range all[:min(len(all), most)] {
		out = append(out, clipText(s))
	}
	return out
}

// settingsFrom returns a VM's settings, or none where they are more than any agent sends.
func settingsFrom(all map[string]string) map[string]string {
	if len(all) > maxSettings {
		return nil
	}
	for key, value := range all {
		if len(key) > maxText || len(value) > maxText {
			return nil
		}
	}
	return all
}

// plus adds sizes, which are not negative, and stays at the greatest instead of overflowing.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// fraction is a task's progress, from 0 to 1. What is no number would never equal itself, and so move for ever.
func fraction(f float64) float64 {
	if math.IsNaN(f) {
		return 0
	}
	return min(max(f, 0), 1)
}

// position is a place in a logical stream, in bytes, as the wire has it: one beyond all streams becomes -1.
func position(n uint64) int64 {
	if n > math.MaxInt64 {
		return -1
	}
	return int64(n)
}

// maxSkew is how far the clock of a pool's master may be off for its time to stand in a file's name.
const maxSkew = 24 * time.Hour

// stamp returns the time that a backup bears: taken, by the clock of the pool's master, unless that is absurd. Then it is
// now, and why says so. A file with a time far ahead would be the newest of its VM for ever.
func stamp(taken, now time.Time) (at time.Time, why string) {
	if off := taken.Sub(now); off > maxSkew || off < -maxSkew-longestBackup {
		return now.UTC().Truncate(time.Second), fmt.Sprintf(
			"the clock of the pool's master is wrong: it says %s; the file has the controller's time", taken.UTC().Format(time.RFC3339))
	}
	return taken, ""
}

// longestBackup is how long after the snapshot was taken a stream may still begin anew.
const longestBackup = 24 * time.Hour
