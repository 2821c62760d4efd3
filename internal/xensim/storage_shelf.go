package xensim

import "slices"

// shelf is the storage of an SR that the pool has forgotten, or disks that it has:
// they are found again when the SR is introduced or scanned.
type shelf struct {
	kind   string
	config map[string]string
	size   int64
	disks  []storedVDI
}

// shelve keeps the storage of a disk whose record goes.
func (p *Pool) shelve(vdi *object) {
	sr := p.db.find("SR", vdi.str("SR"))
	v := p.volumes[vdi.ref]
	if sr == nil || v == nil {
		return
	}
	s := p.shelfOf(sr)
	fields := vdi.fields()
	for _, f := range []string{"VBDs", "snapshots", "crash_dumps", "current_operations", "SR"} {
		delete(fields, f)
	}
	s.disks = append(s.disks, storedVDI{volume: v, fields: fields})
}

func (p *Pool) shelfOf(sr *object) *shelf {
	s := p.shelves[sr.uuid()]
	if s == nil {
		s = &shelf{kind: sr.str("type"), size: sr.num("physical_size")}
		p.shelves[sr.uuid()] = s
	}
	return s
}

// takeBack makes records of what lies on an SR without one. Only the disk with the
// uuid comes back where one is given.
func (p *Pool) takeBack(sr *object, uuid string) {
	if sr.num("physical_size") < 0 {
		p.db.set(sr, "physical_size", p.cfg.SRSize)
		p.db.set(sr, "physical_utilisation", int64(0))
	}
	s := p.shelves[sr.uuid()]
	if s == nil {
		return
	}
	if s.size > 0 {
		p.db.set(sr, "physical_size", s.size)
	}
	s.disks = slices.DeleteFunc(s.disks, func(d storedVDI) bool {
		if uuid != "" && d.fields["uuid"] != uuid {
			return false
		}
		d.fields["SR"] = sr.ref
		vdi := p.db.create("VDI", d.fields)
		p.volumes[vdi.ref] = d.volume
		p.spend(sr, vdi.num("physical_utilisation"), vdi.num("virtual_size"))
		p.account(vdi)
		p.updateVDI(vdi)
		return true
	})
	if len(s.disks) == 0 {
		delete(p.shelves, sr.uuid())
	}
}

// emptyShelf frees the storage of disks that nobody can find any more.
func (p *Pool) emptyShelf(srUUID string) {
	if s := p.shelves[srUUID]; s != nil {
		for _, d := range s.disks {
			if d.volume.image != nil {
				_ = d.volume.image.Release() // its blocks stay until the pool closes
			}
		}
		delete(p.shelves, srUUID)
	}
}
