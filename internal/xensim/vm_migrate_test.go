package xensim

import "testing"

func TestPoolMigrate(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	hosts := map[string]string{}
	for _, h := range p.Info().Hosts {
		hosts[h.Name] = c.str("host.get_by_uuid", h.UUID)
	}
	vm := c.vm("web-01") // on the shared SR
	c.ok("VM.pool_migrate", vm, hosts["xen2"], map[string]string{"live": "true"})
	if r := c.record("VM", vm); r["resident_on"] != hosts["xen2"] || r["power_state"] != "Running" {
		t.Errorf("on %v, %v", r["resident_on"], r["power_state"])
	}
	if params := c.fails("VM_REQUIRES_SR", "VM.pool_migrate", c.vm("db-01"), hosts["xen1"], map[string]string{}); len(params) != 2 {
		t.Errorf("a VM with a local disk: %v", params)
	}
	c.fails("VM_BAD_POWER_STATE", "VM.pool_migrate", c.vm("archive"), hosts["xen1"], map[string]string{})
	if err := p.SetHostDown("xen1", true, true); err != nil {
		t.Fatal(err)
	}
	if err := p.SetMaster("xen2"); err != nil {
		t.Fatal(err)
	}
	other := p.client(t, 1)
	other.session = c.session
	other.fails("HOST_OFFLINE", "VM.pool_migrate", vm, hosts["xen1"], map[string]string{})
}
