package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
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
	Actions []struct {
		VM     string `json:"vm_uuid"`
		Action string `json:"action"`
	} `json:"actions"`
	Errors []string `json:"errors"`
	Code   int      `json:"code"`
}

// heal ends all troubles, lets agents and `dpxen repair` do their work, and holds what is against what must be.
func (h *history) heal() error {
	h.calm()
	if err := h.site.agentsListen(20 * time.Second); err != nil {
		return err
	}
	if h.rng.IntN(3) == 0 && !h.rolled {
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

// alone waits until the agents have cleaned up by themselves: nobody may ever call repair.
func (h *history) alone() {
	h.counts.add("clean-ups by agents alone", 1)
	var left []string
	for end := time.Now().Add(aloneLimit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		st, err := h.site.dump()
		if err != nil {
			continue
		}
		if left = h.leftovers(st); len(left) == 0 {
			return
		}
	}
	h.violation("the agents alone have not cleaned up within %s: %s", aloneLimit, strings.Join(left, "; "))
}

// repair repeats `dpxen repair` until it has nothing left to do.
func (h *history) repair() error {
	var left []string
	out, code := "", 0
	for end := time.Now().Add(repairLimit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var err error
		if out, code, err = h.site.run(stepLimit, "repair"); err != nil {
			h.violation("repair: %v", err)
			return nil
		}
		h.note("repair ended with %d: %s", code, strings.ReplaceAll(strings.TrimSpace(out), "\n", " | "))
		st, err := h.site.dump()
		if err != nil {
			return err
		}
		if left = h.leftovers(st); len(left) == 0 && code == 0 {
			return nil
		}
	}
	h.violation("repair has not finished within %s (code %d): %s; it said %s", repairLimit, code, strings.Join(left, "; "), out)
	return nil
}

// leftovers is what there is of ours in the pool and should not be, and what of the users' is not as it was.
func (h *history) leftovers(st *state) []string {
	out := differences("pool", h.before.others(), st.others())
	for i := range st.VMs {
		vm := &st.VMs[i]
		was := h.before.vm(vm.UUID)
		if was == nil {
			if _, ok := vm.Config["dpxen:carrier"]; ok {
				out = append(out, "VM "+vm.Name+" is not complete")
			}
			continue
		}
		if vm.PowerState != was.PowerState && !h.vms[vm.UUID].remade {
			out = append(out, fmt.Sprintf("VM %s is %s and was %s", vm.UUID, vm.PowerState, was.PowerState))
		}
		if text(vm.Blocked) != text(was.Blocked) && !h.vms[vm.UUID].remade {
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
	for _, args := range [][]string{{"repair", "--json"}, {"repair", "--dry-run", "--json"}} {
		out, code, err := h.site.run(stepLimit, args...)
		if err != nil {
			h.violation("repeated repair: %v", err)
			return nil
		}
		var r repairReport
		if err := json.Unmarshal([]byte(jsonPart(out)), &r); err != nil {
			h.violation("dpxen %s said no JSON: %v: %s", strings.Join(args, " "), err, out)
			return nil
		}
		if code != 0 || len(r.Actions) > 0 || len(r.Errors) > 0 {
			h.violation("dpxen %s, repeated, ended with %d and actions %v, errors %v", strings.Join(args, " "), code, r.Actions, r.Errors)
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

// check holds the invariants.
func (h *history) check() error {
	if err := h.site.control(http.MethodGet, "/invariants", nil, nil); err != nil {
		h.violation("the pool's database is not sound: %v", err)
	}
	st, err := h.site.dump()
	if err != nil {
		return err
	}
	for i := range h.before.VMs {
		h.checkVM(&h.before.VMs[i], st)
	}
	if err := h.checkNew(st); err != nil {
		return err
	}
	partial, err := os.ReadDir(h.site.path("staging/.dpxen/partial"))
	if err == nil {
		for _, e := range partial {
			h.violation("the partial file %s is left", e.Name())
		}
	}
	if err := h.collect(); err != nil {
		return err
	}
	h.untouched()
	if err := h.checkSessions(); err != nil {
		return err
	}
	h.counts.add("checks of all invariants", 1)
	return nil
}

// checkVM holds one VM of the user's against what it was.
func (h *history) checkVM(was *vmState, st *state) {
	t, is := h.vms[was.UUID], st.vm(was.UUID)
	if is == nil {
		if !slices.ContainsFunc(t.allowed, func(c contents) bool { return c == nil }) {
			h.violation("VM %s (%s) is gone", was.UUID, was.Name)
		}
		return
	}
	if !slices.ContainsFunc(t.allowed, func(c contents) bool { return c != nil && differ(c, is.contents()) == "" }) {
		h.violation("VM %s (%s) has disks %s, which are none of %v", was.UUID, was.Name, is.contents(), t.allowed)
	}
	switch {
	case t.remade:
		if is.Name != was.Name || text(is.VIFs) != text(was.VIFs) || is.PowerState != "Halted" {
			h.violation("VM %s, made again, is %q, %s with %s; it was %q with %s", was.UUID, is.Name, is.PowerState, text(is.VIFs), was.Name, text(was.VIFs))
		}
	case t.replaced:
		for _, d := range differences("VM "+was.UUID, was.shape(), is.shape()) {
			h.violation("%s", d)
		}
	default:
		w := was.whole()
		for device := range is.contents() { // guests may have written meanwhile
			w["disk "+device] = strings.Fields(w["disk "+device])[0] + " " + is.contents()[device]
		}
		for _, d := range differences("VM "+was.UUID, w, is.whole()) {
			h.violation("%s", d)
		}
	}
}

// checkNew holds VMs that were not there: they are those that restores made, whole, and are deleted by their user then.
func (h *history) checkNew(st *state) error {
	found := map[string]bool{}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if h.before.vm(vm.UUID) != nil {
			continue
		}
		if f := h.back[vm.UUID]; f != nil {
			h.checkBack(vm)
			continue
		}
		f := h.adds[vm.Name]
		if f == nil {
			h.violation("VM %s (%s) was not there", vm.UUID, vm.Name)
			continue
		}
		found[vm.Name] = true
		if d := differ(f.disks, vm.contents()); d != "" {
			h.violation("VM %s, made beside, has disks %s instead of %s", vm.Name, vm.contents(), f.disks)
		}
		if vm.PowerState != "Halted" {
			h.violation("VM %s, made beside, is %s", vm.Name, vm.PowerState)
		}
		if err := h.deleteVM(vm.UUID); err != nil {
			return err
		}
	}
	for name := range h.adds {
		if plain, good := strings.CutPrefix(name, "good "); good && !found[plain] {
			h.violation("VM %s was said to be made beside, and is not there", plain)
		}
	}
	return nil
}

// checkBack holds a VM that was absent, and that restores have made again, against the files they were from.
func (h *history) checkBack(vm *vmState) {
	for _, f := range h.files {
		if f.vm == vm.UUID && differ(f.disks, vm.contents()) == "" && vm.PowerState == "Halted" {
			return
		}
	}
	h.violation("VM %s, made again, is %s with disks %s, which no file has", vm.UUID, vm.PowerState, vm.contents())
}

// deleteVM deletes a VM with its disks, as its user would.
func (h *history) deleteVM(uuid string) error {
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
	}
	if vm.PowerState != "Halted" {
		if _, err := a.call("VM.hard_shutdown", ref); err != nil {
			return err
		}
	}
	if _, err := a.call("VM.destroy", ref); err != nil {
		return err
	}
	for _, d := range vm.Disks {
		if d.Type != "Disk" || d.Empty {
			continue
		}
		vdi, err := a.ref("VDI.get_by_uuid", d.VDI.UUID)
		if err == nil {
			_, err = a.call("VDI.destroy", vdi)
		}
		if err != nil {
			return err
		}
	}
	h.note("the user deleted VM %s", uuid)
	return nil
}

// checkSessions holds that every session is in a final state, and that what it says is true.
func (h *history) checkSessions() error {
	out, code, err := h.site.run(time.Minute, "sessions", "--json")
	if err != nil {
		return err
	}
	var list []struct {
		ID     string `json:"id"`
		State  string `json:"state"`
		Open   int    `json:"open_intents"`
		Code   int    `json:"code"`
		Result string `json:"result"`
		Error  string `json:"error"`
	}
	if err := json.Unmarshal([]byte(jsonPart(out)), &list); err != nil || code != 0 {
		h.violation("dpxen sessions ended with %d: %v: %s", code, err, out)
		return nil
	}
	for _, s := range list {
		if s.Open != 0 || s.Error != "" || s.State != "done" && s.State != "interrupted" || s.Result == "" {
			h.violation("session %s is %s with %d open intents, result %q, %s", s.ID, s.State, s.Open, s.Result, s.Error)
			continue
		}
		if h.known[s.ID] {
			continue
		}
		h.known[s.ID] = true
		h.counts.add("sessions", 1)
		r, err := h.show(s.ID)
		if err != nil {
			return err
		}
		if r != nil {
			h.checkSession(r)
		}
	}
	return nil
}

// checkSession holds one session's report against the files and VMs.
func (h *history) checkSession(r *report) {
	good, all := r.good()
	if want := fmt.Sprintf("RESULT %s code=%d good=%d/%d session=%s", wordOf(r.Code), r.Code, good, all, r.ID); r.Result != want {
		h.violation("session %s says %q, and its VMs make %q", r.ID, r.Result, want)
	}
	if r.Ended == "" {
		h.violation("session %s has no end", r.ID)
	}
	for _, vm := range r.VMs {
		switch vm.Status {
		case "good", "failed", "refused", "skipped", "cancelled":
		default:
			h.violation("session %s: VM %s is %s", r.ID, vm.UUID, vm.Status)
		}
		if vm.PowerNotRestored && r.Code != 20 {
			h.violation("session %s: VM %s is not in its power state, and the code is %d", r.ID, vm.UUID, r.Code)
		}
		if r.Action != "backup" {
			continue
		}
		has := slices.ContainsFunc(h.files, func(f *staged) bool {
			return f.session == r.ID && f.vm == vm.UUID && (vm.File == "" || filepath.Base(f.path) == vm.File)
		})
		if vm.Status == "good" && !has {
			h.violation("session %s says that VM %s is good, and there is no proven file %q of it", r.ID, vm.UUID, vm.File)
		}
		if vm.Status != "good" && has {
			h.violation("session %s says that VM %s is %s (%s), and there is a proven file of it", r.ID, vm.UUID, vm.Status, vm.Error)
		}
	}
}
