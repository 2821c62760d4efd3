package xensim

import "github.com/dpxen/dpxen/internal/xensim/disk"

// suspendVM writes a memory image and stops the VM; the database is locked.
func (p *Pool) suspendVM(vm *object) error {
	ref, err := p.memoryImage(vm)
	if err != nil {
		return err
	}
	h := p.hostByRef(vm.str("resident_on"))
	p.db.set(vm, "suspend_VDI", ref)
	p.db.set(vm, "power_state", suspended)
	p.db.set(vm, "resident_on", nullRef)
	p.db.set(vm, "domid", int64(-1))
	p.showConsole(vm)
	p.detachAll(vm)
	if h != nil {
		p.memory(h)
	}
	p.updateAllowed(vm)
	return nil
}

// memoryImage makes a VDI with a VM's memory on the SR for suspend images.
func (p *Pool) memoryImage(vm *object) (string, error) {
	sr := p.db.find("SR", vm.str("suspend_SR"))
	if sr == nil {
		sr = p.db.find("SR", p.poolObject().str("suspend_image_SR"))
	}
	if sr == nil {
		sr = p.db.find("SR", p.poolObject().str("default_SR"))
	}
	if sr == nil {
		return "", fail("VM_NO_SUSPEND_SR", vm.ref)
	}
	// The contents of memory are compressed well by the simulator's own storage.
	image, err := p.disks.New(vm.num("memory_dynamic_max")+16<<20, disk.Content{Kind: disk.Sparse, Seed: p.cfg.Seed})
	if err != nil {
		return "", internalError("%v", err)
	}
	vdi := p.addVDI(sr, image, image.Utilisation(), map[string]any{
		"name_label": "Suspend image", "name_description": "Suspend image", "type": "suspend",
	})
	return vdi.ref, nil
}

// dropSuspendImage deletes the memory image of a VM that is resumed or dropped.
func (p *Pool) dropSuspendImage(vm *object) {
	if vdi := p.db.find("VDI", vm.str("suspend_VDI")); vdi != nil {
		_ = p.deleteVDI(vdi) // its blocks stay until the pool closes; the record is gone
	}
	p.db.set(vm, "suspend_VDI", nullRef)
}

// checkpointMemory gives a checkpoint the memory of its VM.
func (p *Pool) checkpointMemory(vm, snap *object) {
	if vm.str("power_state") == halted {
		return
	}
	ref, err := p.memoryImage(vm)
	if err != nil {
		return // without an SR for it the checkpoint is one of the disks only
	}
	p.db.set(snap, "suspend_VDI", ref)
	p.db.set(snap, "power_state", suspended)
}
