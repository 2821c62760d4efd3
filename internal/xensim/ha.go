package xensim

import (
	"maps"
	"slices"
	"strconv"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

const (
	statefileSize = 4 << 20
	redoLogSize   = 256 << 20
)

func (p *Pool) registerHA() {
	p.quick("pool.enable_ha", func(c *call, args []any) (any, error) {
		return "", p.enableHA(args[0].([]string), args[1])
	})
	p.quick("pool.disable_ha", func(*call, []any) (any, error) { return "", p.disableHA() })
	p.quick("pool.set_ha_host_failures_to_tolerate", func(_ *call, args []any) (any, error) {
		return "", p.tolerate(args[0].(string), args[1].(int64))
	})
	p.quick("pool.ha_compute_max_host_failures_to_tolerate", func(*call, []any) (any, error) {
		return p.maxFailures(p.protectedVMs()), nil
	})
	p.quick("pool.ha_compute_hypothetical_max_host_failures_to_tolerate", func(_ *call, args []any) (any, error) {
		return p.hypothetical(args[0])
	})
	p.quick("pool.ha_failover_plan_exists", func(_ *call, args []any) (any, error) {
		return p.planFor(p.protectedVMs(), int(args[0].(int64)), planChange{}) == planForAll, nil
	})
	p.quick("pool.ha_compute_vm_failover_plan", func(_ *call, args []any) (any, error) {
		return p.failoverPlan(args[0].([]string), args[1].([]string))
	})
	p.quick("pool.ha_prevent_restarts_for", func(_ *call, args []any) (any, error) {
		if !p.poolObject().is("ha_enabled") {
			return nil, fail("HA_NOT_ENABLED")
		}
		p.ha.holdUntil = p.simulatedLater(args[0].(int64))
		return "", nil
	})
	p.quick("pool.set_ha_allow_overcommit", func(_ *call, args []any) (any, error) {
		o, err := p.db.need("pool", args[0].(string))
		if err != nil {
			return nil, err
		}
		p.db.set(o, "ha_allow_overcommit", args[1])
		p.updateHA()
		return "", nil
	})
	p.quick("VM.set_ha_restart_priority", func(_ *call, args []any) (any, error) {
		return "", p.setRestartPriority(args[0].(string), args[1].(string))
	})
	p.quick("VM.set_ha_always_run", func(_ *call, args []any) (any, error) {
		priority := ""
		if args[1].(bool) {
			priority = haRestart
		}
		return "", p.setRestartPriority(args[0].(string), priority)
	})
	p.quick("VM.assert_agile", c2(func(_ *call, ref string) error {
		vm, err := p.db.need("VM", ref)
		if err != nil {
			return err
		}
		return p.agile(vm)
	}))
}

// canHoldStatefile says why HA cannot use an SR (xha_statefile.ml).
func (p *Pool) canHoldStatefile(sr *object) error {
	for _, h := range p.hosts {
		if !p.sees(h, sr) {
			return fail("SR_HAS_NO_PBDS", sr.ref)
		}
	}
	if !slices.Contains(sharedDrivers, sr.str("type")) || !holdsVHDs(sr) {
		return fail("SR_OPERATION_NOT_SUPPORTED", sr.ref)
	}
	if sr.num("physical_size")-sr.num("physical_utilisation") < statefileSize+redoLogSize {
		return fail("SR_SOURCE_SPACE_INSUFFICIENT", sr.ref)
	}
	return nil
}

// enableHA puts a statefile and a copy of the database on one of the SRs and
// begins to watch hosts and VMs (xapi_ha.ml).
func (p *Pool) enableHA(srs []string, configuration any) error {
	pool := p.poolObject()
	if pool.is("ha_enabled") {
		return fail("HA_IS_ENABLED")
	}
	for _, h := range p.hosts {
		if h.dead {
			return fail("HOST_OFFLINE", h.ref)
		}
	}
	if len(srs) == 0 {
		for _, sr := range p.db.all("SR") {
			if p.canHoldStatefile(sr) == nil {
				srs = append(srs, sr.ref)
			}
		}
	}
	if len(srs) == 0 {
		return fail("CANNOT_CREATE_STATE_FILE")
	}
	sr, err := p.db.need("SR", srs[0])
	if err != nil {
		return err
	}
	if err := p.canHoldStatefile(sr); err != nil {
		return err
	}
	state, err := p.findOrCreate(sr, "ha_statefile", "Statefile for HA", "Used for storage heartbeating", statefileSize)
	if err != nil {
		return err
	}
	if _, err := p.findOrCreate(sr, "redo_log", "Metadata for HA", "Used for master failover", redoLogSize); err != nil {
		return err
	}
	peers := make([]string, len(p.hosts))
	for i, h := range p.hosts {
		peers[i] = h.uuid
	}
	for _, h := range p.hosts {
		host := p.db.find("host", h.ref)
		p.db.set(host, "ha_statefiles", []string{state.ref})
		p.db.set(host, "ha_network_peers", peers)
	}
	for f, v := range map[string]any{
		"ha_statefiles": []string{state.ref}, "ha_configuration": configuration, "ha_plan_exists_for": int64(0),
		"ha_cluster_stack": "xhad", "ha_enabled": true,
	} {
		p.db.set(pool, f, v)
	}
	p.updateHA()
	p.updatePool()
	p.updateStatefiles()
	p.watch()
	return nil
}

func (p *Pool) disableHA() error {
	pool := p.poolObject()
	if !pool.is("ha_enabled") {
		return fail("HA_NOT_ENABLED")
	}
	p.db.set(pool, "ha_enabled", false)
	p.db.set(pool, "ha_statefiles", []string{})
	p.db.set(pool, "ha_configuration", map[string]string{})
	p.db.set(pool, "ha_overcommitted", false)
	for _, h := range p.hosts {
		host := p.db.find("host", h.ref)
		p.db.set(host, "ha_statefiles", []string{})
		p.db.set(host, "ha_network_peers", []string{})
	}
	p.updatePool()
	p.updateStatefiles()
	p.ha.stop()
	return nil
}

// updateStatefiles recomputes what may be done with HA's own disks.
func (p *Pool) updateStatefiles() {
	for _, vdi := range p.db.tables["VDI"] {
		if t := vdi.str("type"); t == "ha_statefile" || t == "redo_log" {
			p.updateVDI(vdi)
		}
	}
}

// findOrCreate gives the disk of a type on an SR, new where there is none.
func (p *Pool) findOrCreate(sr *object, kind, name, description string, size int64) (*object, error) {
	for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
		if vdi.str("type") == kind {
			return vdi, nil
		}
	}
	if err := p.room(sr, size); err != nil {
		return nil, err
	}
	image, err := p.disks.New(size, disk.Content{})
	if err != nil {
		return nil, internalError("%v", err)
	}
	return p.addVDI(sr, image, 0, map[string]any{
		"name_label": name, "name_description": description, "type": kind, "sharable": true,
	}), nil
}

func (p *Pool) tolerate(ref string, n int64) error {
	pool, err := p.db.need("pool", ref)
	if err != nil {
		return err
	}
	if n < 0 {
		return fail("INVALID_VALUE", "ha_host_failures_to_tolerate", strconv.FormatInt(n, 10))
	}
	if err := p.keepsPlan(n, planChange{}); err != nil {
		return err
	}
	p.db.set(pool, "ha_host_failures_to_tolerate", n)
	p.updateHA()
	return nil
}

// hypothetical computes the failures to tolerate as if the VMs had the priorities
// given, and no others were protected.
func (p *Pool) hypothetical(v any) (any, error) {
	var vms []*object
	for ref, priority := range v.(map[string]string) {
		vm, err := p.db.need("VM", ref)
		if err != nil {
			return nil, err
		}
		if err := checkPriority(priority); err != nil {
			return nil, err
		}
		if priority == haRestart {
			vms = append(vms, vm)
		}
	}
	return p.maxFailures(vms), nil
}

// failoverPlan says where each VM would go if hosts failed.
func (p *Pool) failoverPlan(hosts, vms []string) (any, error) {
	free := maps.Clone(p.haState(nil, planChange{}).free)
	for _, ref := range hosts {
		if _, err := p.db.need("host", ref); err != nil {
			return nil, err
		}
		delete(free, ref)
	}
	out := map[string]any{}
	for _, ref := range vms {
		vm, err := p.db.need("VM", ref)
		if err != nil {
			return nil, err
		}
		if err := p.agile(vm); err != nil {
			out[ref] = map[string]string{"error_code": failureOf(err).Code}
			continue
		}
		out[ref] = map[string]string{"error_code": "HOST_NOT_ENOUGH_FREE_MEMORY"}
		for _, h := range slices.Sorted(maps.Keys(free)) {
			if need := planMemory(vm); free[h] >= need {
				free[h] -= need
				out[ref] = map[string]string{"host": h}
				break
			}
		}
	}
	return out, nil
}

func checkPriority(s string) error {
	if s != "" && s != "best-effort" && s != haRestart {
		return fail("INVALID_VALUE", "ha_restart_priority", s)
	}
	return nil
}

// setRestartPriority says how HA treats a VM. One that runs is protected, or no
// longer, at once.
func (p *Pool) setRestartPriority(ref, priority string) error {
	vm, err := p.db.need("VM", ref)
	if err != nil {
		return err
	}
	if err := checkPriority(priority); err != nil {
		return err
	}
	old := vm.str("ha_restart_priority")
	if priority == haRestart && old != haRestart && vm.str("power_state") != halted {
		if err := p.keepsPlan(-1, planChange{protect: vm}); err != nil {
			return err
		}
	}
	if old == priority {
		return nil
	}
	p.db.set(vm, "ha_restart_priority", priority)
	if vm.str("power_state") == running {
		p.db.set(vm, "ha_always_run", priority == haRestart)
	}
	p.updateHA()
	return nil
}
