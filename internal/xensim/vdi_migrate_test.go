package xensim

import (
	"maps"
	"slices"
	"testing"
)

func TestMigrateVDI(t *testing.T) {
	p := startPool(t, demo, func(c *Config) { c.SRSize = 200 << 20 })
	c := p.login(t)
	vm := c.vm("web-01")
	uuid := c.str("VM.get_uuid", vm)
	old := c.disks(vm)["0"]
	shared, local := c.str("VDI.get_SR", old), c.list("SR.get_by_name_label", "Local storage on xen1")[0]
	snapshot := c.str("VM.snapshot", vm, "s")
	before, early := p.state(t).vm(t, uuid).digests(), p.state(t).vm(t, c.str("VM.get_uuid", snapshot)).digests()
	vbd := c.list("VDI.get_VBDs", old)[0]
	free := c.str("VDI.create", map[string]any{"name_label": "free", "SR": shared, "virtual_size": "1048576", "type": "user", "sharable": false,
		"read_only": false, "other_config": map[string]string{}})
	options := map[string]string{}
	if got := c.fails("VDI_NEEDS_VM_FOR_MIGRATE", "VDI.pool_migrate", free, local, options); !slices.Equal(got, []string{free}) {
		t.Errorf("a disk without a VM: %v", got)
	}
	c.ok("VDI.enable_cbt", old)
	c.fails("VDI_CBT_ENABLED", "VDI.pool_migrate", old, local, options)
	c.ok("VDI.disable_cbt", old)
	used := c.str("SR.get_physical_utilisation", local)
	task := c.task(c.str("Async.VDI.pool_migrate", old, local, options))
	if task["status"] != "success" {
		t.Fatalf("migration: %v", task)
	}
	made := c.disks(vm)["0"]
	if task["result"] != "<value>"+made+"</value>" || c.str("VDI.get_SR", made) != local || c.str("VBD.get_VDI", vbd) != made {
		t.Errorf("result %v, the VM's disk is %s on %s", task["result"], made, c.str("VDI.get_SR", made))
	}
	c.fails("HANDLE_INVALID", "VDI.get_uuid", old)
	s := c.record("VDI", c.disks(snapshot)["0"])
	if s["SR"] != local || s["snapshot_of"] != made || s["is_a_snapshot"] != true {
		t.Errorf("the snapshot's disk: %v", s)
	}
	state := p.state(t)
	if !maps.Equal(state.vm(t, uuid).digests(), before) || !maps.Equal(state.vm(t, c.str("VM.get_uuid", snapshot)).digests(), early) {
		t.Error("the contents changed")
	}
	if got := c.str("SR.get_physical_utilisation", local); got == used {
		t.Error("the disk takes no space on its new SR")
	}
	// What does not fit moves nothing.
	huge := c.disks(c.vm("archive"))["0"]
	if err := p.Inject(Fault{Name: "sr-full", Object: "Local storage on xen2"}); err != nil {
		t.Fatal(err)
	}
	c.fails("SR_BACKEND_FAILURE_44", "VDI.pool_migrate", huge, c.list("SR.get_by_name_label", "Local storage on xen2")[0], options)
	if got := c.ok("VDI.get_current_operations", huge).(map[string]any); len(got) != 0 {
		t.Errorf("a failed migration holds the disk: %v", got)
	}
}

func TestCopyInto(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm, other := c.vm("archive"), c.vm("web-01")
	src := c.disks(vm)["0"]
	into := c.str("VDI.create", map[string]any{"name_label": "i", "SR": c.str("VDI.get_SR", src), "virtual_size": "8388608", "type": "user",
		"sharable": false, "read_only": false, "other_config": map[string]string{}})
	c.ok("VDI.enable_cbt", into)
	if got := c.str("VDI.copy", src, nullRef, nullRef, into); got != into {
		t.Errorf("the copy is %s", got)
	}
	p.db.mu.Lock()
	a, b := p.volumes[src].image, p.volumes[into].image
	p.db.mu.Unlock()
	x, y := make([]byte, a.Size()), make([]byte, a.Size())
	if _, err := a.ReadAt(x, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(y, 0); err != nil || !slices.Equal(x, y) {
		t.Errorf("the copy differs: %v", err)
	}
	c.fails("VDI_TOO_SMALL", "VDI.copy", into, nullRef, nullRef, src)
	if got := c.fails("VDI_IN_USE", "VDI.copy", src, nullRef, nullRef, c.disks(other)["0"]); got[1] != "copy" {
		t.Errorf("a disk in use: %v", got)
	}
	iso := c.list("VDI.get_by_name_label", "install.iso")[0]
	c.fails("VDI_READONLY", "VDI.copy", src, nullRef, nullRef, iso)
}

func TestMigrateSend(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("db-01") // on xen2, one disk local there
	xen1 := c.host("xen1")
	network := c.list("network.get_by_name_label", networkName)[0]
	none := map[string]string{}
	dest := c.ok("host.migrate_receive", xen1, network, none).(map[string]any)
	if dest["host"] != xen1 || dest["session_id"] != c.session {
		t.Fatalf("destination: %v", dest)
	}
	local := c.disks(vm)["1"]
	if got := c.fails("VDI_NOT_IN_MAP", "VM.assert_can_migrate", vm, dest, true, none, none, none, none); !slices.Equal(got, []string{local}) {
		t.Errorf("without a map: %v", got)
	}
	c.fails("INVALID_VALUE", "VM.migrate_send", vm, map[string]string{"host": xen1}, true, none, none, none)
	vdis := map[string]string{local: c.list("SR.get_by_name_label", "Local storage on xen1")[0]}
	c.ok("VM.assert_can_migrate", vm, dest, true, vdis, none, none)
	before := p.state(t).vm(t, c.str("VM.get_uuid", vm)).digests()
	second := c.list("network.get_by_name_label", "Backup network")[0]
	vif := c.list("VM.get_VIFs", vm)[0]
	if got := c.str("VM.migrate_send", vm, dest, true, vdis, map[string]string{vif: second}, none); got != vm {
		t.Errorf("the VM is now %s", got)
	}
	r := c.record("VM", vm)
	if r["resident_on"] != xen1 || r["power_state"] != running || c.str("VIF.get_network", vif) != second {
		t.Errorf("after the migration: %v", r)
	}
	if got := c.disks(vm)["1"]; got == local || c.str("VDI.get_SR", got) != vdis[local] {
		t.Error("the local disk did not move")
	}
	if got := p.state(t).vm(t, c.str("VM.get_uuid", vm)).digests(); !maps.Equal(got, before) {
		t.Error("the disks changed")
	}
	c.ok("host.disable", c.host("xen2"))
	back := c.ok("host.migrate_receive", c.host("xen2"), network, none)
	c.fails("HOST_DISABLED", "VM.migrate_send", vm, back, true, none, none, none)
}
