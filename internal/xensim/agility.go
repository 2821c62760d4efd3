package xensim

import "slices"

// haRestart is the priority of VMs that HA protects; the other two are best-effort
// and none, which is empty.
const haRestart = "restart"

// isProtected says whether HA must keep a VM running.
func isProtected(vm *object) bool {
	return vm.is("ha_always_run") && vm.str("ha_restart_priority") == haRestart
}

// properlyShared says whether every enabled host has an SR plugged (agility.ml).
func (p *Pool) properlyShared(sr *object) bool {
	return sr.is("shared") && !slices.ContainsFunc(p.hosts, func(h *simHost) bool {
		return p.db.find("host", h.ref).is("enabled") && !p.sees(h, sr)
	})
}

// networkShared says whether every enabled host has an interface on a network that
// is no slave of a bond.
func (p *Pool) networkShared(network *object) bool {
	pifs := p.db.many("PIF", network.refs("PIFs"))
	return !slices.ContainsFunc(p.hosts, func(h *simHost) bool {
		return p.db.find("host", h.ref).is("enabled") && !slices.ContainsFunc(pifs, func(pif *object) bool {
			return pif.str("host") == h.ref && p.db.find("Bond", pif.str("bond_slave_of")) == nil
		})
	})
}

// agile says why a VM cannot run on every host.
func (p *Pool) agile(vm *object) error {
	if len(vm.refs("VGPUs")) > 0 {
		return fail("VM_HAS_VGPU", vm.ref)
	}
	if len(vm.refs("VUSBs")) > 0 {
		return fail("VM_HAS_VUSBS", vm.ref)
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil {
			if err := p.sharedSR(vdi); err != nil {
				return err
			}
		}
	}
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		if err := p.sharedNetwork(vif.str("network")); err != nil {
			return err
		}
	}
	return nil
}

// sharedSR refuses a disk that some host cannot see.
func (p *Pool) sharedSR(vdi *object) error {
	if sr := p.db.find("SR", vdi.str("SR")); sr != nil && !p.properlyShared(sr) {
		return fail("HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED", sr.ref)
	}
	return nil
}

func (p *Pool) sharedNetwork(ref string) error {
	if n := p.db.find("network", ref); n != nil && !p.networkShared(n) {
		return fail("HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED", n.ref)
	}
	return nil
}

// updatePool recomputes what may be done with the pool.
func (p *Pool) updatePool() {
	pool := p.poolObject()
	out := []string{}
	for _, op := range p.db.model.Enums["pool_allowed_operations"] {
		if on := pool.is("ha_enabled"); op == "ha_enable" && on || op == "ha_disable" && !on {
			continue
		}
		out = append(out, op)
	}
	if !slices.Equal(out, pool.refs("allowed_operations")) {
		p.db.set(pool, "allowed_operations", out)
	}
}
