package controller

import (
	"cmp"
	"context"
	"os"
	"sync"
)

// Restore runs a restore session: the files that the request means are proven one by one, and each is restored by an agent
// of its pool. The report is the truth about it and is never nil once the session has an ID; the error is why nothing could
// run, or what else went wrong with the session as a whole. ExitCode takes both.
func (c *Controller) Restore(ctx context.Context, req RestoreRequest) (*Report, error) {
	return c.runRestore(ctx, req, nil)
}

// runRestore is Restore, of a former session where that is not nil.
func (c *Controller) runRestore(ctx context.Context, req RestoreRequest, former *rerunOf) (*Report, error) {
	if err := req.check(c.cfg.Sets); err != nil {
		return nil, err
	}
	c.restoreFrom(&req)
	sel := req.Selection
	first := Report{Action: ActionRestore, Mode: req.Mode, Folder: req.From, Selection: &sel, RestoreRequest: &req}
	former.begin(&first)
	if req.Spec != "" {
		first.DP = &DPRecord{Spec: req.Spec}
	}
	s, err := c.newSession(first)
	if err != nil {
		return nil, err
	}
	b := &restore{runner: runner{c: c, s: s}, req: req}
	b.emit(Event{Type: EventSessionStart, Action: ActionRestore, Mode: req.Mode})
	inner, stop := b.watch(ctx)
	err = b.run(inner)
	cancelled := stop()
	return b.finish(err, cancelled)
}

// restore is a running restore session.
type restore struct {
	runner
	req      RestoreRequest
	inv      *Inventory    // that files were placed by
	arrivals *arrivalsLock // for Data Protector; else nil
	starter  *starter
	prover   *prover
}

// restoreFrom fills in the folder: the specification's, else the configured one.
func (c *Controller) restoreFrom(req *RestoreRequest) {
	if req.From == "" {
		spec, _ := c.cfg.Spec(req.Spec)
		req.From = cmp.Or(spec.Restore, c.cfg.Restore)
	}
}

// run does everything between the session's first and last report.
func (r *restore) run(ctx context.Context) (err error) {
	if r.req.Spec != "" {
		r.arrivals, err = r.c.lockArrivals(ctx, r.req.From, r.s.id, func(holder string) {
			r.emit(Event{Type: EventNote, Message: "waiting for another restore from the folder: " + holder})
		})
		if err != nil {
			return err
		}
		defer func() {
			if uerr := r.arrivals.unlock(); uerr != nil {
				r.warn("%v", uerr)
			}
		}()
		notes, warnings := r.c.repairFirst(ctx)
		r.s.note(func(rep *Report) {
			rep.Notes, rep.Warnings = append(rep.Notes, notes...), append(rep.Warnings, warnings...)
		})
	}
	unlock, err := r.lockSource()
	if err != nil {
		return err
	}
	defer func() {
		if uerr := unlock(); uerr != nil {
			r.warn("unlock the staging folder: %v", uerr)
		}
	}()
	items, limits, err := r.choose(ctx)
	if err != nil {
		return err
	}
	r.starter = newStarter(r)
	var starting sync.WaitGroup
	starting.Go(func() { r.starter.run(ctx, items) })
	var tasks []task
	byTask := map[string]*target{}
	for _, item := range items {
		v := &vmRestore{restore: r, item: item}
		tasks = append(tasks, task{place: v.uses(item.agents[0]), weight: item.entry.Size, name: item.Name + "/" + item.File, run: v.run,
			rank: item.rank()})
		byTask[tasks[len(tasks)-1].name] = item
	}
	var likely []*target
	for _, t := range inOrder(tasks) {
		likely = append(likely, byTask[t.name])
	}
	r.prover = newProver(likely)
	defer r.prover.end()
	schedule(ctx, limits, tasks)
	starting.Wait()
	if ctx.Err() == nil {
		r.tellGone()
	}
	return ctx.Err()
}

// lockSource keeps backup sessions out while files of the staging folder are restored. Another folder is Data Protector's
// or the administrator's, and needs no lock.
func (r *restore) lockSource() (unlock func() error, err error) {
	from, err := os.Stat(r.req.From)
	if err != nil {
		return func() error { return nil }, nil //nolint:nilerr // that it is not there is found when it is listed
	}
	if own, err := os.Stat(r.c.cfg.Staging); err != nil || !os.SameFile(from, own) {
		return func() error { return nil }, nil //nolint:nilerr // the staging folder does not matter here
	}
	_, lock, err := r.c.openStaging(r.s.id)
	if err != nil {
		return nil, err
	}
	return lock.Unlock, nil
}
