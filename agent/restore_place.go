package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// planRestore says what a restore of the VM would do, by the very rules of the restore, and changes nothing. Beside the plan
// it returns the records that it was made over, and the VM's power state, empty where it does not exist. What the restore
// would refuse is an error.
func (a *Agent) planRestore(ctx context.Context, uuid string, spec restoreSpec) (*restore, error) {
	r := newRestore(a, spec)
	defer r.fail(context.Canceled) // nobody will write to it
	if err := r.choose(ctx, uuid); err != nil {
		return nil, err
	}
	var err error
	if r.view, err = readPoolView(ctx, a.xapi); err != nil {
		return nil, err
	}
	if r.plan, err = r.draw(); err != nil {
		return nil, err
	}
	return r, nil
}

// setAffinity says to XAPI which host the VM is to be started on by preference, where that was asked for.
func (r *restore) setAffinity(ctx context.Context, vm xapi.VM) error {
	if r.spec.HostUUID == "" {
		return nil
	}
	for ref, h := range r.view.hosts {
		if !strings.EqualFold(h.UUID, r.spec.HostUUID) {
			continue
		}
		if vm.Affinity == ref {
			return nil
		}
		err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.a.xapi.SetVMField(ctx, vm.Ref, "affinity", ref) })
		if err != nil {
			return fmt.Errorf("make host %q the VM's affinity: %w", h.Name, err)
		}
		return nil
	}
	return fmt.Errorf("host %s is no longer in the pool", r.spec.HostUUID)
}

// needs are the bytes that the disk may take on its SR: all of them on a thick SR. On a thin one nobody knows how much of it
// is zero before it was sent; a tenth must be free at least.
func (p *position) needs() int64 {
	if thin(p.SR) {
		return p.Disk.Size / 10
	}
	return p.Disk.Size
}

// frees are the bytes that deleting the disk there first gives back to the SR that the new one goes to.
func (p *position) frees() int64 {
	if p.OldVDI == nil || p.OldVDI.SR != p.SR.Ref {
		return 0
	}
	return p.OldVDI.PhysicalUtilisation
}

// nicPlan is an interface of the file and the network that it is on afterwards.
type nicPlan struct {
	VIF     xva.VIF
	Network xapi.Network // zero: the pool has none that fits
	Wanted  string       // the network that was looked for, by name or UUID
	Made    bool         // by this restore; else the VM keeps what it has
}

// planNICs says what becomes of the file's network interfaces.
func (r *restore) planNICs() []nicPlan {
	var out []nicPlan
	for _, vif := range r.spec.OVA.VM().VIFs {
		n := nicPlan{VIF: vif, Wanted: vif.NetworkName, Made: r.goal != goalInPlace || !r.spec.Online}
		for _, key := range []string{vif.NetworkUUID, vif.NetworkName} {
			if to, ok := r.spec.Networks[key]; ok && key != "" {
				n.Wanted = to
				break
			}
		}
		if ref, err := r.view.networkFor(vif, r.spec.Networks); err == nil {
			n.Network = r.view.networks[ref]
		}
		out = append(out, n)
	}
	return out
}

// startVM starts a halted VM of a user that nobody works on. One that runs already is as good.
func (a *Agent) startVM(ctx context.Context, uuid string) (state string, err error) {
	vm, err := a.xapi.VMByUUID(ctx, uuid)
	if err != nil {
		return "", fmt.Errorf("read VM %s: %w", uuid, err)
	}
	if !isUsers(vm) {
		return "", rpc.Errorf(rpc.Invalid, "%q is a template, a snapshot, a control domain or a carrier", vm.Name)
	}
	l, err := a.journal.read(ctx)
	if err != nil {
		return "", err
	}
	for _, e := range l.claims(uuid) {
		return "", rpc.Errorf(rpc.Claimed, "session %s (agent %s) works on the VM", e.Record.Session, e.Record.Agent)
	}
	switch vm.PowerState {
	case running:
		return running, nil
	case halted:
	default:
		return vm.PowerState, rpc.Errorf(rpc.PowerState, "the VM is %s, only a halted one is started", vm.PowerState)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timing.Start)
	defer cancel()
	if err := a.power.start(ctx, vm.Ref); err != nil {
		return "", err
	}
	return a.power.state(ctx, vm.Ref)
}
