package xensim

import (
	"maps"
	"slices"

	"github.com/dpxen/dpxen/internal/xensim/archive"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// importer makes the records of one import.
type importer struct {
	t              *transfer
	p              *Pool
	sr             string
	restore, force bool
	// metadata imports find their disks by the map disks or by their place; a dry
	// run makes nothing.
	metadata, dryRun bool
	disks            map[string]string
	// live imports are a migration's: disks may come later. checkCPU holds the
	// CPU of a VM that is not halted against this host's.
	live, checkCPU bool

	// exportVersion is that of the archive; below 2 a table of checksums ends it.
	exportVersion int64

	objects []ovaObject
	// ids maps ids of the archive to references here; made lists what was created.
	ids     map[string]string
	made    map[string][]string
	plugged []string
}

// records is called with ova.xml; it makes everything but the contents of disks.
func (im *importer) records(raw []byte) ([]archive.Expected, error) {
	v, err := xmlrpc.DecodeValue(raw)
	if err != nil {
		return nil, err
	}
	if err := im.parse(v); err != nil {
		return nil, err
	}
	p := im.p
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if err := im.precheck(); err != nil {
		return nil, err
	}
	if !im.dryRun {
		im.networks()
	}
	var expected []archive.Expected
	for _, o := range im.class("VDI") {
		var e *archive.Expected
		var err error
		if im.metadata {
			err = im.existing(o)
		} else {
			e, err = im.disk(o)
		}
		if err != nil {
			return nil, err
		}
		if e != nil {
			expected = append(expected, *e)
		}
	}
	if im.dryRun {
		return nil, im.attached()
	}
	for _, o := range im.class("VM") {
		if err := im.vm(o); err != nil {
			return nil, err
		}
	}
	if err := im.devices(); err != nil {
		return nil, err
	}
	if !im.metadata {
		if err := im.complete(); err != nil {
			return nil, err
		}
	}
	if im.metadata {
		im.snapshots()
	}
	if task := p.db.find("task", im.t.task); task != nil {
		p.db.put(task, "other_config", "object_creation", "complete")
	}
	return expected, nil
}

// networks finds each network by name, then by bridge, or makes it.
func (im *importer) networks() {
	p := im.p
	for _, o := range im.class("network") {
		var found *object
		for _, key := range []string{"name_label", "bridge"} {
			for _, n := range p.db.all("network") {
				if found == nil && o.str(key) != "" && n.str(key) == o.str(key) {
					found = n
				}
			}
		}
		if found == nil {
			found = p.createNetwork(map[string]any{
				"name_label": o.str("name_label"), "name_description": o.str("name_description"),
				"other_config": o.strMap("other_config"), "MTU": max(o.num("MTU"), 1500),
			})
			im.made["network"] = append(im.made["network"], found.ref)
		}
		im.ids[o.id] = found.ref
	}
}

// disk makes a VDI for one of the archive, finds the ISO, or leaves it out.
func (im *importer) disk(o ovaObject) (*archive.Expected, error) {
	p := im.p
	iso, err := im.onISO(o)
	if err != nil {
		return nil, err
	}
	if iso {
		im.findISO(o)
		return nil, nil
	}
	sr := p.db.find("SR", im.sr)
	if sr == nil {
		return nil, fail("HANDLE_INVALID", "SR", im.sr)
	}
	config := o.strMap("sm_config")
	for _, k := range []string{"vhd-parent", "host_OpaqueRef:"} {
		delete(config, k)
	}
	config["import_task"] = im.t.task
	vdi, err := p.createVDI(sr, o.num("virtual_size"), map[string]any{
		"name_label": o.str("name_label"), "name_description": o.str("name_description"), "type": o.str("type"),
		"sharable": o.is("sharable"), "other_config": o.strMap("other_config"), "sm_config": config,
		"xenstore_data": o.strMap("xenstore_data"), "tags": stringSet(o.fields["tags"]),
	})
	if err != nil {
		return nil, err
	}
	im.ids[o.id] = vdi.ref
	im.made["VDI"] = append(im.made["VDI"], vdi.ref)
	if !im.wanted(o) {
		return nil, nil // it is made, but its contents are not in the archive
	}
	vbd, err := p.plugDom0(im.t.host, vdi.ref, "RW")
	if err != nil {
		return nil, err
	}
	im.plugged = append(im.plugged, vbd)
	image := p.volumes[vdi.ref].image
	return &archive.Expected{Dir: o.id, Size: image.Size(), Image: &importedDisk{p: p, vdi: vdi, img: image}}, nil
}

// onISO says whether a VDI of the archive is on an SR of ISOs.
func (im *importer) onISO(vdi ovaObject) (bool, error) {
	sr, ok := im.find("SR", vdi.str("SR"))
	if !ok {
		return false, fail("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", vdi.str("SR"))
	}
	return sr.str("content_type") == "iso", nil
}

// wanted says whether a VDI's data is in the archive: a disk's, or a memory image.
func (im *importer) wanted(vdi ovaObject) bool {
	if vdi.str("type") == "suspend" {
		return true
	}
	return slices.ContainsFunc(im.class("VBD"), func(vbd ovaObject) bool {
		return vbd.str("VDI") == vdi.id && vbd.str("type") != "CD"
	})
}

// findISO looks for an ISO by its location in any SR of ISOs.
func (im *importer) findISO(o ovaObject) {
	p := im.p
	for _, sr := range p.db.all("SR") {
		if sr.str("content_type") != "iso" || sr.str("type") == "udev" {
			continue
		}
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			if vdi.str("location") == o.str("location") {
				im.ids[o.id] = vdi.ref
				return
			}
		}
	}
}

// replace removes the VM that a forced restore takes the place of: VIFs, then
// VBDs, then the record. Its disks stay behind.
func (im *importer) replace(vm *object) error {
	p := im.p
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		p.dropVIF(vif)
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		p.dropVBD(vbd)
	}
	if err := p.faultOnReplace(); err != nil {
		return err
	}
	p.dropVM(vm)
	return nil
}

// vm makes the record of a VM.
func (im *importer) vm(o ovaObject) error {
	p := im.p
	f, err := im.typed(o)
	if err != nil {
		return err
	}
	uuid := o.str("uuid")
	for _, k := range []string{
		"uuid", "allowed_operations", "current_operations", "VBDs", "VIFs", "VTPMs", "VUSBs", "VGPUs", "consoles", "crash_dumps",
		"snapshots", "children", "attached_PCIs", "resident_on", "domid", "is_control_domain", "metrics",
		"guest_metrics", "appliance", "protection_policy", "snapshot_schedule", "scheduled_to_be_resident_on", "snapshot_of", "parent",
		"is_a_snapshot", "snapshot_time", "snapshot_info", "snapshot_metadata", "suspend_VDI", "blobs", "last_booted_record",
	} {
		delete(f, k)
	}
	config, _ := f["other_config"].(map[string]string)
	config = maps.Clone(config)
	if config == nil {
		config = map[string]string{}
	}
	config["import_task"] = im.t.task
	if !im.force {
		delete(config, "default_template")
		f["is_default_template"] = false
	}
	if im.restore {
		f["version"] = o.num("version") + 1
		if old := p.db.byUUID["VM"][uuid]; old != nil {
			if old.str("power_state") != halted {
				return nil // with force alone one comes so far: the VM is left out
			}
			if err := im.replace(old); err != nil {
				return err
			}
		}
	} else {
		config["mac_seed"] = randomUUID()
		f["version"] = int64(0)
		if !o.is("is_a_template") && !im.live {
			f["generation_id"] = freshIf(o.str("generation_id"))
		}
	}
	f["other_config"] = config
	f["affinity"] = im.hostByUUID(o.str("affinity"))
	f["suspend_SR"] = nullRef
	if s := p.db.find("SR", o.str("suspend_SR")); s != nil {
		f["suspend_SR"] = s.ref
	}
	f["ha_restart_priority"] = restartPriority(o.str("ha_restart_priority"))
	if order := o.num("ha_restart_priority"); len(o.str("ha_restart_priority")) == 1 {
		f["order"] = order
	}
	f["ha_always_run"] = false
	im.memory(o, f)
	vm := p.createVM(f)
	if im.restore && uuid != "" {
		p.db.set(vm, "uuid", uuid)
	}
	im.ids[o.id] = vm.ref
	im.made["VM"] = append(im.made["VM"], vm.ref)
	p.db.put(vm, "current_operations", im.t.task, "import")
	im.guestMetrics(o, vm)
	p.updateAllowed(vm)
	return nil
}

// memory keeps a suspended VM suspended where its memory image came along.
func (im *importer) memory(o ovaObject, f map[string]any) {
	f["power_state"] = halted
	if ref := im.ids[o.str("suspend_VDI")]; o.str("power_state") == suspended && ref != "" {
		f["power_state"], f["suspend_VDI"] = suspended, ref
	}
}

// guestMetrics makes the record of what the guest last told.
func (im *importer) guestMetrics(o ovaObject, vm *object) {
	g, ok := im.find("VM_guest_metrics", o.str("guest_metrics"))
	if !ok {
		return
	}
	f, err := im.typed(g)
	if err != nil {
		return
	}
	delete(f, "uuid")
	f["live"] = false
	im.p.db.set(vm, "guest_metrics", im.p.db.create("VM_guest_metrics", f).ref)
}

func (im *importer) hostByUUID(id string) string {
	if h, ok := im.find("host", id); ok {
		if o := im.p.db.byUUID["host"][h.str("uuid")]; o != nil {
			return o.ref
		}
	}
	return nullRef
}
