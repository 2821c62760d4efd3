package xensim

import (
	"slices"
	"sync"
	"time"
)

func (p *Pool) registerAppliance() {
	p.quick("VM_appliance.create", func(_ *call, args []any) (any, error) {
		f, err := p.recordFields("VM_appliance", args[0])
		if err != nil {
			return nil, err
		}
		return p.db.create("VM_appliance", f).ref, nil
	})
	p.quick("VM_appliance.destroy", c2(func(_ *call, ref string) error {
		o, err := p.db.need("VM_appliance", ref)
		if err != nil {
			return err
		}
		for _, vm := range p.db.many("VM", slices.Clone(o.refs("VMs"))) {
			p.db.set(vm, "appliance", nullRef)
		}
		p.db.remove(o)
		return nil
	}))
	p.slow("VM_appliance.start", func(c *call, args []any) (any, error) {
		return "", c.runAppliance(args[0].(string), "start", func(c *call, vm string) error {
			return c.start(vm, "", "start", args[1].(bool))
		})
	})
	for op, run := range map[string]func(*call, string) error{
		"clean_shutdown": (*call).cleanShutdown, "hard_shutdown": (*call).hardShutdown, "shutdown": (*call).shutdown,
	} {
		p.slow("VM_appliance."+op, func(c *call, args []any) (any, error) {
			return "", c.runAppliance(args[0].(string), op, run)
		})
	}
	p.quick("VM.set_appliance", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		if ref := args[1].(string); ref != nullRef {
			if _, err := p.db.need("VM_appliance", ref); err != nil {
				return nil, err
			}
		}
		old := vm.str("appliance")
		p.db.set(vm, "appliance", args[1])
		p.updateAppliance(old)
		p.updateAppliance(vm.str("appliance"))
		return "", nil
	})
	p.quick("secret.create", func(_ *call, args []any) (any, error) {
		f, err := p.recordFields("secret", args[0])
		if err != nil {
			return nil, err
		}
		return p.db.create("secret", f).ref, nil
	})
	p.quick("secret.destroy", c2(func(_ *call, ref string) error {
		o, err := p.db.need("secret", ref)
		if err == nil {
			p.db.remove(o)
		}
		return err
	}))
}

var applianceOps = []string{"start", "clean_shutdown", "hard_shutdown", "shutdown"}

// checkAppliance says why an operation is not possible
// (xapi_vm_appliance_lifecycle.ml).
func (p *Pool) checkAppliance(o *object, op string) error {
	for ref, other := range o.m("current_operations") {
		return fail("OTHER_OPERATION_IN_PROGRESS", "VM_appliance", o.ref, other, ref)
	}
	vms := p.db.many("VM", o.refs("VMs"))
	if len(vms) == 0 {
		return fail("OPERATION_NOT_ALLOWED", "Appliance has no VMs.")
	}
	in := func(f func(state string) bool) bool {
		return slices.ContainsFunc(vms, func(vm *object) bool { return f(vm.str("power_state")) })
	}
	switch {
	case op == "start" && !in(func(s string) bool { return s == halted }):
		return fail("OPERATION_NOT_ALLOWED", "There are no halted VMs in this appliance.")
	case op == "clean_shutdown" && !in(func(s string) bool { return s == running }):
		return fail("OPERATION_NOT_ALLOWED", "There are no running VMs in this appliance.")
	case op != "start" && !in(func(s string) bool { return s != halted }):
		return fail("OPERATION_NOT_ALLOWED", "All VMs in this appliance are halted.")
	}
	return nil
}

// updateAppliance recomputes what may be done with an appliance, if there is one.
func (p *Pool) updateAppliance(ref string) {
	o := p.db.find("VM_appliance", ref)
	if o == nil {
		return
	}
	out := []string{}
	for _, op := range applianceOps {
		if p.checkAppliance(o, op) == nil {
			out = append(out, op)
		}
	}
	if !slices.Equal(out, o.refs("allowed_operations")) {
		p.db.set(o, "allowed_operations", out)
	}
}

// runAppliance brings all VMs to a state: those of one order together, the orders
// one after the other, backwards for a shutdown.
func (c *call) runAppliance(ref, op string, run func(*call, string) error) error {
	p := c.pool
	var groups [][]string
	err := p.locked(func() error {
		o, err := p.db.need("VM_appliance", ref)
		if err != nil {
			return err
		}
		if err := p.checkAppliance(o, op); err != nil {
			return err
		}
		groups = p.applianceGroups(o, op)
		p.db.put(o, "current_operations", c.task, op)
		p.updateAppliance(ref)
		return nil
	})
	if err != nil {
		return err
	}
	for _, group := range groups {
		c.runGroup(group, op, run)
	}
	return p.locked(func() error {
		o := p.db.find("VM_appliance", ref)
		if o == nil {
			return fail("HANDLE_INVALID", "VM_appliance", ref)
		}
		p.db.drop(o, "current_operations", c.task)
		p.updateAppliance(ref)
		failed := []string{}
		for _, vm := range p.db.many("VM", slices.Concat(groups...)) {
			if done := vm.str("power_state") == halted; done == (op == "start") {
				failed = append(failed, vm.ref)
			}
		}
		if len(failed) > 0 {
			return fail("OPERATION_PARTIALLY_FAILED", append([]string{"VM_appliance." + op}, failed...)...)
		}
		return nil
	})
}

// applianceGroups gives the VMs that are not yet in the wanted state, by order.
func (p *Pool) applianceGroups(o *object, op string) [][]string {
	byOrder := map[int64][]string{}
	for _, vm := range p.db.many("VM", o.refs("VMs")) {
		if (vm.str("power_state") == halted) == (op == "start") {
			byOrder[vm.num("order")] = append(byOrder[vm.num("order")], vm.ref)
		}
	}
	var orders []int64
	for n := range byOrder {
		orders = append(orders, n)
	}
	slices.Sort(orders)
	if op != "start" {
		slices.Reverse(orders)
	}
	out := make([][]string, len(orders))
	for i, n := range orders {
		out[i] = byOrder[n]
	}
	return out
}

// runGroup runs an operation on VMs at the same time and waits for all, each with
// its delay.
func (c *call) runGroup(vms []string, op string, run func(*call, string) error) {
	p := c.pool
	var all sync.WaitGroup
	for _, vm := range vms {
		all.Go(func() {
			one := *c
			one.task = "DummyRef:|" + randomUUID() + "|VM." + op
			delay := "shutdown_delay"
			if op == "start" {
				delay = "start_delay"
			}
			if run(&one, vm) != nil {
				return // what could not be done is seen by the VM's state
			}
			p.db.mu.Lock()
			o := p.db.find("VM", vm)
			var seconds int64
			if o != nil {
				seconds = o.num(delay)
			}
			p.db.mu.Unlock()
			_ = p.wait(c.ctx, time.Duration(seconds)*time.Second) // the VMs after these wait
		})
	}
	all.Wait()
}
