package xensim

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

const (
	halted    = "Halted"
	paused    = "Paused"
	running   = "Running"
	suspended = "Suspended"
)

// powerStates says in which states an operation is allowed. Operations that are
// not named are allowed in all of them. (xapi_vm_lifecycle.ml)
var powerStates = map[string][]string{
	"export": {halted, suspended}, "destroy": {halted, suspended}, "create_template": {halted, suspended},
	"start": {halted}, "start_on": {halted}, "provision": {halted}, "make_into_template": {halted},
	"changing_NVRAM": {halted}, "create_vtpm": {halted}, "clone": {halted}, "copy": {halted},
	"changing_static_range": {halted}, "changing_VCPUs": {halted}, "changing_shadow_memory": {halted},
	"changing_dynamic_range": {halted, running}, "changing_memory_limits": {halted, running},
	"unpause": {paused}, "resume": {suspended}, "resume_on": {suspended}, "csvm": {suspended},
	"clean_shutdown": {running}, "clean_reboot": {running}, "pause": {running}, "suspend": {running},
	"pool_migrate": {running}, "changing_memory_live": {running}, "awaiting_memory_live": {running},
	"changing_VCPUs_live": {running}, "changing_shadow_memory_live": {running}, "send_sysrq": {running},
	"send_trigger": {running}, "data_source_op": {running}, "call_plugin": {running}, "query_services": {running},
	"hard_reboot": {paused, running}, "migrate_send": {halted, suspended, running},
	"checkpoint": {paused, suspended, running}, "shutdown": {paused, suspended, running},
	"hard_shutdown": {paused, suspended, running}, "import": {},
}

// templateOps and snapshotOps are what is allowed on templates and snapshots;
// what begins with changing_ is allowed on templates as well.
var (
	templateOps = []string{"clone", "copy", "export", "metadata_export", "provision", "destroy", "migrate_send"}
	snapshotOps = []string{"revert", "clone", "copy", "export", "destroy", "hard_shutdown", "metadata_export"}
	longCopies  = []string{"clone", "copy", "export"}
	snapshots   = []string{"snapshot", "checkpoint"}
)

// checkVM says why an operation on a VM is not possible, in XAPI's order: blocked,
// power state, concurrency, template, snapshot, control domain.
func (p *Pool) checkVM(vm *object, op string) error {
	if msg, ok := vm.m("blocked_operations")[op]; ok {
		return fail("OPERATION_BLOCKED", vm.ref, msg)
	}
	state := vm.str("power_state")
	if states, ok := powerStates[op]; ok && !slices.Contains(states, state) {
		if op != "clone" && op != "copy" || state != suspended || !vm.is("is_a_snapshot") {
			return fail("VM_BAD_POWER_STATE", vm.ref, strings.ToLower(strings.Join(states, ", ")), strings.ToLower(state))
		}
	}
	if err := checkConcurrency(vm, op); err != nil {
		return err
	}
	if vm.is("is_a_snapshot") {
		if !slices.Contains(snapshotOps, op) {
			return fail("VM_IS_SNAPSHOT", vm.ref, op)
		}
	} else if vm.is("is_a_template") {
		ok := strings.HasPrefix(op, "changing_") || slices.Contains(templateOps, op)
		if !ok || isDefaultTemplate(vm) && (op == "destroy" || op == "migrate_send") {
			return fail("VM_IS_TEMPLATE", vm.ref, op)
		}
	} else if op == "revert" || op == "provision" {
		return fail("OPERATION_NOT_ALLOWED", "the VM is neither a snapshot nor a template")
	}
	if vm.is("is_control_domain") && op != "data_source_op" && op != "changing_memory_live" {
		return fail("OPERATION_NOT_ALLOWED", "This operation is not allowed on dom0")
	}
	if op == "clean_shutdown" || op == "clean_reboot" || op == "suspend" || op == "checkpoint" {
		return p.checkFeatures(vm)
	}
	return nil
}

// checkFeatures wants the guest's drivers.
func (p *Pool) checkFeatures(vm *object) error {
	if vm.str("power_state") != running {
		return nil
	}
	g := p.db.find("VM_guest_metrics", vm.str("guest_metrics"))
	if g == nil || !g.is("PV_drivers_detected") && len(g.m("PV_drivers_version")) == 0 {
		return fail("VM_LACKS_FEATURE", vm.ref)
	}
	return nil
}

func isDefaultTemplate(vm *object) bool {
	return vm.is("is_default_template") || vm.m("other_config")["default_template"] == "true"
}

func checkConcurrency(vm *object, op string) error {
	current := vm.m("current_operations")
	if len(current) == 0 {
		return nil
	}
	compatible := op == "hard_shutdown" || op == "hard_reboot"
	for _, group := range [][]string{longCopies, snapshots} {
		if !compatible && slices.Contains(group, op) {
			compatible = !slices.ContainsFunc(slices.Collect(maps.Values(current)), func(o string) bool {
				return !slices.Contains(group, o)
			})
		}
	}
	for _, o := range current {
		if o == "import" || o == "destroy" || o == "revert" || o == "export" && !slices.Contains(longCopies, op) {
			compatible = false
		}
	}
	if compatible {
		return nil
	}
	refs := slices.Sorted(maps.Keys(current))
	ops := make([]string, len(refs))
	for i, r := range refs {
		ops[i] = current[r]
	}
	return fail("OTHER_OPERATION_IN_PROGRESS", "VM", vm.ref, strings.Join(ops, "; "), strings.Join(refs, "; "))
}

// updateAllowed recomputes a VM's allowed_operations.
func (p *Pool) updateAllowed(vm *object) {
	if vm.is("is_control_domain") {
		return
	}
	out := []string{}
	for _, op := range p.db.model.Enums["vm_operations"] {
		switch op {
		case "assert_operation_valid", "update_allowed_operations", "import", "reverting", "csvm", "snapshot_with_quiesce":
			continue
		}
		if p.checkVM(vm, op) == nil {
			out = append(out, op)
		}
	}
	if !slices.Equal(out, vm.refs("allowed_operations")) {
		p.db.set(vm, "allowed_operations", out)
	}
	p.updateAppliance(vm.str("appliance"))
}

// patience is how long XAPI itself tries again when an object is busy.
type patience int

const (
	// standard: pauses of 1 to 20 s, for up to two hours.
	standard patience = iota
	// failQuickly: every 2 s, for up to two minutes.
	failQuickly
)

// whileVM runs work while op is among the VM's current operations. It waits for
// other operations to end as XAPI does. The database is not locked.
func (c *call) whileVM(ref, op string, how patience, work func() error) error {
	if err := c.beginVM(ref, op, how); err != nil {
		return err
	}
	defer c.endVM(ref)
	return work()
}

func (c *call) beginVM(ref, op string, how patience) error {
	return c.patiently(how, func() error { return c.pool.tryBeginVM(ref, op, c.task) })
}

// patiently tries again for as long as another operation is in the way, as XAPI
// does before it tells the client (helpers.ml). The database is not locked.
func (c *call) patiently(how patience, try func() error) error {
	p := c.pool
	limit, begin := p.scaled(2*time.Hour), time.Now()
	if how == failQuickly {
		limit = p.scaled(120 * time.Second)
	}
	for {
		err := try()
		var f *Failure
		if !errors.As(err, &f) || f.Code != "OTHER_OPERATION_IN_PROGRESS" || time.Since(begin) >= limit {
			return err
		}
		pause := 2 * time.Second
		if how == standard {
			pause = time.Second + time.Duration(rand.Int64N(int64(19*time.Second)))
		}
		if p.wait(c.ctx, pause) != nil {
			return c.cancelled()
		}
	}
}

func (p *Pool) tryBeginVM(ref, op, task string) error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	vm, err := p.db.need("VM", ref)
	if err != nil {
		return err
	}
	if err := p.checkVM(vm, op); err != nil {
		return err
	}
	p.db.put(vm, "current_operations", task, op)
	p.updateAllowed(vm)
	return nil
}

func (c *call) endVM(ref string) {
	p := c.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if vm := p.db.find("VM", ref); vm != nil {
		p.db.drop(vm, "current_operations", c.task)
		p.updateAllowed(vm)
	}
}

// locked runs f with the database locked.
func (p *Pool) locked(f func() error) error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	return f()
}
