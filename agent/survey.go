package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/dpxen/dpxen/internal/xapi"
)

// survey reads the pool and its VMs, one call a class: all that a plan needs. NICs, which it does not, are read where they are
// asked for.
func (a *Agent) survey(ctx context.Context, nics bool) (*inventory, *poolState, error) {
	inv := &inventory{}
	var pool xapi.Pool
	err := firstError(
		func() (err error) { pool, err = a.xapi.Pool(ctx); return },
		func() error { return a.loadStorage(ctx, inv) },
		func() error { return a.loadMachines(ctx, inv) },
		func() (err error) {
			if nics {
				if inv.vifs, err = a.xapi.VIFs(ctx); err == nil {
					inv.networks, err = a.xapi.Networks(ctx)
				}
			}
			return err
		},
	)
	if err != nil {
		return nil, nil, fmt.Errorf("read the pool: %w", err)
	}
	inv.ledger = parseLedger(pool.OtherConfig)
	inv.index()
	return inv, a.describe(inv, pool), nil
}

// refreshSRs has XAPI read the sizes of SRs from storage, as far as it can, and returns them.
func (a *Agent) refreshSRs(ctx context.Context, uuids []string) (srs []srInfo, warnings []string, err error) {
	before, err := a.xapi.SRs(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the SRs: %w", err)
	}
	asked := map[string]xapi.Ref{}
	for ref, sr := range before {
		asked[sr.UUID] = ref
	}
	for _, uuid := range uuids {
		ref, known := asked[uuid]
		if !known {
			warnings = append(warnings, fmt.Sprintf("SR %s: there is no such SR", uuid))
			continue
		}
		if err := a.xapi.UpdateSR(ctx, ref); err != nil {
			if ctx.Err() != nil {
				return nil, nil, fmt.Errorf("refresh SR %s: %w", uuid, err)
			}
			warnings = append(warnings, fmt.Sprintf("SR %q: its sizes could not be read again: %v", before[ref].Name, err))
		}
	}
	inv := &inventory{}
	if err := a.loadStorage(ctx, inv); err != nil {
		return nil, nil, fmt.Errorf("read the SRs: %w", err)
	}
	for _, uuid := range uuids {
		if ref, known := asked[uuid]; known {
			if _, there := inv.srs[ref]; there {
				srs = append(srs, inv.sr(ref))
			}
		}
	}
	return srs, warnings, nil
}

// where an agent stands: UUIDs, empty where they are not known.
type standpoint struct{ pool, host string }

// whereabouts keeps where the agent stands.
type whereabouts struct {
	mu sync.Mutex
	at standpoint
}

// known returns the pool and the host, or neither.
func (p *whereabouts) known() standpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.host == "" {
		return standpoint{}
	}
	return p.at
}

func (p *whereabouts) set(at standpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = at
}

// locate notes where the agent stands, once XAPI has been asked for its pool. A host stays in its pool, so that its hosts are
// read again only when the pool is another, or XAPI was away.
func (a *Agent) locate(ctx context.Context, pool xapi.Pool, err error) {
	if err != nil {
		a.place.set(standpoint{})
		return
	}
	if at := a.place.known(); at.pool == pool.UUID && at.host != "" {
		return
	}
	inv := &inventory{}
	if inv.hosts, err = a.xapi.Hosts(ctx); err != nil {
		a.place.set(standpoint{})
		return
	}
	own, _ := a.ownHost(inv)
	a.place.set(standpoint{pool: pool.UUID, host: own.UUID})
}

// replicaTags are what Xen Orchestra puts on the copies that it keeps.
var replicaTags = []string{"Continuous Replication", "Disaster Recovery"}

// replica says why a VM is taken for a copy which Xen Orchestra keeps for the day when the original is lost: it is off, its
// start is blocked, and it bears a mark. One that is put to use, by a clone or by taking the block off, is none any more.
func replica(vm xapi.VM) string {
	if vm.PowerState != halted {
		return ""
	}
	if _, blocked := vm.BlockedOperations["start"]; !blocked {
		return ""
	}
	for key := range vm.OtherConfig {
		if strings.HasPrefix(key, "xo:backup:") {
			return "its start is blocked, and Xen Orchestra marks it as a backup (xo:backup)"
		}
	}
	for _, tag := range vm.Tags {
		for _, mark := range replicaTags {
			if tag == mark {
				return fmt.Sprintf("its start is blocked, and it has the tag %q", tag)
			}
		}
	}
	return ""
}

// snapshotProblem says why XAPI would refuse a snapshot, or is empty (reference section 5.5).
func (inv *inventory) snapshotProblem(vm xapi.VM, disks []diskInfo) string {
	if len(vm.VUSBs) > 0 {
		return "it has USB devices, with which XAPI takes no snapshot"
	}
	for _, d := range disks {
		if inv.vdis[d.VDI].OnBoot == "reset" {
			return fmt.Sprintf("disk %s (%q) is reset at every boot, and XAPI takes no snapshot of such a disk", d.UserDevice, d.Name)
		}
	}
	return ""
}

// deadHome returns the name of the host that an SR is local to, where that host is not live; else it is empty.
func (inv *inventory) deadHome(sr xapi.Ref) string {
	if inv.srs[sr].Shared {
		return ""
	}
	name := ""
	for at := range inv.plugs {
		if at.sr != sr {
			continue
		}
		host := inv.hosts[at.host]
		if inv.live(host) {
			return ""
		}
		name = host.Name
	}
	return name
}
