package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// state is the pool as xensim's dump has it.
type state struct {
	VMs             []vmState         `json:"vms"`
	Snapshots       []vmState         `json:"snapshots"`
	Templates       []vmState         `json:"templates"`
	Orphans         []vdiState        `json:"orphans"`
	PoolOtherConfig map[string]string `json:"pool_other_config"`
	Tasks           []string          `json:"tasks"` // that are pending
}

type vmState struct {
	UUID       string            `json:"uuid"`
	Name       string            `json:"name"`
	PowerState string            `json:"power_state"`
	Host       string            `json:"host"`
	SnapshotOf string            `json:"snapshot_of"`
	Disks      []diskState       `json:"disks"`
	VIFs       []vifState        `json:"vifs"`
	Blocked    map[string]string `json:"blocked_operations"`
	Config     map[string]string `json:"other_config"`
	Tags       []string          `json:"tags"`
	Memory     int64             `json:"memory_static_max"`
	Current    []string          `json:"current_operations"`
}

type diskState struct {
	UserDevice string   `json:"userdevice"`
	Type       string   `json:"type"`
	Mode       string   `json:"mode"`
	Bootable   bool     `json:"bootable"`
	Empty      bool     `json:"empty"`
	VDI        vdiState `json:"vdi"`
}

type vdiState struct {
	UUID   string            `json:"uuid"`
	Name   string            `json:"name"`
	Size   int64             `json:"size"`
	SHA256 string            `json:"sha256"`
	SR     string            `json:"sr"`
	Config map[string]string `json:"other_config"`
}

type vifState struct {
	Device  string `json:"device"`
	MAC     string `json:"mac"`
	Network string `json:"network"`
}

// dump asks for the pool's state. A disk may be deleted while its digest is made: then it is asked again.
func (s *site) dump() (*state, error) {
	var last error
	for range 50 {
		var st state
		if last = s.control(http.MethodGet, "/dump", nil, &st); last == nil {
			return &st, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, last
}

// contents are a VM's disks by position: SHA-256 of what is on them.
type contents map[string]string

func (c contents) String() string {
	var parts []string
	for _, device := range slices.Sorted(maps.Keys(c)) {
		parts = append(parts, device+"="+c[device][:min(8, len(c[device]))])
	}
	return strings.Join(parts, " ")
}

// with is c with the positions of o in place of its own.
func (c contents) with(o contents) contents {
	out := maps.Clone(c)
	maps.Copy(out, o)
	return out
}

// less are all of c that lack some of o's positions: their disks were deleted before those of o were there.
func (c contents) less(o contents) []contents {
	var devices []string
	for d := range o {
		if _, ok := c[d]; ok {
			devices = append(devices, d)
		}
	}
	var out []contents
	for n := 1; n < 1<<len(devices); n++ {
		lacking := maps.Clone(c)
		for i, d := range devices {
			if n&(1<<i) != 0 {
				delete(lacking, d)
			}
		}
		out = append(out, lacking)
	}
	return out
}

// once leaves out what comes again.
func once(all []contents) []contents {
	var out []contents
	for _, c := range all {
		if !slices.ContainsFunc(out, func(o contents) bool { return (o == nil) == (c == nil) && differ(o, c) == "" }) {
			out = append(out, c)
		}
	}
	return out
}

func (vm *vmState) contents() contents {
	c := contents{}
	for _, d := range vm.Disks {
		if d.Type == "Disk" && !d.Empty {
			c[d.UserDevice] = d.VDI.SHA256
		}
	}
	return c
}

func (st *state) vm(uuid string) *vmState {
	i := slices.IndexFunc(st.VMs, func(vm vmState) bool { return vm.UUID == uuid })
	if i < 0 {
		return nil
	}
	return &st.VMs[i]
}

// shape is everything of a VM that no backup and no restore may change: all but what its disks are and hold, and where
// it runs.
func (vm *vmState) shape() map[string]string {
	out := map[string]string{
		"name": vm.Name, "power state": vm.PowerState, "VIFs": text(vm.VIFs), "blocked operations": text(vm.Blocked),
	}
	for _, d := range vm.Disks {
		out["position "+d.UserDevice] = fmt.Sprintf("%s %s bootable=%t empty=%t %q %d bytes on %s", d.Type, d.Mode, d.Bootable,
			d.Empty, d.VDI.Name, d.VDI.Size, d.VDI.SR)
	}
	return out
}

// whole is shape with the disks themselves.
func (vm *vmState) whole() map[string]string {
	out := vm.shape()
	for _, d := range vm.Disks {
		out["disk "+d.UserDevice] = d.VDI.UUID + " " + d.VDI.SHA256
		out["disk's other_config "+d.UserDevice] = text(d.VDI.Config)
	}
	return out
}

func text(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// differences lists how two maps differ.
func differences(what string, was, is map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(was)) {
		if v, ok := is[k]; !ok {
			out = append(out, fmt.Sprintf("%s: %s is gone; it was %s", what, k, was[k]))
		} else if v != was[k] {
			out = append(out, fmt.Sprintf("%s: %s is %s; it was %s", what, k, v, was[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(is)) {
		if _, ok := was[k]; !ok {
			out = append(out, fmt.Sprintf("%s: %s was not there; it is %s", what, k, is[k]))
		}
	}
	return out
}

// others are the facts on everything that is no VM: the user's snapshots, templates and loose disks, and the pool's
// other_config.
func (st *state) others() map[string]string {
	out := map[string]string{}
	for kind, list := range map[string][]vmState{"snapshot": st.Snapshots, "template": st.Templates} {
		for i := range list {
			out[kind+" "+list[i].UUID] = text(list[i].whole())
		}
	}
	for _, d := range st.Orphans {
		out["loose disk "+d.UUID] = text(d)
	}
	for k, v := range st.PoolOtherConfig {
		out["pool.other_config "+k] = v
	}
	return out
}

// plugged lists the disks that control domains have: those that an export or import has forgotten.
func (s *site) plugged() (map[string]bool, error) {
	a, err := s.login()
	if err != nil {
		return nil, err
	}
	defer a.logout()
	vms, err := a.records("VM")
	if err != nil {
		return nil, err
	}
	vbds, err := a.records("VBD")
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, vbd := range vbds {
		vm, _ := vbd["VM"].(string)
		if control, _ := vms[vm]["is_control_domain"].(bool); control {
			out[fmt.Sprintf("VDI %v at %v of %v", vbd["VDI"], vbd["userdevice"], vms[vm]["name_label"])] = true
		}
	}
	return out, nil
}
