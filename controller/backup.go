package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dpxen/dpxen/internal/staging"
)

// Backup runs a backup session: plan, snapshot or shutdown, export, verification and staging of every chosen VM. The report
// is the truth about it and is never nil once the session has an ID; the error is why nothing could run, or what else went
// wrong with the session as a whole. ExitCode takes both.
func (c *Controller) Backup(ctx context.Context, req Request) (*Report, error) {
	return c.runBackup(ctx, req, nil, nil)
}

// runBackup is Backup, for Data Protector where pre is not nil, and of a former session where that is not nil.
func (c *Controller) runBackup(ctx context.Context, req Request, pre *preExec, former *rerunOf) (*Report, error) {
	if err := req.Selection.Check(req.Mode, c.cfg.Sets); err != nil {
		return nil, err
	}
	sel := req.Selection
	first := Report{Action: ActionBackup, Mode: req.Mode, Folder: c.cfg.Staging, Selection: &sel, Request: &req}
	pre.begin(&first)
	former.begin(&first)
	s, err := c.newSession(first)
	if err != nil {
		return nil, err
	}
	b := &backup{runner: runner{c: c, s: s}, req: req, pre: pre}
	b.emit(Event{Type: EventSessionStart, Action: ActionBackup, Mode: req.Mode})
	inner, stop := b.watch(ctx)
	err = b.run(inner)
	cancelled := stop()
	b.s.note(func(r *Report) { r.Drift = r.Drift.without(r.goodVMs()) })
	rep, err := b.finish(err, cancelled)
	_ = c.remember("") // the report has it: whoever asks next takes it from there
	return rep, err
}

// goodVMs are the VMs that are good.
func (r *Report) goodVMs() map[vmKey]bool {
	good := map[vmKey]bool{}
	for i := range r.VMs {
		if vm := &r.VMs[i]; vm.Status == StatusGood {
			good[vmKey{vm.PoolUUID, vm.UUID}] = true
		}
	}
	return good
}

// backup is a running backup session.
type backup struct {
	runner
	req Request
	pre *preExec // nil where nobody but the user asked for it
	dir *staging.Dir
	inv *Inventory // that was planned with

	newest newestStaged // as the session found the folder
}

// run does everything between the session's first and last report.
func (b *backup) run(ctx context.Context) error {
	dir, lock, err := b.c.openStaging(b.s.id)
	if err != nil {
		return err
	}
	defer func() {
		if uerr := lock.Unlock(); uerr != nil {
			b.warn("unlock the staging folder: %v", uerr)
		}
	}()
	b.dir = dir
	remarks, err := cleanStaging(dir)
	if err != nil {
		return &PreflightError{Failure{What: "staging folder " + dir.Path(), Err: err}}
	}
	b.s.note(func(r *Report) { r.Notes = append(r.Notes, remarks...) })
	remarks, err = b.pre.tidy(dir)
	b.s.note(func(r *Report) { r.Notes = append(r.Notes, remarks...) })
	if err != nil {
		return &PreflightError{Failure{What: "staging folder " + dir.Path(), Err: err}}
	}
	entries, err := dir.List()
	if err != nil {
		return &PreflightError{Failure{What: "staging folder " + dir.Path(), Err: err}}
	}
	b.newest = newestFiles(entries)
	doubts := clockDoubts(entries, b.c.o.Now())
	b.s.note(func(r *Report) { r.Warnings = append(r.Warnings, doubts...) })
	plan, err := b.c.Plan(ctx, b.req)
	if err != nil {
		return err
	}
	slots, err := b.adopt(plan)
	if err != nil {
		return err
	}
	if err := plan.Preflight(); err != nil {
		return err
	}
	limits, remarks := b.c.cfg.Limits.on(plan.inv)
	b.s.note(func(r *Report) { r.Notes = append(r.Notes, remarks...) })
	b.inv, b.hosts = plan.inv, plan.inv.agentHosts()
	var tasks []task
	rate := plan.rate()
	for _, vm := range plan.Runs() {
		tasks = append(tasks, b.task(vm, slots[vm], rate))
	}
	schedule(ctx, limits, tasks)
	b.stillStaged(ctx)
	if ctx.Err() == nil {
		b.tellGone()
	}
	return ctx.Err()
}

// adopt puts the plan into the session's report, and returns where each VM is in it.
func (b *backup) adopt(plan *Plan) (map[*PlannedVM]int, error) {
	b.emit(Event{Type: EventPlan, Plan: plan})
	slots := map[*PlannedVM]int{}
	return slots, b.s.update(func(r *Report) {
		r.Agents, r.Notes = plan.Agents, append(r.Notes, plan.Notes...)
		r.Warnings, r.Drift = append(r.Warnings, plan.Warnings...), plan.Drift
		for _, m := range plan.Missing {
			vm := VMResult{Name: m.Asked, Status: StatusFailed, Reason: m.Reason, Error: m.Error, Advice: adviceFor(m.Reason)}
			if m.VMID != nil {
				vm.UUID, vm.PoolUUID, vm.Pool = m.VMID.UUID, m.VMID.PoolUUID, m.VMID.Pool
			}
			r.VMs = append(r.VMs, vm)
		}
		for i := range plan.VMs {
			p := &plan.VMs[i]
			vm := VMResult{UUID: p.UUID, Name: p.Name, Pool: p.Pool, PoolUUID: p.PoolUUID, Agent: p.Agent,
				PowerBefore: p.Power, Excluded: p.Excluded, Warnings: slices.Clone(p.Warnings), Notes: slices.Clone(p.Notes)}
			switch {
			case !p.Chosen:
				if b.req.Again != nil {
					continue // nobody asked for it
				}
				if !b.req.Mode.All() && !p.Marked {
					continue // nobody asked for it
				}
				vm.Status, vm.Notes = StatusSkipped, append(vm.Notes, p.Why)
			case p.Refused != "":
				vm.Status, vm.Reason, vm.Error, vm.Advice = StatusRefused, p.Reason, p.Refused, p.Advice
			default:
				vm.Status = StatusPending
			}
			slots[p] = len(r.VMs)
			r.VMs = append(r.VMs, vm)
		}
	})
}

// task makes the scheduler's task of a planned VM. rate is that of VMs of which nothing is known.
func (b *backup) task(vm *PlannedVM, slot int, rate float64) task {
	own := *vm // it follows the VM; the plan stays as it was told
	v := &vmBackup{backup: b, vm: &own, slot: slot}
	return task{place: v.uses(vm.Agent), weight: vm.lasts(rate), name: vm.Name + "/" + vm.UUID, run: v.run}
}

func appendNew(list []string, s string) []string {
	for _, has := range list {
		if has == s {
			return list
		}
	}
	return append(list, s)
}

// stagingFailure puts a failure of the staging folder into words.
func stagingFailure(err error) error {
	switch {
	case err == nil, errors.Is(err, staging.ErrExists), errors.Is(err, staging.ErrMismatch), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, staging.ErrNoRoom):
		return fmt.Errorf("the staging folder is full: %w", err)
	}
	return &folderError{reason: ReasonStaging, err: fmt.Errorf("the staging folder cannot be written: %w", err)}
}

// folderError says which of our own folders has failed.
type folderError struct {
	reason string // ReasonStaging or ReasonState
	err    error
}

func (e *folderError) Error() string { return e.err.Error() }
func (e *folderError) Unwrap() error { return e.err }
