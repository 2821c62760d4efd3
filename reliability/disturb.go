package main

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// trouble is one thing that happens at some moment of a step.
type trouble struct {
	after time.Duration // the one before
	kind  string
	lasts time.Duration // until what it broke is mended
	agent int
	fault fault
	net   string
	back  bool
	seed  uint64
	user  string // what a user does
}

// troubleKinds with how often each comes.
var troubleKinds = []struct {
	kind   string
	weight int
}{
	{"kill agent", 60}, {"kill controller", 14}, {"kill both", 8}, {"term agent", 4}, {"term controller", 3}, {"interrupt controller", 3},
	{"stop agent", 5}, {"stop controller", 4}, {"network", 22}, {"fault", 30}, {"cancel", 3}, {"host down", 8}, {"new master", 3},
	{"user", 8},
}

// slowCalls are methods whose delay opens the moments between two changes.
var slowCalls = []string{"VBD.destroy", "VBD.create", "VDI.destroy", "VM.start", "VM.snapshot", "VM.clean_shutdown", "VM.destroy",
	"pool.add_to_other_config", "pool.remove_from_other_config", "VM.add_to_blocked_operations", "VM.remove_from_blocked_operations",
	"VM.get_record", "task.get_status", "VDI.get_record", "task.create", "VBD.plug", "session.login_with_password"}

// plainFaults come as they are.
var plainFaults = []string{"export-refused", "export-cut", "export-embedded-500", "export-corrupt", "export-read-error", "export-no-end",
	"export-task-fails", "export-task-vanishes", "snapshot-fails", "start-fails", "shutdown-ignored", "vdi-in-use", "vdi-not-available",
	"import-fails-at-start", "import-fails-at-end", "import-fails-between", "sr-full", "session-invalid", "login-fails", "host-booting",
	"answer-lost", "answer-lost", "answer-lost", "map-duplicate", "connection-reset", "call-fails"}

// slowFaults wait.
var slowFaults = []string{"export-slow-head", "export-stall", "import-stall", "shutdown-late", "login-slow", "toolstack-restart"}

// drawTroubles draws what happens in a step.
func (h *history) drawTroubles() []trouble {
	r := h.rng
	total := 0
	for _, k := range troubleKinds {
		total += k.weight
	}
	var out []trouble
	pace := float64(60+r.IntN(340)) * float64(time.Millisecond) // between two of them
	count, storm := 1+r.IntN(16), r.IntN(3) == 0
	if storm {
		count, pace = 8+r.IntN(24), pace/2
	}
	for range count {
		t := trouble{after: time.Duration(r.ExpFloat64() * pace), agent: r.IntN(len(h.site.agents)),
			lasts: time.Duration(r.ExpFloat64() * pace), seed: r.Uint64(), user: userDoings[r.IntN(len(userDoings))]}
		n := r.IntN(total)
		for _, k := range troubleKinds {
			if n -= k.weight; n < 0 {
				t.kind = k.kind
				break
			}
		}
		if storm && r.IntN(4) > 0 {
			t.kind = "kill agent"
		}
		t.net, t.back = netFaults[r.IntN(len(netFaults))], r.IntN(3) == 0
		t.fault = h.drawFault()
		out = append(out, t)
	}
	return out
}

func (h *history) drawFault() fault {
	r := h.rng
	f := fault{Times: 1 + r.IntN(2), After: int64(r.IntN(4 << 20)), Skip: r.IntN(3)}
	switch n := r.IntN(100); {
	case n < 45:
		f.Name = plainFaults[r.IntN(len(plainFaults))]
	case n < 60:
		f.Name, f.Delay = slowFaults[r.IntN(len(slowFaults))], time.Duration(r.ExpFloat64()*float64(80*time.Second))
	case n < 96 || !h.cfg.rollback:
		f.Name, f.Method, f.Delay = "call-slow", slowCalls[r.IntN(len(slowCalls))], time.Duration(5+r.IntN(60))*time.Second
	default:
		f.Name, f.Skip, f.Times, f.Delay = "database-rolled-back", r.IntN(60), 1, time.Duration(r.IntN(50))*time.Second
	}
	if f.Name == "answer-lost" {
		f.Skip = r.IntN(40)
		if r.IntN(2) == 0 {
			f.Method, f.Skip = slowCalls[r.IntN(len(slowCalls))], 0
		}
	}
	if f.Name == "call-fails" {
		f.Skip = r.IntN(40)
		f.Code, f.Params = "INTERNAL_ERROR", []string{"Unix.Unix_error(Unix.EIO, \"read\", \"\")"}
	}
	return f
}

// disturb lets troubles happen while p runs. The function it returns ends them and waits for all that mends.
func (h *history) disturb(p *process, s step) func() {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	troubles := h.drawTroubles()
	if h.rng.IntN(10) == 0 {
		troubles = nil // it may also go well
	}
	guests := h.rng.Uint64()
	all.Go(func() {
		for _, t := range troubles {
			select {
			case <-ctx.Done():
				return
			case <-p.done:
				return
			case <-time.After(t.after):
			}
			h.cause(ctx, &all, p, t)
		}
	})
	if s.guests {
		all.Go(func() { h.write(ctx, p, guests) })
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// cause makes one trouble happen; what it broke is mended later by a goroutine of all.
func (h *history) cause(ctx context.Context, all *sync.WaitGroup, p *process, t trouble) {
	a := h.site.agents[t.agent]
	later := func(f func()) {
		all.Go(func() {
			select {
			case <-ctx.Done():
			case <-time.After(t.lasts):
			}
			f()
		})
	}
	send := func(q *process, what string, sig syscall.Signal) {
		if q.signal(sig) {
			h.counts.add(what, 1)
			h.note("%s: %s", what, q.name)
		}
	}
	restart := func() {
		later(func() {
			if h.site.agentOf(a).wait(20 * time.Second) {
				h.restart(a)
			}
		})
	}
	switch t.kind {
	case "kill agent":
		h.kill(h.site.agentOf(a), "kills of an agent")
		restart()
	case "kill controller":
		h.kill(p, "kills of a controller")
	case "kill both":
		h.kill(p, "kills of a controller")
		h.kill(h.site.agentOf(a), "kills of an agent")
		restart()
	case "term agent":
		send(h.site.agentOf(a), "SIGTERM to an agent", syscall.SIGTERM)
		restart()
	case "term controller":
		send(p, "SIGTERM to a controller", syscall.SIGTERM)
	case "interrupt controller":
		send(p, "SIGINT to a controller", syscall.SIGINT)
	case "stop agent", "stop controller":
		q := p
		if t.kind == "stop agent" {
			q = h.site.agentOf(a)
		}
		t.lasts *= 3
		if t.seed%3 == 0 {
			t.lasts += 4 * time.Second // longer than any claim stands
		}
		send(q, "SIGSTOP and SIGCONT", syscall.SIGSTOP)
		later(func() { q.signal(syscall.SIGCONT) })
	case "cancel":
		h.counts.add("cancels", 1)
		all.Go(func() {
			out, code, err := h.site.run(stepLimit, "cancel", "last")
			h.note("cancel ended with %d: %s %v", code, lastLine(out), err)
		})
	default:
		h.causeAround(t, a, later)
	}
}

// causeAround makes a trouble that is of none of our processes.
func (h *history) causeAround(t trouble, a *agentProcess, later func(func())) {
	switch t.kind {
	case "network":
		pr, where := a.front, "before"
		if t.back {
			pr, where = a.back, "behind"
		}
		t.lasts *= 2
		h.counts.add("network faults", 1)
		h.counts.add("network: "+t.net+" "+where+" an agent", 1)
		h.note("network %s %s for %s", t.net, where+" "+a.name, t.lasts)
		if mend := pr.trouble(t.net, rand.New(rand.NewPCG(t.seed, 2))); mend != nil { //nolint:gosec // repeatable on purpose
			later(mend)
		}
	case "fault":
		if err := h.site.control(http.MethodPost, "/fault", t.fault, nil); err != nil {
			h.note("fault: %v", err)
			return
		}
		if t.fault.Name == "database-rolled-back" {
			h.mu.Lock()
			h.rolled = true
			h.mu.Unlock()
		}
		h.counts.add("xensim faults", 1)
		h.counts.add("xensim: "+t.fault.Name, 1)
		h.blind = true
		h.note("fault %s", text(t.fault))
	case "host down":
		host := h.site.pool.Hosts[t.agent].Name
		t.lasts *= 4
		dead := t.seed%2 == 0 // the others only lose the network
		h.counts.add("hosts down", 1)
		h.blind = true
		h.setHost(host, true, dead)
		later(func() { h.setHost(host, false, false) })
	case "user":
		vms := h.before.VMs
		h.user(t.user, vms[t.seed%uint64(len(vms))].UUID, t.seed>>32)
	case "new master":
		host := h.site.pool.Hosts[t.agent].Name
		h.counts.add("changes of master", 1)
		err := h.site.control(http.MethodPost, "/master", map[string]any{"host": host}, nil)
		h.note("master is %s: %v", host, err)
	}
}

func (h *history) setHost(host string, down, dead bool) {
	err := h.site.control(http.MethodPost, "/host", map[string]any{"host": host, "down": down, "dead": dead}, nil)
	h.note("host %s down=%t dead=%t: %v", host, down, dead, err)
}

// calm ends what was armed and lets everybody work.
func (h *history) calm() {
	if err := h.site.control(http.MethodDelete, "/fault?name=", nil, nil); err != nil {
		h.note("clearing faults: %v", err)
	}
	for i, a := range h.site.agents {
		a.front.heal()
		a.back.heal()
		if len(h.site.pool.Hosts) > i {
			_ = h.site.control(http.MethodPost, "/host", map[string]any{"host": h.site.pool.Hosts[i].Name, "down": false}, nil) // it is up
		}
		h.site.agentOf(a).signal(syscall.SIGCONT)
		if p := h.site.agentOf(a); !p.running() {
			h.seen(p)
			h.restart(a)
		}
	}
}
