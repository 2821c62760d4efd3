package xensim

import (
	"slices"
	"testing"
)

// enableHA gives a pool with HA on and its record's reference.
func (c *client) enableHA() string {
	c.t.Helper()
	c.ok("pool.enable_ha", []string{}, map[string]string{})
	return c.list("pool.get_all")[0]
}

func TestEnableHA(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	pool := c.list("pool.get_all")[0]
	c.fails("HA_NOT_ENABLED", "pool.disable_ha")
	local := c.list("SR.get_by_name_label", "Local storage on xen1")[0]
	if got := c.fails("SR_HAS_NO_PBDS", "pool.enable_ha", []string{local}, map[string]string{}); !slices.Equal(got, []string{local}) {
		t.Errorf("a local SR: %v", got)
	}
	c.ok("pool.enable_ha", []string{}, map[string]string{"timeout": "90"})
	c.fails("HA_IS_ENABLED", "pool.enable_ha", []string{}, map[string]string{})
	r := c.record("pool", pool)
	files := r["ha_statefiles"].([]any)
	if r["ha_enabled"] != true || len(files) != 1 || r["ha_cluster_stack"] != "xhad" || r["ha_configuration"].(map[string]any)["timeout"] != "90" {
		t.Fatalf("pool: %v", r)
	}
	ops := c.list("pool.get_allowed_operations", pool)
	if slices.Contains(ops, "ha_enable") || !slices.Contains(ops, "ha_disable") {
		t.Errorf("allowed operations: %v", ops)
	}
	c.fails("HA_IS_ENABLED", "VDI.destroy", files[0])
	sr := c.str("VDI.get_SR", files[0])
	c.fails("HA_IS_ENABLED", "PBD.unplug", c.list("SR.get_PBDs", sr)[0])
	c.ok("pool.disable_ha")
	c.ok("VDI.destroy", files[0])
	if got := c.list("pool.get_ha_statefiles", pool); len(got) != 0 {
		t.Errorf("statefiles of a pool without HA: %v", got)
	}
}

func TestHAPlan(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	pool := c.enableHA()
	vm := c.vm("web-01") // runs on xen1, on shared storage
	c.fails("INVALID_VALUE", "VM.set_ha_restart_priority", vm, "always")
	c.ok("VM.set_ha_restart_priority", vm, "restart")
	if c.ok("VM.get_ha_always_run", vm) != true {
		t.Error("a running VM is not protected at once")
	}
	if got := c.str("pool.ha_compute_max_host_failures_to_tolerate"); got != "1" {
		t.Errorf("failures to tolerate: %s, want 1", got)
	}
	c.fails("INVALID_VALUE", "pool.set_ha_host_failures_to_tolerate", pool, "-1")
	c.fails("HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN", "pool.set_ha_host_failures_to_tolerate", pool, "2")
	task := c.task(c.str("Async.pool.set_ha_host_failures_to_tolerate", pool, "1"))
	r := c.record("pool", pool)
	if task["status"] != "success" || r["ha_host_failures_to_tolerate"] != "1" || r["ha_plan_exists_for"] != "1" || r["ha_overcommitted"] != false {
		t.Errorf("plan for one failure: %v, %v", task, r)
	}
	// A VM so large that web-01 no longer fits on the other host.
	big := c.str("VM.clone", c.vm("archive"), "big")
	half := int64(hostMemory - 7<<30)
	c.ok("VM.set_memory_limits", big, half, half, half, half)
	hosts := c.list("host.get_all")
	target := hosts[0]
	if target == c.str("VM.get_resident_on", vm) {
		target = hosts[1]
	}
	c.fails("HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN", "VM.start_on", big, target, false, false)
	if got := c.ok("pool.ha_failover_plan_exists", "1"); got != true {
		t.Error("a refused start has ended the plan")
	}
	c.ok("pool.set_ha_allow_overcommit", pool, true)
	c.ok("VM.start_on", big, target, false, false)
	eventually(t, "the pool is overcommitted", func() bool { return c.ok("pool.get_ha_overcommitted", pool) == true })
	if got := c.str("pool.get_ha_plan_exists_for", pool); got != "0" {
		t.Errorf("plan for %s failures", got)
	}
	plan := c.ok("pool.ha_compute_vm_failover_plan", []string{c.str("VM.get_resident_on", vm)}, []string{vm}).(map[string]any)
	if got := plan[vm].(map[string]any)["error_code"]; got != "HOST_NOT_ENOUGH_FREE_MEMORY" {
		t.Errorf("failover plan: %v", plan)
	}
	c.ok("VM.hard_shutdown", big)
	if got := c.str("pool.ha_compute_hypothetical_max_host_failures_to_tolerate", map[string]string{vm: "restart", big: "restart"}); got != "0" {
		t.Errorf("hypothetical failures: %s", got)
	}
	c.fails("HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN", "VM.set_ha_restart_priority", c.protectable("db-01"), "restart")
}

// protectable switches overcommitment off, so that priorities are checked.
func (c *client) protectable(name string) string {
	c.t.Helper()
	pool := c.list("pool.get_all")[0]
	c.ok("pool.set_ha_allow_overcommit", pool, false)
	eventually(c.t, "the plan is back", func() bool { return c.str("pool.get_ha_plan_exists_for", pool) == "1" })
	return c.vm(name)
}

func TestHAConstraints(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	c.ok("VM.set_ha_restart_priority", vm, "restart")
	local := c.list("SR.get_by_name_label", "Local storage on xen1")[0]
	vdi := c.str("VDI.create", map[string]any{"name_label": "l", "SR": local, "virtual_size": "1048576", "type": "user", "sharable": false,
		"read_only": false, "other_config": map[string]string{}})
	vbd := map[string]any{"VM": vm, "VDI": vdi, "userdevice": "autodetect", "bootable": false, "mode": "RW", "type": "Disk", "empty": false}
	if got := c.fails("HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED", "VBD.create", vbd); !slices.Equal(got, []string{local}) {
		t.Errorf("a local disk: %v", got)
	}
	net := c.list("network.get_by_name_label", "Backup network")[0] // no host has an interface on it
	vif := map[string]any{"VM": vm, "network": net, "device": "5", "MAC": "", "MTU": "1500", "other_config": map[string]string{}}
	if got := c.fails("HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED", "VIF.create", vif); !slices.Equal(got, []string{net}) {
		t.Errorf("a local network: %v", got)
	}
	c.ok("VM.assert_agile", vm)
	c.fails("HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED", "VM.assert_agile", c.vm("db-01"))
	// Shut down on purpose it is protected no more; a start protects it again.
	c.ok("VM.clean_shutdown", vm)
	if c.ok("VM.get_ha_always_run", vm) != false {
		t.Error("ha_always_run is left after a clean shutdown")
	}
	c.ok("VBD.create", vbd)
	c.ok("VBD.destroy", c.list("VDI.get_VBDs", vdi)[0])
	c.ok("VM.start", vm, false, false)
	if c.ok("VM.get_ha_always_run", vm) != true {
		t.Error("a start does not protect the VM")
	}
	c.ok("VM.set_ha_restart_priority", vm, "")
	if c.ok("VM.get_ha_always_run", vm) != false {
		t.Error("without a priority the VM is protected")
	}
}

func TestHARestarts(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	pool := c.enableHA()
	vm, best := c.vm("web-01"), c.vm("twin")
	uuid := c.str("VM.get_uuid", vm)
	c.ok("VM.set_ha_restart_priority", vm, "restart")
	c.ok("VM.set_ha_restart_priority", best, "best-effort")
	c.ok("pool.set_ha_host_failures_to_tolerate", pool, "1")
	before := c.str("VM.get_domid", vm)
	if err := p.StopGuest(uuid, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "HA starts a VM that powered off", func() bool {
		return c.str("VM.get_power_state", vm) == running && c.str("VM.get_domid", vm) != before
	})
	p.db.mu.Lock()
	onMaster := p.db.find("VM", vm).str("resident_on") == p.master().ref
	p.db.mu.Unlock()
	if !onMaster {
		c.ok("VM.pool_migrate", vm, c.str("pool.get_master", pool), map[string]string{})
	}
	if err := p.SetHostDown("xen1", true, true); err != nil { // the master
		t.Fatal(err)
	}
	eventually(t, "another host is the master", func() bool { return p.Info().Hosts[1].Master })
	other := p.client(t, 1)
	other.session = other.ok("session.login_with_password", "root", testPassword, "1.1", "test").(string)
	xen2 := other.str("pool.get_master", pool)
	for _, ref := range []string{vm, best} {
		eventually(t, "the VM runs on the other host", func() bool {
			return other.str("VM.get_power_state", ref) == running && other.str("VM.get_resident_on", ref) == xen2
		})
	}
	messages := []string{}
	for _, m := range other.ok("message.get_all_records").(map[string]any) {
		messages = append(messages, m.(map[string]any)["name"].(string))
	}
	if !slices.Contains(messages, "HA_HOST_FAILED") {
		t.Errorf("messages: %v", messages)
	}
	if got := other.ok("pool.get_ha_overcommitted", pool); got != true {
		t.Error("with one host left no failure can be tolerated")
	}
}
