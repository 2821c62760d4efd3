package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// restoreKind is a kind of restore, with the pool that it needs.
type restoreKind struct {
	name string
	cfg  xensim.Config
	// which VM is meant; its disks and settings are then changed once before it is backed up.
	vm     string // its name
	adjust func(m *matrix)
	// change is called before every try: as after the disaster.
	change  func(m *matrix)
	backup  *agentv1.BackupSpec
	spec    func(s *agentv1.RestoreSpec)
	inPlace bool
}

// restoreKinds are all kinds.
func restoreKinds() []restoreKind {
	small := xensim.Config{VMs: 2, DiskSize: 1 << 20}
	return []restoreKind{
		{name: "online", cfg: small, vm: "vm-01", backup: online(), inPlace: true, change: (*matrix).scribbled,
			adjust: func(m *matrix) { m.own("clone", "by its owner") }},
		{name: "halted", cfg: small, vm: "vm-02", backup: online(), inPlace: true, change: (*matrix).scribbled},
		{name: "delete first", cfg: small, vm: "vm-01", backup: online(), inPlace: true, change: (*matrix).scribbled,
			spec: func(s *agentv1.RestoreSpec) { s.DeleteFirst = true }},
		{name: "keep old", cfg: small, vm: "vm-01", backup: online(), inPlace: true, change: (*matrix).scribbled,
			spec: func(s *agentv1.RestoreSpec) { s.KeepOldDisks = true }},
		{name: "offline with settings", cfg: small, vm: "vm-01", backup: offline(), inPlace: true, change: (*matrix).resettled},
		{name: "suspended", cfg: small, vm: "vm-01", backup: online(), inPlace: true, change: (*matrix).suspended,
			spec: func(s *agentv1.RestoreSpec) { s.DiscardMemory = true }},
		{name: "shared disk", cfg: small, vm: "vm-01", backup: online(), inPlace: true, change: (*matrix).shared},
		{name: "several SRs", cfg: small, vm: "vm-01", backup: online(), inPlace: true, change: (*matrix).scribbled,
			adjust: (*matrix).secondDisk},
		{name: "absent", cfg: small, vm: "vm-01", backup: offline(), change: (*matrix).removed, adjust: (*matrix).secondDisk},
		{name: "recreate", cfg: small, vm: "vm-01", backup: online(), change: (*matrix).removed,
			spec: func(s *agentv1.RestoreSpec) { s.Recreate, s.VmName = true, "vm-01" }},
		{name: "as new", cfg: small, vm: "vm-01", backup: online(), change: (*matrix).alone, adjust: (*matrix).secondDisk,
			spec: func(s *agentv1.RestoreSpec) { s.AsNew, s.NewName = true, "another" }},
	}
}

// ok ends the test where the pool could not be prepared.
func (m *matrix) ok(_ any, err error) {
	m.b.t.Helper()
	if err != nil {
		m.b.t.Fatal(err)
	}
}

func (m *matrix) record() xapi.VM {
	m.b.t.Helper()
	vm, err := m.x.VMByUUID(context.Background(), m.uuid)
	m.ok(nil, err)
	return vm
}

// own gives the VM a blocked operation of its owner's.
func (m *matrix) own(op, text string) {
	m.ok(nil, m.x.AddBlockedOperation(context.Background(), m.record().Ref, op, text))
}

// secondDisk gives the VM a disk on another SR, cloned from its first, and one that no backup will have.
func (m *matrix) secondDisk() {
	ctx := context.Background()
	m.powered(halted)
	vm := m.record()
	pools, err := m.x.SRs(ctx)
	m.ok(nil, err)
	first := m.b.vmNow(m.uuid).Disks[0]
	old, err := m.x.VDIByUUID(ctx, first.VDI.UUID)
	m.ok(nil, err)
	for ref, sr := range pools {
		if ref == old.SR || sr.ContentType == "iso" || !strings.Contains(sr.Name, "xen1") && !sr.Shared {
			continue
		}
		v, err := m.x.CallAsync(ctx, "copy", "VDI.copy", old.Ref, ref)
		m.ok(nil, err)
		_, err = m.x.CreateVBD(ctx, xapi.VBDSpec{VM: vm.Ref, VDI: xapi.Ref(v), UserDevice: "4", Mode: "RW", Type: "Disk", Unpluggable: true})
		m.ok(nil, err)
		m.powered(running)
		return
	}
	m.b.t.Fatal("there is no second SR")
}

// scribbled changes the VM's disks; it runs where it ran at the beginning.
func (m *matrix) scribbled() {
	m.powered(m.power)
	m.b.scribble(m.b.vmNow(m.uuid))
}

// resettled changes settings and interfaces too.
func (m *matrix) resettled() {
	ctx := context.Background()
	m.powered(halted)
	vm := m.record()
	m.ok(nil, m.x.SetVMField(ctx, vm.Ref, "name_description", "another"))
	_, err := m.x.Call(ctx, "VM.set_memory_limits", vm.Ref, int64(512<<20), int64(768<<20), int64(768<<20), int64(768<<20))
	m.ok(nil, err)
	for _, ref := range vm.VIFs {
		vif, err := m.x.VIF(ctx, ref)
		m.ok(nil, err)
		m.ok(nil, m.x.DestroyVIF(ctx, ref))
		_, err = m.x.CreateVIF(ctx, xapi.VIFSpec{VM: vm.Ref, Network: vif.Network, Device: vif.Device, MAC: "02:00:00:00:00:77"})
		m.ok(nil, err)
	}
	m.scribbled()
}

// suspended has a memory image that the restore may discard.
func (m *matrix) suspended() {
	m.powered(running)
	m.b.scribble(m.b.vmNow(m.uuid))
	m.powered(suspended)
}

// shared has the VM's disk on another VM too, which is halted.
func (m *matrix) shared() {
	ctx := context.Background()
	m.scribbled()
	other, err := m.x.VMByUUID(ctx, m.b.vm(halted, 0).UUID)
	m.ok(nil, err)
	for _, ref := range other.VBDs {
		vbd, err := m.x.VBD(ctx, ref)
		m.ok(nil, err)
		if vbd.UserDevice == "6" {
			m.ok(nil, m.x.DestroyVBD(ctx, ref))
			if vdi, err := m.x.VDI(ctx, vbd.VDI); err == nil && len(vdi.VBDs) == 0 {
				m.ok(nil, m.x.DestroyVDI(ctx, vbd.VDI))
			}
		}
	}
	disk, err := m.x.VDIByUUID(ctx, m.b.vmNow(m.uuid).Disks[0].VDI.UUID)
	m.ok(nil, err)
	_, err = m.x.CreateVBD(ctx, xapi.VBDSpec{VM: other.Ref, VDI: disk.Ref, UserDevice: "6", Mode: "RO", Type: "Disk"})
	m.ok(nil, err)
}

// removed has lost the VM, and its disks.
func (m *matrix) removed() {
	for _, vm := range m.b.dump().VMs {
		if vm.UUID == m.uuid {
			m.destroy(vm)
		}
	}
}

// alone has no VM but those of the beginning.
func (m *matrix) alone() {
	for _, vm := range m.b.dump().VMs {
		if !slices.ContainsFunc(m.b.before.VMs, func(v xensim.VMState) bool { return v.UUID == vm.UUID }) || vm.Name == "another" {
			m.destroy(vm)
		}
	}
}

func (m *matrix) destroy(vm xensim.VMState) {
	ctx := context.Background()
	if vm.PowerState != halted {
		m.ok(nil, m.x.HardShutdown(ctx, xapi.Ref(vm.Ref)))
	}
	m.ok(nil, m.x.DestroyVM(ctx, xapi.Ref(vm.Ref)))
	for _, d := range vm.Disks {
		if vdi, err := m.x.VDIByUUID(ctx, d.VDI.UUID); err == nil {
			m.ok(nil, m.x.DestroyVDI(ctx, vdi.Ref))
		}
	}
}

// powered brings the VM into a power state.
func (m *matrix) powered(state string) {
	ctx := context.Background()
	vm := m.record()
	if vm.PowerState == state {
		return
	}
	switch state {
	case halted:
		m.ok(nil, m.x.HardShutdown(ctx, vm.Ref))
	case running:
		if vm.PowerState == suspended {
			_, err := m.x.CallAsync(ctx, "resume", "VM.resume", vm.Ref, false, false)
			m.ok(nil, err)
			return
		}
		m.ok(nil, m.x.Start(ctx, vm.Ref))
	case suspended:
		_, err := m.x.CallAsync(ctx, "suspend", "VM.suspend", vm.Ref)
		m.ok(nil, err)
	}
}
