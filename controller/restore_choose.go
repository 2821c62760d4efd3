package controller

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/dpxen/dpxen/internal/staging"
)

// choose finds the files and where each of them goes, and puts both into the report. Nothing is touched. The limits are those
// of the pools that answer.
func (r *restore) choose(ctx context.Context) ([]*target, caps, error) {
	set, err := r.c.restoreFiles(r.req, r.arrivals)
	if err == nil && len(set.Items) == 0 { // all was restored already
		return nil, caps{}, r.s.update(func(rep *Report) {
			rep.Folder, rep.Skipped = set.Folder, set.Skipped
			rep.Notes = slices.Concat(rep.Notes, set.Notes, set.worthTelling(), []string{nothingNew})
		})
	}
	if err != nil {
		return nil, caps{}, err
	}
	inv, err := r.c.Inventory(ctx)
	if err != nil {
		return nil, caps{}, err
	}
	all, err := r.c.aim(ctx, &r.req, set, inv)
	if err != nil {
		return nil, caps{}, err
	}
	arrange(&r.req, all)
	var targets []*target
	var results []VMResult
	var refused []*RestoreItem
	for _, t := range all {
		t.slot = len(results)
		results = append(results, t.result(&r.req))
		if t.Refused == "" {
			targets = append(targets, t)
		} else {
			refused = append(refused, &t.RestoreItem)
		}
	}
	limits, remarks := r.c.cfg.Limits.on(inv)
	r.inv, r.hosts = inv, inv.agentHosts()
	err = r.s.update(func(rep *Report) {
		rep.Agents, rep.Folder, rep.Notes, rep.VMs = inv.Agents, set.Folder, slices.Concat(rep.Notes, set.Notes, remarks), results
		rep.Skipped = set.Skipped
		rep.Notes = append(rep.Notes, set.worthTelling()...)
		rep.Warnings = slices.Concat(rep.Warnings, set.doubts(), r.c.unheard(inv, all, &r.req))
	})
	if err != nil {
		return nil, caps{}, err
	}
	if len(targets) == 0 {
		return nil, caps{}, noneRestored(refused)
	}
	return targets, limits, nil
}

// doubts say of which files it is doubtful that they are the newest.
func (set *RestoreSet) doubts() (texts []string) {
	for _, item := range set.Items {
		if item.Doubt != "" {
			texts = append(texts, item.Doubt)
		}
	}
	return texts
}

// unheard warns of agents that did not answer. They fail no VM: each VM has an agent of its pool, or is refused for want of
// one. What such an agent may hide is a pool in which a VM that is made anew exists already.
func (c *Controller) unheard(inv *Inventory, targets []*target, req *RestoreRequest) (warnings []string) {
	anew := slices.ContainsFunc(targets, func(t *target) bool { return t.Refused == "" && t.vm == nil && !req.AsNew })
	for _, a := range inv.Agents {
		if a.OK {
			continue
		}
		text := "agent " + a.Name + " did not answer (see dpxen hosts)"
		if conn := c.agent(a.Name); anew && (conn == nil || inv.PoolByUUID(conn.pool) == nil) {
			text += ": it is not known whether VMs that are made anew exist in a pool of its own"
		}
		warnings = append(warnings, text)
	}
	return warnings
}

// result is the target's place in the report before anything is done.
func (t *target) result(req *RestoreRequest) VMResult {
	res := VMResult{UUID: t.UUID, Name: t.Name, Pool: t.Pool, PoolUUID: t.PoolUUID, File: t.File, Path: t.Path, Status: StatusPending,
		Warnings: slices.Clone(t.warnings)}
	if t.pool != nil {
		res.Pool, res.PoolUUID = t.pool.Name, t.pool.UUID
	}
	if len(t.agents) > 0 {
		res.Agent = t.agents[0]
	}
	if t.vm != nil && !req.AsNew {
		res.PowerBefore = t.vm.Power
	}
	if t.Refused != "" {
		res.Status, res.Reason, res.Error, res.Advice = StatusRefused, t.Reason, t.Refused, t.Advice
	}
	return res
}

// nothingNew is what a restore for Data Protector says that has nothing to do.
const nothingNew = "nothing to restore: the VMs were restored from these files already, and Data Protector has not written them again"

// worthTelling are remarks on the skipped files that might have been restored instead, and on damaged ones.
func (set *RestoreSet) worthTelling() []string {
	restored := map[string]Kind{}
	for _, it := range set.Items {
		restored[it.UUID] = it.Kind
	}
	var remarks []string
	for _, s := range set.Skipped {
		e := staging.Inspect(filepath.Join(set.Folder, s.File))
		damaged := e.State == staging.ManifestDamaged || e.State == staging.Contradiction || e.State == staging.MissingData
		if set.sieve != nil || damaged || e.State == staging.Complete && restored[e.Name.UUID] == e.Name.Kind {
			remarks = append(remarks, fmt.Sprintf("file %s is not restored: %s", s.File, s.Reason))
		}
	}
	return remarks
}
