package xensim

import (
	"maps"
	"slices"
	"time"
)

// snapshotTime is how long a snapshot takes on a real host, roughly.
const snapshotTime = 2 * time.Second

func (p *Pool) registerCopies() {
	p.slow("VM.snapshot", func(c *call, args []any) (any, error) {
		var ignore []string
		if len(args) > 2 {
			ignore = args[2].([]string)
		}
		return c.fork(args[0].(string), args[1].(string), forkOptions{op: "snapshot", ignore: ignore})
	})
	p.slow("VM.checkpoint", func(c *call, args []any) (any, error) {
		return c.fork(args[0].(string), args[1].(string), forkOptions{op: "checkpoint"})
	})
	p.slow("VM.snapshot_with_quiesce", func(_ *call, args []any) (any, error) {
		return nil, fail("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", args[0].(string), "")
	})
	p.slow("VM.clone", func(c *call, args []any) (any, error) {
		return c.fork(args[0].(string), args[1].(string), forkOptions{op: "clone"})
	})
	p.slow("VM.copy", func(c *call, args []any) (any, error) {
		return c.fork(args[0].(string), args[1].(string), forkOptions{op: "copy", sr: args[2].(string)})
	})
	p.slow("VM.revert", c2((*call).revert))
}

// forkOptions says which of the calls that copy a VM is made.
type forkOptions struct {
	op     string // snapshot, checkpoint, clone or copy
	sr     string // for copy: where the disks go; the null reference keeps their SRs
	ignore []string
}

func (o forkOptions) snapshot() bool { return o.op == "snapshot" || o.op == "checkpoint" }

// vdiOp is what happens to each disk.
func (o forkOptions) vdiOp() string {
	if o.snapshot() {
		return "snapshot"
	}
	return o.op
}

// fork serves snapshot, checkpoint, clone and copy.
func (c *call) fork(ref, name string, o forkOptions) (any, error) {
	p := c.pool
	var result string
	err := c.whileVM(ref, o.op, standard, func() (err error) {
		if o.snapshot() {
			over := p.deed("snapshot", "", ref, "", c.task)
			defer func() { over(err) }()
			if err := p.faultOnSnapshot(ref); err != nil {
				return err
			}
		}
		if p.wait(c.ctx, snapshotTime) != nil {
			return c.cancelled()
		}
		return p.locked(func() error {
			vm, err := p.db.need("VM", ref)
			if err != nil {
				return err
			}
			result, err = p.forkVM(vm, name, o)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// forkVM copies the disks one by one, then the records; the database is locked.
// What was made is undone when it fails.
func (p *Pool) forkVM(vm *object, name string, o forkOptions) (string, error) {
	disks := map[string]string{} // VBD to the new VDI
	undo := func(err error) (string, error) {
		for _, ref := range disks {
			if vdi := p.db.find("VDI", ref); vdi != nil {
				_ = p.deleteVDI(vdi) // the first error is what the caller must know
			}
		}
		return "", err
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		vdi := p.db.find("VDI", vbd.str("VDI"))
		if vdi == nil || vbd.str("type") != "Disk" || slices.Contains(o.ignore, vdi.ref) {
			continue
		}
		if err := p.checkVDI(vdi, o.vdiOp()); err != nil {
			return undo(err)
		}
		made, err := p.forkDisk(vdi, o)
		if err != nil {
			return undo(err)
		}
		disks[vbd.ref] = made.ref
	}
	return p.forkRecords(vm, name, o, disks).ref, nil
}

func (p *Pool) forkDisk(vdi *object, o forkOptions) (*object, error) {
	if o.op != "copy" {
		return p.forkVDI(vdi, o.snapshot())
	}
	ref := o.sr
	if ref == nullRef {
		ref = vdi.str("SR")
	}
	sr, err := p.db.need("SR", ref)
	if err != nil {
		return nil, err
	}
	return p.copyVDI(vdi, sr)
}

// notCopied are the keys of other_config that a copy of a VM does not inherit.
var notCopied = []string{"default_template", "xensource_internal"}

func (p *Pool) forkRecords(vm *object, name string, o forkOptions, disks map[string]string) *object {
	f := vm.fields()
	config := maps.Clone(vm.m("other_config"))
	for _, k := range notCopied {
		delete(config, k)
	}
	if !o.snapshot() {
		config["mac_seed"] = randomUUID()
	}
	for _, k := range []string{
		"uuid", "VBDs", "VIFs", "VUSBs", "VTPMs", "VGPUs", "consoles", "crash_dumps", "attached_PCIs", "snapshots", "children",
		"resident_on", "domid", "current_operations", "allowed_operations", "appliance", "suspend_SR", "order",
		"start_delay", "shutdown_delay", "blocked_operations", "is_default_template", "ha_always_run", "suspend_VDI",
		"last_booted_record", "scheduled_to_be_resident_on", "blobs",
	} {
		delete(f, k)
	}
	f["name_label"], f["other_config"], f["domid"] = name, config, int64(-1)
	f["generation_id"] = p.freshGeneration(vm)
	f["power_state"], f["is_a_snapshot"], f["snapshot_of"] = halted, false, nullRef
	f["snapshot_info"], f["snapshot_metadata"], f["transportable_snapshot_id"] = map[string]string{}, "", ""
	f["metrics"] = p.copyOf("VM_metrics", vm.str("metrics"))
	f["guest_metrics"] = p.copyOf("VM_guest_metrics", vm.str("guest_metrics"))
	if o.snapshot() {
		f["is_a_template"], f["is_a_snapshot"], f["snapshot_of"], f["snapshot_time"] = true, true, vm.ref, p.now()
		f["snapshot_metadata"] = metadata(vm)
		f["snapshot_info"] = map[string]string{
			"power-state-at-snapshot": vm.str("power_state"), "disk-snapshot-type": "crash_consistent",
		}
	}
	made := p.db.create("VM", f)
	if o.snapshot() {
		p.db.set(vm, "parent", made.ref)
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		p.forkVBD(vbd, made, disks[vbd.ref])
	}
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		p.forkVIF(vif, made, o.snapshot())
	}
	for _, vtpm := range p.db.many("VTPM", vm.refs("VTPMs")) {
		p.forkVTPM(vtpm, made)
	}
	if o.op == "checkpoint" {
		p.checkpointMemory(vm, made)
	}
	p.updateAllowed(made)
	return made
}

// copyOf copies a metrics record.
func (p *Pool) copyOf(class, ref string) string {
	o := p.db.find(class, ref)
	if o == nil {
		return nullRef
	}
	f := o.fields()
	delete(f, "uuid")
	return p.db.create(class, f).ref
}

func (p *Pool) forkVBD(vbd, vm *object, vdi string) {
	f := vbd.fields()
	for _, k := range []string{"uuid", "current_operations", "allowed_operations", "currently_attached", "metrics", "runtime_properties"} {
		delete(f, k)
	}
	f["VM"] = vm.ref
	if vbd.str("type") == "Disk" {
		if vdi == "" {
			return // its disk was left out
		}
		f["VDI"] = vdi
		config := maps.Clone(vbd.m("other_config"))
		if config == nil {
			config = map[string]string{}
		}
		config["owner"] = ""
		f["other_config"] = config
	}
	f["metrics"] = p.db.create("VBD_metrics", nil).ref
	p.updateVBD(p.db.create("VBD", f))
}

func (p *Pool) forkVIF(vif, vm *object, keepMAC bool) {
	f := vif.fields()
	for _, k := range []string{"uuid", "current_operations", "allowed_operations", "currently_attached", "metrics", "runtime_properties"} {
		delete(f, k)
	}
	f["VM"] = vm.ref
	if !keepMAC {
		f["MAC"], f["MAC_autogenerated"] = seededMAC(vm.m("other_config")["mac_seed"], vif.str("device")), true
	}
	f["metrics"] = p.db.create("VIF_metrics", nil).ref
	p.updateVIF(p.db.create("VIF", f))
}
