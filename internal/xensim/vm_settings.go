package xensim

import (
	"fmt"
	"slices"
	"strconv"
)

// setting is a setter of a VM that checks more than the type of its value. It runs
// with the database locked, after op was found to be possible.
type setting struct {
	op  string
	set func(p *Pool, vm *object, args []any) error
}

func (p *Pool) registerVMSettings() {
	for name, s := range vmSettings {
		p.quick("VM."+name, func(_ *call, args []any) (any, error) {
			vm, err := p.db.need("VM", args[0].(string))
			if err != nil {
				return nil, err
			}
			if s.op != "" {
				if err := p.checkVM(vm, s.op); err != nil {
					return nil, err
				}
			}
			return "", s.set(p, vm, args[1:])
		})
	}
	p.quick("VM.compute_memory_overhead", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		return vm.num("memory_overhead"), nil
	})
	p.quick("VM.maximise_memory", func(_ *call, args []any) (any, error) {
		if _, err := p.db.need("VM", args[0].(string)); err != nil {
			return nil, err
		}
		return args[1].(int64) >> 20 << 20, nil
	})
	p.registerBlobs()
}

// vmSettings by the name of the call (xapi_vm.ml).
var vmSettings = map[string]setting{
	"set_memory_limits": {"changing_memory_limits", func(p *Pool, vm *object, a []any) error {
		return p.setMemory(vm, memory{a[0].(int64), a[2].(int64), a[3].(int64), a[1].(int64)})
	}},
	"set_memory": {"changing_memory_limits", func(p *Pool, vm *object, a []any) error {
		m := memoryOf(vm)
		m.dynamicMin, m.dynamicMax, m.staticMax = a[0].(int64), a[0].(int64), a[0].(int64)
		return p.setMemory(vm, m)
	}},
	"set_memory_static_range":  memorySetting("changing_static_range", func(m *memory, a []int64) { m.staticMin, m.staticMax = a[0], a[1] }),
	"set_memory_static_min":    memorySetting("changing_static_range", func(m *memory, a []int64) { m.staticMin = a[0] }),
	"set_memory_static_max":    memorySetting("changing_static_range", func(m *memory, a []int64) { m.staticMax = a[0] }),
	"set_memory_dynamic_range": memorySetting("changing_dynamic_range", func(m *memory, a []int64) { m.dynamicMin, m.dynamicMax = a[0], a[1] }),
	"set_memory_dynamic_min":   memorySetting("changing_dynamic_range", func(m *memory, a []int64) { m.dynamicMin = a[0] }),
	"set_memory_dynamic_max":   memorySetting("changing_dynamic_range", func(m *memory, a []int64) { m.dynamicMax = a[0] }),
	"set_VCPUs_max": {"changing_VCPUs", func(p *Pool, vm *object, a []any) error {
		return p.setVCPUs(vm, "VCPUs_max", a[0].(int64), a[0].(int64) >= vm.num("VCPUs_at_startup"))
	}},
	"set_VCPUs_at_startup": {"changing_VCPUs", func(p *Pool, vm *object, a []any) error {
		return p.setVCPUs(vm, "VCPUs_at_startup", a[0].(int64), a[0].(int64) <= vm.num("VCPUs_max"))
	}},
	"set_HVM_shadow_multiplier": {"changing_shadow_memory", func(p *Pool, vm *object, a []any) error {
		if f := a[0].(float64); f < 1 {
			return fail("INVALID_VALUE", "HVM_shadow_multiplier", fmt.Sprint(f))
		}
		p.db.set(vm, "HVM_shadow_multiplier", a[0])
		return nil
	}},
	"set_order":          notNegative("order"),
	"set_start_delay":    notNegative("start_delay"),
	"set_shutdown_delay": notNegative("shutdown_delay"),
	"set_bios_strings":   {"", func(p *Pool, vm *object, a []any) error { return p.setBIOS(vm, a[0].(map[string]string)) }},
	"copy_bios_strings": {"", func(p *Pool, vm *object, a []any) error {
		host, err := p.db.need("host", a[0].(string))
		if err != nil {
			return err
		}
		if len(vm.m("bios_strings")) > 0 {
			return fail("VM_BIOS_STRINGS_ALREADY_SET")
		}
		p.db.set(vm, "bios_strings", host.m("bios_strings"))
		return nil
	}},
	"set_NVRAM": {"changing_NVRAM", func(p *Pool, vm *object, a []any) error { p.db.set(vm, "NVRAM", a[0]); return nil }},
	"add_to_NVRAM": {"changing_NVRAM", func(p *Pool, vm *object, a []any) error {
		return p.addTo(vm, "NVRAM", a[0].(string), a[1].(string))
	}},
	"remove_from_NVRAM": {"changing_NVRAM", func(p *Pool, vm *object, a []any) error {
		p.db.drop(vm, "NVRAM", a[0].(string))
		return nil
	}},
	"set_domain_type": {"", func(p *Pool, vm *object, a []any) error {
		if a[0] == "unspecified" {
			return fail("INVALID_VALUE", "domain_type", "unspecified")
		}
		p.db.set(vm, "domain_type", a[0])
		p.db.set(vm, "HVM_boot_policy", map[bool]string{true: "BIOS order"}[a[0] == "hvm"])
		return nil
	}},
	"set_HVM_boot_policy": {"", func(p *Pool, vm *object, a []any) error {
		p.db.set(vm, "HVM_boot_policy", a[0])
		p.db.set(vm, "domain_type", map[bool]string{true: "pv", false: "hvm"}[a[0] == ""])
		return nil
	}},
	"set_suspend_VDI": {"", func(p *Pool, vm *object, a []any) error { return p.setSuspendVDI(vm, a[0].(string)) }},
}

// memory are the limits of a VM in bytes, in the order that they must have.
type memory struct{ staticMin, dynamicMin, dynamicMax, staticMax int64 }

func memoryOf(vm *object) memory {
	return memory{
		vm.num("memory_static_min"), vm.num("memory_dynamic_min"), vm.num("memory_dynamic_max"), vm.num("memory_static_max"),
	}
}

// memorySetting makes a setter of some of the limits.
func memorySetting(op string, change func(m *memory, values []int64)) setting {
	return setting{op, func(p *Pool, vm *object, args []any) error {
		values := make([]int64, len(args))
		for i, a := range args {
			values[i], _ = a.(int64)
		}
		m := memoryOf(vm)
		change(&m, values)
		return p.setMemory(vm, m)
	}}
}

// setMemory writes a VM's limits if they are in order (vm_memory_constraints.ml).
func (p *Pool) setMemory(vm *object, m memory) error {
	if m.staticMin < 0 || m.staticMin > m.dynamicMin || m.dynamicMin > m.dynamicMax || m.dynamicMax > m.staticMax {
		return fail("MEMORY_CONSTRAINT_VIOLATION", "Memory limits must satisfy: static_min ≤ dynamic_min ≤ dynamic_max ≤ static_max")
	}
	p.db.set(vm, "memory_static_min", m.staticMin)
	p.db.set(vm, "memory_dynamic_min", m.dynamicMin)
	p.db.set(vm, "memory_dynamic_max", m.dynamicMax)
	p.db.set(vm, "memory_static_max", m.staticMax)
	p.db.set(vm, "memory_target", m.dynamicMin)
	return nil
}

func (p *Pool) setVCPUs(vm *object, field string, n int64, ordered bool) error {
	if n < 1 || !ordered {
		return fail("INVALID_VALUE", "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max", strconv.FormatInt(n, 10))
	}
	p.db.set(vm, field, n)
	return nil
}

func notNegative(field string) setting {
	return setting{"", func(p *Pool, vm *object, a []any) error {
		n := a[0].(int64)
		if n < 0 {
			return fail("INVALID_VALUE", field+" must be non-negative", strconv.FormatInt(n, 10))
		}
		p.db.set(vm, field, n)
		return nil
	}}
}

// genericBIOS are the strings of a VM without its own, and settableBIOS those that
// set_bios_strings takes.
var (
	genericBIOS = map[string]string{
		"bios-vendor": "Xen", "bios-version": "", "system-manufacturer": "Xen", "system-product-name": "HVM domU", "system-version": "",
		"system-serial-number": "", "baseboard-manufacturer": "", "baseboard-product-name": "", "baseboard-version": "",
		"baseboard-serial-number": "", "baseboard-asset-tag": "", "baseboard-location-in-chassis": "", "enclosure-asset-tag": "",
		"hp-rombios": "",
	}
	settableBIOS = []string{
		"bios-vendor", "bios-version", "system-manufacturer", "system-product-name", "system-version", "system-serial-number",
		"enclosure-asset-tag", "baseboard-manufacturer", "baseboard-product-name", "baseboard-version", "baseboard-serial-number",
		"baseboard-asset-tag", "baseboard-location-in-chassis",
	}
)

// maxBIOS is the length that a BIOS string may have.
const maxBIOS = 512

func (p *Pool) setBIOS(vm *object, given map[string]string) error {
	if len(vm.m("bios_strings")) > 0 {
		return fail("VM_BIOS_STRINGS_ALREADY_SET")
	}
	out := map[string]string{}
	for k, v := range genericBIOS {
		out[k] = v
	}
	for k, v := range given {
		switch {
		case !slices.Contains(settableBIOS, k):
			return fail("INVALID_VALUE", k, "Unknown key")
		case v == "":
			return fail("INVALID_VALUE", k, "Value provided is empty")
		case len(v) > maxBIOS:
			return fail("INVALID_VALUE", k, fmt.Sprintf("%s has length more than %d characters", v, maxBIOS))
		}
		for _, b := range []byte(v) {
			if b < ' ' || b > '~' {
				return fail("INVALID_VALUE", k, v+" has non-printable ASCII characters")
			}
		}
		out[k] = v
	}
	p.db.set(vm, "bios_strings", out)
	return nil
}

// setSuspendVDI replaces the memory image of a suspended VM by a copy of it.
func (p *Pool) setSuspendVDI(vm *object, ref string) error {
	if s := vm.str("power_state"); s != suspended {
		return badPowerState(vm, suspended)
	}
	vdi, err := p.db.need("VDI", ref)
	if err != nil {
		return err
	}
	if vdi.str("type") == "cbt_metadata" {
		return fail("VDI_INCOMPATIBLE_TYPE", vm.ref, "cbt_metadata")
	}
	old := p.db.find("VDI", vm.str("suspend_VDI"))
	if old == vdi {
		return nil
	}
	if old == nil {
		return fail("HANDLE_INVALID", "VDI", vm.str("suspend_VDI"))
	}
	sums := make([]string, 2)
	for i, o := range []*object{old, vdi} {
		v := p.volumes[o.ref]
		if v == nil || v.image == nil {
			return fail("VDI_NOT_AVAILABLE", o.ref)
		}
		if sums[i], err = v.image.Digest(p.ctx); err != nil {
			return internalError("%v", err)
		}
	}
	if sums[0] != sums[1] {
		return fail("SUSPEND_VDI_REPLACEMENT_IS_NOT_IDENTICAL", old.uuid()+" : "+sums[0], vdi.uuid()+" : "+sums[1])
	}
	p.db.set(vm, "suspend_VDI", ref)
	return nil
}

// setTemplate makes a VM a template or one of a template. A template has no
// metrics of its own.
func (p *Pool) setTemplate(vm *object, on bool) error {
	if on {
		if err := p.checkVM(vm, "make_into_template"); err != nil {
			return err
		}
		if p.poolObject().is("ha_enabled") && isProtected(vm) {
			return fail("VM_IS_PROTECTED", vm.ref)
		}
		p.db.set(vm, "ha_always_run", false)
		if m := p.db.find("VM_metrics", vm.str("metrics")); m != nil {
			p.db.set(vm, "metrics", nullRef)
			p.db.remove(m)
		}
	} else if m := p.db.find("VM_metrics", vm.str("metrics")); m != nil {
		p.db.set(m, "install_time", p.now())
	}
	p.db.set(vm, "is_a_template", on)
	p.updateAllowed(vm)
	return nil
}
