package agent

import (
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/rpc"
)

// place is what a controller counts a backup for, by UUID. The empty one allows everything.
type place struct {
	Hosts []string
	SRs   []string
}

// stillThere returns rpc.Moved where the backup would use a host or an SR that it is not counted for: the VM has moved since
// the controller looked, and its limits would not hold. It is asked before anything is begun that takes long.
func (b *backup) stillThere(inv *inventory) error {
	p, vm := b.spec.Place, &b.facts.VM
	if len(p.Hosts) > 0 {
		for _, uuid := range b.hostsUsed(inv) {
			if !slices.Contains(p.Hosts, uuid) {
				return rpc.Errorf(rpc.Moved, "the VM has moved: host %s would be used, and it is counted for %s", uuid, strings.Join(p.Hosts, ", "))
			}
		}
	}
	if len(p.SRs) > 0 {
		for _, d := range vm.Disks {
			if !slices.Contains(p.SRs, d.SRUUID) {
				return rpc.Errorf(rpc.Moved, "the VM has moved: disk %s (%q) is on SR %q now", d.UserDevice, d.Name, d.SRName)
			}
		}
	}
	return nil
}

// hostsUsed returns the hosts that the backup uses or may use: the one where the VM runs, and our own where that sees its
// disks, else all that do, of which XAPI chooses.
func (b *backup) hostsUsed(inv *inventory) []string {
	var used []string
	vm := &b.facts.VM
	if vm.ResidentHost != "" {
		used = append(used, vm.ResidentHost)
	}
	own, known := b.agent.ownHost(inv)
	if known && slices.Contains(vm.CapableHosts, own.UUID) {
		return append(used, own.UUID)
	}
	return append(used, vm.CapableHosts...)
}
