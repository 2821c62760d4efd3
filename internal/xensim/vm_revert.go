package xensim

import (
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// metadata serialises a record for snapshot_metadata; only revert reads it.
func metadata(vm *object) string {
	f := vm.fields()
	delete(f, "snapshot_metadata")
	return string(xmlrpc.Append(nil, f))
}

// revert gives a snapshot's VM the snapshot's disks and settings back. The VM
// keeps its reference and uuid.
func (c *call) revert(ref string) error {
	p := c.pool
	return c.whileVM(ref, "revert", standard, func() error {
		if p.wait(c.ctx, snapshotTime) != nil {
			return c.cancelled()
		}
		return p.locked(func() error {
			snap, err := p.db.need("VM", ref)
			if err != nil {
				return err
			}
			vm := p.db.find("VM", snap.str("snapshot_of"))
			if vm == nil {
				return fail("VM_REVERT_FAILED", snap.str("snapshot_of"), ref)
			}
			if msg, ok := vm.m("blocked_operations")["revert"]; ok {
				return fail("OPERATION_BLOCKED", vm.ref, msg)
			}
			return p.revertVM(vm, snap)
		})
	})
}

func (p *Pool) revertVM(vm, snap *object) error {
	disks, memory, err := p.forkSnapshot(snap)
	if err != nil {
		// What the caller can do something about is passed on: no space, and too long
		// a chain.
		if isCode(err, "SR_BACKEND_FAILURE_44") || isCode(err, "SR_BACKEND_FAILURE_109") {
			return err
		}
		return fail("VM_REVERT_FAILED", vm.ref, snap.ref)
	}
	if vm.str("power_state") != halted {
		if err := p.powerOff(vm.ref); err != nil {
			return err
		}
		p.db.set(vm, "ha_always_run", false)
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		vdi := p.db.find("VDI", vbd.str("VDI"))
		p.dropVBD(vbd)
		if vdi != nil && vbd.str("type") == "Disk" && len(vdi.refs("VBDs")) == 0 {
			if err := p.deleteVDI(vdi); err != nil {
				return err
			}
		}
	}
	for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
		p.dropVIF(vif)
	}
	for _, vtpm := range p.db.many("VTPM", slices.Clone(vm.refs("VTPMs"))) {
		delete(p.vtpms, vtpm.ref)
		p.db.remove(vtpm)
	}
	p.revertFields(vm, snap)
	for _, vtpm := range p.db.many("VTPM", snap.refs("VTPMs")) {
		p.forkVTPM(vtpm, vm)
	}
	for _, vbd := range p.db.many("VBD", snap.refs("VBDs")) {
		p.forkVBD(vbd, vm, disks[vbd.ref])
	}
	for _, vif := range p.db.many("VIF", snap.refs("VIFs")) {
		p.forkVIF(vif, vm, true)
	}
	p.db.set(vm, "parent", snap.ref)
	if memory != nullRef { // a checkpoint brings its memory back: the VM is to be resumed
		p.db.set(vm, "suspend_VDI", memory)
		p.db.set(vm, "power_state", suspended)
	}
	p.updateAllowed(vm)
	return nil
}

// forkSnapshot clones a snapshot's disks, by VBD, and a checkpoint's memory. What
// it made is gone again when it fails.
func (p *Pool) forkSnapshot(snap *object) (disks map[string]string, memory string, err error) {
	disks = map[string]string{}
	var made []*object
	clone := func(ref string) (string, error) {
		vdi := p.db.find("VDI", ref)
		if vdi == nil {
			return nullRef, nil
		}
		c, err := p.forkVDI(vdi, false)
		if err != nil {
			for _, m := range made {
				_ = p.deleteVDI(m) // the first error is what the caller must know
			}
			return nullRef, err
		}
		made = append(made, c)
		return c.ref, nil
	}
	for _, vbd := range p.db.many("VBD", snap.refs("VBDs")) {
		if vbd.str("type") != "Disk" || p.db.find("VDI", vbd.str("VDI")) == nil {
			continue
		}
		if disks[vbd.ref], err = clone(vbd.str("VDI")); err != nil {
			return nil, nullRef, err
		}
	}
	memory, err = clone(snap.str("suspend_VDI"))
	return disks, memory, err
}

// revertFields brings the settings back that snapshot_metadata keeps.
func (p *Pool) revertFields(vm, snap *object) {
	old, err := xmlrpc.DecodeValue([]byte(snap.str("snapshot_metadata")))
	if err != nil {
		return
	}
	in, _ := old.(map[string]any)
	for _, f := range vm.class.Fields {
		if f.Qualifier == 'R' || strings.HasPrefix(f.Name, "ha_") || f.Type.Kind == refKind {
			continue
		}
		switch f.Name {
		case "power_state", "blocked_operations", "last_booted_record":
			continue
		}
		if v, ok := f.Type.Coerce(in[f.Name]); ok && in[f.Name] != nil {
			p.db.set(vm, f.Name, v)
		}
	}
	p.db.set(vm, "generation_id", p.freshGeneration(vm))
}
