package xensim

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// wireType says whether a decoded value can be of a type of the model.
func wireType(typ *model.Type, v any) bool {
	if typ.Kind == model.Date {
		_, ok := v.(model.DateTime)
		return ok
	}
	_, ok := typ.Coerce(v)
	return ok
}

func TestEveryRecordHasEveryField(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	c.ok("VM.snapshot", c.vm("web-01"), "snap")
	seen := 0
	for _, class := range model.Load().Classes {
		if !class.Implicit["get_all_records"] && class.Name != "message" {
			continue
		}
		for ref, v := range c.ok(class.Name + ".get_all_records").(map[string]any) {
			rec := v.(map[string]any)
			seen++
			if len(rec) != len(class.Fields) {
				t.Errorf("%s %s has %d fields, the model %d", class.Name, ref, len(rec), len(class.Fields))
			}
			for _, f := range class.Fields {
				if x, ok := rec[f.Name]; !ok || !wireType(f.Type, x) {
					t.Errorf("%s.%s of %s = %#v", class.Name, f.Name, ref, x)
				}
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d records", seen)
	}
}

func TestOldVersionsHideFields(t *testing.T) {
	p := startPool(t, withVMs(1), version("7.6"))
	c := p.login(t)
	rec := c.record("VM", c.vm("vm-01"))
	for name, want := range map[string]bool{"uuid": true, "NVRAM": false, "pending_guidances": false, "domain_type": true, "has_vendor_device": true} {
		if _, ok := rec[name]; ok != want {
			t.Errorf("VM.%s there: %v, want %v", name, ok, want)
		}
	}
	c.fails("MESSAGE_METHOD_UNKNOWN", "VM.get_pending_guidances", c.vm("vm-01"))
	c.fails("MESSAGE_METHOD_UNKNOWN", "VTPM.create", c.vm("vm-01"), false)
	host := c.record("host", c.list("host.get_all")[0])
	if host["API_version_major"] != "2" || host["API_version_minor"] != "11" || host["software_version"].(map[string]any)["product_version"] != "7.6" {
		t.Errorf("host version: %v", host["software_version"])
	}
}

func TestGenericAccess(t *testing.T) {
	p := startPool(t, withVMs(2))
	c := p.login(t)
	vm := c.vm("vm-01")
	if got := c.str("VM.get_by_uuid", c.str("VM.get_uuid", vm)); got != vm {
		t.Errorf("get_by_uuid gave %s, want %s", got, vm)
	}
	c.ok("VM.set_name_label", vm, "Büro & <Köln>")
	if got := c.str("VM.get_name_label", vm); got != "Büro & <Köln>" {
		t.Errorf("name %q", got)
	}
	pool := c.list("pool.get_all")[0]
	c.ok("pool.add_to_other_config", pool, "k", "1")
	if got := c.fails("MAP_DUPLICATE_KEY", "pool.add_to_other_config", pool, "k", "1"); !slices.Equal(got, []string{"pool", "other_config", pool, "k"}) {
		t.Errorf("MAP_DUPLICATE_KEY %v", got)
	}
	c.ok("pool.remove_from_other_config", pool, "k")
	c.ok("pool.remove_from_other_config", pool, "k")
	c.ok("pool.set_other_config", pool, map[string]string{"a": "b"})
	if got := c.ok("pool.get_other_config", pool); fmt.Sprint(got) != "map[a:b]" {
		t.Errorf("other_config %v", got)
	}
	c.ok("VM.add_tags", vm, "x")
	c.ok("VM.add_tags", vm, "x")
	if got := c.list("VM.get_tags", vm); !slices.Equal(got, []string{"x"}) {
		t.Errorf("tags %v", got)
	}
	c.ok("VM.remove_tags", vm, "x")
	vdi := c.disks(vm)["0"]
	c.ok("VDI.set_name_label", vdi, "new name")
	if got := c.str("VDI.get_name_label", vdi); got != "new name" {
		t.Errorf("VDI name %q", got)
	}
	c.fails("MESSAGE_METHOD_UNKNOWN", "VM.set_uuid", vm, "x")
	c.fails("MESSAGE_METHOD_UNKNOWN", "VBD.set_VDI", c.list("VM.get_VBDs", vm)[0], vdi)
	where := func(expr string) []string {
		return slices.Sorted(maps.Keys(c.ok("VM.get_all_records_where", expr).(map[string]any)))
	}
	if got := where(`field "is_control_domain"="true"`); len(got) != 2 {
		t.Errorf("control domains: %v", got)
	}
	if got := where(`(field "power_state" = "Running") and field "name__label"="Büro & <Köln>"`); !slices.Equal(got, []string{vm}) {
		t.Errorf("conjunction: %v", got)
	}
	for expr, want := range map[string]int{
		`field "is_control_domain"="true" or field "uuid"="` + c.str("VM.get_uuid", vm) + `"`: 3,
		`not (field "is_control_domain"="false")`:                                             2,
		`not field "is_control_domain"="true" and true`:                                       len(c.list("VM.get_all")) - 2,
		`"true"=field"is_control_domain"and(true or false)`:                                   2,
		`field "_ref"="` + vm + `"`:                                                           1,
		`false`:                                                                               0,
	} {
		if got := where(expr); len(got) != want {
			t.Errorf("%s: %d records, want %d", expr, len(got), want)
		}
	}
	for _, expr := range []string{"", "field", `field "nosuch"="x"`, `field "uuid"`, `(true`, `true false`, `field "uuid"="x`, "uuid = 5", "not"} {
		if got := c.fails("INVALID_VALUE", "VM.get_all_records_where", expr); got[0] != expr {
			t.Errorf("%q: INVALID_VALUE %v", expr, got)
		}
	}
	if got := where("true"); len(got) != len(c.list("VM.get_all")) {
		t.Errorf("true: %d", len(got))
	}
}

// What a field's type does not allow is refused, in setters, maps and records.
func TestValuesOfEnums(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vm := c.vm("vm-01")
	vbd := c.list("VM.get_VBDs", vm)[0]
	for _, call := range [][]any{
		{"VM.set_actions_after_crash", vm, "nonsense"},
		{"VM.add_to_blocked_operations", vm, "nonsense", "x"},
		{"VM.set_blocked_operations", vm, map[string]string{"nonsense": "x"}},
		{"VBD.set_mode", vbd, "XX"},
		{"VDI.create", map[string]any{"SR": c.list("SR.get_all")[0], "virtual_size": "1048576", "type": "nonsense"}},
		{"VM.assert_operation_valid", vm, "nonsense"},
	} {
		c.fails("FIELD_TYPE_ERROR", call[0].(string), call[1:]...)
	}
	c.ok("VM.set_actions_after_crash", vm, "PRESERVE") // XAPI does not mind the case
	if got := c.str("VM.get_actions_after_crash", vm); got != "preserve" {
		t.Errorf("actions_after_crash = %q", got)
	}
}

// Messages that the model declares by hand but that only write a field.
func TestPlainAccessors(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vif := c.list("VM.get_VIFs", c.vm("vm-01"))[0]
	c.ok("VIF.add_ipv4_allowed", vif, "192.0.2.1")
	c.ok("VIF.add_ipv4_allowed", vif, "192.0.2.2")
	c.ok("VIF.remove_ipv4_allowed", vif, "192.0.2.1")
	if got := c.list("VIF.get_ipv4_allowed", vif); !slices.Equal(got, []string{"192.0.2.2"}) {
		t.Errorf("ipv4_allowed %v", got)
	}
	pool := c.list("pool.get_all")[0]
	c.ok("pool.add_to_guest_agent_config", pool, "auto_update_enabled", "true")
	c.fails("MAP_DUPLICATE_KEY", "pool.add_to_guest_agent_config", pool, "auto_update_enabled", "true")
	c.ok("pool.remove_from_guest_agent_config", pool, "auto_update_enabled")
	network := c.list("network.get_all")[0]
	c.ok("network.add_purpose", network, "nbd")
	if got := c.fails("NETWORK_INCOMPATIBLE_PURPOSES", "network.add_purpose", network, "insecure_nbd"); !slices.Equal(got, []string{"insecure_nbd", "nbd"}) {
		t.Errorf("NETWORK_INCOMPATIBLE_PURPOSES %v", got)
	}
	c.ok("network.remove_purpose", network, "nbd")
	c.fails("MESSAGE_REMOVED", "VM.get_is_snapshot_from_vmpp", c.vm("vm-01"))
	c.fails("MESSAGE_REMOVED", "VBD_metrics.get_io_read_kbs", c.list("VBD_metrics.get_all")[0])
	c.fails("MESSAGE_REMOVED", "VBD_metrics.set_other_config", c.list("VBD_metrics.get_all")[0], map[string]string{})
	c.ok("VIF_metrics.get_last_updated", c.list("VIF_metrics.get_all")[0])
	c.fails("MESSAGE_REMOVED", "VM.set_protection_policy", c.vm("vm-01"), model.NullRef)
}

func TestOldVersionsHideCalls(t *testing.T) {
	c := startPool(t, withVMs(1), version("8.2")).login(t)
	c.fails("MESSAGE_METHOD_UNKNOWN", "VTPM.get_all_records")
	c.fails("MESSAGE_METHOD_UNKNOWN", "VTPM.get_by_uuid", "x")
}

func TestIdempotentMaps(t *testing.T) {
	p := startPool(t, func(c *Config) { c.IdempotentMaps = true })
	c := p.login(t)
	pool := c.list("pool.get_all")[0]
	c.ok("pool.add_to_other_config", pool, "k", "1")
	c.ok("pool.add_to_other_config", pool, "k", "1")
	c.fails("MAP_DUPLICATE_KEY", "pool.add_to_other_config", pool, "k", "2")
}

func TestSeedRepeats(t *testing.T) {
	var infos [2]Info
	var dumps [2]State
	for i := range infos {
		p := startPool(t, demo)
		infos[i], dumps[i] = p.Info(), p.state(t)
	}
	for i, vm := range infos[0].VMs {
		if infos[1].VMs[i] != vm {
			t.Errorf("VM %d: %+v and %+v", i, vm, infos[1].VMs[i])
		}
		a, b := dumps[0].vm(t, vm.UUID), dumps[1].vm(t, vm.UUID)
		if !maps.Equal(a.digests(), b.digests()) || len(a.digests()) == 0 || !slices.Equal(a.VIFs, b.VIFs) {
			t.Errorf("VM %s differs: %+v and %+v", vm.Name, a, b)
		}
	}
	if len(infos[0].VMs) < 7 {
		t.Errorf("only %d VMs", len(infos[0].VMs))
	}
}
