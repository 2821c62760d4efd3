package xensim

import (
	"slices"
	"strconv"
	"strings"
)

func (p *Pool) registerVBD() {
	p.quick("VBD.create", vbdCreate)
	p.quick("VBD.destroy", func(_ *call, args []any) (any, error) {
		vbd, err := p.db.need("VBD", args[0].(string))
		if err != nil {
			return nil, err
		}
		vm := p.db.find("VM", vbd.str("VM"))
		if vbd.is("currently_attached") && vm != nil {
			return nil, fail("OPERATION_NOT_ALLOWED", "VBD '"+vbd.uuid()+"' still attached to '"+vm.uuid()+"'")
		}
		p.dropVBD(vbd)
		return "", nil
	})
	p.quick("VBD.plug", c2(func(_ *call, ref string) error { return p.plugVBD(ref) }))
	p.quick("VBD.unplug", c2(func(_ *call, ref string) error { return p.unplugVBD(ref) }))
	p.quick("VBD.unplug_force", c2(func(_ *call, ref string) error { return p.unplugVBD(ref) }))
	p.quick("VBD.eject", c2(func(_ *call, ref string) error { return p.changeCD(ref, nullRef) }))
	p.quick("VBD.insert", func(_ *call, args []any) (any, error) {
		return "", p.changeCD(args[0].(string), args[1].(string))
	})
	p.quick("VBD.assert_attachable", c2(func(_ *call, ref string) error {
		vbd, err := p.db.need("VBD", ref)
		if err != nil {
			return err
		}
		return p.attachable(vbd)
	}))
}

// freeDevices gives the userdevice numbers that a VM has left.
func (p *Pool) freeDevices(vm *object) []string {
	used := map[string]bool{}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		used[vbd.str("userdevice")] = true
	}
	out := []string{}
	for i := range 16 {
		if n := strconv.Itoa(i); !used[n] {
			out = append(out, n)
		}
	}
	return out
}

func vbdCreate(c *call, args []any) (any, error) {
	p := c.pool
	f, err := p.recordFields("VBD", args[0])
	if err != nil {
		return nil, err
	}
	vbd, err := p.createVBD(f)
	if err != nil {
		return nil, err
	}
	return vbd.ref, nil
}

// createVBD makes a VBD from the fields that a constructor takes.
func (p *Pool) createVBD(f map[string]any) (*object, error) {
	ref, _ := f["VM"].(string)
	vm, err := p.db.need("VM", ref)
	if err != nil {
		return nil, err
	}
	empty, _ := f["empty"].(bool)
	kind, _ := f["type"].(string)
	mode, _ := f["mode"].(string)
	if kind == "CD" && mode == "RW" {
		return nil, fail("VBD_CDS_MUST_BE_READONLY")
	}
	if empty {
		f["VDI"] = nullRef
	} else if err := p.checkDisk(f["VDI"], kind, mode); err != nil {
		return nil, err
	}
	if vdi := p.db.find("VDI", textOf(f["VDI"])); vdi != nil && isProtected(vm) {
		if err := p.sharedSR(vdi); err != nil {
			return nil, err
		}
	}
	device, _ := f["userdevice"].(string)
	free := p.freeDevices(vm)
	if device == "autodetect" {
		if len(free) == 0 {
			return nil, fail("INVALID_DEVICE", device)
		}
		device = free[0]
	}
	device, err = deviceNumber(device)
	if err != nil {
		return nil, err
	}
	if n, _ := strconv.Atoi(device); n < 16 && !slices.Contains(free, device) {
		return nil, fail("DEVICE_ALREADY_EXISTS", device)
	}
	f["userdevice"], f["currently_attached"], f["device"] = device, false, ""
	f["metrics"] = p.db.create("VBD_metrics", nil).ref
	vbd := p.db.create("VBD", f)
	p.updateVBD(vbd)
	return vbd, nil
}

// textOf gives a string, or none where v is something else.
func textOf(v any) string { s, _ := v.(string); return s }

// deviceNumber turns the names of devices that XAPI takes into numbers.
func deviceNumber(s string) (string, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < 256 {
		return strconv.Itoa(n), nil
	}
	for _, prefix := range []string{"xvd", "hd", "sd"} {
		if letter, ok := strings.CutPrefix(s, prefix); ok && len(letter) == 1 && letter[0] >= 'a' && letter[0] <= 'p' {
			return strconv.Itoa(int(letter[0] - 'a')), nil
		}
	}
	return "", fail("INVALID_DEVICE", s)
}

func (p *Pool) checkDisk(v any, kind, mode string) error {
	ref, _ := v.(string)
	vdi, err := p.db.need("VDI", ref)
	if err != nil {
		return err
	}
	if !vdi.is("managed") {
		return fail("VDI_NOT_MANAGED", ref)
	}
	if vdi.str("type") == "cbt_metadata" {
		return fail("VDI_INCOMPATIBLE_TYPE", ref, "cbt_metadata")
	}
	sr := p.db.find("SR", vdi.str("SR"))
	iso := sr != nil && sr.str("content_type") == "iso"
	if kind == "Disk" && iso {
		return fail("VDI_INCOMPATIBLE_TYPE", ref, vdi.str("type"))
	}
	if mode == "RW" && vdi.is("read_only") {
		return fail("VDI_READONLY", ref)
	}
	return nil
}

// dropVBD removes a VBD and its metrics.
func (p *Pool) dropVBD(vbd *object) {
	if m := p.db.find("VBD_metrics", vbd.str("metrics")); m != nil {
		p.db.remove(m)
	}
	vdi := p.db.find("VDI", vbd.str("VDI"))
	p.db.remove(vbd)
	if vdi != nil {
		p.updateVDI(vdi)
	}
}

// attachVBD writes that a VBD is or is not attached.
func (p *Pool) attachVBD(vbd *object, on bool) {
	p.db.set(vbd, "currently_attached", on)
	if on && vbd.str("device") == "" {
		if n, err := strconv.Atoi(vbd.str("userdevice")); err == nil && n < 26 {
			p.db.set(vbd, "device", "xvd"+string(rune('a'+n)))
		}
	}
	p.updateVBD(vbd)
}

// attachable says why a VBD's disk cannot be used: by another VM in a mode that
// excludes it, or because its host does not see the SR.
func (p *Pool) attachable(vbd *object) error {
	vdi := p.db.find("VDI", vbd.str("VDI"))
	if vdi == nil {
		return nil
	}
	if err := p.faultOnAttach(vdi.ref); err != nil {
		return err
	}
	for _, other := range p.db.many("VBD", vdi.refs("VBDs")) {
		if other == vbd || !other.is("currently_attached") || vdi.is("sharable") {
			continue
		}
		if other.str("mode") == "RW" || vbd.str("mode") == "RW" {
			return fail("VDI_IN_USE", vdi.ref, "attach")
		}
	}
	return nil
}

func (p *Pool) plugVBD(ref string) error {
	vbd, err := p.db.need("VBD", ref)
	if err != nil {
		return err
	}
	vm, err := p.db.need("VM", vbd.str("VM"))
	if err != nil {
		return err
	}
	if vbd.is("currently_attached") {
		return fail("DEVICE_ALREADY_ATTACHED", ref)
	}
	if s := vm.str("power_state"); s != running && s != paused {
		return fail("VM_BAD_POWER_STATE", vm.ref, "running", strings.ToLower(s))
	}
	if err := p.attachable(vbd); err != nil {
		return err
	}
	p.attachVBD(vbd, true)
	return nil
}

func (p *Pool) unplugVBD(ref string) error {
	vbd, err := p.db.need("VBD", ref)
	if err != nil {
		return err
	}
	if !vbd.is("currently_attached") {
		return fail("DEVICE_ALREADY_DETACHED", ref)
	}
	if !vbd.is("unpluggable") && vbd.str("type") == "Disk" {
		return fail("VBD_NOT_UNPLUGGABLE", ref)
	}
	p.attachVBD(vbd, false)
	return nil
}

// changeCD ejects (the null reference) or inserts an ISO.
func (p *Pool) changeCD(ref, vdi string) error {
	vbd, err := p.db.need("VBD", ref)
	if err != nil {
		return err
	}
	if vbd.str("type") != "CD" {
		return fail("VBD_NOT_REMOVABLE_MEDIA", ref)
	}
	if vdi == nullRef {
		if vbd.is("empty") {
			return fail("VBD_IS_EMPTY", ref)
		}
	} else {
		if !vbd.is("empty") {
			return fail("VBD_NOT_EMPTY", ref)
		}
		if _, err := p.db.need("VDI", vdi); err != nil {
			return err
		}
	}
	p.db.set(vbd, "VDI", vdi)
	p.db.set(vbd, "empty", vdi == nullRef)
	p.updateVBD(vbd)
	return nil
}

// updateVBD recomputes what may be done with a VBD and its disk.
func (p *Pool) updateVBD(vbd *object) {
	out := []string{"attach"}
	if vbd.str("type") == "CD" {
		if vbd.is("empty") {
			out = append(out, "insert")
		} else {
			out = append(out, "eject")
		}
	}
	vm := p.db.find("VM", vbd.str("VM"))
	if vm != nil && vm.str("power_state") == running {
		switch {
		case !vbd.is("currently_attached"):
			out = append(out, "plug")
		case vbd.is("unpluggable"):
			out = append(out, "unplug", "unplug_force")
		}
	}
	if !slices.Equal(out, vbd.refs("allowed_operations")) {
		p.db.set(vbd, "allowed_operations", out)
	}
	if vdi := p.db.find("VDI", vbd.str("VDI")); vdi != nil {
		p.updateVDI(vdi)
	}
}
