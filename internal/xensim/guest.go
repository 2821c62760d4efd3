package xensim

import "fmt"

// StopGuest ends a VM's domain from inside: its guest powers off, or crashes. What
// follows is in the VM's actions_after_shutdown or actions_after_crash; where that
// leaves a protected VM off, HA starts it again.
func (p *Pool) StopGuest(vmUUID string, crash bool) error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	vm := p.db.byUUID["VM"][vmUUID]
	if vm == nil {
		return fmt.Errorf("xensim: no VM has the uuid %s", vmUUID)
	}
	if vm.str("power_state") != running {
		return fmt.Errorf("xensim: VM %s is not running", vmUUID)
	}
	action := vm.str("actions_after_shutdown")
	if crash {
		action = vm.str("actions_after_crash")
	}
	switch action {
	case "restart", "coredump_and_restart", "rename_restart":
		p.nextID++
		p.db.set(vm, "domid", int64(p.nextID))
		p.boots[vm.ref]++
		p.startGuest(vm)
		p.showConsole(vm)
	case "preserve":
		p.db.set(vm, "power_state", paused)
		p.updateAllowed(vm)
	default:
		p.domainGone(vm)
	}
	return nil
}

// domainGone makes a VM halted whose domain has ended without a call. HA still
// wants it to run if it did before.
func (p *Pool) domainGone(vm *object) {
	always := vm.is("ha_always_run")
	if err := p.powerOff(vm.ref); err == nil && always {
		p.db.set(vm, "ha_always_run", true)
	}
}
