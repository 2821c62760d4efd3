package main

import (
	"net/http"
	"os"
	"slices"
	"strings"
)

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
	if h.keeps {
		if err := h.clearKept(st); err != nil {
			return err
		}
	}
	plugs, err := h.site.plugged()
	if err != nil {
		return err
	}
	for p := range plugs {
		if !h.plugs[p] {
			h.violation("a control domain has %s", p)
		}
	}
	for _, folder := range []string{"staging", "rival-staging"} {
		partial, err := os.ReadDir(h.site.path(folder + "/.dpxen/partial"))
		if err != nil {
			continue
		}
		for _, e := range partial {
			h.violation("the partial file %s is left in %s", e.Name(), folder)
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
		if !h.deletedByUser(was.UUID) && !slices.ContainsFunc(t.allowed, func(c contents) bool { return c == nil }) {
			h.violation("VM %s (%s) is gone", was.UUID, was.Name)
		}
		return
	}
	if h.deletedByUser(was.UUID) {
		return // and made again by a restore
	}
	if !slices.ContainsFunc(t.allowed, func(c contents) bool { return c != nil && differ(c, is.contents()) == "" }) {
		h.violation("VM %s (%s) has disks %s, which are none of %v", was.UUID, was.Name, is.contents(), t.allowed)
	}
	switch {
	case t.remade:
		h.checkSettings(was, is, t)
		if is.PowerState != "Halted" && (is.PowerState != "Suspended" || !slices.ContainsFunc(t.resets, func(f *staged) bool { return f.memory })) {
			h.violation("VM %s, made again, is %s", was.UUID, is.PowerState)
		}
	case t.replaced:
		w := was.shape()
		h.leaveOut(w, was, is)
		if len(t.resets) > 0 {
			h.checkSettings(was, is, t)
			w["name"], w["VIFs"] = is.shape()["name"], is.shape()["VIFs"]
		}
		for _, d := range differences("VM "+was.UUID, w, is.shape()) {
			h.violation("%s", d)
		}
		h.boots(is)
	default:
		w := was.whole()
		h.leaveOut(w, was, is)
		for device := range is.contents() { // guests may have written meanwhile
			if disk, _, had := strings.Cut(w["disk "+device], " "); had {
				w["disk "+device] = disk + " " + is.contents()[device]
			}
		}
		for _, d := range differences("VM "+was.UUID, w, is.whole()) {
			h.violation("%s", d)
		}
	}
}

// leaveOut takes out of a VM's former shape what its user, or a restore that deletes first, has changed for good.
func (h *history) leaveOut(w map[string]string, was, is *vmState) {
	if was.PowerState == "Suspended" && h.discards[was.UUID] && is.PowerState == "Halted" {
		w["power state"] = is.PowerState
	}
	if h.bare(is) || h.toldOff(is) || h.touched(was.UUID) && h.powerWanted(was, is.PowerState) {
		w["power state"] = is.PowerState
	}
	for device := range is.contents() { // a position that was free, and that the file has
		key := "position " + device
		if _, had := w[key]; !had && slices.ContainsFunc(h.vms[was.UUID].allowed, func(c contents) bool { return c[device] != "" }) {
			w[key] = is.shape()[key]
		}
	}
	if !h.bare(is) {
		return
	}
	for device := range was.contents() {
		if _, has := is.contents()[device]; !has {
			delete(w, "position "+device)
		}
	}
}

// bare tells whether a VM is off and lacks disks that were deleted first, as asked: it is not started without them.
func (h *history) bare(vm *vmState) bool {
	t := h.vms[vm.UUID]
	return vm.PowerState == "Halted" && t != nil && slices.ContainsFunc(t.allowed, func(c contents) bool {
		return c != nil && len(c) < len(h.before.vm(vm.UUID).contents()) && differ(c, vm.contents()) == ""
	})
}

// toldOff tells whether a VM is off, and a session of this round has said that it would be: a restore that deletes first has
// died, so the VM was off, without disks, when the next restore came and filled it.
func (h *history) toldOff(vm *vmState) bool {
	if vm.PowerState != "Halted" || !h.firsts[vm.UUID] {
		return false
	}
	list, err := h.sessions(h.site.config)
	if err != nil {
		return false
	}
	for _, s := range list {
		if h.known[s.ID] || s.Code != 20 {
			continue // of a former round
		}
		r, err := h.show(h.site.config, s.ID)
		if err == nil && r != nil && slices.ContainsFunc(r.VMs, func(v reportVM) bool { return v.UUID == vm.UUID && v.PowerNotRestored }) {
			return true
		}
	}
	return false
}

// checkNew holds VMs that were not there: they are those that restores made, whole, and are deleted by their user then.
func (h *history) checkNew(st *state) error {
	found := map[string]bool{}
	for i := range st.VMs {
		vm := &st.VMs[i]
		if h.before.vm(vm.UUID) != nil {
			continue
		}
		found[vm.Name] = true
		if f := h.back[vm.UUID]; f != nil { // also one that was made beside in this round, backed up, and restored again
			h.checkBack(vm)
			continue
		}
		f := h.adds[vm.Name]
		if f == nil {
			h.violation("VM %s (%s) was not there", vm.UUID, vm.Name)
			continue
		}
		if d := differ(f.disks, vm.contents()); d != "" {
			h.violation("VM %s, made beside, has disks %s instead of %s", vm.Name, vm.contents(), f.disks)
		}
		if vm.PowerState != "Halted" && (vm.PowerState != "Suspended" || !f.memory) && (vm.PowerState != "Running" || !h.begun[vm.Name]) {
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
