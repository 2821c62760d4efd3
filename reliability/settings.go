package main

import (
	"fmt"
	"strings"
)

// An offline file brings a VM's settings back, too: names and network interfaces stand here for all of them.

// interfaces are a VM's, by device.
func (vm *vmState) interfaces() map[string]string {
	out := map[string]string{}
	for _, v := range vm.VIFs {
		out[v.Device] = strings.ToLower(v.MAC) + " " + v.Network
	}
	return out
}

// checkSettings holds that each setting is the former one or that of a file which restores have come from, and that of the
// file where a restore has said so.
func (h *history) checkSettings(was, is *vmState, t *tracked) {
	names, then, now := map[string]bool{was.Name: true}, was.interfaces(), is.interfaces()
	for _, f := range t.resets {
		names[f.name] = true
	}
	if !names[is.Name] {
		h.violation("VM %s is named %q, which is neither its former name nor that of a file", was.UUID, is.Name)
	}
	for device := range then {
		if now[device] == "" && !t.remade {
			h.violation("VM %s has lost its interface %s", was.UUID, device)
		}
	}
	for device, is := range now {
		known := is == then[device]
		for _, f := range t.resets {
			known = known || f.vifs == nil || f.vifs[device] == is
		}
		if !known {
			h.violation("VM %s has interface %s %s, which it had neither before nor in a file", was.UUID, device, is)
		}
	}
	if t.sure == nil || t.sure.vifs == nil {
		return
	}
	h.counts.add("settings held against their file", 1)
	for device, want := range t.sure.vifs {
		if now[device] != want {
			h.violation("VM %s, restored, has interface %s %s instead of the file's %s", was.UUID, device, now[device], want)
		}
	}
	if is.Name != t.sure.name {
		h.violation("VM %s, restored, is named %q instead of the file's %q", was.UUID, is.Name, t.sure.name)
	}
}

// reconfigure changes the settings of VMs now and then, as their users do.
func (h *history) reconfigure(st *state) error {
	var a *admin
	for i := range st.VMs {
		vm, what := &st.VMs[i], h.rng.IntN(10)
		name := fmt.Sprintf("%s %d", oddNames[h.rng.IntN(len(oddNames))], h.rng.IntN(100))
		mac := fmt.Sprintf("02:16:3e:%02x:%02x:%02x", h.rng.IntN(256), h.rng.IntN(256), h.rng.IntN(256))
		if what > 1 || vm.PowerState != "Running" && vm.PowerState != "Halted" {
			continue
		}
		if a == nil {
			var err error
			if a, err = h.site.login(); err != nil {
				return err
			}
			defer a.logout()
		}
		ref, err := a.ref("VM.get_by_uuid", vm.UUID)
		if err == nil && what == 0 {
			_, err = a.call("VM.set_name_label", ref, name)
		} else if err == nil && len(vm.VIFs) > 0 {
			err = a.changeMAC(ref, vm.VIFs[0].Device, mac, vm.PowerState == "Running")
		}
		if err != nil {
			return fmt.Errorf("change the settings of VM %s: %w", vm.UUID, err)
		}
		h.counts.add("users: settings", 1)
	}
	return nil
}

// changeMAC replaces an interface by one with another MAC: XAPI has no other way.
func (a *admin) changeMAC(vm, device, mac string, plugged bool) error {
	vifs, err := a.records("VIF")
	if err != nil {
		return err
	}
	for ref, rec := range vifs {
		if rec["VM"] != vm || rec["device"] != device {
			continue
		}
		calls := [][]any{{"VIF.destroy", ref}}
		if plugged {
			calls = append([][]any{{"VIF.unplug", ref}}, calls...)
		}
		for _, c := range calls {
			if _, err := a.call(c[0].(string), c[1:]...); err != nil {
				return err
			}
		}
		made, err := a.ref("VIF.create", map[string]any{"VM": vm, "network": rec["network"], "device": device, "MAC": mac, "MTU": rec["MTU"],
			"other_config": map[string]any{}, "qos_algorithm_type": "", "qos_algorithm_params": map[string]any{}, "locking_mode": "network_default",
			"ipv4_allowed": []any{}, "ipv6_allowed": []any{}})
		if err == nil && plugged {
			_, err = a.call("VIF.plug", made)
		}
		return err
	}
	return nil
}
