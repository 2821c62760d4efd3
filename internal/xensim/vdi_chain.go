package xensim

// vhdChildren gives the VDIs whose VHD parent has the uuid.
func (p *Pool) vhdChildren(base *object) []*object {
	var out []*object
	sr := p.db.find("SR", base.str("SR"))
	if sr == nil {
		return nil
	}
	for _, v := range p.db.many("VDI", sr.refs("VDIs")) {
		if v.m("sm_config")["vhd-parent"] == base.uuid() {
			out = append(out, v)
		}
	}
	return out
}

// collectBase removes a base copy without children at once, and one with a single
// child after a while, as the storage manager's coalescing does.
func (p *Pool) collectBase(uuid string) {
	base := p.db.byUUID["VDI"][uuid]
	if base == nil {
		return
	}
	switch len(p.vhdChildren(base)) {
	case 0:
		parent := base.m("sm_config")["vhd-parent"]
		p.forgetVDI(base)
		p.collectBase(parent)
	case 1:
		p.spawn(func() {
			if p.wait(p.ctx, coalesceTime) != nil {
				return
			}
			p.db.mu.Lock()
			defer p.db.mu.Unlock()
			p.coalesce(uuid)
		})
	}
}

func (p *Pool) coalesce(uuid string) {
	base := p.db.byUUID["VDI"][uuid]
	if base == nil {
		return
	}
	children := p.vhdChildren(base)
	if len(children) != 1 {
		return
	}
	child := children[0]
	p.volumes[child.ref].own += p.volumes[base.ref].own
	if parent := base.m("sm_config")["vhd-parent"]; parent != "" {
		p.db.put(child, "sm_config", "vhd-parent", parent)
	} else {
		p.db.drop(child, "sm_config", "vhd-parent")
	}
	p.forgetVDI(base)
	p.account(child)
}

// chain counts the VHDs from a VDI to its root.
func (p *Pool) chain(vdi *object) int {
	n := 1
	for {
		parent := p.db.byUUID["VDI"][vdi.m("sm_config")["vhd-parent"]]
		if parent == nil || n > 2*maxChain {
			return n
		}
		vdi, n = parent, n+1
	}
}

// deriveVDI serves VDI.snapshot and VDI.clone.
func (c *call) deriveVDI(ref string, snapshot bool) (any, error) {
	p := c.pool
	op := "clone"
	if snapshot {
		op = "snapshot"
	}
	made := ""
	err := c.patiently(standard, func() error {
		return p.locked(func() error {
			vdi, err := p.needVDI(ref, op)
			if err != nil {
				return err
			}
			out, err := p.forkVDI(vdi, snapshot)
			if err == nil {
				made = out.ref
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

// forkVDI makes a snapshot or clone: both share a hidden base copy with the
// original from then on.
func (p *Pool) forkVDI(vdi *object, snapshot bool) (*object, error) {
	v := p.volumes[vdi.ref]
	sr := p.db.find("SR", vdi.str("SR"))
	if sr == nil || v == nil || v.image == nil {
		return nil, fail("VDI_NOT_AVAILABLE", vdi.ref)
	}
	if err := p.usableSR(sr); err != nil {
		return nil, err
	}
	if p.chain(vdi) >= maxChain {
		return nil, fail("SR_BACKEND_FAILURE_109", "", "The snapshot chain is too long", "")
	}
	need := 2 * vhdOverhead(vdi.num("virtual_size"))
	if isThick(sr) {
		need += vdi.num("virtual_size")
	}
	if err := p.room(sr, need); err != nil {
		return nil, err
	}
	image, err := v.image.Snapshot()
	if err != nil {
		return nil, internalError("%v", err)
	}
	p.hideBase(vdi, v, sr)
	sm := map[string]string{"vhd-parent": vdi.m("sm_config")["vhd-parent"]}
	fields := map[string]any{
		"name_label": vdi.name(), "name_description": vdi.str("name_description"), "type": vdi.str("type"),
		"other_config": vdi.m("other_config"), "tags": vdi.refs("tags"), "sm_config": sm,
		"xenstore_data": vdi.m("xenstore_data"), "sharable": vdi.is("sharable"), "read_only": vdi.is("read_only"),
	}
	if snapshot {
		fields["is_a_snapshot"], fields["snapshot_of"], fields["snapshot_time"] = true, vdi.ref, p.now()
	}
	made := p.addVDI(sr, image, 0, fields)
	if snapshot {
		p.forkLog(vdi, made)
	}
	return made, nil
}

// hideBase moves what the VDI's own layer holds into a base copy, unless it holds
// nothing. That of a running VM always holds something: guests never stop writing,
// and chains grow with every snapshot.
func (p *Pool) hideBase(vdi *object, v *volume, sr *object) {
	parent := vdi.m("sm_config")["vhd-parent"]
	if v.own == 0 && parent != "" && !p.inUseByGuest(vdi) {
		return
	}
	sm := map[string]string{}
	if parent != "" {
		sm["vhd-parent"] = parent
	}
	base := p.addVDI(sr, nil, v.own, map[string]any{
		"name_label": "base copy", "virtual_size": vdi.num("virtual_size"), "type": vdi.str("type"), "sm_config": sm,
		"read_only": true,
	})
	v.own = 0
	p.db.put(vdi, "sm_config", "vhd-parent", base.uuid())
	p.account(vdi)
}

// inUseByGuest says whether a running VM may write to a disk.
func (p *Pool) inUseByGuest(vdi *object) bool {
	for _, vbd := range p.db.many("VBD", vdi.refs("VBDs")) {
		if vbd.is("currently_attached") && vbd.str("mode") == "RW" {
			return true
		}
	}
	return false
}
