package controller

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

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
	var targets []*target
	load := map[string]int{}
	var results []VMResult
	for _, item := range set.Items {
		t := &target{RestoreItem: item}
		res := VMResult{UUID: item.UUID, Name: item.Name, Pool: item.Pool, PoolUUID: item.PoolUUID, File: item.File, Status: StatusPending}
		if item.Refused != "" {
			res.Status, res.Reason, res.Error, res.Advice = StatusRefused, item.Reason, item.Refused, item.Advice
			results = append(results, res)
			continue
		}
		reason, err := r.place(inv, t, load)
		switch {
		case is[*UsageError](err):
			return nil, caps{}, err
		case err != nil:
			res.Status, res.Reason, res.Error = StatusRefused, reason, err.Error()
		default:
			res.Pool, res.PoolUUID, res.Agent = t.pool.Name, t.pool.UUID, t.agents[0]
			if t.vm != nil && !r.req.AsNew {
				res.PowerBefore = t.vm.Power
			}
			t.slot = len(results)
			targets = append(targets, t)
		}
		results = append(results, res)
	}
	limits, remarks := r.c.cfg.Limits.on(inv)
	r.hosts = inv.agentHosts()
	err = r.s.update(func(rep *Report) {
		rep.Agents, rep.Folder, rep.Notes, rep.VMs = inv.Agents, set.Folder, slices.Concat(rep.Notes, set.Notes, remarks), results
		rep.Skipped = set.Skipped
		rep.Notes = append(rep.Notes, set.worthTelling()...)
		for _, item := range set.Items {
			if item.Doubt != "" {
				rep.Warnings = append(rep.Warnings, item.Doubt)
			}
		}
	})
	if err != nil {
		return nil, caps{}, err
	}
	return targets, limits, nothingPlaced(targets, results)
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

// nothingPlaced says why not one of the files can be restored.
func nothingPlaced(targets []*target, results []VMResult) error {
	if len(targets) > 0 {
		return nil
	}
	var lines []string
	unreachable := false
	for _, res := range results {
		lines = append(lines, fmt.Sprintf("VM %s: %s", res.Name, res.Error))
		unreachable = unreachable || res.Reason == ReasonUnreachable
	}
	f := Failure{What: strings.Join(lines[:min(len(lines), maxCandidates)], "\n")}
	if unreachable {
		return &UnreachableError{f}
	}
	return f
}

// place finds the pool, the agents and the SR for a file; load is how many files each agent has got before. A UsageError is about what was asked for; any other about this VM.
func (r *restore) place(inv *Inventory, t *target, load map[string]int) (reason string, err error) {
	if t.pool, err = r.poolFor(inv, t); err != nil {
		return ReasonUnreachable, err
	}
	for _, vm := range inv.FindVMs(t.UUID) {
		if vm.PoolUUID == t.pool.UUID {
			t.vm = vm
		}
	}
	switch {
	case t.vm != nil && len(t.vm.Agents) > 0:
		t.agents = t.vm.Agents
	case len(t.pool.Agents) > 0:
		t.agents = slices.Clone(t.pool.Agents)
		slices.SortStableFunc(t.agents, func(a, b string) int { return cmp.Compare(load[a], load[b]) })
	default:
		return ReasonUnreachable, Failure{What: "no agent of pool " + t.pool.Name + " answers", Advice: "see dpxen hosts"}
	}
	load[t.agents[0]]++
	if r.req.SR == "" {
		return "", nil
	}
	t.sr, err = srIn(t.pool, r.req.SR)
	return "", err
}

// poolFor is the pool that the file's VM is in, else the one that it was in, else the one that was asked for.
func (r *restore) poolFor(inv *Inventory, t *target) (*Pool, error) {
	if r.req.Pool != "" {
		return poolIn(inv, r.req.Pool)
	}
	if t.PoolUUID != "" {
		if p := inv.PoolByUUID(t.PoolUUID); p != nil {
			return p, nil
		}
	} else if there := inv.FindVMs(t.UUID); len(there) == 1 {
		return inv.PoolByUUID(there[0].PoolUUID), nil
	} else if len(inv.Pools) == 1 {
		return &inv.Pools[0], nil
	}
	if t.PoolUUID == "" {
		return nil, &UsageError{Failure{What: fmt.Sprintf("%s: no manifest says which pool it is for", t.File), Advice: "name the pool by --pool"}}
	}
	return nil, Failure{What: fmt.Sprintf("its pool %s (%s) is not among those that answer", t.Pool, t.PoolUUID),
		Advice: "see dpxen hosts, or name another pool by --pool"}
}

func poolIn(inv *Inventory, asked string) (*Pool, error) {
	var found []*Pool
	var names []string
	for i := range inv.Pools {
		p := &inv.Pools[i]
		names = append(names, fmt.Sprintf("%s (%s)", p.Name, p.UUID))
		if p.Name == asked || strings.EqualFold(p.UUID, asked) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return nil, &UsageError{Failure{What: fmt.Sprintf("--pool %q names %d pools; there are: %s", asked, len(found), orNone(strings.Join(names, ", ")))}}
	}
	return found[0], nil
}

func srIn(p *Pool, asked string) (string, error) {
	var found, names []string
	for _, sr := range p.SRs {
		if sr.ContentType != "iso" {
			names = append(names, fmt.Sprintf("%s (%s)", sr.Name, sr.UUID))
		}
		if sr.Name == asked || strings.EqualFold(sr.UUID, asked) {
			found = append(found, sr.UUID)
		}
	}
	slices.Sort(names)
	if len(found) != 1 {
		return "", &UsageError{Failure{What: fmt.Sprintf("--sr %q names %d SRs of pool %s; there are: %s", asked, len(found), p.Name, orNone(strings.Join(names, ", ")))}}
	}
	return found[0], nil
}
