package xensim

import (
	"strings"
	"testing"
)

// A VM has a console while it has a domain, at the host that runs it.
func TestConsoles(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	address := func(host string) string { return c.record("host", host)["address"].(string) }
	consoles := func() []string { return c.list("VM.get_consoles", vm) }
	if got := consoles(); len(got) != 1 {
		t.Fatalf("a running VM has the consoles %v", got)
	}
	check := func() {
		t.Helper()
		r := c.record("console", consoles()[0])
		want := "https://" + address(c.str("VM.get_resident_on", vm)) + "/console?uuid=" + r["uuid"].(string)
		if r["location"] != want || r["protocol"] != "rfb" || r["VM"] != vm {
			t.Errorf("console %v, want %s", r, want)
		}
	}
	check()
	var other string
	for _, h := range c.list("host.get_all") {
		if h != c.str("VM.get_resident_on", vm) {
			other = h
		}
	}
	free := func(h string) any { return c.record("host_metrics", c.str("host.get_metrics", h))["memory_free"] }
	before := free(other)
	c.ok("VM.pool_migrate", vm, other, map[string]string{})
	check()
	if free(other) == before {
		t.Error("a migrated VM takes no memory on its new host")
	}
	c.ok("VM.suspend", vm)
	if got := consoles(); len(got) != 0 {
		t.Errorf("a suspended VM has the consoles %v", got)
	}
	c.ok("VM.resume", vm, false, false)
	check()
	c.ok("VM.hard_shutdown", vm)
	if got := consoles(); len(got) != 0 {
		t.Errorf("a halted VM has the consoles %v", got)
	}
	for ref, r := range c.ok("console.get_all_records").(map[string]any) {
		r := r.(map[string]any)
		if dom0 := c.record("VM", r["VM"].(string)); dom0["is_control_domain"] == true && r["protocol"] != "vt100" {
			t.Errorf("console %s of dom0: %v", ref, r)
		}
	}
}

// A checkpoint is reverted to with its memory, and can be so again.
func TestRevertToCheckpoint(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	snap := c.str("VM.checkpoint", vm, "c")
	for range 2 {
		c.ok("VM.revert", snap)
		r, s := c.record("VM", vm), c.record("VM", snap)
		if r["power_state"] != "Suspended" || r["suspend_VDI"] == nullRef || r["suspend_VDI"] == s["suspend_VDI"] {
			t.Fatalf("after the revert: %v, %v", r["power_state"], r["suspend_VDI"])
		}
		c.ok("VM.resume", vm, false, false)
		if got := c.str("VM.get_suspend_VDI", vm); got != nullRef {
			t.Errorf("after the resumption: suspend_VDI %s", got)
		}
	}
	if err := p.CheckInvariants(); err != nil {
		t.Error(err)
	}
}

// Guests never stop writing: snapshots of a running VM make its chain longer until
// it is too long, and nothing is left of the one that fails.
func TestChainOfRunningVM(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	n := 0
	var err error
	var vdis int
	for err == nil && n <= maxChain {
		vdis = len(c.list("VDI.get_all"))
		if _, err = c.call("VM.snapshot", vm, "s"); err == nil {
			n++
		}
	}
	if !isCode(err, "SR_BACKEND_FAILURE_109") || n != maxChain-1 {
		t.Errorf("after %d snapshots: %v", n, err)
	}
	if got := len(c.list("VDI.get_all")); got != vdis {
		t.Errorf("the failed snapshot left %d VDIs", got-vdis)
	}
	if f := failureOf(err); len(f.Params) != 3 || !strings.Contains(strings.Join(f.Params, " "), "The snapshot chain is too long") {
		t.Errorf("parameters %q", f.Params)
	}
}
