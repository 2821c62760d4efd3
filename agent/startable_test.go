package agent

import (
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
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
