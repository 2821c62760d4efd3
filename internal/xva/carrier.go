package xva

import (
	"fmt"
	"slices"
)

// CarrierKey is the other_config key by which a carrier, and what came in by an
// import of ours, is known until it is finished.
const CarrierKey = "dpxen:carrier"

// SnapshotPrefix begins the name of every snapshot that an export of ours was
// taken from. An export forgets that it is of a snapshot; the name stays.
const SnapshotPrefix = "dpxen snapshot "

// CarrierSpec says what a carrier carries.
type CarrierSpec struct {
	// Nonce makes the carrier's name and marks its VM and VDIs.
	Nonce string
	// Disks are the Dirs of the disks to carry, at least one.
	Disks []string
	// SRUUID is the SR they are meant for. An import puts all disks on the SR of
	// its own sr_id whatever the file says; this one is written for the reader.
	SRUUID string
}

// CarrierName gives the name of the carrier with a nonce.
func CarrierName(nonce string) string { return "dpxen carrier " + nonce }

// Carrier writes the ova.xml of a carrier: a template that brings disks to a
// host and can never run. It is made from nothing: of the file it takes the
// disks' names, types, sizes and positions, so no interface, network, CD, vTPM,
// tag, HA setting or key of the file reaches the host. The disks keep their
// Dirs. Faults of spec are plain errors, those of the file *FormatError.
func (o *OVA) Carrier(spec CarrierSpec) ([]byte, error) {
	if spec.Nonce == "" || len(spec.Disks) == 0 {
		return nil, fmt.Errorf("xva: a carrier needs a nonce and disks")
	}
	if err := checkText("nonce", spec.Nonce); err != nil {
		return nil, err
	}
	disks, err := o.choose(spec.Disks)
	if err != nil {
		return nil, err
	}
	vm := o.objects[o.vm].id
	sr := o.objects[o.byID[disks[0].Dir]].record.str("SR")
	mark := structOf(member{CarrierKey, text(spec.Nonce)})
	var vbds []Value
	var vbdIDs, vdiIDs []Value
	var vdis []Value
	for _, d := range disks {
		if d.Suspend || d.VBDID == "" {
			return nil, fmt.Errorf("xva: %s is a memory image, which no carrier can bring", d.Dir)
		}
		vbds = append(vbds, newObject(classVBD, d.VBDID, carrierVBD(vm, d)))
		vdis = append(vdis, newObject(classVDI, d.Dir, carrierVDI(sr, d, mark)))
		vbdIDs = append(vbdIDs, text(d.VBDID))
		vdiIDs = append(vdiIDs, text(d.Dir))
	}
	objects := []Value{newObject(classVM, vm, carrierVM(spec.Nonce, vbdIDs, mark))}
	objects = append(append(objects, vbds...), vdis...)
	objects = append(objects, newObject(classSR, sr, carrierSR(spec.SRUUID, vdiIDs)))
	return appendValue(nil, structOf(
		member{"version", o.carrierVersion()},
		member{"objects", set(objects...)},
	)), nil
}

// choose gives the disks with the given Dirs, in the archive's order.
func (o *OVA) choose(dirs []string) ([]Disk, error) {
	all, err := o.Disks()
	if err != nil {
		return nil, err
	}
	var chosen []Disk
	for _, d := range all {
		if slices.Contains(dirs, d.Dir) {
			chosen = append(chosen, d)
		}
	}
	for i, dir := range dirs {
		if slices.Contains(dirs[:i], dir) {
			return nil, fmt.Errorf("xva: disk %q is named twice", dir)
		}
		if !slices.ContainsFunc(chosen, func(d Disk) bool { return d.Dir == dir }) {
			return nil, fmt.Errorf("xva: the file has no disk %q", dir)
		}
	}
	return chosen, nil
}

func newObject(class, id string, record Value) Value {
	return structOf(member{"class", text(class)}, member{"id", text(id)}, member{"snapshot", record})
}

// carrierVersion keeps what tells of the file's origin, under a version of XAPI
// so low that every host takes it: the record has nothing newer in it.
func (o *OVA) carrierVersion() Value {
	v := o.version
	return structOf(
		member{"hostname", text(v.Hostname)}, member{"date", text(v.Date)},
		member{"product_version", text(v.ProductVersion)}, member{"product_brand", text(v.ProductBrand)},
		member{"build_number", text(v.BuildNumber)},
		member{"xapi_major", text("1")}, member{"xapi_minor", text("9")},
		member{"export_vsn", number(exportVersion)},
	)
}

// carrierVM is a VM record with every field that an importer may ask for
// (reference 2.1), all at rest. The field parent must be there: without it a
// host takes the file for one from before dynamic memory.
func carrierVM(nonce string, vbds []Value, mark Value) Value {
	const memory = 128 << 20
	var none Value // the empty string
	empty := structOf()
	null := text(nullRef)
	r := structOf(
		member{"uuid", text(derivedUUID(nonce, "VM"))},
		member{"name_label", text(CarrierName(nonce))},
		member{"name_description", text("Disks on their way back to a VM, brought by dpxen. Removed when it is done.")},
		member{"power_state", text("Halted")}, member{"is_a_template", boolean(true)},
		member{"is_default_template", boolean(false)}, member{"is_control_domain", boolean(false)},
		member{"VBDs", set(vbds...)}, member{"other_config", mark},
		member{"VCPUs_params", empty}, member{"VCPUs_max", number(1)}, member{"VCPUs_at_startup", number(1)},
		member{"actions_after_softreboot", text("soft_reboot")}, member{"actions_after_shutdown", text("destroy")},
		member{"actions_after_reboot", text("restart")}, member{"actions_after_crash", text("destroy")},
		member{"HVM_boot_policy", text("BIOS order")}, member{"HVM_boot_params", structOf(member{"order", text("c")})},
		member{"HVM_shadow_multiplier", double("1")}, member{"domain_type", text("hvm")},
		member{"is_a_snapshot", boolean(false)}, member{"snapshot_of", null}, member{"snapshot_time", stamp(neverStamp)},
		member{"parent", null}, member{"generation_id", text("0:0")}, member{"hardware_platform_version", number(0)},
	)
	for _, name := range []string{"memory_target", "memory_static_max", "memory_dynamic_max", "memory_dynamic_min", "memory_static_min"} {
		r = r.with(name, number(memory))
	}
	for _, name := range []string{"user_version", "memory_overhead", "start_delay", "shutdown_delay", "order", "version"} {
		r = r.with(name, number(0))
	}
	r = r.with("domid", number(-1))
	for _, name := range []string{"PV_bootloader", "PV_kernel", "PV_ramdisk", "PV_args", "PV_bootloader_args",
		"PV_legacy_args", "PCI_bus", "domarch", "last_booted_record", "recommendations", "ha_restart_priority",
		"transportable_snapshot_id", "snapshot_metadata", "reference_label"} {
		r = r.with(name, none)
	}
	for _, name := range []string{"suspend_VDI", "resident_on", "scheduled_to_be_resident_on", "affinity", "metrics", "guest_metrics",
		"protection_policy", "snapshot_schedule", "appliance", "suspend_SR"} {
		r = r.with(name, null)
	}
	for _, name := range []string{"current_operations", "platform", "last_boot_CPU_flags", "xenstore_data", "blobs",
		"blocked_operations", "snapshot_info", "bios_strings", "NVRAM"} {
		r = r.with(name, empty)
	}
	for _, name := range []string{"allowed_operations", "consoles", "VIFs", "VUSBs", "crash_dumps", "VTPMs", "snapshots", "tags",
		"children", "VGPUs", "attached_PCIs", "pending_guidances", "pending_guidances_recommended", "pending_guidances_full"} {
		r = r.with(name, set())
	}
	for _, name := range []string{"ha_always_run", "is_snapshot_from_vmpp", "is_vmss_snapshot", "has_vendor_device", "requires_reboot"} {
		r = r.with(name, boolean(false))
	}
	return r
}

func carrierVBD(vm string, d Disk) Value {
	mode := d.Mode
	if mode != "RO" {
		mode = "RW"
	}
	empty := structOf()
	return structOf(
		member{"uuid", text(derivedUUID(d.VBDUUID, "carrier VBD"))},
		member{"allowed_operations", set()}, member{"current_operations", empty},
		member{"VM", text(vm)}, member{"VDI", text(d.Dir)}, member{"device", Value{}},
		member{"userdevice", text(d.UserDevice)}, member{"bootable", boolean(d.Bootable)},
		member{"mode", text(mode)}, member{"type", text("Disk")}, member{"unpluggable", boolean(d.Unpluggable)},
		member{"storage_lock", boolean(false)}, member{"empty", boolean(false)}, member{"other_config", empty},
		member{"currently_attached", boolean(false)}, member{"status_code", number(0)}, member{"status_detail", Value{}},
		member{"runtime_properties", empty}, member{"qos_algorithm_type", Value{}},
		member{"qos_algorithm_params", empty}, member{"qos_supported_algorithms", set()},
		member{"metrics", text(nullRef)},
	)
}

func carrierVDI(sr string, d Disk, mark Value) Value {
	kind := d.Type
	if kind != "system" && kind != "ephemeral" {
		kind = "user"
	}
	empty := structOf()
	null := text(nullRef)
	return structOf(
		member{"uuid", text(d.VDIUUID)}, member{"name_label", text(d.Name)}, member{"name_description", text(d.Description)},
		member{"allowed_operations", set()}, member{"current_operations", empty},
		member{"SR", text(sr)}, member{"VBDs", set(text(d.VBDID))}, member{"crash_dumps", set()},
		member{"virtual_size", number(d.Size)}, member{"physical_utilisation", number(0)},
		member{"type", text(kind)}, member{"sharable", boolean(d.Sharable)}, member{"read_only", boolean(false)},
		member{"other_config", mark}, member{"storage_lock", boolean(false)}, member{"location", text(d.VDIUUID)},
		member{"managed", boolean(true)}, member{"missing", boolean(false)}, member{"parent", null},
		member{"xenstore_data", empty}, member{"sm_config", empty},
		member{"is_a_snapshot", boolean(false)}, member{"snapshot_of", null}, member{"snapshots", set()},
		member{"snapshot_time", stamp(neverStamp)}, member{"tags", set()}, member{"allow_caching", boolean(false)},
		member{"on_boot", text("persist")}, member{"metadata_of_pool", null}, member{"metadata_latest", boolean(false)},
		member{"is_tools_iso", boolean(false)}, member{"cbt_enabled", boolean(false)},
	)
}

func carrierSR(uuid string, vdis []Value) Value {
	empty := structOf()
	return structOf(
		member{"uuid", text(uuid)}, member{"name_label", text("dpxen carrier target")}, member{"name_description", Value{}},
		member{"allowed_operations", set()}, member{"current_operations", empty},
		member{"VDIs", set(vdis...)}, member{"PBDs", set()},
		member{"virtual_allocation", number(0)}, member{"physical_utilisation", number(0)}, member{"physical_size", number(0)},
		member{"type", Value{}}, member{"content_type", text("user")}, member{"shared", boolean(false)},
		member{"other_config", empty}, member{"tags", set()}, member{"sm_config", empty}, member{"blobs", empty},
		member{"local_cache_enabled", boolean(false)}, member{"introduced_by", text(nullRef)},
		member{"clustered", boolean(false)}, member{"is_tools_sr", boolean(false)},
	)
}
