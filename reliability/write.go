package main

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"time"
)

// write lets guests write while a backup runs. Each piece makes contents that a snapshot may find.
func (h *history) write(ctx context.Context, p *process, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable on purpose
	for range 1 + r.IntN(4) {
		select {
		case <-ctx.Done():
			return
		case <-p.done:
			return
		case <-time.After(time.Duration(r.ExpFloat64() * float64(400*time.Millisecond))):
		}
		vm := &h.before.VMs[r.IntN(len(h.before.VMs))]
		t := h.vms[vm.UUID]
		if vm.PowerState != "Running" || t.replaced || t.remade {
			continue
		}
		for _, d := range vm.Disks {
			if d.Type != "Disk" || d.Empty {
				continue
			}
			if err := h.site.scribble(d.VDI.UUID, r.Uint64(), 1); err != nil {
				h.violation("a guest's disk is not there: %v", err)
				return
			}
			st, err := h.site.dump()
			if err != nil || st.vm(vm.UUID) == nil {
				h.violation("VM %s is not there: %v", vm.UUID, err)
				return
			}
			t.allowed = append(t.allowed, st.vm(vm.UUID).contents())
		}
	}
}

// seen looks at how a process ended: a panic that no failpoint made is a violation.
func (h *history) seen(p *process) {
	if p.running() {
		return
	}
	if p.code() == failpointCode {
		h.counts.add("failpoints that ended a process", 1)
	}
	data, err := os.ReadFile(p.log)
	if err != nil {
		return
	}
	for _, line := range strings.Split(string(data), "\n") {
		if (strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")) && !strings.Contains(line, "failpoint") {
			h.violation("%s panicked: %s", p.name, line)
			return
		}
	}
}

// restart starts an agent that is gone.
func (h *history) restart(a *agentProcess) {
	if err := h.site.startAgent(a, ""); err != nil {
		h.violation("agent %s could not be started: %v", a.name, err)
	}
}
