package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// What users do on their pool while a session is at work, and what has to be true of it afterwards.

// userSnapshot begins the names of the snapshots that users take meanwhile.
const userSnapshot = "by its user "

// userDoing is what a user does in a step.
var userDoings = []string{"snapshot", "snapshot", "start", "start", "stop", "stop", "delete"}

// user does one thing to a VM. What XAPI refuses has not happened.
func (h *history) user(what, uuid string, n uint64) {
	a, err := h.site.login()
	if err != nil {
		h.note("the user could not log in: %v", err)
		return
	}
	defer a.logout()
	ref, err := a.ref("VM.get_by_uuid", uuid)
	if err != nil {
		return
	}
	switch what {
	case "snapshot":
		h.mu.Lock()
		rolled := h.rolled
		h.mu.Unlock()
		if rolled {
			return // XAPI's database falls back to before it, and forgets it
		}
		name := fmt.Sprintf("%s%d", userSnapshot, n)
		if _, err = a.call("VM.snapshot", ref, name); err == nil {
			h.mu.Lock()
			h.snapshots = append(h.snapshots, name)
			h.mu.Unlock()
		}
	case "start":
		h.power(uuid, "try")
		if _, err = a.call("VM.start", ref, false, false); err == nil {
			h.power(uuid, "Running")
		}
	case "stop":
		h.power(uuid, "try")
		if _, err = a.call("VM.hard_shutdown", ref); err == nil {
			h.power(uuid, "Halted")
		}
	case "delete":
		if len(h.before.VMs) < 3 {
			return
		}
		h.power(uuid, "try")
		if err = h.deleteVM(uuid); err == nil {
			h.mu.Lock()
			h.deleted[uuid] = true
			h.mu.Unlock()
		}
	}
	h.counts.add("users: "+what, 1)
	h.note("the user: %s VM %s: %v", what, uuid, err)
}

// power notes what a user did to a VM's power state, or tried.
func (h *history) power(uuid, state string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.powers[uuid] = append(h.powers[uuid], state)
}

// powerWanted tells whether a VM may be in a power state: the former one, unless its user has changed it meanwhile.
func (h *history) powerWanted(was *vmState, now string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	did := h.powers[was.UUID]
	if was.PowerState == "Suspended" && h.discards[was.UUID] && now == "Halted" {
		return true
	}
	if len(did) == 0 {
		return now == was.PowerState
	}
	switch last := did[len(did)-1]; {
	case last == "Running":
		return now == last
	case last == "Halted" && !h.stops:
		return now == last // nothing of this round may start or stop a VM
	}
	return now == "Running" || now == "Halted" || now == was.PowerState
}

// touched tells whether a user has been at a VM's power state in this round.
func (h *history) touched(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.powers[uuid]) > 0
}

// deletedByUser tells whether a user has deleted the VM in this round.
func (h *history) deletedByUser(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deleted[uuid]
}

// usersOwn takes the users' own doings of this round out of what a pool holds beside its VMs, and complains of those that
// are missing.
func (h *history) usersOwn(st *state) (*state, []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := *st
	var missing []string
	for _, name := range h.snapshots {
		if !slices.ContainsFunc(st.Snapshots, func(s vmState) bool { return s.Name == name }) {
			missing = append(missing, "the user's snapshot "+name+" is gone")
		}
	}
	out.Snapshots = slices.DeleteFunc(slices.Clone(st.Snapshots), func(s vmState) bool { return strings.HasPrefix(s.Name, userSnapshot) })
	out.Orphans = slices.DeleteFunc(slices.Clone(st.Orphans), func(d vdiState) bool {
		return d.Name == "Suspend image" || h.loose[d.UUID] || h.keeps && strings.Contains(d.Name, " (replaced in dpxen session ")
	})
	return &out, missing
}

// clearKept deletes the disks that restores have kept, as their users would one day.
func (h *history) clearKept(st *state) error {
	a, err := h.site.login()
	if err != nil {
		return err
	}
	defer a.logout()
	for _, d := range st.Orphans {
		if !strings.Contains(d.Name, " (replaced in dpxen session ") {
			continue
		}
		vdi, err := a.ref("VDI.get_by_uuid", d.UUID)
		if err == nil {
			_, err = a.call("VDI.destroy", vdi)
		}
		if err != nil {
			return fmt.Errorf("delete the kept disk %s: %w", d.UUID, err)
		}
	}
	return nil
}

// boots holds that a halted VM that restores have been at can be started. It is stopped again.
func (h *history) boots(vm *vmState) {
	if vm.PowerState != "Halted" || vm.Blocked["start"] != "" {
		return
	}
	a, err := h.site.login()
	if err != nil {
		h.violation("log in: %v", err)
		return
	}
	defer a.logout()
	ref, err := a.ref("VM.get_by_uuid", vm.UUID)
	if err == nil {
		_, err = a.call("VM.start", ref, false, false)
	}
	for try := 0; err == nil && try < 3; try++ {
		if _, err = a.call("VM.hard_shutdown", ref); err == nil {
			h.counts.add("restored VMs that were started to see it", 1)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	h.violation("VM %s, restored, does not start and stop: %v", vm.UUID, err)
}
