package xensim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

const refKind = model.Ref

func (p *Pool) registerVM() {
	p.quick("VM.create", vmCreate)
	p.slow("VM.destroy", c2((*call).destroyVM))
	p.slow("VM.provision", c2((*call).provision))
	p.quick("VM.set_is_a_template", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		return "", p.setTemplate(vm, args[1].(bool))
	})
	p.quick("VM.get_allowed_VBD_devices", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		return p.freeDevices(vm), nil
	})
	p.quick("VM.get_allowed_VIF_devices", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		out := []string{}
		for i := range 7 {
			if !p.hasVIF(vm, strconv.Itoa(i)) {
				out = append(out, strconv.Itoa(i))
			}
		}
		return out, nil
	})
	p.quick("VM.assert_operation_valid", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		return "", p.checkVM(vm, args[1].(string))
	})
	p.quick("VM.update_allowed_operations", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		p.updateAllowed(vm)
		return "", nil
	})
	p.quick("VM.assert_can_boot_here", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		if _, err := p.db.need("host", args[1].(string)); err != nil {
			return nil, err
		}
		return "", p.canBootOn(vm, p.hostByRef(args[1].(string)))
	})
	p.quick("VM.get_possible_hosts", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		out := []string{}
		for _, h := range p.hosts {
			if p.canBootOn(vm, h) == nil {
				out = append(out, h.ref)
			}
		}
		return out, nil
	})
	p.registerVMSettings()
}

// freshGeneration gives a new generation id, unless the VM has none.
func (p *Pool) freshGeneration(vm *object) string {
	if g := vm.str("generation_id"); g == "" || g == "0:0" {
		return g
	}
	return fmt.Sprintf("%d:%d", rand.Int64(), rand.Int64())
}

func vmCreate(c *call, args []any) (any, error) {
	p := c.pool
	f, err := p.recordFields("VM", args[0])
	if err != nil {
		return nil, err
	}
	if err := p.checkSuspended(f); err != nil {
		return nil, err
	}
	return p.createVM(f).ref, nil
}

// checkSuspended wants all that a VM needs to be made in the state Suspended.
func (p *Pool) checkSuspended(f map[string]any) error {
	if f["power_state"] != suspended {
		for _, k := range []string{"suspend_VDI", "last_booted_record", "last_boot_CPU_flags"} {
			delete(f, k)
		}
		return nil
	}
	image, _ := f["suspend_VDI"].(string)
	booted, _ := f["last_booted_record"].(string)
	flags, _ := f["last_boot_CPU_flags"].(map[string]string)
	if image == "" || image == nullRef || booted == "" || len(flags) == 0 {
		return fail("VM_BAD_POWER_STATE", "OpaqueRef:"+randomUUID(), "halted", "suspended")
	}
	_, err := p.db.need("VDI", image)
	return err
}

// createVM makes a VM from the fields that a constructor takes. Blocked
// operations are not among them.
func (p *Pool) createVM(f map[string]any) *object {
	delete(f, "blocked_operations")
	if s, _ := f["power_state"].(string); s != suspended {
		f["power_state"] = halted
	}
	f["domid"], f["resident_on"] = int64(-1), nullRef
	config := map[string]string{}
	if given, ok := f["other_config"].(map[string]string); ok {
		for k, v := range given {
			config[k] = v
		}
	}
	if config["mac_seed"] == "" {
		config["mac_seed"] = randomUUID()
	}
	f["other_config"] = config
	f["metrics"] = p.db.create("VM_metrics", map[string]any{"install_time": p.now(), "last_updated": p.now()}).ref
	vm := p.db.create("VM", f)
	p.updateAllowed(vm)
	return vm
}

// destroyVM deletes a VM and what belongs to it, but for its VDIs.
func (c *call) destroyVM(ref string) error {
	p := c.pool
	p.db.mu.Lock()
	if vm := p.db.find("VM", ref); vm != nil && isDefaultTemplate(vm) {
		p.db.mu.Unlock()
		return fail("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", ref)
	}
	p.db.mu.Unlock()
	return c.whileVM(ref, "destroy", standard, func() error {
		if p.wait(c.ctx, 100*time.Millisecond) != nil {
			return c.cancelled()
		}
		return p.locked(func() error {
			vm, err := p.db.need("VM", ref)
			if err != nil {
				return err
			}
			p.dropVM(vm)
			return nil
		})
	})
}

// dropVM removes a VM's records. Its snapshots keep naming it; its children go to
// its parent.
func (p *Pool) dropVM(vm *object) {
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		p.dropVBD(vbd)
	}
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		p.dropVIF(vif)
	}
	for _, vtpm := range vm.refs("VTPMs") {
		delete(p.vtpms, vtpm)
	}
	for _, class := range []string{"VTPM", "console"} {
		for _, o := range p.db.many(class, vm.refs(class+"s")) {
			p.db.remove(o)
		}
	}
	for _, child := range p.db.many("VM", slices.Clone(vm.refs("children"))) {
		p.db.set(child, "parent", vm.str("parent"))
	}
	for _, m := range []struct{ class, ref string }{
		{"VM_metrics", vm.str("metrics")}, {"VM_guest_metrics", vm.str("guest_metrics")},
	} {
		if o := p.db.find(m.class, m.ref); o != nil {
			p.db.remove(o)
		}
	}
	for _, ref := range vm.m("blobs") {
		if blob := p.db.find("blob", ref); blob != nil {
			p.db.remove(blob)
		}
	}
	delete(p.guests, vm.ref)
	delete(p.boots, vm.ref)
	p.db.remove(vm)
	p.updateAppliance(vm.str("appliance"))
}

// provision makes a VM of a template, with the disks that it describes.
func (c *call) provision(ref string) error {
	p := c.pool
	p.db.mu.Lock()
	if vm := p.db.find("VM", ref); vm != nil && !vm.is("is_a_template") {
		p.db.mu.Unlock()
		return fail("ONLY_PROVISION_TEMPLATE")
	}
	p.db.mu.Unlock()
	return c.whileVM(ref, "provision", standard, func() error {
		if p.wait(c.ctx, snapshotTime) != nil {
			return c.cancelled()
		}
		return p.locked(func() error {
			vm, err := p.db.need("VM", ref)
			if err != nil {
				return err
			}
			if err := p.provisionDisks(vm); err != nil {
				return err
			}
			p.db.set(vm, "is_a_template", false)
			p.db.set(vm, "is_default_template", false)
			p.db.drop(vm, "other_config", "default_template")
			p.db.drop(vm, "other_config", "disks")
			return nil
		})
	})
}
