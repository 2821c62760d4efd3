package xensim

import (
	"slices"
	"strings"
)

func (p *Pool) registerSR() {
	refresh := func(_ *call, args []any) (any, error) {
		sr, err := p.db.need("SR", args[0].(string))
		if err != nil {
			return nil, err
		}
		if err := p.usableSR(sr); err != nil {
			return nil, err
		}
		p.takeBack(sr, "")
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			p.account(vdi)
		}
		return "", nil
	}
	p.quick("SR.scan", refresh)
	p.quick("SR.update", refresh)
	p.quick("SR.forget", srForget)
	p.quick("PBD.plug", c2(func(c *call, ref string) error { return p.plugPBD(ref, true) }))
	p.quick("PBD.unplug", c2(func(c *call, ref string) error { return p.plugPBD(ref, false) }))
	p.quick("PBD.destroy", func(_ *call, args []any) (any, error) {
		pbd, err := p.db.need("PBD", args[0].(string))
		if err != nil {
			return nil, err
		}
		if pbd.is("currently_attached") {
			return nil, fail("OPERATION_NOT_ALLOWED", "PBD is currently attached")
		}
		p.db.remove(pbd)
		if sr := p.db.find("SR", pbd.str("SR")); sr != nil {
			p.updateSR(sr)
		}
		return "", nil
	})
	p.registerStorage()
}

// isThick says whether the SR gives every active disk its whole size.
func isThick(sr *object) bool { return strings.HasPrefix(sr.str("type"), "lvm") }

// vhdOverhead is what an empty VHD takes: footers, header and block table.
func vhdOverhead(size int64) int64 {
	blocks := (size + 2<<20 - 1) / (2 << 20)
	return 3*512 + 1024 + (4*blocks+511)/512*512
}

// usableSR wants the SR plugged somewhere.
func (p *Pool) usableSR(sr *object) error {
	pbds := p.db.many("PBD", sr.refs("PBDs"))
	if len(pbds) == 0 {
		return fail("SR_HAS_NO_PBDS", sr.ref)
	}
	if !slices.ContainsFunc(pbds, func(o *object) bool { return o.is("currently_attached") }) {
		return fail("SR_NOT_ATTACHED", sr.ref)
	}
	return nil
}

// sees says whether a host has the SR plugged.
func (p *Pool) sees(h *simHost, sr *object) bool {
	return slices.ContainsFunc(p.db.many("PBD", sr.refs("PBDs")), func(o *object) bool {
		return o.str("host") == h.ref && o.is("currently_attached")
	})
}

// room refuses what does not fit.
func (p *Pool) room(sr *object, need int64) error {
	if p.faultSRFull(sr) || sr.num("physical_size")-sr.num("physical_utilisation") < need {
		return fail("SR_BACKEND_FAILURE_44", "", "There is insufficient space", "")
	}
	return nil
}

// account writes what a VDI takes into its record and its SR's.
func (p *Pool) account(vdi *object) {
	sr := p.db.find("SR", vdi.str("SR"))
	v := p.volumes[vdi.ref]
	if sr == nil || v == nil || sr.str("content_type") == "iso" {
		return
	}
	size := vdi.num("virtual_size")
	used := v.own + vhdOverhead(size)
	if isThick(sr) && vdi.is("managed") && !vdi.is("is_a_snapshot") {
		used = size + vhdOverhead(size)
	}
	p.spend(sr, used-vdi.num("physical_utilisation"), 0)
	p.db.set(vdi, "physical_utilisation", used)
}

// spend adds to what an SR has given away.
func (p *Pool) spend(sr *object, used, virtual int64) {
	p.db.set(sr, "physical_utilisation", sr.num("physical_utilisation")+used)
	p.db.set(sr, "virtual_allocation", sr.num("virtual_allocation")+virtual)
}

// written accounts for n more bytes in a VDI's own layer.
func (p *Pool) written(vdi *object, n int64) {
	v := p.volumes[vdi.ref]
	v.own = min(v.own+n, vdi.num("virtual_size"))
	p.account(vdi)
}

// storageOf gives the SRs of a VM's disks and CDs.
func (p *Pool) storageOf(vm *object) []*object {
	var out []*object
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		vdi := p.db.find("VDI", vbd.str("VDI"))
		if vdi == nil {
			continue
		}
		if sr := p.db.find("SR", vdi.str("SR")); sr != nil && !slices.Contains(out, sr) {
			out = append(out, sr)
		}
	}
	if vdi := p.db.find("VDI", vm.str("suspend_VDI")); vdi != nil {
		if sr := p.db.find("SR", vdi.str("SR")); sr != nil && !slices.Contains(out, sr) {
			out = append(out, sr)
		}
	}
	return out
}

func (p *Pool) plugPBD(ref string, plug bool) error {
	pbd, err := p.db.need("PBD", ref)
	if err != nil {
		return err
	}
	if sr := p.db.find("SR", pbd.str("SR")); !plug && sr != nil {
		if p.poolObject().is("ha_enabled") {
			for _, ref := range p.poolObject().refs("ha_statefiles") {
				if vdi := p.db.find("VDI", ref); vdi != nil && vdi.str("SR") == sr.ref {
					return fail("HA_IS_ENABLED")
				}
			}
		}
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			for _, vbd := range p.db.many("VBD", vdi.refs("VBDs")) {
				vm := p.db.find("VM", vbd.str("VM"))
				if vbd.is("currently_attached") && vm != nil && vm.str("resident_on") == pbd.str("host") {
					return fail("VDI_IN_USE", vdi.ref, "PBD.unplug")
				}
			}
		}
	}
	sr := p.db.find("SR", pbd.str("SR"))
	if h := p.hostByRef(pbd.str("host")); plug && (h == nil || h.dead) {
		return fail("HOST_OFFLINE", pbd.str("host"))
	}
	if plug && sr != nil {
		if err := checkDriver(sr.str("type"), pbd.m("device_config")); err != nil {
			return err
		}
		p.takeBack(sr, "")
	}
	p.db.set(pbd, "currently_attached", plug)
	if sr != nil {
		p.updateSR(sr)
	}
	return nil
}

func srForget(c *call, args []any) (any, error) {
	p := c.pool
	sr, err := p.db.need("SR", args[0].(string))
	if err != nil {
		return nil, err
	}
	if err := p.checkSR(sr, "forget"); err != nil {
		return nil, err
	}
	s := p.shelfOf(sr)
	for _, pbd := range p.db.many("PBD", sr.refs("PBDs")) {
		s.config = pbd.m("device_config")
	}
	for _, vdi := range p.db.many("VDI", slices.Clone(sr.refs("VDIs"))) {
		p.shelve(vdi)
		p.forgetVDI(vdi)
	}
	p.dropSR(sr)
	return "", nil
}
