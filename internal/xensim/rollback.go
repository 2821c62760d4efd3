package xensim

import (
	"maps"
	"slices"
)

// savedObject is a record as the database on disk holds it.
type savedObject struct {
	object *object
	vals   []any
}

// flushDatabase keeps what the database on disk would hold now. XAPI writes it
// lazily, so that what follows is lost if XAPI or its host dies within the next
// minutes (db_cache_impl.ml). The database is locked.
func (p *Pool) flushDatabase() {
	p.flushed = map[string]map[string]savedObject{}
	for class, table := range p.db.tables {
		if !kept(class) {
			continue
		}
		saved := make(map[string]savedObject, len(table))
		for ref, o := range table {
			saved[ref] = savedObject{o, copyValues(o.vals)}
		}
		p.flushed[class] = saved
	}
}

// copyValues copies sets too: those that mirror a reference grow in place.
func copyValues(vals []any) []any {
	out := slices.Clone(vals)
	for i, v := range out {
		if s, ok := v.([]string); ok {
			out[i] = append([]string{}, s...)
		}
	}
	return out
}

// storedVDI is what the storage itself knows of a disk.
type storedVDI struct {
	volume *volume
	fields map[string]any
}

// rollBack is what a start after a crash finds: the database as it was last
// flushed, storage and domains as they are. Sessions and tasks are gone already.
func (p *Pool) rollBack() {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if p.flushed != nil {
		p.installDatabase(p.flushed)
	}
}

// installDatabase puts other records in the place of those that there are; storage
// and domains stay. The database is locked.
func (p *Pool) installDatabase(records map[string]map[string]savedObject) {
	stored := map[string]storedVDI{}
	for ref, v := range p.volumes {
		stored[ref] = storedVDI{v, p.db.find("VDI", ref).fields()}
	}
	states := map[string]map[string]any{}
	for class, fields := range liveFields {
		for ref, o := range p.db.tables[class] {
			states[ref] = map[string]any{}
			for _, f := range fields {
				states[ref][f] = o.get(f)
			}
		}
	}
	for class, saved := range records {
		p.restoreTable(class, saved)
	}
	p.flushed = nil
	p.scanAfterStart(stored)
	for class, fields := range liveFields {
		for ref, o := range p.db.tables[class] {
			for _, f := range fields {
				if live, ok := states[ref]; ok {
					p.db.set(o, f, live[f])
				} else {
					p.db.set(o, f, stopped[f])
				}
			}
		}
	}
	for _, vm := range p.db.all("VM") {
		p.db.set(vm, "current_operations", map[string]string{})
		if p.db.find("VDI", vm.str("suspend_VDI")) == nil {
			p.db.set(vm, "suspend_VDI", nullRef)
		}
		p.updateAllowed(vm)
	}
}

// liveFields follow domains and not the database; stopped is what they are for
// something that has no domain.
var (
	liveFields = map[string][]string{
		"VM": {"power_state", "resident_on", "domid"}, "VBD": {"currently_attached"}, "VIF": {"currently_attached"},
	}
	stopped = map[string]any{"power_state": halted, "resident_on": nullRef, "domid": int64(-1), "currently_attached": false}
)

// restoreTable puts one class's records back.
func (p *Pool) restoreTable(class string, saved map[string]savedObject) {
	db := p.db
	for ref, o := range maps.Clone(db.tables[class]) {
		if _, kept := saved[ref]; !kept {
			delete(db.tables[class], ref)
			db.gen++
			db.deleted = append(db.deleted, deletion{class, ref, o.created, db.gen})
		}
	}
	clear(db.byUUID[class])
	for ref, s := range saved {
		if db.tables[class][ref] == nil {
			db.gen++
			s.object.created = db.gen // to those who listen it is new
			db.tables[class][ref] = s.object
		}
		s.object.vals = s.vals
		db.touch(s.object)
		if class != "event" && s.object.class.Field("uuid") != nil {
			db.byUUID[class][s.object.uuid()] = s.object
		}
	}
	db.wake()
}

// scanAfterStart brings the records of disks in line with the storage: what is
// not there any more goes, what no record names is introduced again, under a new
// reference.
func (p *Pool) scanAfterStart(stored map[string]storedVDI) {
	p.volumes = map[string]*volume{}
	record := func(ref string, s storedVDI) *object {
		if vdi := p.db.find("VDI", ref); vdi != nil {
			return vdi
		}
		uuid, _ := s.fields["uuid"].(string)
		return p.db.byUUID["VDI"][uuid]
	}
	for ref, s := range stored {
		if vdi := record(ref, s); vdi != nil {
			p.volumes[vdi.ref] = s.volume
			for _, f := range []string{"virtual_size", "sm_config", "managed", "location"} {
				p.db.set(vdi, f, s.fields[f])
			}
		}
	}
	for _, vdi := range p.db.all("VDI") {
		if p.volumes[vdi.ref] == nil {
			p.forgetVDI(vdi)
		}
	}
	for ref, s := range stored {
		if record(ref, s) == nil {
			vdi := p.db.create("VDI", s.fields)
			p.volumes[vdi.ref] = s.volume
		}
	}
	for _, sr := range p.db.all("SR") {
		var used, virtual int64
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			used, virtual = used+vdi.num("physical_utilisation"), virtual+vdi.num("virtual_size")
		}
		p.db.set(sr, "physical_utilisation", used)
		p.db.set(sr, "virtual_allocation", virtual)
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			p.account(vdi)
			p.updateVDI(vdi)
		}
	}
}
