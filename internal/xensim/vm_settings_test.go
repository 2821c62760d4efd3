package xensim

import (
	"fmt"
	"slices"
	"testing"
)

func TestVMSettings(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm, on := c.vm("archive"), c.vm("web-01")
	const gib = int64(1 << 30)
	c.ok("VM.set_memory_limits", vm, gib/2, 2*gib, gib, 2*gib)
	c.ok("VM.set_memory_static_max", vm, 3*gib)
	c.fails("MEMORY_CONSTRAINT_VIOLATION", "VM.set_memory_static_max", vm, gib)
	c.fails("MEMORY_CONSTRAINT_VIOLATION", "VM.set_memory_dynamic_range", vm, gib, 4*gib)
	c.fails("VM_BAD_POWER_STATE", "VM.set_memory_static_range", on, gib, gib)
	c.ok("VM.set_memory_dynamic_min", on, gib) // of a running VM too
	c.ok("VM.set_memory", vm, gib)
	r := c.record("VM", vm)
	if r["memory_static_max"] != fmt.Sprint(gib) || r["memory_dynamic_min"] != fmt.Sprint(gib) || r["memory_static_min"] != fmt.Sprint(gib/2) {
		t.Errorf("memory: %v", r)
	}
	for _, call := range []string{"VM.set_VCPUs_max", "VM.set_VCPUs_at_startup"} {
		c.fails("INVALID_VALUE", call, vm, "0")
		c.fails("VM_BAD_POWER_STATE", call, on, "2")
	}
	c.fails("INVALID_VALUE", "VM.set_VCPUs_at_startup", vm, "3")
	c.ok("VM.set_VCPUs_max", vm, "4")
	c.ok("VM.set_VCPUs_at_startup", vm, "3")
	for _, f := range []string{"order", "start_delay", "shutdown_delay"} {
		if got := c.fails("INVALID_VALUE", "VM.set_"+f, vm, "-1"); !slices.Equal(got, []string{f + " must be non-negative", "-1"}) {
			t.Errorf("%s: %v", f, got)
		}
	}
	c.fails("VM_BIOS_STRINGS_ALREADY_SET", "VM.set_bios_strings", vm, map[string]string{})
	made := c.str("VM.create", map[string]any{"name_label": "made"})
	c.fails("INVALID_VALUE", "VM.set_bios_strings", made, map[string]string{"colour": "red"})
	c.fails("INVALID_VALUE", "VM.set_bios_strings", made, map[string]string{"bios-vendor": "Ü"})
	c.ok("VM.set_bios_strings", made, map[string]string{"bios-vendor": "us"})
	if got := c.ok("VM.get_bios_strings", made).(map[string]any); got["bios-vendor"] != "us" || got["system-product-name"] != "HVM domU" {
		t.Errorf("BIOS strings: %v", got)
	}
	c.ok("VM.add_to_NVRAM", made, "EFI-variables", "AAAA")
	c.fails("MAP_DUPLICATE_KEY", "VM.add_to_NVRAM", made, "EFI-variables", "B")
	c.fails("VM_BAD_POWER_STATE", "VM.set_NVRAM", on, map[string]string{})
	c.ok("VM.set_domain_type", made, "hvm")
	if got := c.str("VM.get_HVM_boot_policy", made); got != "BIOS order" {
		t.Errorf("boot policy %q", got)
	}
	c.ok("VM.set_is_a_template", made, true)
	if r := c.record("VM", made); r["metrics"] != nullRef {
		t.Error("a template has metrics")
	}
	blob := c.str("VM.create_new_blob", vm, "icon", "image/png", true)
	if r := c.record("blob", blob); r["mime_type"] != "image/png" || r["public"] != true {
		t.Errorf("blob: %v", r)
	}
	c.fails("MAP_DUPLICATE_KEY", "VM.create_new_blob", vm, "icon", "", false)
	c.ok("blob.destroy", blob)
	if got := c.ok("VM.get_blobs", vm).(map[string]any); len(got) != 0 {
		t.Errorf("blobs: %v", got)
	}
}

func TestSuspendVDI(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	c.fails("VM_BAD_POWER_STATE", "VM.set_suspend_VDI", vm, c.disks(vm)["0"])
	c.ok("VM.hard_shutdown", vm) // little memory is soon copied
	c.ok("VM.set_memory_limits", vm, int64(32<<20), int64(32<<20), int64(32<<20), int64(32<<20))
	c.ok("VM.start", vm, false, false)
	c.ok("VM.suspend", vm)
	image := c.str("VM.get_suspend_VDI", vm)
	c.fails("SUSPEND_VDI_REPLACEMENT_IS_NOT_IDENTICAL", "VM.set_suspend_VDI", vm, c.disks(c.vm("archive"))["0"])
	copied := c.str("VDI.copy", image, c.list("SR.get_by_name_label", "Local storage on xen1")[0])
	c.ok("VM.set_suspend_VDI", vm, copied)
	if got := c.fails("VM_BAD_POWER_STATE", "VM.create", map[string]any{"name_label": "s", "power_state": "Suspended"}); got[1] != "halted" || got[2] != "suspended" {
		t.Errorf("without a memory image: %v", got)
	}
	made := c.str("VM.create", map[string]any{
		"name_label": "s", "power_state": "Suspended", "suspend_VDI": image, "last_booted_record": "()", "last_boot_CPU_flags": map[string]string{"vendor": "x"},
		"memory_static_max": "1048576",
	})
	if r := c.record("VM", made); r["power_state"] != "Suspended" || r["suspend_VDI"] != image {
		t.Errorf("made suspended: %v", r)
	}
	c.ok("VM.resume", made, false, false)
	c.fails("HANDLE_INVALID", "VDI.get_uuid", image)
	c.ok("VM.resume", vm, false, false)
}

func TestVTPM(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm, on := c.vm("archive"), c.vm("web-01")
	c.fails("VM_BAD_POWER_STATE", "VTPM.create", on, false)
	vtpm := c.str("VTPM.create", vm, false)
	if got := c.fails("VTPM_MAX_AMOUNT_REACHED", "VTPM.create", vm, false); !slices.Equal(got, []string{"1"}) {
		t.Errorf("a second vTPM: %v", got)
	}
	c.ok("VM.start", vm, false, false)
	c.fails("VM_BAD_POWER_STATE", "VTPM.destroy", vtpm)
	c.ok("VM.hard_shutdown", vm)
	contents := func(vm string) string {
		ref := c.list("VM.get_VTPMs", vm)[0]
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		return p.vtpms[ref]
	}
	want := contents(vm)
	if want == "" {
		t.Fatal("a VM that ran has an empty vTPM")
	}
	snapshot := c.str("VM.snapshot", vm, "s")
	// Through a file as well, at VM and as a new one.
	c.ok("VM.set_is_a_template", snapshot, false)
	imported := c.result(c.imports(c.body(c.export("ref", snapshot))))[0]
	for name, ref := range map[string]string{"snapshot": snapshot, "import": imported} {
		if got := contents(ref); got != want {
			t.Errorf("%s: the vTPM holds %.20q, want %.20q", name, got, want)
		}
	}
	c.ok("VTPM.destroy", vtpm)
	c.ok("VM.revert", snapshot)
	if got := contents(vm); got != want {
		t.Error("a revert does not bring the vTPM back")
	}
}
