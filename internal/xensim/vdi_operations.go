package xensim

import (
	"slices"
	"strings"
)

// liveOps can be done while a VM has the disk attached (xapi_vdi.ml).
var liveOps = []string{
	"snapshot", "resize_online", "blocked", "clone", "mirror", "enable_cbt", "disable_cbt", "data_destroy",
}

// notOnCBTMetadata are refused on a disk whose data is gone.
var notOnCBTMetadata = []string{
	"clone", "copy", "disable_cbt", "enable_cbt", "mirror", "resize", "resize_online", "snapshot", "set_on_boot",
}

// listedVDIOps are those that allowed_operations names: what was known before
// XenServer 7.1, so that older hosts can read the field (CA-260245).
var listedVDIOps = []string{"clone", "copy", "destroy", "forget", "generate_config", "resize", "resize_online", "snapshot", "update"}

// notOfISO need a storage driver that can do more than read files, and onlineGrow
// one that none of the simulated kinds is.
var (
	notOfISO   = []string{"snapshot", "destroy", "resize", "update", "generate_config", "clone", "mirror", "set_on_boot"}
	onlineGrow = "resize_online"
	cbtOps     = []string{"enable_cbt", "disable_cbt", "data_destroy", "list_changed_blocks"}
)

// checkVDI says why an operation on a disk is not possible, in XAPI's order: other
// operations, attachment, the storage's abilities, kind of disk, the operation's
// own rules (xapi_vdi.ml, check_operation_error).
func (p *Pool) checkVDI(vdi *object, op string) error {
	if err := vdiBusy(vdi, op); err != nil {
		return err
	}
	if err := p.checkAttachment(vdi, op); err != nil {
		return err
	}
	sr := p.db.find("SR", vdi.str("SR"))
	if sr != nil && !storageCan(sr, op) {
		return fail("SR_OPERATION_NOT_SUPPORTED", sr.ref)
	}
	if vdi.str("type") == "cbt_metadata" && slices.Contains(notOnCBTMetadata, op) {
		return fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, "cbt_metadata")
	}
	if vdi.is("cbt_enabled") && (op == "mirror" || op == "set_on_boot") {
		return fail("VDI_CBT_ENABLED", vdi.ref)
	}
	return p.checkVDIRule(vdi, sr, op)
}

// vdiBusy refuses what another operation excludes; a copy excludes nothing here.
func vdiBusy(vdi *object, op string) error {
	for ref, other := range vdi.m("current_operations") {
		if other != "copy" && (op != "destroy" || other != "mirror") {
			return fail("OTHER_OPERATION_IN_PROGRESS", "VDI", vdi.ref, other, ref)
		}
	}
	return nil
}

// checkAttachment refuses what needs a disk that nobody, or nobody who writes, has
// attached.
func (p *Pool) checkAttachment(vdi *object, op string) error {
	if slices.Contains(liveOps, op) {
		return nil
	}
	for _, vbd := range p.db.many("VBD", vdi.refs("VBDs")) {
		if !vbd.is("currently_attached") || op == "copy" && vbd.str("mode") == "RO" {
			continue
		}
		// A checkpoint's VBDs may be attached.
		if vm := p.db.find("VM", vbd.str("VM")); op == "list_changed_blocks" && vm != nil && vm.is("is_a_snapshot") {
			continue
		}
		return fail("VDI_IN_USE", vdi.ref, op)
	}
	return nil
}

// storageCan says whether the driver of an SR offers an operation.
func storageCan(sr *object, op string) bool {
	if op == onlineGrow {
		return false
	}
	if !holdsVHDs(sr) {
		return !slices.Contains(notOfISO, op) && !slices.Contains(cbtOps, op)
	}
	return true
}

// holdsVHDs says whether an SR's disks are its own, and not ISOs or devices of a
// host.
func holdsVHDs(sr *object) bool {
	return sr.str("content_type") != "iso" && sr.str("type") != "iso" && sr.str("type") != "udev"
}

// checkVDIRule holds what is particular to an operation.
func (p *Pool) checkVDIRule(vdi, sr *object, op string) error {
	ha := slices.Contains([]string{"ha_statefile", "redo_log"}, vdi.str("type"))
	reset := vdi.str("on_boot") == "reset"
	switch op {
	case "forget", "resize", "destroy", "data_destroy":
		if op == "data_destroy" && !vdi.is("is_a_snapshot") {
			return fail("OPERATION_NOT_ALLOWED", "VDI is not a snapshot: "+vdi.ref)
		}
		if op == "data_destroy" && !vdi.is("cbt_enabled") {
			return fail("VDI_NO_CBT_METADATA", vdi.ref)
		}
		if strings.HasSuffix(op, "destroy") && sr != nil && sr.is("is_tools_sr") {
			return fail("SR_OPERATION_NOT_SUPPORTED", sr.ref)
		}
		if ha && p.poolObject().is("ha_enabled") {
			return fail("HA_IS_ENABLED")
		}
	case "snapshot":
		if vdi.is("sharable") {
			return fail("VDI_IS_SHARABLE", vdi.ref)
		}
		if reset {
			return fail("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
		}
		for _, other := range vdi.m("current_operations") {
			if other == "copy" {
				return fail("OPERATION_NOT_ALLOWED", "Snapshot operation not allowed during copy.")
			}
		}
	case "copy":
		if reset {
			return fail("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
		}
		if ha {
			return fail("OPERATION_NOT_ALLOWED", "VDI containing HA statefile or redo log cannot be copied "+
				"(check the VDI's allowed operations).")
		}
	case "enable_cbt", "disable_cbt":
		if vdi.is("is_a_snapshot") {
			return fail("OPERATION_NOT_ALLOWED", "VDI is a snapshot: "+vdi.ref)
		}
		if t := vdi.str("type"); t != "user" && t != "system" {
			return fail("VDI_INCOMPATIBLE_TYPE", vdi.ref, t)
		}
		if reset {
			return fail("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
		}
	}
	return nil
}

// needVDI gives a VDI on which an operation is possible, on storage that is there.
func (p *Pool) needVDI(ref, op string) (*object, error) {
	vdi, err := p.db.need("VDI", ref)
	if err != nil {
		return nil, err
	}
	if err := p.checkVDI(vdi, op); err != nil {
		return nil, err
	}
	if sr := p.db.find("SR", vdi.str("SR")); sr != nil && op != "forget" {
		if err := p.usableSR(sr); err != nil {
			return nil, err
		}
	}
	if !vdi.is("managed") {
		return nil, fail("VDI_NOT_MANAGED", ref)
	}
	return vdi, nil
}

// updateVDI recomputes what may be done with a disk.
func (p *Pool) updateVDI(vdi *object) {
	out := []string{}
	for _, op := range listedVDIOps {
		if p.checkVDI(vdi, op) == nil {
			out = append(out, op)
		}
	}
	if !slices.Equal(out, vdi.refs("allowed_operations")) {
		p.db.set(vdi, "allowed_operations", out)
	}
}
