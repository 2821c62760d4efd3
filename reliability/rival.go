package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"
)

// A rival is another controller, with folders of its own, which works on the same pool at the same time.

// startRival starts a backup of all VMs by the rival.
func (h *history) startRival() *process {
	mode := []string{"online", "offline"}[h.rng.IntN(2)]
	h.stops = h.stops || mode == "offline"
	p, err := h.site.begin(launch{config: h.site.rival}, "backup", "--mode", "all"+mode)
	if err != nil {
		h.violation("the rival could not be started: %v", err)
		return nil
	}
	h.rivals = true
	h.counts.add("rival controllers", 1)
	h.note("a rival backs up %s, %s", mode, filepath.Base(p.log))
	return p
}

// endRival waits for the rival, or kills it.
func (h *history) endRival(p *process, kill bool) {
	if kill {
		h.kill(p, "kills of a controller")
	}
	if !p.wait(stepLimit) {
		h.violation("the rival did not end within %s, see %s", stepLimit, filepath.Base(p.log))
		p.signal(os.Kill)
		<-p.done
	}
	h.seen(p)
	out, err := os.ReadFile(p.log)
	h.note("the rival ended with %d: %s %v", p.code(), lastLine(string(out)), err)
}

// controllers are the configurations whose sessions are to be checked.
func (h *history) controllers() []string {
	if _, err := os.Stat(h.site.path("rival-state")); errors.Is(err, os.ErrNotExist) {
		return []string{h.site.config}
	}
	return []string{h.site.config, h.site.rival}
}

// killRivalAfter decides when a rival dies, or never.
func (h *history) killRivalAfter() (time.Duration, bool) {
	return time.Duration(h.rng.ExpFloat64() * float64(time.Second)), h.rng.IntN(2) == 0
}
