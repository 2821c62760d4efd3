package xensim

import (
	"strconv"
	"strings"
)

// precheck holds the VMs of an archive against those that exist and against this
// host.
func (im *importer) precheck() error {
	for _, o := range im.class("VM") {
		if im.restore {
			if err := im.checkSeed(o); err != nil {
				return err
			}
			if err := im.checkExisting(o); err != nil {
				return err
			}
		}
		if err := im.checkHost(o); err != nil {
			return err
		}
	}
	return nil
}

// checkSeed refuses a VM that would have the MACs of another one. VMs and
// snapshots are of one family if they belong to the VM of one uuid.
func (im *importer) checkSeed(o ovaObject) error {
	p := im.p
	seed := o.strMap("other_config")["mac_seed"]
	if seed == "" {
		return nil
	}
	family := o.str("uuid")
	if o.is("is_a_snapshot") {
		family = im.originUUID(o)
	}
	for _, vm := range p.db.all("VM") {
		if vm.m("other_config")["mac_seed"] != seed {
			continue
		}
		own := vm.uuid()
		if vm.is("is_a_snapshot") {
			own = ""
			if of := p.db.find("VM", vm.str("snapshot_of")); of != nil {
				own = of.uuid()
			}
		}
		if own == "" || own != family {
			return fail("DUPLICATE_MAC_SEED", seed)
		}
	}
	return nil
}

// originUUID gives the uuid of the VM that a snapshot of the archive was taken of,
// whether that is in the archive or here.
func (im *importer) originUUID(o ovaObject) string {
	of := o.str("snapshot_of")
	if vm, ok := im.find("VM", of); ok {
		return vm.str("uuid")
	}
	if vm := im.p.db.find("VM", of); vm != nil {
		return vm.uuid()
	}
	return ""
}

// checkExisting says whether a restore may take the place of a VM.
func (im *importer) checkExisting(o ovaObject) error {
	old := im.p.db.byUUID["VM"][o.str("uuid")]
	if old == nil || im.force {
		return nil
	}
	if state := old.str("power_state"); state != halted {
		return fail("VM_BAD_POWER_STATE", old.ref, halted, state)
	}
	if old.num("version") >= o.num("version") {
		return fail("VM_TO_IMPORT_IS_NOT_NEWER_VERSION", old.ref,
			strconv.FormatInt(old.num("version"), 10), strconv.FormatInt(o.num("version"), 10))
	}
	return nil
}

// checkHost says whether a VM that runs, or is suspended, could go on here.
func (im *importer) checkHost(o ovaObject) error {
	p, state := im.p, o.str("power_state")
	host := p.db.find("host", im.t.host.ref)
	if im.live && (state == running || state == paused) {
		m := p.db.find("host_metrics", host.str("metrics"))
		if need := o.num("memory_static_max"); m.num("memory_free") < need {
			return fail("HOST_NOT_ENOUGH_FREE_MEMORY", strconv.FormatInt(need, 10), strconv.FormatInt(m.num("memory_free"), 10))
		}
	}
	if !im.checkCPU || state == halted {
		return nil
	}
	own, vm := host.m("cpu_info"), o.strMap("last_boot_CPU_flags")
	if vendor, ok := vm["vendor"]; ok && vendor != own["vendor"] {
		return fail("VM_INCOMPATIBLE_WITH_THIS_HOST", nullRef, host.ref,
			"VM last booted on a host which had a CPU from a different vendor.")
	}
	key := "features_hvm"
	if o.str("HVM_boot_policy") == "" {
		key = "features_pv"
	}
	if features, ok := vm["features"]; ok && !within(features, own[key]) {
		return fail("VM_INCOMPATIBLE_WITH_THIS_HOST", nullRef, host.ref,
			"VM last booted on a CPU with features this host's CPU does not have.")
	}
	return nil
}

// within says whether all bits of a set of CPU features, hexadecimal words parted
// by dashes, are in another one.
func within(a, b string) bool {
	words := strings.Split(b, "-")
	for i, w := range strings.Split(a, "-") {
		bits, err := strconv.ParseUint(w, 16, 32)
		if err != nil {
			return false
		}
		var has uint64
		if i < len(words) {
			has, _ = strconv.ParseUint(words[i], 16, 32) // what is no word has no bits
		}
		if bits&^has != 0 {
			return false
		}
	}
	return true
}

// complete wants all objects in the archive on which the search for disks depends.
func (im *importer) complete() error {
	for _, vbd := range im.class("VBD") {
		if vbd.str("type") == "CD" {
			continue
		}
		vdi, ok := im.find("VDI", vbd.str("VDI"))
		if !ok {
			return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", vbd.str("VDI"))
		}
		if _, err := im.onISO(vdi); err != nil {
			return err
		}
	}
	return nil
}

// attached refuses VBDs that are attached to a disk which was not found. A CD is
// taken out of its drive where the guest or the sender of a migration can do that.
func (im *importer) attached() error {
	for _, vbd := range im.class("VBD") {
		if err := im.checkAttached(vbd); err != nil {
			return err
		}
	}
	return nil
}

func (im *importer) checkAttached(vbd ovaObject) error {
	if !vbd.is("currently_attached") || im.ids[vbd.str("VDI")] != "" {
		return nil
	}
	vm, ok := im.find("VM", vbd.str("VM"))
	if !ok {
		return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", vbd.str("VM"))
	}
	hvm := vm.str("HVM_boot_policy") != ""
	ejected := im.dryRun && im.live && vm.str("power_state") != suspended
	if vbd.str("type") == "CD" && (hvm || ejected) {
		return nil
	}
	return fail("IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND")
}
