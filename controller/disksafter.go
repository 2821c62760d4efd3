package controller

import (
	"context"
	"slices"
)

// Which disks a VM is left with where its restore did not become good: the exchange may have been complete before its agent or
// its session died, and then there is no way back.

// diskUUIDs are those of the VM's disks; none for a VM that does not exist.
func (v *VM) diskUUIDs() (all []string) {
	if v == nil {
		return nil
	}
	for _, d := range v.Disks {
		if d.VDI != "" {
			all = append(all, d.VDI)
		}
	}
	return all
}

// disksAfter says what has become of the disks that a VM had before its restore; empty where it has them still.
func disksAfter(before, now []string) string {
	switch {
	case !slices.ContainsFunc(before, func(uuid string) bool { return !slices.Contains(now, uuid) }):
		return ""
	case len(now) < len(before):
		return "the VM lacks disks that it had before: restore it again"
	}
	return "the VM is not on the disks any more that it had before: they were exchanged, although the restore did not become good"
}

// bare tells of a VM of which nothing is left to be repaired, and that lacks disks which it had: they were deleted first, as asked,
// and the restored ones never came.
func (r *RepairReport) bare(of *Report, in Intent, pool *sweptPool) {
	vm, there := pool.vms[in.VMUUID]
	told := func(a SweepAction) bool { return a.concerns(in) && (r.DryRun || a.Error != "") }
	if !in.Done || !in.DeletesFirst || !there || len(vm.Disks) >= len(in.Former) || slices.ContainsFunc(r.Actions, told) {
		return
	}
	r.Actions = append(r.Actions, SweepAction{VMUUID: in.VMUUID, VMName: in.VMName, Action: "session " + of.ID, Done: true,
		Error: disksAfter(in.Former, vm.diskUUIDs())})
}

// tellDisks warns where a VM whose restore failed is not on the disks that it had before, once nothing is left to be repaired.
func (v *vmRestore) tellDisks(ctx context.Context, before []string) {
	left := func(i Intent) bool { return i.VMUUID == v.item.UUID && i.PoolUUID == v.item.pool.UUID }
	if v.tries == 0 || len(before) == 0 || v.req.AsNew || slices.ContainsFunc(v.s.snapshot().Unfinished(), left) {
		return
	}
	for _, agent := range v.item.agents {
		vm, err := v.c.agent(agent).describe(context.WithoutCancel(ctx), v.item.UUID, v.item.pool)
		if err != nil {
			continue
		}
		if text := disksAfter(before, vm.diskUUIDs()); text != "" {
			v.change(func(r *VMResult) { r.Warnings = appendNew(r.Warnings, text) })
		}
		return
	}
}
