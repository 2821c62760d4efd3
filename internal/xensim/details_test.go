package xensim

import (
	"slices"
	"testing"
)

func TestProvision(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	sr := c.str("SR.get_uuid", c.list("SR.get_by_name_label", "Shared storage")[0])
	vm := c.str("VM.clone", c.vm("Other install media"), "new")
	disks := `<provision><disk device="0" size="8388608" sr="` + sr + `" bootable="true" type="system"/>` +
		`<disk device="1" size="4194304" sr="" bootable="false" type="user"/></provision>`
	c.ok("VM.add_to_other_config", vm, "disks", disks)
	c.ok("VM.provision", vm)
	made := c.disks(vm)
	if len(made) != 2 || c.str("VDI.get_virtual_size", made["0"]) != "8388608" || c.str("VDI.get_type", made["1"]) != "user" {
		t.Errorf("disks: %v", made)
	}
	if r := c.record("VM", vm); r["is_a_template"] != false || r["other_config"].(map[string]any)["disks"] != nil {
		t.Errorf("the VM: %v", r)
	}
	bad := c.str("VM.clone", c.vm("Other install media"), "bad")
	before := len(c.list("VDI.get_all"))
	c.ok("VM.add_to_other_config", bad, "disks", `<provision><disk device="0" size="4194304" sr="" type="user"/><disk device="1" size="1" sr="none"/></provision>`)
	c.fails("UUID_INVALID", "VM.provision", bad)
	if got := len(c.list("VDI.get_all")); got != before {
		t.Errorf("a failed provision left %d disks", got-before)
	}
}

func TestDiskDetails(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	on := c.disks(c.vm("web-01"))["0"]
	if got := c.fails("VDI_IN_USE", "VDI.set_on_boot", on, "reset"); !slices.Equal(got, []string{on, "set_on_boot"}) {
		t.Errorf("on_boot of a disk in use: %v", got)
	}
	sr := c.str("VDI.get_SR", on)
	vdi := map[string]any{"name_label": "x", "SR": sr, "virtual_size": "1048576", "type": "cbt_metadata", "sharable": false, "read_only": false, "other_config": map[string]string{}}
	c.fails("VDI_INCOMPATIBLE_TYPE", "VDI.create", vdi)
	vdi["type"], vdi["sharable"] = "user", true
	shared := c.str("VDI.create", vdi)
	if got := c.fails("VDI_IS_SHARABLE", "VDI.snapshot", shared); !slices.Equal(got, []string{shared}) {
		t.Errorf("snapshot of a sharable disk: %v", got)
	}
	want := []string{"clone", "copy", "destroy", "forget", "generate_config", "resize", "snapshot", "update"}
	if got := c.list("VDI.get_allowed_operations", c.disks(c.vm("archive"))["0"]); !slices.Equal(got, want) {
		t.Errorf("allowed operations of a free disk: %v", got)
	}
	if got := c.list("VDI.get_allowed_operations", on); !slices.Equal(got, []string{"clone", "snapshot"}) {
		t.Errorf("of a disk in use: %v", got)
	}
}

func TestRequiresNetwork(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("archive")
	xen2 := c.host("xen2")
	network := c.list("network.get_by_name_label", networkName)[0]
	p.db.mu.Lock()
	for _, pif := range p.db.all("PIF") {
		if pif.str("host") == xen2 {
			p.db.set(pif, "network", p.db.create("network", map[string]any{"bridge": "xenbr9"}).ref)
		}
	}
	p.db.mu.Unlock()
	if got := c.fails("VM_REQUIRES_NETWORK", "VM.start_on", vm, xen2, false, false); !slices.Equal(got, []string{vm, network}) {
		t.Errorf("a host without the network: %v", got)
	}
}

func TestSessionsOfAUser(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	p.db.mu.Lock()
	for range maxSessions { // of many originators
		p.newSession(p.master(), "root", randomUUID())
	}
	p.db.mu.Unlock()
	c.fails("SESSION_INVALID", "pool.get_all")
}

// What hinders a disk's operation is waited for, up to two hours.
func TestDiskPatience(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vdi := c.disks(c.vm("archive"))["0"]
	busy := func(on bool) {
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		if o := p.db.find("VDI", vdi); on {
			p.db.put(o, "current_operations", "OpaqueRef:other", "mirror")
		} else {
			p.db.drop(o, "current_operations", "OpaqueRef:other")
		}
	}
	busy(true)
	task := c.str("Async.VDI.snapshot", vdi, map[string]string{})
	eventually(t, "the task waits", func() bool { return c.str("task.get_status", task) == "pending" })
	busy(false)
	if r := c.task(task); r["status"] != "success" {
		t.Errorf("the snapshot: %v", r)
	}
	busy(true)
	cancelled := c.str("Async.VDI.snapshot", vdi, map[string]string{})
	c.ok("task.cancel", cancelled)
	if r := c.task(cancelled); r["status"] != "cancelled" {
		t.Errorf("the cancelled snapshot: %v", r)
	}
	busy(false)
}
