package xensim

import (
	"fmt"
	"math/rand/v2"
)

// devices makes the VBDs, VIFs and vTPMs of the imported VMs.
func (im *importer) devices() error {
	for _, o := range im.class("VBD") {
		if err := im.vbd(o); err != nil {
			return err
		}
	}
	for _, o := range im.class("VIF") {
		if err := im.vif(o); err != nil {
			return err
		}
	}
	for _, o := range im.class("VTPM") {
		im.vtpm(o)
	}
	return nil
}

func (im *importer) vbd(o ovaObject) error {
	p := im.p
	if old := p.db.byUUID["VBD"][o.str("uuid")]; im.restore && old != nil {
		im.ids[o.id] = old.ref
		return nil
	}
	vm := im.ids[o.str("VM")]
	if p.db.find("VM", vm) == nil {
		return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", o.str("VM"))
	}
	if err := im.checkAttached(o); err != nil {
		return err
	}
	f, err := im.typed(o)
	if err != nil {
		return err
	}
	for _, k := range []string{
		"uuid", "allowed_operations", "current_operations", "currently_attached", "metrics", "runtime_properties", "device", "status_code",
	} {
		delete(f, k)
	}
	f["VM"] = vm
	cd := o.str("type") == "CD"
	if cd {
		f["mode"] = "RO"
	}
	vdi := im.ids[o.str("VDI")]
	switch {
	case vdi != "":
		f["VDI"] = vdi
	case !cd:
		return nil // there are no empty disks
	default: // an ISO that is not here: the drive is left open
		f["empty"], f["VDI"] = true, nullRef
	}
	vbd, err := p.createVBD(f)
	if err != nil {
		return err
	}
	if im.restore && o.str("uuid") != "" {
		p.db.set(vbd, "uuid", o.str("uuid"))
	}
	im.ids[o.id] = vbd.ref
	return nil
}

func (im *importer) vif(o ovaObject) error {
	p := im.p
	if old := p.db.byUUID["VIF"][o.str("uuid")]; im.restore && old != nil {
		im.ids[o.id] = old.ref
		return nil
	}
	f, err := im.typed(o)
	if err != nil {
		return err
	}
	for _, k := range []string{
		"uuid", "allowed_operations", "current_operations", "currently_attached", "metrics", "runtime_properties", "status_code",
	} {
		delete(f, k)
	}
	vm := im.ids[o.str("VM")]
	if p.db.find("VM", vm) == nil {
		return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", o.str("VM"))
	}
	network := im.ids[o.str("network")]
	if to := o.strMap("other_config")["maps_to"]; p.db.find("network", to) != nil {
		network = to
	}
	if p.db.find("network", network) == nil {
		return fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", o.str("network"))
	}
	f["VM"], f["network"] = vm, network
	if !im.restore {
		f["MAC"] = ""
	}
	vif, err := p.createVIF(f)
	if err != nil {
		return err
	}
	if im.restore && o.str("uuid") != "" {
		p.db.set(vif, "uuid", o.str("uuid"))
	}
	im.ids[o.id] = vif.ref
	return nil
}

// vtpm makes a vTPM from the private record that carries it.
func (im *importer) vtpm(o ovaObject) {
	p := im.p
	vm := im.ids[o.str("vTPM'_VM")]
	if p.db.find("VM", vm) == nil {
		return
	}
	t := p.db.create("VTPM", map[string]any{
		"VM": vm, "is_unique": o.is("vTPM'_is_unique"), "is_protected": o.is("vTPM'_is_protected"),
	})
	p.vtpms[t.ref] = o.str("vTPM'_content")
}

// freshIf gives a new generation id where there was one.
func freshIf(old string) string {
	if old == "" || old == "0:0" {
		return old
	}
	return fmt.Sprintf("%d:%d", rand.Int64(), rand.Int64())
}

// restartPriority maps the values of old releases.
func restartPriority(s string) string {
	switch s {
	case "", "best-effort", "restart":
		return s
	case "0", "1", "2", "3":
		return "restart"
	}
	return ""
}
