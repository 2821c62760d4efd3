package agent

import (
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// A VM that runs has another one's disk, not plugged in: once it is off it cannot be started, so it is not shut down. Where
// both only read, or the other does not run, it is.
func TestVMThatWouldNotStartAgain(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		otherOff bool
		refused  bool
	}{
		"the other runs":   {refused: true},
		"the other is off": {otherOff: true},
	} {
		b := newBench(t, xensim.Config{VMs: 4, DiskSize: 1 << 20})
		ctx, x := t.Context(), b.client()
		vm, other := b.vm(running, 0), b.vm(running, 1)
		if tt.otherOff {
			b.must(nil, x.HardShutdown(ctx, xapi.Ref(other.Ref)))
		}
		vdi, err := x.VDIByUUID(ctx, other.Disks[0].VDI.UUID)
		b.must(nil, err)
		_, err = x.CreateVBD(ctx, xapi.VBDSpec{VM: xapi.Ref(vm.Ref), VDI: vdi.Ref, UserDevice: "7", Mode: "RW", Type: "Disk"})
		b.must(nil, err)
		a := b.agent(nil)
		p := newPuller(t, a, vm.UUID, offline())
		err = p.pull()
		out := a.release(t, p.opening.GetKey())
		if told := err != nil && strings.Contains(err.Error(), "could not be started again"); told != tt.refused || (out.GetDowntime().AsDuration() > 0) == tt.refused {
			t.Errorf("%s: got %v, down for %s", name, err, out.GetDowntime().AsDuration())
		}
		if now := b.vmNow(vm.UUID); now.PowerState != running {
			t.Errorf("%s: the VM is %s", name, now.PowerState)
		}
	}
}

// What keeps a VM from being started again is found before it is shut down, for a backup and for a restore; what only seems
// to, since the VM itself has the memory, does not.
func TestVMThatCouldNotStart(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		hosts    int
		obstruct func(b *bench, x *xapi.Client, vm xapi.VM)
		says     string // empty: it is shut down
	}{
		"start blocked": {1, func(b *bench, x *xapi.Client, vm xapi.VM) {
			b.must(nil, x.AddBlockedOperation(b.t.Context(), vm.Ref, "start", "ask the owner"))
		}, "its start is blocked (ask the owner)"},
		"shutdown blocked": {1, func(b *bench, x *xapi.Client, vm xapi.VM) {
			b.must(nil, x.AddBlockedOperation(b.t.Context(), vm.Ref, "clean_shutdown", "production"))
		}, "its clean_shutdown is blocked (production)"},
		"all hosts disabled": {2, func(b *bench, x *xapi.Client, _ xapi.VM) {
			b.eachHost(x, func(host xapi.Ref) { b.must(x.Call(b.t.Context(), "host.disable", host)) })
		}, "HOST_DISABLED"},
		"the other host is enabled": {2, func(b *bench, x *xapi.Client, vm xapi.VM) {
			b.must(x.Call(b.t.Context(), "host.disable", vm.ResidentOn))
		}, ""},
		"memory that is its own": {1, func(b *bench, x *xapi.Client, vm xapi.VM) {
			free := b.freeMemory(x, vm.ResidentOn)
			b.must(x.Call(b.t.Context(), "VM.set_memory_limits", b.ref(b.vm(halted, 0)), free, free, free, free))
			b.must(nil, x.Start(b.t.Context(), b.ref(b.vm(halted, 0))))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 4, Hosts: tt.hosts, DiskSize: 1 << 20})
			x, vm := b.client(), b.vm(running, 0)
			archive := b.backUp(vm.UUID, offline())
			before := b.vmNow(vm.UUID)
			now, err := x.VM(t.Context(), xapi.Ref(before.Ref))
			b.must(nil, err)
			tt.obstruct(b, x, now)
			a := b.agent(nil)

			p := newPuller(t, a, vm.UUID, offline())
			err = p.pull()
			out := a.release(t, p.opening.GetKey())
			if told := err != nil && strings.Contains(err.Error(), tt.says); told != (tt.says != "") || (out.GetDowntime().AsDuration() > 0) != (tt.says == "") {
				t.Errorf("backup: got %v, down for %s", err, out.GetDowntime().AsDuration())
			}
			in := newPusher(t, a, vm.UUID, archive, agentv1.BackupKind_BACKUP_KIND_OFFLINE)
			err = in.push(t.Context())
			out = a.release(t, in.opening.GetKey())
			if told := err != nil && strings.Contains(err.Error(), tt.says); told != (tt.says != "") || (out.GetDowntime().AsDuration() > 0) != (tt.says == "") {
				t.Errorf("restore: got %v, down for %s", err, out.GetDowntime().AsDuration())
			}
			after := b.vmNow(vm.UUID)
			if after.PowerState != running {
				t.Errorf("the VM is %s", after.PowerState)
			}
			if same := after.Disks[0].VDI.UUID == before.Disks[0].VDI.UUID; same != (tt.says != "") {
				t.Errorf("the VM has its former disks: %t", same)
			}
		})
	}
}

func (b *bench) ref(vm xensim.VMState) xapi.Ref { return xapi.Ref(vm.Ref) }

func (b *bench) eachHost(x *xapi.Client, do func(host xapi.Ref)) {
	b.t.Helper()
	hosts, err := x.Hosts(b.t.Context())
	b.must(nil, err)
	for ref := range hosts {
		do(ref)
	}
}

// freeMemory is what a host has free, in bytes.
func (b *bench) freeMemory(x *xapi.Client, host xapi.Ref) int64 {
	b.t.Helper()
	v, err := x.Call(b.t.Context(), "host.compute_free_memory", host)
	b.must(nil, err)
	free, err := v.Int()
	b.must(nil, err)
	return free
}

// A VM whose export is blocked is not shut down for an offline backup that cannot be.
func TestExportBlocked(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(running, 0)
	b.must(nil, b.client().AddBlockedOperation(t.Context(), xapi.Ref(vm.Ref), "export", "production"))
	a := b.agent(nil)
	p := newPuller(t, a, vm.UUID, offline())
	if err := p.pull(); err == nil || !strings.Contains(err.Error(), "export is blocked (production)") {
		t.Errorf("got %v", err)
	}
	if out := a.release(t, p.opening.GetKey()); out.GetDowntime().AsDuration() > 0 || !out.GetPowerRestored() {
		t.Errorf("outcome: got %v", out)
	}
}
