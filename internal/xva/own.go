package xva

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
)

// MaxOwnRecord bounds a VM's own record, in bytes of its JSON.
const MaxOwnRecord = 1 << 20

// ownFields are the fields of a VM's record that can be brought back, and that are kept beside an export of its snapshot: a
// snapshot resets some of them, and which ones depends on the release. References mean nothing in another pool. NVRAM, which
// holds secrets and is large, is the same in the snapshot.
var ownFields = []string{
	"uuid", "name_label", "name_description", "user_version", "tags", "other_config", "order", "start_delay", "shutdown_delay",
	"ha_restart_priority", "ha_always_run", "memory_static_max", "memory_static_min", "memory_dynamic_max", "memory_dynamic_min",
	"memory_target", "VCPUs_params", "VCPUs_max", "VCPUs_at_startup", "actions_after_softreboot", "actions_after_shutdown",
	"actions_after_reboot", "actions_after_crash", "PV_bootloader", "PV_kernel", "PV_ramdisk", "PV_args", "PV_bootloader_args",
	"PV_legacy_args", "HVM_boot_policy", "HVM_boot_params", "HVM_shadow_multiplier", "platform", "PCI_bus", "recommendations",
	"xenstore_data", "bios_strings", "version", "generation_id", "hardware_platform_version", "has_vendor_device",
	"reference_label", "domain_type",
}

// OwnRecord writes the VM's own record as JSON, of its fields as they were decoded: strings, booleans, numbers, and lists and
// maps of strings. What is neither is left out. The result is at most MaxOwnRecord bytes long.
func OwnRecord(fields map[string]any) ([]byte, error) {
	own := map[string]any{}
	for _, name := range ownFields {
		v, ok := fields[name]
		if !ok {
			continue
		}
		if n, isInt := v.(int64); isInt {
			v = strconv.FormatInt(n, 10) // as XAPI writes integers
		}
		if _, err := ownValue(v); err == nil {
			own[name] = v
		}
	}
	b, err := json.Marshal(own)
	if err != nil {
		return nil, fmt.Errorf("write the VM's own record: %w", err)
	}
	if len(b) > MaxOwnRecord {
		return nil, fmt.Errorf("the VM's own record has %d bytes, %d are the most", len(b), MaxOwnRecord)
	}
	return b, nil
}

// WithOwn gives an ova.xml that describes the VM itself where o describes its snapshot: the fields of record, which OwnRecord
// wrote, take the place of o's. Fields that OwnRecord does not write are ignored, so that what a newer version adds does no
// harm. An empty record changes nothing.
func (o *OVA) WithOwn(record []byte) (*OVA, error) {
	if len(record) == 0 {
		return o, nil
	}
	if len(record) > MaxOwnRecord {
		return nil, fmt.Errorf("xva: the VM's own record has %d bytes, %d are the most", len(record), MaxOwnRecord)
	}
	var own map[string]any
	d := json.NewDecoder(bytes.NewReader(record))
	d.UseNumber()
	if err := d.Decode(&own); err != nil {
		return nil, fmt.Errorf("xva: the VM's own record: %w", err)
	}
	if d.More() {
		return nil, fmt.Errorf("xva: something follows the VM's own record")
	}
	vm := o.objects[o.vm].record
	for _, name := range ownFields {
		v, ok := own[name]
		if !ok {
			continue
		}
		value, err := ownValue(v)
		if err != nil {
			return nil, fmt.Errorf("xva: field %s of the VM's own record: %w", name, err)
		}
		vm = vm.with(name, value)
	}
	out := *o
	out.objects = slices.Clone(o.objects)
	obj := out.objects[o.vm]
	obj.record, obj.whole = vm, obj.whole.with("snapshot", vm)
	out.objects[o.vm] = obj
	all := make([]Value, len(out.objects))
	for i := range out.objects {
		all[i] = out.objects[i].whole
	}
	out.root = o.root.with("objects", set(all...))
	return &out, nil
}

// ownValue turns a value of the record into one of ova.xml.
func ownValue(v any) (Value, error) {
	switch v := v.(type) {
	case string:
		return text(v), checkText("a string", v)
	case bool:
		return boolean(v), nil
	case json.Number:
		f, err := v.Float64()
		return double(strconv.FormatFloat(f, 'g', -1, 64)), err
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) { // which JSON cannot hold, and XAPI does not take
			return Value{}, fmt.Errorf("%g is no number", v)
		}
		return double(strconv.FormatFloat(v, 'g', -1, 64)), nil
	case []any:
		var items []Value
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return Value{}, fmt.Errorf("a list of other things than strings")
			}
			if err := checkText("a string", s); err != nil {
				return Value{}, err
			}
			items = append(items, text(s))
		}
		return set(items...), nil
	case map[string]any:
		m := structOf()
		for _, key := range slices.Sorted(maps.Keys(v)) {
			s, ok := v[key].(string)
			if !ok {
				return Value{}, fmt.Errorf("a map of other things than strings")
			}
			for _, part := range []string{key, s} {
				if err := checkText("a string", part); err != nil {
					return Value{}, err
				}
			}
			m = m.with(key, text(s))
		}
		return m, nil
	}
	return Value{}, fmt.Errorf("%T is no value of a record", v)
}
