package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// How long agents may take to clean up alone, and repair to finish.
const (
	aloneLimit  = 40 * time.Second
	repairLimit = 60 * time.Second
)

// repairReport is what `dpxen repair --json` says.
type repairReport struct {
	Actions []repairAction `json:"actions"`
	Errors  []string       `json:"errors"`
	Code    int            `json:"code"`
}

// repairAction is one thing that repair did, would do, or left for later.
type repairAction struct {
	VM      string `json:"vm_uuid"`
	Action  string `json:"action"`
	Object  string `json:"object"`
	Waiting string `json:"waiting"`
	Error   string `json:"error"`
}

// String is what a dry run and a repair have to agree on.
func (a repairAction) String() string {
	return fmt.Sprintf("%s %s of VM %s, waits=%t, fails=%t", a.Action, a.Object, a.VM, a.Waiting != "", a.Error != "")
}

// waits tells whether something was left for later: a moment after a dry run it may have become due.
func (r *repairReport) waits() bool {
	return slices.ContainsFunc(r.Actions, func(a repairAction) bool { return a.Waiting != "" })
}

func (r *repairReport) lines() string {
	var out []string
	for _, a := range r.Actions {
		out = append(out, a.String())
	}
	return strings.Join(out, "; ")
}

// heal ends all troubles, lets agents and `dpxen repair` do their work, and holds what is against what must be.
func (h *history) heal() error {
	h.calm()
	if err := h.site.agentsListen(20 * time.Second); err != nil {
		return err
	}
	if h.site.habits.sweep == oftenSwept && h.rng.IntN(3) == 0 && !h.rolled {
		h.alone()
	}
	if err := h.repair(); err != nil || h.failed() {
		return err
	}
	if err := h.check(); err != nil || h.failed() {
		return err
	}
	return h.idempotent()
}

// revive starts agents again that an armed failpoint has ended in the midst of repairs.
func (h *history) revive() {
	for _, a := range h.site.agents {
		if p := h.site.agentOf(a); !p.running() {
			h.seen(p)
			h.restart(a)
		}
	}
}

// alone waits until the agents have cleaned up by themselves: nobody may ever call repair.
func (h *history) alone() {
	h.counts.add("clean-ups by agents alone", 1)
	var left []string
	for end := time.Now().Add(aloneLimit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		h.revive()
		st, err := h.site.dump()
		if err != nil {
			continue
		}
		if left = besidesUntold(h.leftovers(st)); len(left) == 0 {
			return
		}
	}
	h.violation("the agents alone have not cleaned up within %s: %s", aloneLimit, strings.Join(left, "; "))
}

var madeKey = regexp.MustCompile(`^pool: pool\.other_config dpxen:([0-9a-f]+):made `)

// besidesUntold leaves out what tells of VMs that were made as new and whose controller did not hear of them: the journal names
// them for a day, or until somebody calls repair.
func besidesUntold(left []string) []string {
	var untold []*regexp.Regexp
	for _, l := range left {
		if m := madeKey.FindStringSubmatch(l); m != nil {
			untold = append(untold, regexp.MustCompile(`^pool: pool\.other_config dpxen:(`+m[1]+`:(made|claim)|take:`+m[1]+`)(\.[0-9]+)? `))
		}
	}
	return slices.DeleteFunc(slices.Clone(left), func(l string) bool {
		return slices.ContainsFunc(untold, func(r *regexp.Regexp) bool { return r.MatchString(l) })
	})
}

// leftovers is what there is of ours in the pool and should not be, and what of the users' is not as it was.
func (h *history) leftovers(st *state) []string {
	now, missing := h.usersOwn(st)
	then, _ := h.usersOwn(h.before)
	out := append(differences("pool", then.others(), now.others()), missing...)
	for _, t := range st.Tasks {
		// A task whose creation was not answered is XAPI's to forget.
		if !h.tasks[t] && strings.Contains(t, "dpxen") && !h.blind {
			out = append(out, "task "+t)
		}
	}
	for i := range st.VMs {
		vm := &st.VMs[i]
		was := h.before.vm(vm.UUID)
		if was == nil {
			if _, ok := vm.Config["dpxen:carrier"]; ok {
				out = append(out, "VM "+vm.Name+" is not complete")
			}
			continue
		}
		if !h.powerWanted(was, vm.PowerState) && !h.vms[vm.UUID].remade && !h.deletedByUser(vm.UUID) && !h.bare(vm) && !h.toldOff(vm) {
			out = append(out, fmt.Sprintf("VM %s is %s and was %s", vm.UUID, vm.PowerState, was.PowerState))
		}
		fresh := h.vms[vm.UUID].remade || h.deletedByUser(vm.UUID)
		if text(vm.Blocked) != text(was.Blocked) && !fresh {
			out = append(out, fmt.Sprintf("VM %s has blocked operations %v and had %v", vm.UUID, vm.Blocked, was.Blocked))
		}
		for key := range vm.Config {
			if _, had := was.Config[key]; strings.HasPrefix(key, "dpxen:") && !had {
				out = append(out, fmt.Sprintf("VM %s has the key %s", vm.UUID, key))
			}
		}
		for _, d := range vm.Disks {
			if _, ours := d.VDI.Config["dpxen:carrier"]; ours {
				out = append(out, fmt.Sprintf("disk %s of VM %s has our mark", d.UserDevice, vm.UUID))
			}
		}
		if len(vm.Current) > 0 {
			out = append(out, fmt.Sprintf("VM %s has operations %v", vm.UUID, vm.Current))
		}
	}
	return out
}

// idempotent holds that repair repeated changes nothing and says so.
func (h *history) idempotent() error {
	was, err := h.site.dump()
	if err != nil {
		return err
	}
	for _, config := range h.controllers() {
		for _, args := range [][]string{nil, {"--dry-run"}} {
			r, code := h.repairAs(config, args...)
			if r == nil {
				return nil
			}
			if code != 0 || len(r.Actions) > 0 || len(r.Errors) > 0 {
				h.violation("repair %v, repeated, ended with %d and actions %v, errors %v", args, code, r.Actions, r.Errors)
			}
		}
	}
	is, err := h.site.dump()
	if err != nil {
		return err
	}
	for _, d := range append(differences("pool", was.others(), is.others()), vmDifferences(was, is)...) {
		h.violation("repeated repair changed %s", d)
	}
	return nil
}

func vmDifferences(was, is *state) []string {
	var out []string
	for i := range was.VMs {
		vm := is.vm(was.VMs[i].UUID)
		if vm == nil {
			out = append(out, "VM "+was.VMs[i].UUID+" is gone")
			continue
		}
		out = append(out, differences("VM "+vm.UUID, was.VMs[i].whole(), vm.whole())...)
	}
	return out
}

// deleteVM deletes a VM with its disks, as its user would.
func (h *history) deleteVM(uuid string) (err error) {
	a, err := h.site.login()
	if err != nil {
		return err
	}
	defer a.logout()
	st, err := h.site.dump()
	if err != nil {
		return err
	}
	vm := st.vm(uuid)
	ref, err := a.ref("VM.get_by_uuid", uuid)
	if err != nil || vm == nil {
		return err
	}
	if strings.HasPrefix(vm.Blocked["destroy"], "administrator") { // who may lift it
		if _, err := a.call("VM.remove_from_blocked_operations", ref, "destroy"); err != nil {
			return err
		}
		defer func() {
			if err != nil { // such as where the VM was started again between the two calls below
				_, _ = a.call("VM.add_to_blocked_operations", ref, "destroy", vm.Blocked["destroy"])
			}
		}()
	}
	if vm.PowerState != "Halted" {
		if _, err := a.call("VM.hard_shutdown", ref); err != nil {
			return err
		}
	}
	if _, err := a.call("VM.destroy", ref); err != nil {
		return err
	}
	h.note("the user deleted VM %s", uuid)
	for _, d := range vm.Disks {
		if d.Type != "Disk" || d.Empty {
			continue
		}
		vdi, err := a.ref("VDI.get_by_uuid", d.VDI.UUID)
		if err == nil {
			_, err = a.call("VDI.destroy", vdi)
		}
		if err != nil { // an export still reads it; so it is the user's loose disk
			h.mu.Lock()
			h.loose[d.VDI.UUID] = true
			h.mu.Unlock()
			h.note("the user could not delete disk %s: %v", d.VDI.UUID, err)
		}
	}
	return nil
}
