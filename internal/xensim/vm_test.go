package xensim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSnapshot(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("db-01")
	c.ok("VM.add_to_other_config", vm, "mine", "1")
	c.ok("VM.add_to_blocked_operations", vm, "hard_reboot", "no")
	c.ok("VM.set_order", vm, "7")
	before := c.record("VM", vm)
	snap := c.str("VM.snapshot", vm, "backup <1>")
	r := c.record("VM", snap)
	for k, want := range map[string]any{
		"name_label": "backup <1>", "is_a_template": true, "is_a_snapshot": true, "snapshot_of": vm, "power_state": "Halted",
		"order": "0", "parent": before["parent"],
	} {
		if r[k] != want {
			t.Errorf("snapshot's %s = %v, want %v", k, r[k], want)
		}
	}
	if got := c.record("VM", vm); got["parent"] != snap || fmt.Sprint(got["snapshots"]) != "["+snap+"]" {
		t.Errorf("VM's parent %v, snapshots %v", got["parent"], got["snapshots"])
	}
	if got := r["other_config"].(map[string]any); got["mine"] != "1" || got["mac_seed"] != before["other_config"].(map[string]any)["mac_seed"] {
		t.Errorf("other_config is not inherited: %v", got)
	}
	if len(r["blocked_operations"].(map[string]any)) != 0 {
		t.Errorf("blocked operations are inherited: %v", r["blocked_operations"])
	}
	if got := r["snapshot_info"].(map[string]any); got["power-state-at-snapshot"] != "Running" || got["disk-snapshot-type"] != "crash_consistent" {
		t.Errorf("snapshot_info %v", got)
	}
	if r["generation_id"] == before["generation_id"] {
		t.Error("the snapshot has its VM's generation id")
	}
	state := p.state(t)
	a, b := state.vm(t, before["uuid"].(string)), state.vm(t, r["uuid"].(string))
	if !maps.Equal(a.digests(), b.digests()) || !slices.Equal(a.VIFs, b.VIFs) {
		t.Errorf("disks or VIFs differ: %+v\n%+v", a, b)
	}
	disks := c.disks(snap)
	for dev, orig := range c.disks(vm) {
		s, o := c.record("VDI", disks[dev]), c.record("VDI", orig)
		if s["is_a_snapshot"] != true || s["snapshot_of"] != orig || s["name_label"] != o["name_label"] {
			t.Errorf("VDI snapshot %s: %v", dev, s)
		}
		parent := s["sm_config"].(map[string]any)["vhd-parent"]
		if parent == nil || parent != o["sm_config"].(map[string]any)["vhd-parent"] {
			t.Errorf("VHD parents: %v and %v", s["sm_config"], o["sm_config"])
		}
		base := c.record("VDI", c.str("VDI.get_by_uuid", parent))
		if base["managed"] != false || base["name_label"] != "base copy" || len(base["VBDs"].([]any)) != 0 {
			t.Errorf("base copy: %v", base)
		}
	}
	for _, vbd := range c.list("VM.get_VBDs", snap) {
		v := c.record("VBD", vbd)
		_, owner := v["other_config"].(map[string]any)["owner"]
		if v["type"] == "Disk" && !owner || v["currently_attached"] == true {
			t.Errorf("VBD of the snapshot: %v", v)
		}
	}
	// A later change of the VM does not reach the snapshot.
	if err := p.Scribble(c.str("VDI.get_uuid", c.disks(vm)["0"]), 1, 2); err != nil {
		t.Fatal(err)
	}
	if after := p.state(t).vm(t, r["uuid"].(string)); !maps.Equal(after.digests(), b.digests()) {
		t.Error("the snapshot's disk changed with its VM's")
	}
	c.ok("VM.destroy", snap)
	for _, vdi := range disks {
		c.ok("VDI.destroy", vdi)
	}
	eventually(t, "base copies are coalesced", func() bool {
		return len(c.ok("VDI.get_all_records_where", `field "managed"="false"`).(map[string]any)) == 0
	})
	if got := c.str("VM.get_parent", vm); got != nullRef && got != before["parent"] {
		t.Errorf("parent after the snapshot went: %s", got)
	}
}

func TestSnapshotOptions(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("db-01")
	snap := c.str("VM.snapshot", vm, "s", []string{c.disks(vm)["1"]})
	if got := slices.Sorted(maps.Keys(c.disks(snap))); !slices.Equal(got, []string{"0"}) {
		t.Errorf("disks of a snapshot without disk 1: %v", got)
	}
	c.fails("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", "VM.snapshot_with_quiesce", vm, "q")
	c.ok("VDI.set_on_boot", c.disks(c.vm("archive"))["0"], "reset")
	vdis := len(c.list("VDI.get_all"))
	c.fails("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION", "VM.snapshot", c.vm("archive"), "s")
	if got := len(c.list("VDI.get_all")); got != vdis {
		t.Errorf("a failed snapshot left %d VDIs", got-vdis)
	}
	snaps := []string{}
	twin := c.vm("twin")
	uuid := c.str("VDI.get_uuid", c.disks(twin)["0"])
	var err error
	for i := 0; err == nil && i < 40; i++ {
		if e := p.Scribble(uuid, uint64(i), 1); e != nil {
			t.Fatal(e)
		}
		var v any
		if v, err = c.call("VM.snapshot", twin, "s"); err == nil {
			snaps = append(snaps, v.(string))
		}
	}
	if !isCode(err, "SR_BACKEND_FAILURE_109") || len(snaps) != maxChain-1 {
		t.Errorf("after %d snapshots: %v", len(snaps), err)
	}
}

func TestRevertAndClone(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("db-01")
	uuid := c.str("VM.get_uuid", vm)
	c.ok("VM.add_to_other_config", vm, "old", "1")
	before := p.state(t).vm(t, uuid)
	snap := c.str("VM.snapshot", vm, "s")
	c.ok("VM.remove_from_other_config", vm, "old")
	for _, d := range c.disks(vm) {
		if err := p.Scribble(c.str("VDI.get_uuid", d), 3, 3); err != nil {
			t.Fatal(err)
		}
	}
	old := slices.Sorted(maps.Values(c.disks(vm)))
	c.ok("VM.revert", snap)
	after := p.state(t).vm(t, uuid)
	if !maps.Equal(after.digests(), before.digests()) || after.Config["old"] != "1" || after.PowerState != "Halted" || !slices.Equal(after.VIFs, before.VIFs) {
		t.Errorf("after revert: %+v, want %+v", after, before)
	}
	if got := slices.Sorted(maps.Values(c.disks(vm))); slices.Equal(got, old) {
		t.Error("revert kept the VDIs")
	}
	clone := c.str("VM.clone", vm, "copy of db")
	r := p.state(t).vm(t, c.str("VM.get_uuid", clone))
	if !maps.Equal(r.digests(), before.digests()) || r.Config["mac_seed"] == before.Config["mac_seed"] || r.VIFs[0].MAC == before.VIFs[0].MAC {
		t.Errorf("clone: %+v", r)
	}
	full := c.str("VM.copy", vm, "full copy", nullRef)
	if got := p.state(t).vm(t, c.str("VM.get_uuid", full)); !maps.Equal(got.digests(), before.digests()) {
		t.Errorf("copy: %+v", got)
	}
	c.ok("VM.destroy", vm)
	if got := c.str("VM.get_snapshot_of", snap); got != vm {
		t.Errorf("the snapshot of a destroyed VM names %s", got)
	}
	c.fails("VM_REVERT_FAILED", "VM.revert", snap)
}

func TestPower(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	if got := c.fails("VM_BAD_POWER_STATE", "VM.start", vm, false, false); !slices.Equal(got, []string{vm, "halted", "running"}) {
		t.Errorf("start: %v", got)
	}
	if got := c.fails("VM_BAD_POWER_STATE", "VM.destroy", vm); !slices.Equal(got, []string{vm, "halted, suspended", "running"}) {
		t.Errorf("destroy: %v", got)
	}
	c.ok("VM.clean_shutdown", vm)
	r := c.record("VM", vm)
	if r["power_state"] != "Halted" || r["resident_on"] != nullRef || r["domid"] != "-1" {
		t.Errorf("after shutdown: %v", r)
	}
	for _, vbd := range r["VBDs"].([]any) {
		if c.ok("VBD.get_currently_attached", vbd) != false {
			t.Error("a VBD of a halted VM is attached")
		}
	}
	c.ok("VM.start", vm, false, false)
	if r = c.record("VM", vm); r["power_state"] != "Running" || r["resident_on"] == nullRef {
		t.Errorf("after start: %v", r)
	}
	c.ok("VM.pause", vm)
	c.ok("VM.snapshot", vm, "paused")
	c.ok("VM.unpause", vm)
	c.ok("VM.suspend", vm)
	susp := c.str("VM.get_suspend_VDI", vm)
	if c.str("VDI.get_type", susp) != "suspend" || c.str("VM.get_power_state", vm) != "Suspended" {
		t.Error("no suspend image")
	}
	c.ok("VM.resume", vm, false, false)
	c.fails("HANDLE_INVALID", "VDI.get_type", susp)
	c.ok("VM.hard_shutdown", vm)
	c.ok("VM.start_on", vm, c.list("host.get_all")[0], false, false)
	template := c.vm("house template")
	if got := c.fails("VM_IS_TEMPLATE", "VM.start", template, false, false); !slices.Equal(got, []string{template, "start"}) {
		t.Errorf("template: %v", got)
	}
	c.fails("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", "VM.destroy", c.vm("Other install media"))
	snap := c.str("VM.snapshot", vm, "s")
	c.ok("VM.set_is_a_template", snap, false)
	c.fails("VM_IS_SNAPSHOT", "VM.start", snap, false, false)
	c.fails("OPERATION_NOT_ALLOWED", "VM.snapshot", c.vm("Control domain on host: xen1"), "x")
	c.ok("VM.add_to_blocked_operations", vm, "clean_shutdown", "by dpxen")
	if got := c.fails("OPERATION_BLOCKED", "VM.clean_shutdown", vm); !slices.Equal(got, []string{vm, "by dpxen"}) {
		t.Errorf("blocked: %v", got)
	}
	if slices.Contains(c.list("VM.get_allowed_operations", vm), "clean_shutdown") {
		t.Error("a blocked operation is allowed")
	}
	c.ok("VM.shutdown", vm) // falls back to a hard one
}

func TestGuests(t *testing.T) {
	p := startPool(t, demo, func(c *Config) { c.Speedup = 5000 })
	c := p.login(t)
	vm := c.vm("web-01")
	uuid := c.str("VM.get_uuid", vm)
	if err := p.SetGuest(uuid, true, 0); err != nil {
		t.Fatal(err)
	}
	if got := c.fails("VM_SHUTDOWN_TIMEOUT", "VM.clean_shutdown", vm); !slices.Equal(got, []string{vm, "1200"}) {
		t.Errorf("timeout: %v", got)
	}
	if err := p.SetGuest(uuid, false, 1500*time.Second); err != nil {
		t.Fatal(err)
	}
	c.fails("VM_SHUTDOWN_TIMEOUT", "VM.clean_shutdown", vm)
	if got := c.str("VM.get_power_state", vm); got != "Running" {
		t.Errorf("the VM is %s", got)
	}
	eventually(t, "the late guest powers off", func() bool { return c.str("VM.get_power_state", vm) == "Halted" })
	c.ok("VM.start", vm, false, false)
	c.fails("VM_SHUTDOWN_TIMEOUT", "VM.clean_shutdown", vm)
	c.ok("VM.hard_shutdown", vm)
	c.ok("VM.start", vm, false, false)
	if err := p.wait(t.Context(), 400*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := c.str("VM.get_power_state", vm); got != "Running" {
		t.Errorf("a VM whose guest was asked before its last start is %s", got)
	}
	db := c.vm("db-01")
	p.db.mu.Lock()
	g := p.db.find("VM_guest_metrics", p.db.find("VM", db).str("guest_metrics"))
	p.db.set(g, "PV_drivers_detected", false)
	p.db.set(g, "PV_drivers_version", map[string]string{})
	p.db.mu.Unlock()
	if got := c.fails("VM_LACKS_FEATURE", "VM.clean_shutdown", db); !slices.Equal(got, []string{db}) {
		t.Errorf("VM_LACKS_FEATURE %v", got)
	}
}

func TestCreateAndDestroy(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vm := c.str("VM.create", map[string]any{
		"name_label": "made", "memory_static_max": "1073741824", "blocked_operations": map[string]string{"start": "x"},
		"is_a_template": false, "HVM_shadow_multiplier": 1.0, "unknown": "ignored",
	})
	r := c.record("VM", vm)
	if r["name_label"] != "made" || r["memory_static_max"] != "1073741824" || len(r["blocked_operations"].(map[string]any)) != 0 ||
		r["other_config"].(map[string]any)["mac_seed"] == "" {
		t.Errorf("created: %v", r)
	}
	if got := c.fails("FIELD_TYPE_ERROR", "VM.create", map[string]any{"is_a_template": "yes"}); got[0] != "is_a_template" {
		t.Errorf("type error: %v", got)
	}
	sr := c.list("SR.get_by_name_label", "Shared storage")[0]
	vdi := c.str("VDI.create", map[string]any{
		"name_label": "d", "SR": sr, "virtual_size": "8388608", "type": "user", "sharable": false, "read_only": false,
		"other_config": map[string]string{},
	})
	vbd := map[string]any{"VM": vm, "VDI": vdi, "userdevice": "autodetect", "bootable": false, "mode": "RW", "type": "Disk", "empty": false}
	first := c.str("VBD.create", vbd)
	if got := c.str("VBD.get_userdevice", first); got != "0" {
		t.Errorf("userdevice %s", got)
	}
	vbd["userdevice"] = "0"
	if got := c.fails("DEVICE_ALREADY_EXISTS", "VBD.create", vbd); got[0] != "0" {
		t.Errorf("device: %v", got)
	}
	if slices.Contains(c.list("VM.get_allowed_VBD_devices", vm), "0") {
		t.Error("device 0 is said to be free")
	}
	vbd["userdevice"] = "xvdq!"
	c.fails("INVALID_DEVICE", "VBD.create", vbd)
	c.fails("VM_BAD_POWER_STATE", "VBD.plug", first)
	c.ok("VM.start", vm, false, false)
	if got := c.fails("VDI_IN_USE", "VDI.destroy", vdi); !slices.Equal(got, []string{vdi, "destroy"}) {
		t.Errorf("VDI_IN_USE %v", got)
	}
	c.fails("OPERATION_NOT_ALLOWED", "VBD.destroy", first)
	c.ok("VBD.unplug", first)
	c.fails("DEVICE_ALREADY_DETACHED", "VBD.unplug", first)
	c.ok("VBD.plug", first)
	c.fails("DEVICE_ALREADY_ATTACHED", "VBD.plug", first)
	c.ok("VM.hard_shutdown", vm)
	c.ok("VDI.destroy", vdi) // the disk of a halted VM goes with its VBD
	if got := c.list("VM.get_VBDs", vm); len(got) != 0 {
		t.Errorf("VBDs left: %v", got)
	}
	c.ok("VM.destroy", c.vm("house template"))
	c.ok("VM.destroy", vm)
	c.fails("HANDLE_INVALID", "VM.destroy", vm)
}

func TestCDAndVIF(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("installer")
	var cd string
	for _, vbd := range c.list("VM.get_VBDs", vm) {
		if c.str("VBD.get_type", vbd) == "CD" {
			cd = vbd
		}
	}
	iso := c.str("VBD.get_VDI", cd)
	if c.str("VDI.get_location", iso) != "install.iso" {
		t.Error("the installer has no ISO in its drive")
	}
	c.fails("VBD_NOT_EMPTY", "VBD.insert", cd, iso)
	c.ok("VBD.eject", cd)
	c.fails("VBD_IS_EMPTY", "VBD.eject", cd)
	c.ok("VBD.insert", cd, iso)
	net := c.list("network.get_by_name_label", networkName)[0]
	vif := map[string]any{"VM": vm, "network": net, "device": "5", "MAC": "", "MTU": "1500", "other_config": map[string]string{}}
	ref := c.str("VIF.create", vif)
	mac := c.str("VIF.get_MAC", ref)
	if mac != seededMAC(c.record("VM", vm)["other_config"].(map[string]any)["mac_seed"].(string), "5") || c.ok("VIF.get_MAC_autogenerated", ref) != true {
		t.Errorf("MAC %s", mac)
	}
	c.fails("DEVICE_ALREADY_EXISTS", "VIF.create", vif)
	vif["device"], vif["MAC"] = "6", "01:00:00:00:00:01"
	c.fails("MAC_INVALID", "VIF.create", vif)
	vif["MAC"] = "AA:00:00:00:00:01"
	if got := c.str("VIF.get_MAC", c.str("VIF.create", vif)); got != "aa:00:00:00:00:01" {
		t.Errorf("MAC %s", got)
	}
	c.ok("VIF.plug", ref)
	c.fails("OPERATION_NOT_ALLOWED", "VIF.destroy", ref)
	c.ok("VIF.unplug", ref)
	c.ok("VIF.destroy", ref)
	c.fails("NETWORK_CONTAINS_VIF", "network.destroy", net)
}

func TestSpace(t *testing.T) {
	p := startPool(t, withVMs(2), func(c *Config) {
		c.SRSize = 64 << 20
		c.SharedSR = "lvmoiscsi"
		c.DiskSize = 24 << 20
		c.Content = "random"
	})
	c := p.login(t)
	sr := c.list("SR.get_by_name_label", "Shared storage")[0]
	used := c.str("SR.get_physical_utilisation", sr)
	vm := c.vm("vm-01")
	if got := c.fails("SR_BACKEND_FAILURE_44", "VM.snapshot", vm, "s"); len(got) != 3 {
		t.Errorf("no space: %v", got)
	}
	if got := c.str("SR.get_physical_utilisation", sr); got != used {
		t.Errorf("a failed snapshot changed the utilisation from %s to %s", used, got)
	}
	c.ok("VM.hard_shutdown", vm)
	for _, d := range c.disks(vm) {
		c.ok("VDI.destroy", d)
	}
	other := c.vm("vm-02")
	snap := c.str("VM.snapshot", other, "s")
	grown := c.str("SR.get_physical_utilisation", sr)
	c.ok("VM.destroy", snap)
	c.ok("SR.scan", sr)
	if grown == used || !strings.HasSuffix(c.str("SR.get_type", sr), "iscsi") {
		t.Errorf("a snapshot on a thick SR took nothing: %s", grown)
	}
}
