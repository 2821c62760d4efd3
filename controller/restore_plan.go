package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
)

// RestorePlan is what a restore session would do.
type RestorePlan struct {
	V        int              `json:"v"`
	Created  time.Time        `json:"created"`
	Request  RestoreRequest   `json:"request"`
	Agents   []AgentStatus    `json:"agents"`
	Folder   string           `json:"folder"`
	VMs      []PlannedRestore `json:"vms"` // in the order in which they are begun
	SRs      []RestoreRoom    `json:"srs,omitempty"`
	Skipped  []SkippedFile    `json:"skipped_files,omitempty"`
	Selected int              `json:"selected"`
	Runnable int              `json:"runnable"` // that would be begun
	Bytes    int64            `json:"bytes"`    // of their files
	Warnings []string         `json:"warnings,omitempty"`
	Notes    []string         `json:"notes,omitempty"`
	Code     int              `json:"code"` // that the restore ends with if all that is begun becomes good
}

// PlannedRestore is what would be done with one file.
type PlannedRestore struct {
	RestoreItem
	ToPool     string               `json:"to_pool,omitempty"`
	ToPoolUUID string               `json:"to_pool_uuid,omitempty"`
	ToHost     string               `json:"to_host,omitempty"` // where one was asked for
	Agent      string               `json:"agent,omitempty"`
	Power      string               `json:"power_state,omitempty"` // now; empty where the VM does not exist
	InPlace    bool                 `json:"in_place,omitempty"`
	Action     string               `json:"action,omitempty"`
	Disks      []PlannedRestoreDisk `json:"disks,omitempty"`
	NICs       []PlannedRestoreNIC  `json:"nics,omitempty"`
	Starts     bool                 `json:"starts,omitempty"` // at the end, though it does not run now
	Order      int                  `json:"order"`
	StartDelay float64              `json:"start_delay_seconds,omitempty"`
	Warnings   []string             `json:"warnings,omitempty"`
	Notes      []string             `json:"notes,omitempty"`
}

// PlannedRestoreDisk is a disk and where it goes.
type PlannedRestoreDisk struct {
	UserDevice string `json:"userdevice"`
	Name       string `json:"name,omitempty"`
	Size       int64  `json:"virtual_size"`
	FromSR     string `json:"from_sr,omitempty"`
	SR         string `json:"sr"`
	SRUUID     string `json:"sr_uuid"`
	Need       int64  `json:"need"`
	Replaces   string `json:"replaces_vdi_uuid,omitempty"`
}

// PlannedRestoreNIC is an interface and the network that it is on afterwards.
type PlannedRestoreNIC struct {
	Device  string `json:"device"`
	MAC     string `json:"mac,omitempty"` // empty: it gets another one
	From    string `json:"from_network,omitempty"`
	Network string `json:"network,omitempty"`
	Stays   bool   `json:"stays,omitempty"` // as the VM has it now
}

// RestoreRoom is what all VMs together need on an SR, in bytes.
type RestoreRoom struct {
	Pool string `json:"pool"`
	SR   string `json:"sr"`
	UUID string `json:"uuid"`
	Free int64  `json:"free"`
	Need int64  `json:"need"`
}

// PlanRestore says what a restore with that request would do, changing nothing. Files are not read beyond their beginnings.
// Errors are as RestoreFiles' and Inventory's, and UsageErrors for names that mean nothing.
func (c *Controller) PlanRestore(ctx context.Context, req RestoreRequest) (*RestorePlan, error) {
	if err := req.check(c.cfg.Sets); err != nil {
		return nil, err
	}
	c.restoreFrom(&req)
	set, err := c.restoreFiles(req, nil)
	if err != nil {
		return nil, err
	}
	inv, err := c.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	targets, err := c.aim(ctx, &req, set, inv)
	if err != nil {
		return nil, err
	}
	p := &RestorePlan{V: PlanVersion, Created: c.o.Now().UTC(), Request: req, Agents: inv.Agents, Folder: set.Folder, Skipped: set.Skipped,
		Warnings: slices.Concat(set.doubts(), c.unheard(inv, targets, &req)), Notes: slices.Concat(set.Notes, set.worthTelling(), []string{"the files were not read in full: the restore proves each before its first byte goes to a host (dpxen verify does it now)"})}
	arrange(&req, targets)
	for _, t := range inStartOrder(targets) {
		p.add(t, &req)
	}
	p.Code = p.code()
	return p, nil
}

// code is the exit code of the restore whose VMs all become good but for those that it refuses.
func (p *RestorePlan) code() int {
	r := Report{Action: ActionRestore, Agents: p.Agents, Warnings: p.Warnings}
	for i := range p.VMs {
		vm := VMResult{Status: StatusGood, Warnings: p.VMs[i].Warnings}
		if p.VMs[i].Refused != "" {
			vm.Status, vm.Reason = StatusRefused, p.VMs[i].Reason
		}
		r.VMs = append(r.VMs, vm)
	}
	return ExitCode(&r, p.Preflight())
}

func (p *RestorePlan) add(t *target, req *RestoreRequest) {
	vm := PlannedRestore{RestoreItem: t.RestoreItem, Order: t.order, StartDelay: t.delay.Seconds(), Starts: t.wish.start,
		Warnings: slices.Clone(t.warnings), Action: t.action(req)}
	if t.pool != nil {
		vm.ToPool, vm.ToPoolUUID = t.pool.Name, t.pool.UUID
		if h := t.pool.Host(t.host); h != nil {
			vm.ToHost = h.Name
		}
	}
	if len(t.agents) > 0 {
		vm.Agent = t.agents[0]
	}
	if t.vm != nil && !req.AsNew {
		vm.Power = t.vm.Power
		vm.Starts = vm.Starts && t.vm.Power != PowerRunning
	}
	if pre := t.preview; pre != nil {
		vm.InPlace = pre.InPlace
		vm.Warnings = append(vm.Warnings, pre.Warnings...)
		p.details(&vm, t, req)
	} else if t.Refused == "" {
		vm.Notes = append(vm.Notes, "no agent of the pool could say what exactly it would do; the restore finds out")
	}
	p.Selected++
	if t.Refused == "" {
		p.Runnable++
		p.Bytes += t.Bytes
	}
	p.VMs = append(p.VMs, vm)
}

func (p *RestorePlan) details(vm *PlannedRestore, t *target, req *RestoreRequest) {
	for _, d := range t.preview.Disks {
		vm.Disks = append(vm.Disks, PlannedRestoreDisk{UserDevice: d.UserDevice, Name: d.Name, Size: d.Size, FromSR: d.SRName, SR: d.ToSRName,
			SRUUID: d.ToSR, Need: d.Need, Replaces: d.Replaces})
		if t.Refused == "" {
			p.room(t.pool, d)
		}
	}
	for _, n := range t.preview.NICs {
		nic := PlannedRestoreNIC{Device: n.Device, MAC: n.MAC, From: n.Network, Network: n.To, Stays: !n.Made}
		if req.AsNew {
			nic.MAC = ""
		}
		vm.NICs = append(vm.NICs, nic)
	}
	for _, d := range t.preview.Untouched {
		vm.Notes = append(vm.Notes, fmt.Sprintf("disk %s %q is not in the file and stays as it is", d.UserDevice, d.Name))
	}
}

func (p *RestorePlan) room(pool *Pool, d restoreDisk) {
	i := slices.IndexFunc(p.SRs, func(r RestoreRoom) bool { return r.UUID == d.ToSR && r.Pool == pool.Name })
	if i < 0 {
		r := RestoreRoom{Pool: pool.Name, SR: d.ToSRName, UUID: d.ToSR, Free: -1}
		if sr := pool.SR(d.ToSR); sr != nil {
			if free, known := sr.Free(); known {
				r.Free = free
			}
		}
		p.SRs = append(p.SRs, r)
		i = len(p.SRs) - 1
	}
	p.SRs[i].Need += max(d.Need-d.Freed, 0)
}

// action says in short what is done.
func (t *target) action(req *RestoreRequest) string {
	switch {
	case req.AsNew:
		name := t.wish.name
		if name == "" {
			name = t.Name
		}
		return fmt.Sprintf("make another VM %q, with new UUID and MAC addresses", name)
	case t.vm == nil:
		return "make the VM anew, with its UUID and MAC addresses"
	case t.vm.Power == PowerRunning && req.DeleteFirst:
		return "shut down, delete the old disks, bring the new ones, start"
	case t.vm.Power == PowerRunning:
		return "bring the disks while it runs, shut down, exchange them, start"
	}
	return "bring the disks, exchange them"
}

// Preflight returns nil where at least one VM can be begun, else why none can, by the class that comes first in ExitCode's
// order.
func (p *RestorePlan) Preflight() error {
	if p.Runnable > 0 {
		return nil
	}
	var refused []*RestoreItem
	for i := range p.VMs {
		refused = append(refused, &p.VMs[i].RestoreItem)
	}
	return noneRestored(refused)
}

// noneRestored says why not one of the files can be restored.
func noneRestored(refused []*RestoreItem) error {
	if len(refused) == 0 {
		return nil
	}
	reasons := map[string][]string{}
	for _, it := range refused {
		text := it.Refused
		if it.Name != "" {
			text = fmt.Sprintf("VM %s: %s", it.Name, text)
		}
		reasons[it.Reason] = append(reasons[it.Reason], text)
	}
	var all []error
	for _, reason := range sortedKeys(reasons) {
		lines := reasons[reason]
		f := Failure{What: strings.Join(lines[:min(len(lines), maxCandidates)], "\n")}
		switch reason {
		case ReasonIntegrity:
			all = append(all, &IntegrityError{f})
		case ReasonUnreachable:
			all = append(all, &UnreachableError{f})
		case ReasonNoRoom, ReasonSRFull, string(rpc.NewerArchive):
			all = append(all, &PreflightError{f})
		default:
			all = append(all, f)
		}
	}
	return errors.Join(all...)
}
