package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// A storm is a step in which agents and the controller are killed again and again, and started again at once: in the midst of
// a session, of a repair, of the clean-up after the kill before.

// gust is one kill of a storm, with what is started after it.
type gust struct {
	after  time.Duration // since what the gust before has killed was started again
	ready  bool          // the time counts from when the agent listens
	whom   string        // agent, agents, controller, all
	agent  int
	repair bool   // a controller that is gone is followed by a repair, not by the same command
	name   uint32 // of a VM that is made beside
}

// stormLimit is when a storm is over, whatever it still had.
const stormLimit = 60 * time.Second

// drawStorm draws the gusts and the fault that opens moments between two changes, or none.
func (h *history) drawStorm() (gusts []gust, slow *fault) {
	r := h.rng
	pace := float64(80+r.IntN(500)) * float64(time.Millisecond)
	aim := r.IntN(3) // agents alone, controllers mostly, both
	for range 15 + r.IntN(60) {
		g := gust{after: time.Duration(r.ExpFloat64() * pace), ready: r.IntN(2) == 0, agent: r.IntN(len(h.site.agents)),
			repair: r.IntN(3) == 0, name: r.Uint32()}
		switch n := r.IntN(100); {
		case aim == 0 && n < 65, aim == 1 && n < 25, aim == 2 && n < 50:
			g.whom = "agent"
		case n < 85 && aim == 0:
			g.whom = "agents"
		case n < 95:
			g.whom = "controller"
		default:
			g.whom = "all"
		}
		gusts = append(gusts, g)
	}
	if r.IntN(3) > 0 {
		slow = &fault{Name: "call-slow", Method: slowCalls[r.IntN(len(slowCalls))], Times: 1 + r.IntN(6), Delay: time.Duration(5+r.IntN(40)) * time.Second}
	}
	return gusts, slow
}

// storm runs a command in a storm. What is said and left by each controller that dies or ends is looked at as after any step.
func (h *history) storm(s step, first bool) error {
	gusts, slow := h.drawStorm()
	if slow != nil {
		if err := h.site.control(http.MethodPost, "/fault", slow, nil); err != nil {
			return err
		}
		h.counts.add("xensim faults", 1)
		h.counts.add("xensim: "+slow.Name, 1)
		h.blind = true
		h.note("fault %s", text(slow))
	}
	h.counts.add("storms of kills", 1)
	cur := s
	p, err := h.launch(cur)
	if err != nil {
		return err
	}
	end := time.Now().Add(stormLimit)
	for _, g := range gusts {
		if time.Now().After(end) {
			break
		}
		h.gust(p, g)
		if p.running() {
			continue
		}
		if err := h.afterStorm(p, cur, first); err != nil || h.failed() {
			return err
		}
		first = false
		cur = s.again(g)
		if p, err = h.launch(cur); err != nil {
			return err
		}
	}
	h.calm()
	h.outlast(p, cur)
	return h.afterStorm(p, cur, first)
}

// again is the command that follows a dead controller: a repair, or the same once more.
func (s step) again(g gust) step {
	if g.repair && s.kind == "pre" && g.name%2 == 0 {
		return s.night.post(rand.New(rand.NewPCG(uint64(g.name), 3))) //nolint:gosec // repeatable on purpose
	}
	if g.repair {
		return step{kind: "repair", args: []string{"repair"}}
	}
	if s.kind != "new" {
		return s
	}
	old := s.name
	s.name = fmt.Sprintf("made-%d", g.name)
	var args []string
	for _, a := range s.args {
		args = append(args, strings.ReplaceAll(a, old, s.name))
	}
	s.args = args
	return s
}

// launch starts a step's command.
func (h *history) launch(s step) (*process, error) {
	h.starts(s)
	return h.site.begin(launch{env: s.env}, s.args...)
}

func (h *history) afterStorm(p *process, s step, first bool) error {
	h.seen(p)
	return h.after(p, s, first)
}

// gust waits for the moment, kills, and starts agents again at once.
func (h *history) gust(p *process, g gust) {
	a := h.site.agents[g.agent]
	if g.ready {
		h.site.listens(a, 2*time.Second)
	}
	if p.wait(g.after) && g.whom == "controller" {
		return // it has ended by itself
	}
	if g.whom == "controller" || g.whom == "all" {
		h.kill(p, "kills of a controller")
	}
	if g.whom == "controller" {
		return
	}
	for i, a := range h.site.agents {
		if g.whom == "agent" && i != g.agent {
			continue
		}
		h.kill(h.site.agentOf(a), "kills of an agent")
		h.restart(a)
	}
}

// kill kills a process and counts that if it is what the process has died of.
func (h *history) kill(p *process, what string) {
	if p.kill() {
		h.counts.add(what, 1)
		h.note("%s: %s", what, p.name)
	}
}
