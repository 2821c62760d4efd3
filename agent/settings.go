package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// An offline file is a whole VM: restored in place, the VM also gets those settings from it that XAPI lets be set on a
// halted VM. What cannot be set is reported, and is no failure: the disks are what was lost.

// fieldKind is how a field of ova.xml is handed to VM.set_FIELD.
type fieldKind int

const (
	asString fieldKind = iota
	asInt
	asBool
	asMap
	asSet
)

// settable are the fields of a VM record that are set one by one, in XAPI's names. Memory and VCPUs have rules of their
// own. other_config is left alone: it belongs to many tools.
var settable = []struct {
	name string
	kind fieldKind
}{
	{"name_description", asString},
	{"tags", asSet},
	{"user_version", asInt},
	{"VCPUs_params", asMap},
	{"platform", asMap},
	{"HVM_boot_policy", asString},
	{"HVM_boot_params", asMap},
	{"PV_bootloader", asString},
	{"PV_kernel", asString},
	{"PV_ramdisk", asString},
	{"PV_args", asString},
	{"PV_bootloader_args", asString},
	{"PV_legacy_args", asString},
	{"NVRAM", asMap},
	{"actions_after_shutdown", asString},
	{"actions_after_reboot", asString},
	{"actions_after_crash", asString},
	{"xenstore_data", asMap},
	{"recommendations", asString},
}

// snapshotResets are settings that a snapshot loses. A file made from one has them in its manifest instead.
var snapshotResets = []string{"order", "start_delay", "shutdown_delay", "ha_restart_priority"}

// notInPlace are fields that only an import can bring back, with what to call them.
var notInPlace = map[string]string{
	"bios_strings": "BIOS strings", "generation_id": "the generation id", "VTPMs": "the contents of the vTPM", "VGPUs": "virtual GPUs",
}

// applySettings gives the VM the file's settings. name is the VM's true name; own are the manifest's values of
// snapshotResets, used where they are given. It returns what could not be set.
func applySettings(ctx context.Context, c *xapi.Client, vm xapi.VM, ova *xva.OVA, name string, own map[string]string) []string {
	var missed []string
	try := func(what string, err error) {
		if err != nil {
			missed = append(missed, fmt.Sprintf("%s: %v", what, err))
		}
	}
	if name != "" && name != vm.Name {
		try("name_label", c.SetVMField(ctx, vm.Ref, "name_label", name))
	}
	for _, f := range settable {
		value, ok := ova.VMField(f.name)
		if !ok {
			continue
		}
		arg, ok := argument(value, f.kind)
		if !ok || same(vm, f.name, value, f.kind) {
			continue
		}
		try(f.name, c.SetVMField(ctx, vm.Ref, f.name, arg))
	}
	try("memory", setMemory(ctx, c, vm, ova))
	try("VCPUs", setVCPUs(ctx, c, vm, ova))
	for _, field := range snapshotResets {
		try(field, setReset(ctx, c, vm, ova, field, own))
	}
	for _, field := range slices.Sorted(maps.Keys(notInPlace)) {
		if value, ok := ova.VMField(field); ok && notEmpty(value) && !same(vm, field, value, kindOf(value)) {
			missed = append(missed, notInPlace[field]+" cannot be restored in place")
		}
	}
	return missed
}

func kindOf(v xva.Value) fieldKind {
	switch {
	case v.IsStruct():
		return asMap
	case v.IsSet():
		return asSet
	}
	return asString
}

func notEmpty(v xva.Value) bool {
	switch kindOf(v) {
	case asMap:
		return len(v.Names()) > 0
	case asSet:
		return len(v.Items()) > 0
	default:
		return v.String() != "" && v.String() != "0:0"
	}
}

// argument turns a value of ova.xml into an argument of a setter; false where it has another type than it should.
func argument(v xva.Value, kind fieldKind) (any, bool) {
	switch kind {
	case asMap:
		return v.Map(), v.IsStruct()
	case asSet:
		return v.Set(), v.IsSet()
	case asInt:
		return v.Int()
	case asBool:
		return v.Bool()
	default:
		return v.String(), !v.IsStruct() && !v.IsSet()
	}
}

// same tells whether the VM has the value already, so that nothing is written without need.
func same(vm xapi.VM, field string, want xva.Value, kind fieldKind) bool {
	has, ok := vm.Fields[field]
	if !ok {
		return false
	}
	switch kind {
	case asMap:
		have, ok := stringMap(has)
		return ok && maps.Equal(have, want.Map())
	case asSet:
		have, ok := stringSet(has)
		return ok && slices.Equal(have, want.Set())
	default:
		return fmt.Sprint(has) == want.String()
	}
}

func stringMap(v any) (map[string]string, bool) {
	switch m := v.(type) {
	case map[string]string:
		return m, true
	case map[string]any:
		out := make(map[string]string, len(m))
		for k, x := range m {
			s, ok := x.(string)
			if !ok {
				return nil, false
			}
			out[k] = s
		}
		return out, true
	}
	return nil, false
}

func stringSet(v any) ([]string, bool) {
	switch l := v.(type) {
	case []string:
		return l, true
	case []any:
		out := make([]string, 0, len(l))
		for _, x := range l {
			s, ok := x.(string)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

// setMemory sets the four limits at once, as XAPI wants them.
func setMemory(ctx context.Context, c *xapi.Client, vm xapi.VM, ova *xva.OVA) error {
	var limits [4]int64
	changed := false
	for i, field := range []string{"memory_static_min", "memory_static_max", "memory_dynamic_min", "memory_dynamic_max"} {
		value, ok := ova.VMField(field)
		if !ok {
			return nil
		}
		n, ok := value.Int()
		if !ok || n < 0 {
			return fmt.Errorf("%s is %q in the file", field, value.String())
		}
		limits[i] = n
		changed = changed || !same(vm, field, value, asInt)
	}
	if !changed || limits[1] == 0 {
		return nil
	}
	_, err := c.Call(ctx, "VM.set_memory_limits", vm.Ref, limits[0], limits[1], limits[2], limits[3])
	return err
}

// setVCPUs sets maximum and startup number in the order that never has more at startup than the maximum.
func setVCPUs(ctx context.Context, c *xapi.Client, vm xapi.VM, ova *xva.OVA) error {
	limit, okLimit := fieldInt(ova, "VCPUs_max")
	startup, okStartup := fieldInt(ova, "VCPUs_at_startup")
	if !okLimit || !okStartup || limit < 1 || startup < 1 || startup > limit {
		return nil
	}
	now, err := strconv.ParseInt(fmt.Sprint(vm.Fields["VCPUs_at_startup"]), 10, 64)
	if err != nil {
		now = 0
	}
	type change struct {
		field string
		n     int64
	}
	changes := []change{{"VCPUs_at_startup", startup}, {"VCPUs_max", limit}}
	if limit >= now {
		slices.Reverse(changes)
	}
	for _, ch := range changes {
		if fmt.Sprint(vm.Fields[ch.field]) == strconv.FormatInt(ch.n, 10) {
			continue
		}
		if err := c.SetVMField(ctx, vm.Ref, ch.field, ch.n); err != nil {
			return fmt.Errorf("%s: %w", ch.field, err)
		}
	}
	return nil
}

func fieldInt(ova *xva.OVA, field string) (int64, bool) {
	v, ok := ova.VMField(field)
	if !ok {
		return 0, false
	}
	return v.Int()
}

// setReset sets one of snapshotResets from the manifest, or from the file where that describes the VM itself.
func setReset(ctx context.Context, c *xapi.Client, vm xapi.VM, ova *xva.OVA, field string, own map[string]string) error {
	want, ok := own[field]
	if !ok && len(own) == 0 {
		if v, found := ova.VMField(field); found {
			want, ok = v.String(), true
		}
	}
	if !ok || fmt.Sprint(vm.Fields[field]) == want {
		return nil
	}
	if field == "ha_restart_priority" {
		return c.SetVMField(ctx, vm.Ref, field, want)
	}
	n, err := strconv.ParseInt(want, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is no number", want)
	}
	return c.SetVMField(ctx, vm.Ref, field, n)
}
