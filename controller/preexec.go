package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

// PreExec stages the VMs of a Data Protector session (DESIGN section 8): what crashed sessions left is repaired first, files
// of the specification's former sessions that nobody needs are deleted, then a backup runs as spec says and req overrides. A
// restarted session whose whole set is still staged uses it again: the report is then that of the session that made it.
// Report and error are as Backup's.
func (c *Controller) PreExec(ctx context.Context, dp DP, req Request) (*Report, error) {
	spec, known := c.cfg.Spec(dp.Spec)
	if !dp.full() && spec.DPMode == DPModeRefuse {
		return nil, &UsageError{Failure{What: fmt.Sprintf("Data Protector's backup is %.40q, and VMs are always backed up whole", dp.Mode),
			Advice: "let " + dp.name() + " run full backups only, or set dp_mode: warn"}}
	}
	p := &preExec{c: c, dp: dp, spec: spec, req: req}
	p.notes, p.warnings = c.repairFirst(ctx)
	if dp.Restarted {
		if r, err := p.reuse(ctx); r != nil || err != nil {
			return r, err
		}
	}
	if !known && dp.Spec != "" {
		p.notes = append(p.notes, fmt.Sprintf("%s has no section in the configuration: spec_defaults are used", dp.name()))
	}
	if !dp.full() && spec.DPMode == DPModeWarn {
		p.warnings = append(p.warnings, fmt.Sprintf("Data Protector's backup is %.40q: every VM is backed up whole all the same, "+
			"and a restore from a chain of backups may bring files of several sessions back", dp.Mode))
	}
	return c.runBackup(ctx, req, p, nil)
}

// preExec is what a backup for Data Protector does beside a backup.
type preExec struct {
	c    *Controller
	dp   DP
	spec Spec
	req  Request

	notes, warnings []string
}

// repairFirst finishes or undoes what crashed sessions have left, before a session for Data Protector. That it cannot is a
// warning: the VMs concerned tell themselves.
func (c *Controller) repairFirst(ctx context.Context) (notes, warnings []string) {
	broken, err := c.anyBroken()
	if err != nil {
		return nil, []string{"look for sessions that died: " + err.Error()}
	}
	if !broken {
		return nil, nil
	}
	rep, err := c.RepairWithin(ctx, c.RepairWait())
	switch {
	case err != nil:
		return nil, []string{"repair what an earlier session left: " + err.Error()}
	case rep.Code != CodeOK:
		return nil, []string{"an earlier session left something that could not be repaired yet (" + rep.firstOpen() + "): run dpxen repair"}
	case len(rep.Sessions) > 0:
		return []string{"what " + strings.Join(rep.Sessions, ", ") + " left was repaired first"}, nil
	}
	return nil, nil
}

// firstOpen says what the first thing is that was not repaired.
func (r *RepairReport) firstOpen() string {
	for _, a := range r.Actions {
		if a.Open() {
			return strings.Join(strings.Fields(fmt.Sprintf("agent %s, VM %s, %s %s: %s %s", a.Agent, a.VMName, a.Action, a.Object, a.Error, a.Waiting)), " ")
		}
	}
	for _, text := range r.Errors {
		return text
	}
	return "an agent does not answer"
}

// anyBroken tells whether a session died, and nobody has repaired it since, or has left work behind.
func (c *Controller) anyBroken() (bool, error) {
	all, err := c.Sessions()
	return slices.ContainsFunc(all, func(s SessionSummary) bool {
		return s.Error == "" && s.State != StateRunning && (s.Open > 0 || s.State == StateInterrupted && s.Ended.IsZero())
	}), err
}

// reuse looks for the set that the restarted session may use again: the newest backup of the specification, wholly good, and
// every file still staged and, read again, as it was proven. It returns nil where there is none.
func (p *preExec) reuse(ctx context.Context) (*Report, error) {
	r, err := p.c.newestOf(p.dp.Spec, func(*Report) bool { return true })
	if err != nil || r == nil {
		return nil, err
	}
	// Its own code: that of a session that was refused does not come from its VMs, of which it has none.
	if r.State != StateDone || r.DP.Saved || !strings.EqualFold(string(r.Mode), string(p.req.Mode)) ||
		r.Code != CodeOK && r.Code != CodeWarnings || r.Counts().Good == 0 {
		return nil, nil
	}
	whole, damaged := p.c.allStaged(ctx, r)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if damaged != nil {
		p.warnings = append(p.warnings, fmt.Sprintf("Data Protector restarted its session, but the set of session %s is not used again: %v", r.ID, damaged))
	}
	if !whole {
		return nil, nil
	}
	r, err = p.c.amend(r.ID, func(r *Report) {
		r.DP.join(p.dp)
		r.DP.Closed, r.DP.Why = time.Time{}, ""
		r.Notes = appendNew(r.Notes, "Data Protector restarted its session: the staged set is used again")
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// allStaged tells whether every good VM of the session still has its file, with its manifest, and every byte of it; damaged
// is what is wrong with one that is there.
func (c *Controller) allStaged(ctx context.Context, r *Report) (whole bool, damaged error) {
	files, all := c.stagedFiles(r)
	if !all {
		return false, nil
	}
	for _, e := range files {
		if v, _ := verifyEntry(ctx, e); !v.OK {
			return false, v.Err()
		}
	}
	return true, nil
}

// stagedFiles finds the files of the session's good VMs; all says that every one is there. What is wrong with a folder that
// cannot be read the backup will say.
func (c *Controller) stagedFiles(r *Report) (files []staging.Entry, all bool) {
	dir, err := staging.Open(c.cfg.Staging, staging.Options{ReadOnly: true, RequireMarker: true})
	if err != nil {
		return nil, false
	}
	entries, err := dir.List()
	if err != nil {
		return nil, false
	}
	for _, vm := range r.VMs {
		if vm.Status != StatusGood {
			continue
		}
		i := slices.IndexFunc(entries, func(e staging.Entry) bool {
			return e.State == staging.Complete && e.Base() == vm.File && e.Manifest.Session == r.ID
		})
		if i < 0 {
			return nil, false
		}
		files = append(files, entries[i])
	}
	return files, true
}

// begin is what a backup's first report says beyond its own.
func (p *preExec) begin(r *Report) {
	if p == nil {
		return
	}
	r.DP = p.dp.record(p.spec)
	r.Notes = append(r.Notes, p.notes...)
	r.Warnings = append(r.Warnings, p.warnings...)
}

// tidy deletes staged files of former sessions of the specification, under the folder's lock, before room is looked for:
// what Data Protector has saved beyond the sets to be kept, and what it has not, unless that is to be kept.
func (p *preExec) tidy(dir *staging.Dir) (remarks []string, err error) {
	if p == nil {
		return nil, nil
	}
	remarks, err = p.c.removeBereft(dir, p.dp.Spec)
	if err != nil {
		return remarks, err
	}
	sets, more, err := p.c.sets(dir, p.dp.Spec)
	remarks = append(remarks, more...)
	if err != nil {
		return remarks, err
	}
	for _, s := range p.c.surplus(sets, p.spec) {
		n, err := s.remove(dir)
		if n > 0 {
			remarks = append(remarks, fmt.Sprintf("%d staged files of session %s were deleted: %s", n, s.report.ID, s.why()))
		}
		if err != nil {
			return remarks, err
		}
	}
	return remarks, nil
}
