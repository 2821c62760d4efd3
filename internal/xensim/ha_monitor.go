package xensim

import (
	"context"
	"slices"
	"time"
)

const (
	// haInterval is how often HA looks at hosts and VMs.
	haInterval = 20 * time.Second
	// haTimeout is after how long without a heartbeat a host counts as failed.
	haTimeout = 60 * time.Second
	// haRetry is after how long HA tries again to start a VM that would not.
	haRetry = 120 * time.Second
)

// haMonitor is what HA remembers. The pool's lock guards it.
type haMonitor struct {
	cancel    context.CancelFunc
	holdUntil time.Time            // no restarts before
	silent    map[string]time.Time // since when a host gives no sign
	failed    map[string]time.Time // when the last start of a VM failed
	wasOn     map[string]bool      // best-effort VMs of a host that failed, to try once
}

func (m *haMonitor) stop() {
	if m.cancel != nil {
		m.cancel()
	}
	*m = haMonitor{}
}

// simulatedLater gives the time in seconds of simulated time.
func (p *Pool) simulatedLater(seconds int64) time.Time {
	return time.Now().Add(p.scaled(time.Duration(min(seconds, 1<<31)) * time.Second))
}

// watch begins HA's rounds; the database is locked.
func (p *Pool) watch() {
	ctx, cancel := context.WithCancel(p.ctx)
	p.ha = haMonitor{cancel: cancel, silent: map[string]time.Time{}, failed: map[string]time.Time{}, wasOn: map[string]bool{}}
	p.spawn(func() {
		defer cancel()
		for p.wait(ctx, haInterval) == nil {
			for _, vm := range p.haRound(ctx) {
				p.restartProtected(ctx, vm)
			}
		}
	})
}

// haRound notices failed hosts and gives the VMs to start, in their order.
func (p *Pool) haRound(ctx context.Context) []string {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	now := time.Now()
	for _, h := range p.hosts {
		switch since, known := p.ha.silent[h.ref]; {
		case !h.dead:
			delete(p.ha.silent, h.ref)
		case !known:
			p.ha.silent[h.ref] = now
		case now.Sub(since) >= p.scaled(haTimeout):
			p.hostFailed(h)
		}
	}
	p.updateHA()
	if now.Before(p.ha.holdUntil) {
		return nil
	}
	var vms []*object
	for _, vm := range p.db.tables["VM"] {
		if vm.str("power_state") != halted || len(vm.m("current_operations")) > 0 || vm.is("is_a_template") {
			continue
		}
		if isProtected(vm) && now.Sub(p.ha.failed[vm.ref]) >= p.scaled(haRetry) || p.ha.wasOn[vm.ref] {
			vms = append(vms, vm)
		}
	}
	slices.SortFunc(vms, func(a, b *object) int {
		if x, y := isProtected(a), isProtected(b); x != y {
			return map[bool]int{true: -1, false: 1}[x]
		}
		if a.num("order") != b.num("order") {
			return int(min(max(a.num("order")-b.num("order"), -1), 1))
		}
		return int(int64(a.created) - int64(b.created))
	})
	out := make([]string, len(vms))
	for i, vm := range vms {
		out[i] = vm.ref
		delete(p.ha.wasOn, vm.ref)
	}
	return out
}

// hostFailed is what HA does when a host is gone: its VMs are off, and another
// host is the master if it was that.
func (p *Pool) hostFailed(h *simHost) {
	host := p.db.find("host", h.ref)
	gone := false
	for _, vm := range p.db.many("VM", slices.Clone(host.refs("resident_VMs"))) {
		if vm.is("is_control_domain") {
			continue
		}
		if vm.str("ha_restart_priority") == "best-effort" {
			p.ha.wasOn[vm.ref] = true
		}
		gone = true
		p.domainGone(vm)
	}
	if h == p.master() {
		gone = true
		p.electMaster()
	}
	if gone {
		p.newMessage("HA_HOST_FAILED", 3, "Host", h.uuid, "Server '"+h.name+"' has failed")
	}
}

// electMaster makes the first live host the master. Sessions and tasks were the
// old master's and are lost.
func (p *Pool) electMaster() {
	for i, h := range p.hosts {
		if h.dead || !p.db.find("host", h.ref).is("enabled") {
			continue
		}
		p.current = i
		p.db.set(p.poolObject(), "master", h.ref)
		p.forgetSessions()
		return
	}
}

// forgetSessions loses what only the master's memory holds.
func (p *Pool) forgetSessions() {
	p.endSessions()
	for _, o := range p.db.all("task") {
		p.dropTask(o)
	}
}

// restartProtected starts a VM that HA wants to run, after its delay.
func (p *Pool) restartProtected(ctx context.Context, ref string) {
	p.db.mu.Lock()
	vm := p.db.find("VM", ref)
	if vm == nil {
		p.db.mu.Unlock()
		return
	}
	delay := time.Duration(vm.num("start_delay")) * time.Second
	c := &call{pool: p, ctx: ctx, host: p.master(), task: "DummyRef:|" + randomUUID() + "|VM.start", method: "VM.start", byHA: true}
	p.db.mu.Unlock()
	err := c.start(ref, "", "start", false)
	if err == nil {
		_ = p.wait(ctx, delay) // the VMs after it wait; at the end nobody does
		return
	}
	_ = p.locked(func() error {
		if vm := p.db.find("VM", ref); vm != nil && p.ha.failed != nil && ctx.Err() == nil {
			if p.ha.failed[ref].IsZero() {
				p.newMessage("HA_PROTECTED_VM_RESTART_FAILED", 1, "VM", vm.uuid(), failureOf(err).Error())
			}
			p.ha.failed[ref] = time.Now()
		}
		return nil
	})
}
