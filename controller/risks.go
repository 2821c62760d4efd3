package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

const (
	// maxChain is how many VHDs storage allows in a row: a snapshot of a disk that has so many is refused
	// (SR_BACKEND_FAILURE_109).
	maxChain = 30
	// longChain is told of: coalescing does not keep up.
	longChain = 20
)

// bySnapshot refuses a VM of which no snapshot can be taken, and tells of what may go wrong with one.
func (p *PlannedVM) bySnapshot(pool *Pool, vm *VM, disks []Disk) {
	if vm.NoSnapshot != "" {
		p.refuse(ReasonProblem, vm.NoSnapshot, "use an offline mode")
	}
	if text, blocked := vm.blocked("snapshot"); blocked {
		p.refuse(ReasonProblem, fmt.Sprintf("its users have blocked snapshots of it (%s)", text), "take the block off, or use an offline mode")
	}
	for _, d := range disks {
		switch {
		case d.Chain >= maxChain:
			p.refuse(ReasonChain, fmt.Sprintf("disk %s (%q) has a chain of %d VHDs on SR %s, and storage allows %d: a snapshot is refused",
				d.UserDevice, d.Name, d.Chain, d.SRName, maxChain), "delete snapshots and let the SR coalesce (SR.scan starts it), or use an offline mode")
		case d.Chain >= longChain:
			p.Risks = append(p.Risks, fmt.Sprintf("disk %s has a chain of %d VHDs on SR %s; storage allows %d, and coalescing may not keep up",
				d.UserDevice, d.Chain, d.SRName, maxChain))
		}
	}
	p.bySnapshotRoom(pool, disks)
}

// bySnapshotRoom refuses a VM whose SRs have no room for its snapshot.
func (p *PlannedVM) bySnapshotRoom(pool *Pool, disks []Disk) {
	if pool == nil {
		return
	}
	seen := map[string]bool{}
	for _, d := range disks {
		sr := pool.SR(d.SR)
		if sr == nil || seen[d.SR] {
			continue
		}
		seen[d.SR] = true
		free, known := sr.Free()
		need := snapshotNeed(sr, disks)
		switch {
		case !known:
			p.Risks = append(p.Risks, fmt.Sprintf("SR %s: its free room is not known", sr.Name))
		case free < need && thick(sr.Type):
			p.refuse(ReasonSRFull, fmt.Sprintf("SR %s (%s) has %s free, a snapshot needs %s", sr.Name, sr.Type, size(free), size(need)),
				"free room on the SR, or use an offline mode")
		case free < need:
			p.refuse(ReasonSRFull, fmt.Sprintf("SR %s (%s) has %s free, less than the headroom of %s for a snapshot",
				sr.Name, sr.Type, size(free), size(need)), "free room on the SR, or use an offline mode")
		}
	}
}

// blocked tells whether an operation is blocked on the VM, and with which text. Where a session is at work on it the block may be
// that session's own.
func (v *VM) blocked(operation string) (text string, blocked bool) {
	if v.ClaimedBy != "" {
		return "", false
	}
	text, blocked = v.Settings["blocked_operations:"+operation]
	return text, blocked
}

// byStart refuses a VM that its users have protected from being shut down, or that could not be started again once it is.
func (p *PlannedVM) byStart(pool *Pool, vm *VM, force bool) {
	if p.Power != PowerRunning {
		return
	}
	text, blocked := vm.blocked("clean_shutdown")
	if _, hard := vm.blocked("hard_shutdown"); blocked && (hard || !force) {
		p.refuse(ReasonPowerState, fmt.Sprintf("it is protected from being shut down: its clean_shutdown is blocked (%s)", text),
			"take the block off, or use an online mode")
	}
	if text, blocked := vm.blocked("start"); blocked {
		p.refuse(ReasonPowerState, fmt.Sprintf("it could not be started again: its start is blocked (%s)", text),
			"take the block off, or use an online mode")
	}
	if pool == nil || len(vm.CapableHosts) == 0 {
		return
	}
	if !slices.ContainsFunc(pool.Hosts, func(h Host) bool { return h.Enabled && h.Live && slices.Contains(vm.CapableHosts, h.UUID) }) {
		p.refuse(ReasonPowerState, "it could not be started again: no host that sees its disks is enabled",
			"enable one (xe host-enable), or use an online mode")
	}
}

// byHA tells of what high availability has to do with switching a VM off.
func (p *PlannedVM) byHA(pool *Pool, vm *VM) {
	if pool == nil || !pool.HA.Enabled || p.Power != PowerRunning {
		return
	}
	if vm.Settings["ha_restart_priority"] != "restart" {
		return
	}
	switch ha := pool.HA; {
	case ha.Overcommitted:
		p.Risks = append(p.Risks, "high availability protects it and has promised more than the pool's hosts hold: its start may be refused")
	case ha.PlanFor < ha.Tolerate:
		p.Risks = append(p.Risks, fmt.Sprintf("high availability protects it and has a plan for %d failing hosts instead of %d: its start may be refused",
			ha.PlanFor, ha.Tolerate))
	default:
		p.Notes = append(p.Notes, "high availability protects it, but not while it is off")
	}
}

// crowd is what the snapshots on one SR come to.
type crowd struct {
	pool  *Pool
	sr    *SR
	needs []int64 // of each VM
}

// crowds returns the SRs on which VMs that would be begun have snapshots taken, in the inventory's order. Those that are
// refused for their room count as well.
func (p *Plan) crowds(inv *Inventory) []crowd {
	by := map[string]int{}
	var all []crowd
	for i := range p.VMs {
		vm := &p.VMs[i]
		if !vm.Chosen || !vm.snapshot || vm.Refused != "" && vm.Reason != ReasonSRFull {
			continue
		}
		pool := inv.PoolByUUID(vm.PoolUUID)
		if pool == nil {
			continue
		}
		var seen []string
		for _, d := range vm.keep {
			sr := pool.SR(d.SR)
			if sr == nil || slices.Contains(seen, d.SR) {
				continue
			}
			seen = append(seen, d.SR)
			at, known := by[d.SR]
			if !known {
				at = len(all)
				by[d.SR] = at
				all = append(all, crowd{pool: pool, sr: sr})
			}
			all[at].needs = append(all[at].needs, snapshotNeed(sr, vm.keep))
		}
	}
	return all
}

// atOnce returns the free bytes that the SR should have when as many snapshots as the limit allows are there at once: on thick
// SRs the sum of the largest, on thin ones one headroom for all.
func (c crowd) atOnce(limit int) int64 {
	slices.SortFunc(c.needs, func(a, b int64) int { return cmp.Compare(b, a) })
	if !thick(c.sr.Type) {
		return c.needs[0]
	}
	var sum int64
	for _, n := range c.needs[:min(limit, len(c.needs))] {
		sum += n
	}
	return sum
}

// doubtful returns the UUIDs of the SRs, by pool, whose recorded room decides something: it is not known, or less than twice
// what is needed. XAPI's record may be older than what is on the SR.
func (p *Plan) doubtful(inv *Inventory, limits Limits) map[string][]string {
	out := map[string][]string{}
	for _, c := range p.crowds(inv) {
		if free, known := c.sr.Free(); !known || free < 2*c.atOnce(limits.PerSR) {
			out[c.pool.UUID] = append(out[c.pool.UUID], c.sr.UUID)
		}
	}
	return out
}

// addCrowds tells of SRs that have room for one snapshot, but not for as many as are taken at once.
func (p *Plan) addCrowds(inv *Inventory, limits Limits) {
	for _, c := range p.crowds(inv) {
		need := c.atOnce(limits.PerSR)
		if free, known := c.sr.Free(); known && free < need && free >= slices.Min(c.needs) {
			p.Risks = append(p.Risks, fmt.Sprintf("SR %s of pool %s (%s) has %s free, and snapshots of %d VMs at once need %s: lower limits.per_sr, or free room",
				c.sr.Name, c.pool.Name, c.sr.Type, size(free), min(limits.PerSR, len(c.needs)), size(need)))
		}
	}
}

// refresh has the pools read the sizes of SRs again, and puts them into the inventory. What cannot be read stays, and is told.
func (c *Controller) refresh(ctx context.Context, inv *Inventory, srs map[string][]string) {
	var g errgroup.Group
	for i := range inv.Pools {
		p := &inv.Pools[i]
		if len(srs[p.UUID]) == 0 {
			continue
		}
		g.Go(func() error {
			if err := c.refreshPool(ctx, p, srs[p.UUID]); err != nil {
				p.Warnings = append(p.Warnings, fmt.Sprintf("the room of %d SRs is as XAPI has it recorded, and could not be read again: %v",
					len(srs[p.UUID]), err))
			}
			return nil
		})
	}
	_ = g.Wait() // what failed is told
}

func (c *Controller) refreshPool(ctx context.Context, p *Pool, uuids []string) error {
	if len(p.Agents) == 0 {
		return fmt.Errorf("no agent answers")
	}
	a := c.agent(p.Agents[0])
	client, err := a.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, min(a.timing.CallTimeout, 30*time.Second))
	defer cancel()
	resp, err := client.RefreshSRs(ctx, &agentv1.RefreshSRsRequest{SrUuids: uuids})
	if err != nil {
		return err
	}
	for _, m := range resp.GetSrs() {
		now := srFrom(m)
		if sr := p.SR(now.UUID); sr != nil && slices.Contains(uuids, now.UUID) {
			sr.Size, sr.Used = now.Size, now.Used
		}
	}
	for _, w := range resp.GetWarnings() {
		p.Warnings = append(p.Warnings, strings.TrimSpace(w))
	}
	return nil
}
