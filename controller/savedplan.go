package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

const (
	savedFormat  = "dpxen-plan"
	savedVersion = 1
	maxSaved     = 1 << 30 // bytes
)

// savedPlan is a plan in a file.
type savedPlan struct {
	Format  string `json:"format"`
	Version int    `json:"format_version"`
	Program string `json:"dpxen_version"` // that wrote it
	Plan    *Plan  `json:"plan"`
}

// SavePlan writes a plan durably into a file that its owner alone may read, for a backup that follows it. A file that is there
// is replaced if it is a plan; anything else is a UsageError.
func (c *Controller) SavePlan(p *Plan, path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if _, err := LoadPlan(path); err != nil {
			return &UsageError{Failure{What: fmt.Sprintf("%s is there already and is no plan: it is not replaced", path), Err: err}}
		}
	}
	data, err := json.Marshal(savedPlan{Format: savedFormat, Version: savedVersion, Program: c.o.Version, Plan: p})
	if err == nil {
		err = staging.WriteFileDurable(path, append(data, '\n'), modePrivate)
	}
	if err != nil {
		return fmt.Errorf("save the plan: %w", err)
	}
	return nil
}

// LoadPlan reads a plan from a file; its errors are UsageErrors.
func LoadPlan(path string) (*Plan, error) {
	bad := func(format string, a ...any) error {
		return &UsageError{Failure{What: fmt.Sprintf("plan %s: ", path) + fmt.Sprintf(format, a...), Advice: "make one with dpxen plan --save FILE"}}
	}
	data, err := readBounded(path, maxSaved)
	if err != nil {
		return nil, bad("%v", err)
	}
	var s savedPlan
	switch err := json.Unmarshal(data, &s); {
	case err != nil:
		return nil, bad("it is damaged, or no plan: %v", err)
	case s.Format != savedFormat:
		return nil, bad("it is no plan")
	case s.Version != savedVersion:
		return nil, bad("it is of version %d (by dpxen %.40s), this dpxen reads %d", s.Version, s.Program, savedVersion)
	case s.Plan == nil || s.Plan.V != PlanVersion:
		return nil, bad("its content is of another version than its format says")
	}
	if _, err := ParseMode(string(s.Plan.Request.Mode)); err != nil {
		return nil, bad("%v", err)
	}
	for i := range s.Plan.VMs {
		if vm := &s.Plan.VMs[i]; canonicalUUID(vm.UUID) != vm.UUID || vm.UUID == "" {
			return nil, bad("VM %.80q has no usable UUID", vm.Name)
		}
	}
	return s.Plan, nil
}

// planSaved makes the plan over an inventory that does what the saved one says. What has changed so that it would do
// something else is a PreflightError; what does not matter is noted.
func (c *Controller) planSaved(inv *Inventory, saved *Plan) (*Plan, error) {
	f := &follower{inv: inv, saved: saved, at: make(map[vmKey]int, len(inv.VMs)),
		res: &resolution{decisions: make([]decision, len(inv.VMs))}}
	for i := range inv.VMs {
		f.at[vmKey{inv.VMs[i].PoolUUID, inv.VMs[i].UUID}] = i
		f.res.decisions[i].why = "not in the saved plan"
	}
	for i := range saved.VMs {
		if saved.VMs[i].Runs() {
			f.find(&saved.VMs[i])
		}
	}
	f.choose(c.cfg.Sets)
	req := saved.Request
	p, err := c.planFrom(inv, req, f.res)
	if err != nil {
		return nil, err
	}
	now := make(map[vmKey]*PlannedVM, len(p.VMs))
	for i := range p.VMs {
		now[vmKey{p.VMs[i].PoolUUID, p.VMs[i].UUID}] = &p.VMs[i]
	}
	for i := range saved.VMs {
		if was := &saved.VMs[i]; was.Runs() {
			if is := now[vmKey{was.PoolUUID, was.UUID}]; is != nil {
				f.compare(was, is)
			}
		}
	}
	if len(f.changes) > 0 {
		shown := f.changes[:min(len(f.changes), 5*maxCandidates)]
		if more := len(f.changes) - len(shown); more > 0 {
			shown = append(shown[:len(shown):len(shown)], fmt.Sprintf("and %d more", more))
		}
		return nil, &PreflightError{Failure{What: fmt.Sprintf("what the plan of %s says cannot be done any more:\n  %s",
			saved.Created.UTC().Format(time.RFC3339), strings.Join(shown, "\n  ")), Advice: "look at it, and make the plan again with dpxen plan --save"}}
	}
	p.Notes = append(p.Notes, f.notes...)
	return p, nil
}

// follower compares a saved plan with what is.
type follower struct {
	inv     *Inventory
	saved   *Plan
	at      map[vmKey]int // positions of the inventory's VMs
	res     *resolution
	gone    bool
	changes []string
	notes   []string
}

func (f *follower) changed(vm *PlannedVM, format string, a ...any) {
	f.changes = append(f.changes, fmt.Sprintf("VM %s (%s): ", vm.Name, vm.UUID)+fmt.Sprintf(format, a...))
}

// find chooses a VM of the plan.
func (f *follower) find(was *PlannedVM) {
	if i, there := f.at[vmKey{was.PoolUUID, was.UUID}]; there {
		f.res.decisions[i] = decision{chosen: true, why: was.Why}
		return
	}
	if pool := f.inv.PoolByUUID(was.PoolUUID); pool == nil || pool.Error != "" {
		f.res.missing = append(f.res.missing, Missing{Asked: was.Name, Reason: ReasonUnreachable,
			Error: fmt.Sprintf("VM %s (%s): no agent of its pool %s answers", was.Name, was.UUID, was.Pool)})
		return
	}
	f.gone = true
	if other := f.inv.FindVMs(was.UUID); len(other) > 0 {
		f.changed(was, "it is in pool %s instead of %s now", other[0].Pool, was.Pool)
		return
	}
	f.changed(was, "it is gone")
}

// choose compares with what the selection would choose now.
func (f *follower) choose(sets map[string]Set) {
	planned := map[vmKey]bool{}
	for i := range f.saved.VMs {
		if vm := &f.saved.VMs[i]; vm.Chosen {
			planned[vmKey{vm.PoolUUID, vm.UUID}] = true
		}
	}
	now, err := f.saved.Request.Selection.resolve(f.saved.Request.Mode, f.inv, sets)
	if err != nil {
		if !f.gone { // else that is why
			f.changes = append(f.changes, "the selection chooses nothing of it any more: "+err.Error())
		}
		return
	}
	for i, d := range now.decisions {
		vm := &f.inv.VMs[i]
		switch is := f.res.decisions[i].chosen; {
		case is && !d.chosen:
			f.changes = append(f.changes, fmt.Sprintf("VM %s (%s): it would not be chosen now: %s", vm.Name, vm.UUID, d.why))
		case !is && d.chosen && !planned[vmKey{vm.PoolUUID, vm.UUID}]:
			f.notes = append(f.notes, fmt.Sprintf("VM %s (%s) would be chosen now (%s), and is not in the saved plan: it is not backed up", vm.Name, vm.UUID, d.why))
		}
	}
}

// compare tells what is different with a VM.
func (f *follower) compare(was, is *PlannedVM) {
	if a, b := vdis(was.Disks), vdis(is.Disks); !slices.Equal(a, b) {
		f.changed(was, "its disks have changed: they were %s, and are %s", orNone(strings.Join(a, ", ")), orNone(strings.Join(b, ", ")))
	} else if a, b := vdis(was.Excluded), vdis(is.Excluded); !slices.Equal(a, b) {
		f.changed(was, "the disks left out have changed: they were %s, and are %s", orNone(strings.Join(a, ", ")), orNone(strings.Join(b, ", ")))
	}
	switch {
	case was.Power == is.Power:
	case f.saved.Request.Mode.Kind() == KindOffline && is.Power != PowerHalted:
		f.changed(was, "it was %s, and is %s: it would be treated in another way than planned", was.Power, is.Power)
	default:
		f.notes = append(f.notes, fmt.Sprintf("VM %s was %s when the plan was saved, and is %s", was.Name, was.Power, is.Power))
	}
	if was.HostUUID != "" && is.HostUUID != "" && was.HostUUID != is.HostUUID {
		f.notes = append(f.notes, fmt.Sprintf("VM %s has moved from host %s to %s since the plan was saved", was.Name, was.Host, is.Host))
	}
}

// vdis are the disks, by position.
func vdis(disks []PlannedDisk) []string {
	var all []string
	for _, d := range disks {
		all = append(all, d.UserDevice+" "+d.VDI)
	}
	slices.Sort(all)
	return all
}
