package xensim

import (
	"strconv"
	"time"
)

// cleanShutdown asks the guest; a guest that is late still powers off. One that was booted since was never asked.
func (c *call) cleanShutdown(ref string) error {
	p := c.pool
	err := c.whileVM(ref, "clean_shutdown", standard, func() error {
		p.db.mu.Lock()
		g, takes, asked := p.guests[ref], shutdownTime, p.boots[ref]
		p.db.mu.Unlock()
		if g == nil {
			g = &guest{}
		}
		if g.takes > 0 {
			takes = g.takes
		}
		ignores, late := p.faultOnShutdown(ref)
		if late > 0 {
			takes = late
		}
		if ignores || g.ignores {
			return c.unprotected(ref, func() error { return c.awaitOff(ref, shutdownLimit) })
		}
		p.spawn(func() {
			if p.wait(p.ctx, takes) != nil {
				return
			}
			_ = p.locked(func() error { // the VM may be gone by then
				if vm := p.db.find("VM", ref); vm != nil && vm.str("power_state") == running && p.boots[ref] == asked {
					return p.powerOff(ref)
				}
				return nil
			})
		})
		return c.unprotected(ref, func() error { return c.awaitOff(ref, shutdownLimit) })
	})
	return err
}

// unprotected takes a VM out of HA's care while it is shut down on purpose, and
// for good if that succeeds.
func (c *call) unprotected(ref string, work func() error) error {
	p, was := c.pool, false
	set := func(on bool) {
		_ = p.locked(func() error {
			if vm := p.db.find("VM", ref); vm != nil {
				was = vm.is("ha_always_run")
				p.db.set(vm, "ha_always_run", on)
				p.updateHA()
			}
			return nil
		})
	}
	set(false)
	before := was
	err := work()
	if err != nil && before {
		set(true)
	}
	return err
}

// awaitOff waits until the VM is off, or was booted anew since it was.
func (c *call) awaitOff(ref string, limit time.Duration) error {
	p := c.pool
	timer := time.NewTimer(p.scaled(limit))
	defer timer.Stop()
	p.db.mu.Lock()
	boots := p.boots[ref]
	p.db.mu.Unlock()
	for {
		p.db.mu.Lock()
		vm, anew := p.db.find("VM", ref), p.boots[ref] != boots
		changed := p.db.change()
		p.db.mu.Unlock()
		if vm == nil {
			return fail("HANDLE_INVALID", "VM", ref)
		}
		if anew || p.powerState(ref) == halted {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return fail("VM_SHUTDOWN_TIMEOUT", ref, strconv.FormatFloat(limit.Seconds(), 'f', -1, 64))
		case <-c.ctx.Done():
			return c.cancelled()
		}
	}
}

func (p *Pool) powerState(ref string) string {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if vm := p.db.find("VM", ref); vm != nil {
		return vm.str("power_state")
	}
	return ""
}

// shutdown tries a clean shutdown, then a hard one.
func (c *call) shutdown(ref string) error {
	if err := c.cleanShutdown(ref); err == nil || isCode(err, "HANDLE_INVALID") || isCode(err, "TASK_CANCELLED") {
		return err
	}
	return c.hardShutdown(ref)
}

func (c *call) hardShutdown(ref string) error {
	return c.whileVM(ref, "hard_shutdown", standard, func() error {
		return c.unprotected(ref, func() error {
			if c.pool.wait(c.ctx, hardTime) != nil {
				return c.cancelled()
			}
			return c.pool.locked(func() error { return c.pool.powerOff(ref) })
		})
	})
}

func (c *call) reboot(ref, op string) error {
	return c.whileVM(ref, op, standard, func() error {
		if c.pool.wait(c.ctx, shutdownTime) != nil {
			return c.cancelled()
		}
		return c.pool.locked(func() error {
			vm, err := c.pool.db.need("VM", ref)
			if err != nil {
				return err
			}
			c.pool.nextID++
			c.pool.db.set(vm, "domid", int64(c.pool.nextID))
			c.pool.boots[ref]++
			c.pool.startGuest(vm)
			return nil
		})
	})
}

// move changes the power state and nothing else.
func (c *call) move(ref, op, state string, takes time.Duration) error {
	return c.whileVM(ref, op, standard, func() error {
		if takes > 0 && c.pool.wait(c.ctx, takes) != nil {
			return c.cancelled()
		}
		return c.pool.locked(func() error {
			vm, err := c.pool.db.need("VM", ref)
			if err != nil {
				return err
			}
			c.pool.db.set(vm, "power_state", state)
			return nil
		})
	})
}

// suspend writes the memory to a VDI on the SR for suspend images.
func (c *call) suspend(ref string) error {
	p := c.pool
	return c.whileVM(ref, "suspend", standard, func() error {
		return c.unprotected(ref, func() error {
			if p.wait(c.ctx, suspendTime) != nil {
				return c.cancelled()
			}
			return p.locked(func() error {
				vm, err := p.db.need("VM", ref)
				if err != nil {
					return err
				}
				return p.suspendVM(vm)
			})
		})
	})
}
