package xensim

import (
	"slices"
	"time"
)

func (p *Pool) registerHostPower() {
	switched := func(on bool) func(*call, *object, []any) (any, error) {
		return func(_ *call, host *object, _ []any) (any, error) { return "", p.enableHost(host, on) }
	}
	p.withHost("host.enable", switched(true))
	p.withHost("host.disable", switched(false))
	p.withHost("host.assert_can_evacuate", func(_ *call, host *object, _ []any) (any, error) { return "", p.canEvacuate(host) })
	p.withHost("host.get_vms_which_prevent_evacuation", func(_ *call, host *object, _ []any) (any, error) {
		out := map[string]any{}
		for vm, why := range p.cannotLeave(host) {
			out[vm] = why
		}
		return out, nil
	})
	p.slow("host.evacuate", func(c *call, args []any) (any, error) { return "", c.evacuate(args[0].(string)) })
	p.withHost("host.reboot", func(c *call, host *object, _ []any) (any, error) { return "", p.endHost(c, host, "reboot") })
	p.withHost("host.shutdown", func(c *call, host *object, _ []any) (any, error) { return "", p.endHost(c, host, "shutdown") })
	p.withHost("host.power_on", func(_ *call, host *object, _ []any) (any, error) {
		h := p.hostByRef(host.ref)
		switch {
		case !h.dead:
			return nil, fail("HOST_IS_LIVE", host.ref)
		case host.str("power_on_mode") == "":
			return nil, fail("HOST_POWER_ON_MODE_DISABLED")
		}
		p.later(rebootTime, func() { p.hostUp(h) })
		return "", nil
	})
	p.withHost("host.declare_dead", func(_ *call, host *object, _ []any) (any, error) {
		h := p.hostByRef(host.ref)
		switch {
		case p.poolObject().is("ha_enabled"):
			return nil, fail("HA_IS_ENABLED")
		case !h.dead:
			return nil, fail("HOST_IS_LIVE", host.ref)
		}
		for _, vm := range p.db.many("VM", slices.Clone(host.refs("resident_VMs"))) {
			if !vm.is("is_control_domain") {
				p.domainGone(vm)
			}
		}
		return "", nil
	})
	p.withHost("host.restart_agent", func(_ *call, host *object, _ []any) (any, error) {
		h := p.hostByRef(host.ref)
		p.later(fuseTime, func() {
			h.goDown(true)
			if h == p.master() {
				p.forgetSessions()
			}
			p.later(restartTime, h.comeUp)
		})
		return "", nil
	})
}

// later runs f with the database locked, after simulated time.
func (p *Pool) later(d time.Duration, f func()) {
	p.spawn(func() {
		if p.wait(p.ctx, d) == nil {
			p.db.mu.Lock()
			defer p.db.mu.Unlock()
			f()
		}
	})
}

// enableHost lets a host take VMs, or no longer.
func (p *Pool) enableHost(host *object, on bool) error {
	if !on {
		if err := p.keepsPlan(-1, planChange{disabled: host.ref}); err != nil {
			return err
		}
	}
	p.db.set(host, "enabled", on)
	p.updateHost(host)
	p.updateHA()
	return nil
}

// endHost reboots a host or shuts it down, a moment after the answer. It must be
// disabled and without VMs (xapi_host_helpers.ml).
func (p *Pool) endHost(c *call, host *object, op string) error {
	h := p.hostByRef(host.ref)
	if h.dead {
		return fail("HOST_OFFLINE", host.ref)
	}
	for ref, other := range host.m("current_operations") {
		return fail("OTHER_OPERATION_IN_PROGRESS", "host", host.ref, other, ref)
	}
	if host.is("enabled") {
		return fail("HOST_NOT_DISABLED")
	}
	for _, vm := range p.db.many("VM", host.refs("resident_VMs")) {
		if !vm.is("is_control_domain") {
			return fail("HOST_IN_USE", host.ref, "VM", vm.ref)
		}
	}
	p.db.put(host, "current_operations", c.task, op)
	p.updateHost(host)
	p.later(fuseTime, func() {
		p.db.drop(host, "current_operations", c.task)
		h.goDown(true)
		h.dead = true
		p.setLive(h, false)
		if h == p.master() {
			p.forgetSessions()
		}
		if op == "reboot" {
			p.later(rebootTime, func() { p.hostUp(h) })
		}
	})
	return nil
}

// hostUp makes a host live and ready again.
func (p *Pool) hostUp(h *simHost) {
	h.dead = false
	h.comeUp()
	p.db.set(p.db.find("host", h.ref), "enabled", true)
	p.setLive(h, true)
}

// setLive writes whether a host lives.
func (p *Pool) setLive(h *simHost, live bool) {
	host := p.db.find("host", h.ref)
	if m := p.db.find("host_metrics", host.str("metrics")); m != nil {
		p.db.set(m, "live", live)
	}
	p.updateHost(host)
}

// updateHost recomputes what may be done with a host.
func (p *Pool) updateHost(host *object) {
	out := []string{}
	busy := len(host.m("current_operations")) > 0
	m := p.db.find("host_metrics", host.str("metrics"))
	for _, op := range p.db.model.Enums["host_allowed_operations"] {
		rolling := op == "enable" || op == "apply_updates"
		removing := op == "shutdown" || op == "reboot" || op == "apply_updates"
		switch {
		case busy, rolling && !p.db.model.Has(p.api, "nile-preview"), removing && host.is("enabled"):
		case op == "power_on" && (host.str("power_on_mode") == "" || m != nil && m.is("live")):
		default:
			out = append(out, op)
		}
	}
	if !slices.Equal(out, host.refs("allowed_operations")) {
		p.db.set(host, "allowed_operations", out)
	}
}
