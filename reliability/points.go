package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

var listed = regexp.MustCompile("(?m)^- `([a-z/-]+)`$")

// pointNames reads the names of failpoints from the document that lists them.
func pointNames(document string) ([]string, error) {
	data, err := os.ReadFile(document)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range listed.FindAllStringSubmatch(string(data), -1) {
		out = append(out, m[1])
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s lists no failpoints", document)
	}
	return out, nil
}

// drawPoint arms one failpoint of a process: those whose names begin so, or that both sides have.
func (h *history) drawPoint(side string) string {
	var names []string
	for _, name := range h.cfg.points {
		if strings.HasPrefix(name, side) || strings.HasPrefix(name, "transfer/") || side == "controller/" && strings.HasPrefix(name, "staging/") {
			names = append(names, name)
		}
	}
	action := []string{"crash", "crash", "crash", "crash", "crash", "error", "panic", "delay:400ms", "delay:2s"}[h.rng.IntN(9)]
	return fmt.Sprintf("%s=%s@%d", names[h.rng.IntN(len(names))], action, 1+h.rng.IntN(3)*h.rng.IntN(2))
}

// controllerPoints are failpoints of the next command of the controller, or none.
func (h *history) controllerPoints() string {
	if len(h.cfg.points) == 0 || h.rng.IntN(3) > 0 {
		return ""
	}
	points := h.drawPoint("controller/")
	h.note("controller has %s", points)
	return points
}

// armAgents starts agents again with failpoints, now and then, in good order.
func (h *history) armAgents() {
	if len(h.cfg.points) == 0 {
		return
	}
	for _, a := range h.site.agents {
		if h.rng.IntN(3) > 0 {
			continue
		}
		points := h.drawPoint("agent/")
		if h.rng.IntN(2) == 0 {
			points += ";" + h.drawPoint("agent/")
		}
		p := h.site.agentOf(a)
		p.end()
		h.seen(p)
		h.note("agent %s has %s", a.name, points)
		if err := h.site.startAgent(a, points); err != nil {
			h.violation("agent %s could not be started: %v", a.name, err)
		}
	}
}

// countPoints counts the failpoints that were hit, by what all processes of the history have said.
func (h *history) countPoints() {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".log") {
			continue
		}
		data, err := os.ReadFile(h.site.path(e.Name()))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(data), "\n") {
			if _, what, ok := strings.Cut(line, "failpoint hit: "); ok {
				h.counts.add("failpoints", 1)
				h.hits[strings.Fields(what)[0]] = true
			}
		}
	}
}
