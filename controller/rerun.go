package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// VMID names a VM of a session that is run again.
type VMID struct {
	UUID     string `json:"uuid"`
	Name     string `json:"name"`
	PoolUUID string `json:"pool_uuid,omitempty"`
	Pool     string `json:"pool,omitempty"`
}

func (id VMID) key() vmKey { return vmKey{id.PoolUUID, id.UUID} }

// Again says that a backup session does again what another one did not do.
type Again struct {
	Session string `json:"session"` // the former one
	VMs     []VMID `json:"vms"`     // that did not become good
	// Unseen: agents did not answer the former session, so VMs of the selection that are in none of the Seen pools are meant too.
	Unseen bool     `json:"unseen,omitempty"`
	Seen   []string `json:"seen,omitempty"` // UUIDs of the pools that answered
	Done   []VMID   `json:"done,omitempty"` // of other pools, what sessions that ran the former one again have made good
}

// ErrNothingToRerun says that every VM of a session is good, be it by sessions that ran it again.
var ErrNothingToRerun = errors.New("every VM of the session is good")

// Former is a session that may be run again: for those of its VMs that did not become good.
type Former struct {
	Report *Report
	failed []VMResult
	since  since
}

// Former looks at a session, to run it again. The error is a LockedError for a session that runs, a UsageError for one that
// does not exist or of which too little is known, and ErrNothingToRerun.
func (c *Controller) Former(id string) (*Former, error) {
	r, err := c.Session(id)
	if err != nil {
		return nil, err
	}
	if r.State == StateRunning {
		return nil, &LockedError{Failure{What: "session " + id + " is running", Advice: "wait for it, or dpxen cancel " + id}}
	}
	if r.Action == ActionRestore && r.RestoreRequest == nil {
		return nil, &UsageError{Failure{What: fmt.Sprintf("session %s is of dpxen %s, which did not keep what was asked of it", id, r.Version),
			Advice: "run dpxen restore with the options that it was run with"}}
	}
	f := &Former{Report: r}
	if f.since, err = c.sinceThen(r); err != nil {
		return nil, err
	}
	for _, vm := range r.VMs {
		_, good := f.since.good[vmKey{vm.PoolUUID, vm.UUID}]
		if vm.UUID == "" { // a name that no agent which answered knew
			good = f.since.whole()
		}
		if vm.Status != StatusGood && vm.Status != StatusSkipped && !good {
			f.failed = append(f.failed, vm)
		}
	}
	if len(f.failed) == 0 && len(r.VMs) > 0 && (!r.unseen() || f.since.whole()) {
		return nil, fmt.Errorf("session %s: %w", id, ErrNothingToRerun)
	}
	return f, nil
}

// since is what sessions that ran one again, or ran such a one again, have come to.
type since struct {
	good  map[vmKey]VMID
	open  map[vmKey]bool // VMs of theirs that are not good
	heard bool           // one of them had an answer of every agent
}

// whole tells whether they left nothing undone, of pools that the session could not see either.
func (s *since) whole() bool { return s.heard && len(s.open) == 0 }

// add takes in what a session has come to, in their order.
func (s *since) add(r *Report) {
	s.heard = s.heard || len(r.Agents) > 0 && !r.unseen()
	for _, vm := range r.VMs {
		key := vmKey{vm.PoolUUID, vm.UUID}
		_, good := s.good[key]
		switch {
		case vm.UUID == "": // a name that no agent knew which answered: an answer of every agent tells more
		case vm.Status == StatusGood:
			s.good[key] = VMID{UUID: vm.UUID, Name: vm.Name, PoolUUID: vm.PoolUUID, Pool: vm.Pool}
			delete(s.open, key)
		case vm.Status != StatusSkipped && !good:
			s.open[key] = true
		}
	}
}

// sinceThen looks at the sessions that ran r again, or ran such a one again.
func (c *Controller) sinceThen(r *Report) (since, error) {
	s := since{good: map[vmKey]VMID{}, open: map[vmKey]bool{}}
	ids, err := c.sessionIDs()
	if err != nil {
		return s, err
	}
	chain := map[string]bool{r.ID: true}
	for _, id := range ids {
		if id <= r.ID {
			continue
		}
		later, err := c.Session(id)
		if err != nil || !chain[later.RerunOf] {
			continue // dpxen sessions shows what cannot be read
		}
		chain[id] = true
		s.add(later)
	}
	return s, nil
}

// unseen tells whether an agent did not answer, so that VMs may have been selected that the report does not name.
func (r *Report) unseen() bool {
	return r.Action == ActionBackup && slices.ContainsFunc(r.Agents, func(a AgentStatus) bool { return !a.OK })
}

// Rerun runs a session again, with its mode, selection and options, for those VMs that did not become good: failed, refused
// or cancelled ones, and those that it never came to. What dead sessions have left is repaired first. Report and error are as
// those of Backup and Restore.
func (c *Controller) Rerun(ctx context.Context, f *Former) (*Report, error) {
	notes, warnings := c.repairFirst(ctx)
	warnings = append(warnings, c.madeBefore(f)...)
	former := rerunOf{id: f.Report.ID, dpSession: f.Report.DPSession, dpSpec: f.Report.DPSpec, notes: notes, warnings: warnings}
	if f.Report.Action == ActionRestore {
		return c.runRestore(ctx, f.restoreRequest(), &former)
	}
	return c.runBackup(ctx, f.request(), nil, &former)
}

// madeBefore warns of VMs that the session has made as new although they did not become good: they are made once more.
func (c *Controller) madeBefore(f *Former) (warnings []string) {
	r, err := c.Session(f.Report.ID) // the repair may have learnt of them
	if err != nil || r.RestoreRequest == nil || !r.RestoreRequest.AsNew {
		return nil
	}
	for _, vm := range f.failed {
		i := slices.IndexFunc(r.VMs, func(o VMResult) bool { return o.UUID == vm.UUID && o.PoolUUID == vm.PoolUUID })
		if i >= 0 && r.VMs[i].NewUUID != "" {
			warnings = append(warnings, fmt.Sprintf("session %s has made VM %s as new already, as %s, and it is kept beside the one that is made now: look at both, and delete one",
				r.ID, vm.Name, r.VMs[i].NewUUID))
		}
	}
	return warnings
}

// rerunOf is what the report of a session that runs another one again has from it.
type rerunOf struct {
	id, dpSession, dpSpec string
	notes, warnings       []string
}

// begin is what the first report says beyond a session's own.
func (o *rerunOf) begin(r *Report) {
	if o == nil {
		return
	}
	r.RerunOf, r.DPSession, r.DPSpec = o.id, o.dpSession, o.dpSpec
	r.Notes = append(r.Notes, "session "+o.id+" is run again for what did not become good")
	r.Notes = append(r.Notes, o.notes...)
	r.Warnings = append(r.Warnings, o.warnings...)
}

// request asks for the backup of what is not good. A session that ended before it knew its VMs is run again as a whole.
func (f *Former) request() Request {
	r := f.Report
	req := Request{Mode: r.Mode}
	if r.Selection != nil {
		req.Selection = *r.Selection
	}
	if r.Request != nil {
		req = *r.Request
	}
	if len(r.VMs) == 0 {
		return req
	}
	before := req.Again
	again := &Again{Session: r.ID, Unseen: r.unseen()}
	if before != nil && again.Unseen {
		again.Unseen, again.Seen, again.Done = before.Unseen, slices.Clone(before.Seen), slices.Clone(before.Done)
	}
	if again.Unseen {
		again.Done = slices.AppendSeq(again.Done, maps.Values(f.since.good))
		slices.SortFunc(again.Done, func(a, b VMID) int { return cmp.Or(cmp.Compare(a.PoolUUID, b.PoolUUID), cmp.Compare(a.UUID, b.UUID)) })
	}
	for _, a := range r.Agents {
		if a.OK {
			again.Seen = appendNew(again.Seen, a.PoolUUID)
		}
	}
	for _, vm := range f.failed {
		if vm.UUID != "" { // else a name that nobody knew: the selection still has it
			again.VMs = append(again.VMs, VMID{UUID: vm.UUID, Name: vm.Name, PoolUUID: vm.PoolUUID, Pool: vm.Pool})
		}
	}
	req.Again = again
	return req
}

// restoreRequest asks for the restore of the files that did not become good. They were chosen once: a selection that names others
// too, which are good now, would find no file of those.
func (f *Former) restoreRequest() RestoreRequest {
	req := *f.Report.RestoreRequest
	if len(f.Report.VMs) == 0 {
		return req
	}
	var files []string
	for _, vm := range f.failed {
		file := cmp.Or(vm.Path, vm.File)
		for _, asked := range req.Files { // of reports that have no paths
			if filepath.Base(asked) == file {
				file = asked
			}
		}
		if file != "" {
			files = appendNew(files, file)
		}
	}
	if len(files) > 0 {
		req.Selection, req.Rerun = Selection{}, true
	}
	req.Files, req.From = files, f.Report.Folder
	return req
}

// resolve decides on every VM of the inventory, see Selection.resolve.
func (req Request) resolve(inv *Inventory, sets map[string]Set) (*resolution, error) {
	if req.Again == nil {
		return req.Selection.resolve(req.Mode, inv, sets)
	}
	a := req.Again
	res := &resolution{decisions: make([]decision, len(inv.VMs))}
	if a.Unseen {
		selected, err := req.Selection.resolve(req.Mode, inv, sets)
		if err != nil {
			return nil, err
		}
		res = selected
	}
	wanted, done := map[vmKey]bool{}, map[vmKey]bool{}
	for _, id := range a.VMs {
		wanted[id.key()] = true
	}
	for _, id := range a.Done {
		done[id.key()] = true
	}
	for i := range inv.VMs {
		vm := &inv.VMs[i]
		switch d := &res.decisions[i]; {
		case wanted[vmKey{vm.PoolUUID, vm.UUID}]:
			*d = decision{chosen: true, why: "it did not become good in session " + a.Session}
			delete(wanted, vmKey{vm.PoolUUID, vm.UUID})
		case done[vmKey{vm.PoolUUID, vm.UUID}]:
			*d = decision{why: "made good since, by a session that ran session " + a.Session + " again"}
		case d.chosen && !slices.Contains(a.Seen, vm.PoolUUID):
			d.why = strings.TrimSpace(d.why + ", and session " + a.Session + " could not see it")
		default:
			*d = decision{why: "not of what session " + a.Session + " left undone"}
		}
	}
	for _, id := range a.VMs {
		if wanted[id.key()] {
			res.missing = append(res.missing, id.missing(inv))
		}
	}
	return res, nil
}

// missing says why a VM that is to be done again is not there.
func (id VMID) missing(inv *Inventory) Missing {
	m := Missing{Asked: id.Name, VMID: &id, Reason: ReasonNotFound, Error: "the VM is not in pool " + id.Pool + " any more"}
	if p := inv.PoolByUUID(id.PoolUUID); p == nil || p.Error != "" {
		m.Reason, m.Error = ReasonUnreachable, "no agent of its pool "+id.Pool+" answers"
	}
	return m
}
