package xensim

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// host gives the reference of a host by its name.
func (c *client) host(name string) string {
	c.t.Helper()
	return c.list("host.get_by_name_label", name)[0]
}

func TestPlugins(t *testing.T) {
	p := startPool(t, demo, func(c *Config) { c.Speedup = 10 }) // coalescing by itself takes 1.5 s
	c := p.login(t)
	host, vm := c.host("xen1"), c.vm("archive")
	call := func(plugin, fn string, args map[string]string) []any { return []any{host, plugin, fn, args} }
	if got := c.fails("XENAPI_MISSING_PLUGIN", "host.call_plugin", call("none", "x", map[string]string{})...); !slices.Equal(got, []string{"none"}) {
		t.Errorf("missing plugin: %v", got)
	}
	c.fails("UNKNOWN_XENAPI_PLUGIN_FUNCTION", "host.call_plugin", call("coalesce-leaf", "x", map[string]string{})...)
	if got := c.fails("XENAPI_PLUGIN_FAILURE", "host.call_plugin", call("coalesce-leaf", "leaf-coalesce", map[string]string{})...); len(got) != 3 {
		t.Errorf("failure: %v", got)
	}
	vdi := c.disks(vm)["0"]
	snapshot := c.str("VM.snapshot", vm, "s")
	before := p.state(t).vm(t, c.str("VM.get_uuid", vm)).digests()
	for _, d := range c.disks(snapshot) {
		c.ok("VDI.destroy", d)
	}
	parent := func() any { return c.record("VDI", vdi)["sm_config"].(map[string]any)["vhd-parent"] }
	if parent() == nil {
		t.Fatal("the disk has no base copy to coalesce")
	}
	if got := c.str("host.call_plugin", call("coalesce-leaf", "leaf-coalesce", map[string]string{"vm_uuid": c.str("VM.get_uuid", vm)})...); got != "True" {
		t.Errorf("leaf-coalesce gave %q", got)
	}
	if parent() != nil {
		t.Errorf("the disk still has the parent %v", parent())
	}
	if got := p.state(t).vm(t, c.str("VM.get_uuid", vm)).digests(); got["0"] != before["0"] {
		t.Error("coalescing changed the disk")
	}
}

func TestEvacuate(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	xen1, xen2 := c.host("xen1"), c.host("xen2")
	// installer and db-01 run on xen2; db-01 has a local disk.
	why := c.ok("host.get_vms_which_prevent_evacuation", xen2).(map[string]any)
	stuck := c.vm("db-01")
	if got, ok := why[stuck].([]any); len(why) != 1 || !ok || got[0] != "VM_REQUIRES_SR" {
		t.Errorf("what prevents evacuation: %v", why)
	}
	if got := c.fails("CANNOT_EVACUATE_HOST", "host.evacuate", xen2); !strings.HasPrefix(got[0], "VM_REQUIRES_SR,"+stuck) {
		t.Errorf("evacuation: %v", got)
	}
	c.fails("CANNOT_EVACUATE_HOST", "host.assert_can_evacuate", xen2)
	c.ok("VM.hard_shutdown", stuck)
	c.fails("HOST_NOT_DISABLED", "host.reboot", xen2)
	c.ok("host.disable", xen2)
	if got := c.fails("HOST_IN_USE", "host.reboot", xen2); !slices.Equal(got, []string{xen2, "VM", c.vm("installer")}) {
		t.Errorf("a host with VMs: %v", got)
	}
	if ops := c.list("host.get_allowed_operations", xen2); !slices.Contains(ops, "reboot") {
		t.Errorf("operations of a disabled host: %v", ops)
	}
	if r := c.task(c.str("Async.host.evacuate", xen2)); r["status"] != "success" {
		t.Fatalf("evacuation: %v", r)
	}
	if got := c.str("VM.get_resident_on", c.vm("installer")); got != xen1 {
		t.Error("the VM did not move")
	}
	metrics := c.str("host.get_metrics", xen2)
	c.ok("host.reboot", xen2)
	eventually(t, "the host is down", func() bool { return c.ok("host_metrics.get_live", metrics) == false })
	eventually(t, "the host is back", func() bool {
		return c.ok("host_metrics.get_live", metrics) == true && c.ok("host.get_enabled", xen2) == true
	})
	c.ok("VM.start_on", stuck, xen2, false, false)
}

func TestRestartAgent(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	c.ok("host.restart_agent", c.host("xen1"))
	eventually(t, "the session is lost", func() bool {
		_, err := c.call("host.get_all")
		return err != nil
	})
	c = p.loginAgain(t)
	if len(c.list("host.get_all")) != 2 {
		t.Error("hosts are missing")
	}
}

func TestHostFacts(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	host := c.host("xen1")
	pif := c.str("host.get_management_interface", host)
	r := c.record("PIF", pif)
	if r["management"] != true || r["host"] != host || c.record("PIF_metrics", r["metrics"].(string))["carrier"] != true {
		t.Errorf("management interface: %v", r)
	}
	if got := len(c.list("host.get_host_CPUs", host)); got != hostCPUs {
		t.Errorf("%d processors", got)
	}
	certs := c.list("host.get_certificates", host)
	fingerprint := strings.ReplaceAll(strings.ToLower(c.str("Certificate.get_fingerprint", certs[0])), ":", "")
	if len(certs) != 2 || "sha256:"+fingerprint != p.Info().Hosts[0].Fingerprint {
		t.Errorf("certificates %v, fingerprint %s", certs, fingerprint)
	}
	types := []string{}
	for _, sm := range c.ok("SM.get_all_records").(map[string]any) {
		types = append(types, sm.(map[string]any)["type"].(string))
	}
	slices.Sort(types)
	if got := c.list("SR.get_supported_types"); !slices.Equal(got, types) {
		t.Errorf("supported types %v, drivers %v", got, types)
	}
	if !strings.Contains(c.str("host.get_system_status_capabilities", host), "<capability ") {
		t.Error("no capabilities")
	}
	c.fails("HOST_NAME_INVALID", "host.set_hostname_live", host, "a b")
	c.fails("HANDLE_INVALID", "VGPU.get_record", "OpaqueRef:none")
	if got := c.ok("VUSB.get_all_records").(map[string]any); len(got) != 0 {
		t.Errorf("VUSBs: %v", got)
	}
	c.fails("NOT_IMPLEMENTED", "Bond.create", c.list("network.get_all")[0], []string{}, "", "balance-slb", map[string]string{})
	one := c.str("message.create", "ALARM", "3", "VM", "u", "body")
	if got := c.ok("message.get", "VM", "u", "19700101T00:00:00Z").(map[string]any); len(got) != 1 {
		t.Errorf("messages: %v", got)
	}
	c.ok("message.destroy_many", []string{one})
}

func TestAppliance(t *testing.T) {
	p := startPool(t, demo, func(c *Config) { c.Speedup = 200 })
	c := p.login(t)
	app := c.str("VM_appliance.create", map[string]any{"name_label": "shop", "name_description": ""})
	if got := c.fails("OPERATION_NOT_ALLOWED", "VM_appliance.start", app, false); got[0] != "Appliance has no VMs." {
		t.Errorf("without VMs: %v", got)
	}
	first, second := c.vm("archive"), c.vm(`Büro/"ERP": *Köln*? <ß>`)
	for vm, order := range map[string]string{first: "1", second: "2"} {
		c.ok("VM.set_appliance", vm, app)
		c.ok("VM.set_order", vm, order)
	}
	c.ok("VM.set_start_delay", first, "20") // 100 ms
	if got := c.list("VM_appliance.get_VMs", app); len(got) != 2 {
		t.Errorf("VMs: %v", got)
	}
	if got := c.list("VM_appliance.get_allowed_operations", app); !slices.Equal(got, []string{"start"}) {
		t.Errorf("allowed operations: %v", got)
	}
	begin := time.Now()
	c.ok("VM_appliance.start", app, false)
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("the delay between the orders was not kept: %s", took)
	}
	for _, vm := range []string{first, second} {
		if got := c.str("VM.get_power_state", vm); got != running {
			t.Errorf("a VM is %s", got)
		}
	}
	c.fails("OPERATION_NOT_ALLOWED", "VM_appliance.start", app, false)
	if err := p.SetGuest(c.str("VM.get_uuid", first), true, 0); err != nil {
		t.Fatal(err)
	}
	c.ok("VM_appliance.hard_shutdown", app)
	c.ok("VM.add_to_blocked_operations", second, "start", "no")
	if got := c.fails("OPERATION_PARTIALLY_FAILED", "VM_appliance.start", app, false); !slices.Equal(got, []string{"VM_appliance.start", second}) {
		t.Errorf("partly: %v", got)
	}
	c.ok("VM_appliance.destroy", app)
	if got := c.str("VM.get_appliance", first); got != nullRef {
		t.Errorf("the VM's appliance is %s", got)
	}
	secret := c.str("secret.create", map[string]any{"value": "s3", "other_config": map[string]string{}})
	if got := c.str("secret.get_value", secret); got != "s3" {
		t.Errorf("secret %q", got)
	}
	c.ok("secret.destroy", secret)
	c.fails("HANDLE_INVALID", "secret.get_value", secret)
}
