package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/staging"
)

// Plan asks the agents what exists and says what a backup session would do, without changing anything. The error is a
// UsageError for a selection that makes no sense, what Inventory returns where no agent answers, or ctx's.
func (c *Controller) Plan(ctx context.Context, req Request) (*Plan, error) {
	if err := req.Selection.Check(req.Mode, c.cfg.Sets); err != nil {
		return nil, err
	}
	inv, err := c.survey(ctx)
	if err != nil {
		return nil, err
	}
	p, err := c.planOf(inv, req)
	if err != nil {
		return nil, err
	}
	if srs := p.doubtful(inv, c.cfg.Limits); len(srs) > 0 {
		c.refresh(ctx, inv, srs)
		return c.planOf(inv, req)
	}
	return p, nil
}

// planOf makes the plan over an inventory.
func (c *Controller) planOf(inv *Inventory, req Request) (*Plan, error) {
	if req.Saved != nil {
		return c.planSaved(inv, req.Saved)
	}
	res, err := req.resolve(inv, c.cfg.Sets)
	if err != nil {
		return nil, err
	}
	return c.planFrom(inv, req, res)
}

// planFrom makes the plan of decisions over an inventory.
func (c *Controller) planFrom(inv *Inventory, req Request, res *resolution) (*Plan, error) {
	p := &Plan{V: PlanVersion, Created: c.o.Now().UTC(), Request: req, Agents: inv.Agents, Missing: res.missing,
		Notes: res.notes, inv: inv}
	for _, pool := range inv.Pools {
		for _, w := range pool.Warnings {
			p.Notes = append(p.Notes, fmt.Sprintf("pool %s: %s", pool.Name, w))
		}
	}
	past, err := c.history()
	if err != nil {
		return nil, &PreflightError{Failure{What: "state folder", Err: err}}
	}
	if past.doubt != "" {
		p.Notes = append(p.Notes, past.doubt+": what the reports of sessions tell is used")
	}
	chosen := []*VM{}
	for i := range inv.VMs {
		if res.decisions[i].chosen {
			chosen = append(chosen, &inv.VMs[i])
		}
	}
	rules, speeds := c.cfg.diskRules(), newSpeeds(past)
	assign(inv, chosen, func(vm *VM) int64 { keep, _ := rules.split(vm); return estimate(keep) })
	for i := range inv.VMs {
		vm := planVM(inv, &inv.VMs[i], res.decisions[i], req, rules)
		if last, good := past.of(vm.vm).last(); good {
			vm.LastGood = &last.Time
		}
		if vm.Runs() {
			vm.foresee(speeds, req, vm.snapshot)
		}
		p.VMs = append(p.VMs, vm)
	}
	free, err := c.planRoom()
	if err != nil {
		return nil, err
	}
	p.addRoom(c.cfg.Staging, free)
	p.addCrowds(inv, c.cfg.Limits)
	p.Seconds, p.Foreseen = p.least(c.cfg.Limits)
	if d := c.drift(inv, past); !d.Empty() {
		p.Drift = d
	}
	return p, nil
}

// planVM says what would be done with one VM.
func planVM(inv *Inventory, vm *VM, d decision, req Request, rules diskRules) PlannedVM {
	p := PlannedVM{UUID: vm.UUID, Name: vm.Name, Pool: vm.Pool, PoolUUID: vm.PoolUUID, Host: vm.Host, HostUUID: vm.HostUUID,
		Power: vm.Power, Chosen: d.chosen, Why: d.why, Marked: d.policy, vm: vm}
	keep, out := rules.split(vm)
	for _, disk := range keep {
		pd := plannedDisk(disk)
		pd.Bytes = estimateDisk(disk)
		p.Disks = append(p.Disks, pd)
	}
	p.Excluded = out
	if !d.chosen {
		return p
	}
	p.Bytes = estimate(keep)
	p.Agents = vm.Agents
	if len(p.Agents) > 0 {
		p.Agent = p.Agents[0]
	}
	if d.note != "" {
		p.Notes = append(p.Notes, d.note)
	}
	for _, disk := range out {
		p.Notes = append(p.Notes, fmt.Sprintf("disk %s %q (%s) is left out: %s", disk.UserDevice, disk.Name, size(disk.Size), disk.Why))
	}
	brief := req.OfflineSnapshot && req.Mode.Kind() == KindOffline && vm.Power == PowerRunning
	p.snapshot, p.keep = req.Mode.Kind() == KindOnline || len(out) > 0 || brief, keep
	p.byPower(vm, req, p.snapshot)
	if req.Mode.Kind() == KindOffline && req.WithMemory && vm.Power == PowerSuspended && vm.MemoryImage > 0 {
		p.Bytes = plus(p.Bytes, estimateDisk(Disk{Size: vm.MemoryImage}))
		p.Notes = append(p.Notes, fmt.Sprintf("its memory image of %s is backed up with it", size(vm.MemoryImage)))
	}
	switch {
	case vm.Problem != "":
		p.refuse(ReasonProblem, vm.Problem, "")
	case p.Agent == "":
		p.refuse(ReasonUnreachable, "no agent of its pool answers", "see dpxen hosts")
	case p.snapshot:
		p.bySnapshot(inv.PoolByUUID(vm.PoolUUID), vm, keep)
	default:
		if text, blocked := vm.blocked("export"); blocked {
			p.refuse(ReasonProblem, fmt.Sprintf("its users have blocked its export (%s)", text), "take the block off, or use an online mode")
		}
	}
	if req.Mode.Kind() == KindOffline {
		p.byStart(inv.PoolByUUID(vm.PoolUUID), vm, req.ForceOff)
		p.byHA(inv.PoolByUUID(vm.PoolUUID), vm)
	}
	if vm.ClaimedBy != "" {
		p.Risks = append(p.Risks, "somebody works on it: "+vm.ClaimedBy)
	}
	if brief && len(out) == 0 {
		p.Action = "shut down, snapshot, start, export the snapshot, delete it"
	}
	if len(keep) == 0 {
		p.Notes = append(p.Notes, "no disk of it is backed up, its settings alone")
	}
	return p
}

// refuse keeps the first reason.
func (p *PlannedVM) refuse(reason, why, advice string) {
	if p.Refused == "" {
		p.Refused, p.Reason, p.Advice = why, reason, advice
	}
}

// byPower applies the table of DESIGN section 1.
func (p *PlannedVM) byPower(vm *VM, req Request, snapshot bool) {
	if req.Mode.Kind() == KindOnline {
		p.Action = "snapshot, export, delete the snapshot"
		if vm.Power == PowerSuspended {
			p.Warnings = append(p.Warnings, "the VM is suspended: its disks are backed up without its memory")
		}
		return
	}
	p.Action = "export"
	if snapshot {
		p.Action = "snapshot without the disks left out, export, delete the snapshot"
	}
	switch vm.Power {
	case PowerHalted:
	case PowerRunning:
		p.Action = "shut down, export, start"
		if snapshot {
			p.Action = "shut down, snapshot without the disks left out, start, export, delete the snapshot"
		}
		if !vm.CleanStop && !req.ForceOff {
			p.Risks = append(p.Risks, "no sign of guest tools: a clean shutdown may not work, and nothing is forced without --force-off")
		}
	case PowerSuspended:
		switch {
		case !req.WithMemory:
			p.refuse(ReasonPowerState, "it is suspended", "resume it or shut it down, or use --with-memory or an online mode")
		case snapshot:
			p.refuse(ReasonPowerState, "it is suspended and has disks that are left out: with its memory all its disks are backed up, or none",
				"resume it or shut it down, or use an online mode")
		}
	case PowerPaused:
		p.refuse(ReasonPowerState, "it is paused", "unpause it or shut it down, or use an online mode")
	default:
		p.refuse(ReasonPowerState, "its power state is not known", "use an online mode")
	}
}

// addRoom sums up and compares with the staging folder's room.
func (p *Plan) addRoom(folder string, free int64) {
	p.Room = Room{Folder: folder, Free: free}
	for i := range p.VMs {
		vm := &p.VMs[i]
		if !vm.Chosen {
			continue
		}
		p.Selected++
		if vm.Refused == "" && vm.Bytes > free {
			vm.refuse(ReasonNoRoom, fmt.Sprintf("staging folder %s has %s free, it may need %s", folder, size(free), size(vm.Bytes)),
				"free room in the staging folder, or give it a larger file system")
		}
		if vm.Refused == "" {
			p.Runnable++
			p.Bytes = plus(p.Bytes, vm.Bytes)
		}
	}
	p.Room.Need, p.Room.Short = p.Bytes, p.Bytes > free
	if p.Room.Short {
		p.Warnings = append(p.Warnings, fmt.Sprintf("staging folder %s has %s free, all VMs together may need %s: some may find no room",
			folder, size(free), size(p.Bytes)))
	}
}

// planRoom returns the free bytes of the staging folder. One that was never used need not exist: then it is the room where
// it will be made. One that was must have its marker; else its file system is not mounted, which is a PreflightError.
func (c *Controller) planRoom() (int64, error) {
	path := c.cfg.Staging
	known, err := c.knownFolders()
	if err != nil {
		return 0, &PreflightError{Failure{What: "state folder", Err: err}}
	}
	used := slices.Contains(known, path)
	dir, err := staging.Open(path, staging.Options{RequireMarker: used, ReadOnly: true})
	for !used && errors.Is(err, fs.ErrNotExist) && filepath.Dir(path) != path {
		path = filepath.Dir(path)
		dir, err = staging.Open(path, staging.Options{ReadOnly: true})
	}
	if err == nil {
		var free int64
		if free, _, err = dir.Room(); err == nil {
			return free, nil
		}
	}
	return 0, &PreflightError{Failure{What: "staging folder " + c.cfg.Staging, Err: err}}
}

// Preflight returns nil where at least one VM can be begun, else why none can: the class that comes first in ExitCode's
// order among what the agents and the VMs say.
func (p *Plan) Preflight() error {
	if p.Runnable > 0 {
		return nil
	}
	var all []error
	if len(p.Missing) > 0 {
		for i := range p.Agents {
			all = append(all, p.Agents[i].Err())
		}
	}
	reasons := map[string][]string{}
	for _, vm := range p.VMs {
		if vm.Refused != "" {
			reasons[vm.Reason] = append(reasons[vm.Reason], fmt.Sprintf("VM %s: %s", vm.Name, vm.Refused))
		}
	}
	for _, reason := range sortedKeys(reasons) {
		f := Failure{What: strings.Join(reasons[reason][:min(len(reasons[reason]), maxCandidates)], "\n")}
		switch reason {
		case ReasonUnreachable:
			all = append(all, &UnreachableError{f})
		case ReasonNoRoom, ReasonSRFull, ReasonChain:
			all = append(all, &PreflightError{f})
		default:
			all = append(all, f)
		}
	}
	for _, m := range p.Missing {
		f := Failure{What: m.Error}
		if m.Reason == ReasonNotFound {
			all = append(all, f)
			continue
		}
		all = append(all, &UnreachableError{f})
	}
	return errors.Join(all...)
}

// Runs returns the VMs that would be begun, the largest first so that the last ones are short.
func (p *Plan) Runs() []*PlannedVM {
	var run []*PlannedVM
	for i := range p.VMs {
		if p.VMs[i].Runs() {
			run = append(run, &p.VMs[i])
		}
	}
	slices.SortStableFunc(run, func(a, b *PlannedVM) int { return -cmp.Compare(a.Bytes, b.Bytes) })
	return run
}
