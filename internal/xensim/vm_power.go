package xensim

import (
	"slices"
	"strconv"
	"time"
)

// How long power operations take on a real host, roughly.
const (
	startTime     = 3 * time.Second
	shutdownTime  = 10 * time.Second
	suspendTime   = 5 * time.Second
	shutdownLimit = 1200 * time.Second // domain_shutdown_total_timeout
	hardTime      = time.Second
)

// guest is how the software inside a VM behaves.
type guest struct {
	// ignores says that the guest does nothing on a clean shutdown.
	ignores bool
	// takes is how long it needs to shut down; 0 means shutdownTime. When it is more
	// than what XAPI waits, the guest still powers off, later.
	takes time.Duration
}

func (p *Pool) registerPower() {
	p.slow("VM.start", func(c *call, args []any) (any, error) {
		return "", c.start(args[0].(string), "", "start", args[1].(bool))
	})
	p.slow("VM.start_on", func(c *call, args []any) (any, error) {
		return "", c.start(args[0].(string), args[1].(string), "start_on", args[2].(bool))
	})
	p.slow("VM.resume", func(c *call, args []any) (any, error) {
		return "", c.start(args[0].(string), "", "resume", args[1].(bool))
	})
	p.slow("VM.resume_on", func(c *call, args []any) (any, error) {
		return "", c.start(args[0].(string), args[1].(string), "resume_on", args[2].(bool))
	})
	p.slow("VM.clean_shutdown", func(c *call, args []any) (any, error) { return "", c.cleanShutdown(args[0].(string)) })
	p.slow("VM.hard_shutdown", func(c *call, args []any) (any, error) { return "", c.hardShutdown(args[0].(string)) })
	p.slow("VM.shutdown", c2((*call).shutdown))
	p.slow("VM.clean_reboot", func(c *call, args []any) (any, error) { return "", c.reboot(args[0].(string), "clean_reboot") })
	p.slow("VM.hard_reboot", func(c *call, args []any) (any, error) { return "", c.reboot(args[0].(string), "hard_reboot") })
	p.slow("VM.pause", c2(func(c *call, ref string) error { return c.move(ref, "pause", paused, 0) }))
	p.slow("VM.unpause", c2(func(c *call, ref string) error { return c.move(ref, "unpause", running, 0) }))
	p.slow("VM.suspend", c2((*call).suspend))
	p.slow("VM.power_state_reset", c2(func(c *call, ref string) error {
		return c.whileVM(ref, "power_state_reset", standard, func() error {
			return c.unprotected(ref, func() error {
				return c.pool.locked(func() error { return c.pool.powerOff(ref) })
			})
		})
	}))
}

// c2 makes a handler of a function with one reference.
func c2(f func(*call, string) error) handler {
	return func(c *call, args []any) (any, error) { return "", f(c, args[0].(string)) }
}

// start serves start, start_on, resume and resume_on.
func (c *call) start(ref, host, op string, startPaused bool) error {
	p := c.pool
	return c.whileVM(ref, op, failQuickly, func() error {
		if err := p.faultOnStart(ref); err != nil {
			return err
		}
		var target *simHost
		err := p.locked(func() error {
			vm, err := p.db.need("VM", ref)
			if err != nil {
				return err
			}
			if host != "" {
				if _, err := p.db.need("host", host); err != nil {
					return err
				}
				target = p.hostByRef(host)
				err = p.canBootOn(vm, target)
			} else {
				target, err = p.chooseHost(vm)
			}
			if err != nil || c.byHA {
				return err
			}
			return p.mayRun(vm, target.ref)
		})
		if err != nil {
			return err
		}
		if p.wait(c.ctx, startTime) != nil {
			return c.cancelled()
		}
		return p.locked(func() error { return p.powerOn(ref, target, startPaused) })
	})
}

// canBootOn says why a host cannot run a VM; the database is locked.
func (p *Pool) canBootOn(vm *object, h *simHost) error {
	host := p.db.find("host", h.ref)
	if h.dead {
		return fail("HOST_OFFLINE", h.ref)
	}
	if len(host.m("current_operations")) > 0 {
		return fail("HOST_DISABLED", h.ref)
	}
	if !host.is("enabled") {
		return fail("HOST_DISABLED", h.ref)
	}
	for _, sr := range p.storageOf(vm) {
		if !p.sees(h, sr) {
			return fail("VM_REQUIRES_SR", vm.ref, sr.ref)
		}
	}
	if err := p.networksOf(vm, h); err != nil {
		return err
	}
	if err := p.disksFree(vm); err != nil {
		return err
	}
	m := p.db.find("host_metrics", host.str("metrics"))
	if need := vm.num("memory_static_max"); m.num("memory_free") < need {
		return fail("HOST_NOT_ENOUGH_FREE_MEMORY", strconv.FormatInt(need, 10), strconv.FormatInt(m.num("memory_free"), 10))
	}
	return nil
}

// networksOf wants an interface of the host on every network of a VM that leads
// out of the hosts; one without any interface is internal to each host.
func (p *Pool) networksOf(vm *object, h *simHost) error {
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		network := p.db.find("network", vif.str("network"))
		if network == nil || len(network.refs("PIFs")) == 0 {
			continue
		}
		if !slices.ContainsFunc(p.db.many("PIF", network.refs("PIFs")), func(pif *object) bool { return pif.str("host") == h.ref }) {
			return fail("VM_REQUIRES_NETWORK", vm.ref, network.ref)
		}
	}
	return nil
}

// disksFree wants no disk of a VM attached elsewhere for writing. That dom0 still
// reads one after an export does not hinder a start.
func (p *Pool) disksFree(vm *object) error {
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		vdi := p.db.find("VDI", vbd.str("VDI"))
		if vdi == nil || vbd.str("type") != "Disk" || vdi.is("sharable") {
			continue
		}
		for _, other := range p.db.many("VBD", vdi.refs("VBDs")) {
			if other != vbd && other.is("currently_attached") && other.str("mode") == "RW" {
				return fail("VDI_IN_USE", vdi.ref, "attach")
			}
		}
	}
	return nil
}

func (p *Pool) chooseHost(vm *object) (*simHost, error) {
	var best *simHost
	load := 0
	reasons := []string{}
	if err := p.disksFree(vm); err != nil {
		return nil, err
	}
	for _, h := range p.hosts {
		if err := p.canBootOn(vm, h); err != nil {
			reasons = append(reasons, h.ref, failureOf(err).Error())
			continue
		}
		if vm.str("affinity") == h.ref {
			return h, nil
		}
		n := len(p.db.find("host", h.ref).refs("resident_VMs"))
		if best == nil || n < load {
			best, load = h, n
		}
	}
	if best == nil {
		return nil, fail("NO_HOSTS_AVAILABLE", reasons...)
	}
	return best, nil
}

// powerOn makes a VM run; the database is locked.
func (p *Pool) powerOn(ref string, h *simHost, startPaused bool) error {
	vm, err := p.db.need("VM", ref)
	if err != nil {
		return err
	}
	state := running
	if startPaused {
		state = paused
	}
	resumed := vm.str("power_state") == suspended
	p.nextID++
	p.db.set(vm, "domid", int64(p.nextID))
	p.db.set(vm, "resident_on", h.ref)
	p.db.set(vm, "power_state", state)
	if vm.str("ha_restart_priority") == haRestart {
		p.db.set(vm, "ha_always_run", true)
	}
	if resumed {
		p.dropSuspendImage(vm)
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		if !vbd.is("empty") || vbd.str("type") == "CD" {
			p.attachVBD(vbd, true)
		}
	}
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		p.db.set(vif, "currently_attached", true)
		p.updateVIF(vif)
	}
	p.bootVTPMs(vm)
	if !resumed {
		p.boots[ref]++
	}
	p.startGuest(vm)
	p.showConsole(vm)
	p.memory(h)
	p.updateAllowed(vm)
	return nil
}

// startGuest fills what guest and metrics tell of a running VM.
func (p *Pool) startGuest(vm *object) {
	now := p.now()
	if m := p.db.find("VM_metrics", vm.str("metrics")); m != nil {
		p.db.set(m, "start_time", now)
		p.db.set(m, "memory_actual", vm.num("memory_dynamic_max"))
		p.db.set(m, "VCPUs_number", vm.num("VCPUs_at_startup"))
		p.db.set(m, "last_updated", now)
	}
	if g := p.db.find("VM_guest_metrics", vm.str("guest_metrics")); g != nil {
		p.db.set(g, "live", true)
		p.db.set(g, "last_updated", now)
	}
}

// powerOff makes a VM halted; the database is locked.
func (p *Pool) powerOff(ref string) error {
	vm, err := p.db.need("VM", ref)
	if err != nil {
		return err
	}
	if vm.str("power_state") == suspended {
		p.dropSuspendImage(vm)
	}
	h := p.hostByRef(vm.str("resident_on"))
	p.db.set(vm, "power_state", halted)
	p.db.set(vm, "resident_on", nullRef)
	p.db.set(vm, "domid", int64(-1))
	p.showConsole(vm)
	p.detachAll(vm)
	if h != nil {
		p.memory(h)
	}
	if g := p.db.find("VM_guest_metrics", vm.str("guest_metrics")); g != nil {
		p.db.set(g, "live", false)
	}
	p.updateAllowed(vm)
	return nil
}

func (p *Pool) detachAll(vm *object) {
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		p.attachVBD(vbd, false)
	}
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		p.db.set(vif, "currently_attached", false)
		p.updateVIF(vif)
	}
}

// memory recomputes a host's free memory.
func (p *Pool) memory(h *simHost) {
	host := p.db.find("host", h.ref)
	m := p.db.find("host_metrics", host.str("metrics"))
	free := m.num("memory_total") - host.num("memory_overhead")
	for _, vm := range p.db.many("VM", host.refs("resident_VMs")) {
		free -= vm.num("memory_static_max")
	}
	p.db.set(m, "memory_free", free)
}
