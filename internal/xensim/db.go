package xensim

import (
	"maps"
	"slices"
	"sync"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// object is a record in the database. Its values are never changed in place: a
// set or map that changes is replaced, so that a copy of vals is a snapshot.
type object struct {
	class *model.Class
	ref   string
	vals  []any
	// created and modified are generations of the database.
	created, modified uint64
}

func (o *object) get(name string) any             { return o.vals[o.class.Field(name).Index] }
func (o *object) str(name string) string          { s, _ := o.get(name).(string); return s }
func (o *object) num(name string) int64           { n, _ := o.get(name).(int64); return n }
func (o *object) is(name string) bool             { b, _ := o.get(name).(bool); return b }
func (o *object) refs(name string) []string       { s, _ := o.get(name).([]string); return s }
func (o *object) m(name string) map[string]string { m, _ := o.get(name).(map[string]string); return m }
func (o *object) uuid() string                    { return o.str("uuid") }
func (o *object) name() string                    { return o.str("name_label") }

// fields gives a copy of the object's values by name.
func (o *object) fields() map[string]any {
	out := make(map[string]any, len(o.vals))
	for i, f := range o.class.Fields {
		out[f.Name] = o.vals[i]
	}
	return out
}

// deletion remembers that an object went, for events.
type deletion struct {
	class, ref string
	created    uint64
	gen        uint64
}

const maxDeletions = 20000

// database holds every record. Its methods want mu held.
type database struct {
	mu      sync.Mutex
	model   *model.Model
	tables  map[string]map[string]*object
	byUUID  map[string]map[string]*object
	gen     uint64
	changed chan struct{}
	deleted []deletion
	newUUID func() string
}

func newDatabase(m *model.Model, newUUID func() string) *database {
	db := &database{
		model: m, tables: map[string]map[string]*object{}, byUUID: map[string]map[string]*object{},
		newUUID: newUUID,
	}
	for _, c := range m.Classes {
		db.tables[c.Name] = map[string]*object{}
		db.byUUID[c.Name] = map[string]*object{}
	}
	return db
}

// inverses names, for a field that holds one reference, the set on the other
// side that mirrors it.
var inverses = map[string]string{
	"VBD.VM": "VM.VBDs", "VBD.VDI": "VDI.VBDs", "VIF.VM": "VM.VIFs", "VIF.network": "network.VIFs",
	"VDI.SR": "SR.VDIs", "PBD.SR": "SR.PBDs", "PBD.host": "host.PBDs", "VM.resident_on": "host.resident_VMs",
	"VM.snapshot_of": "VM.snapshots", "VM.parent": "VM.children", "VDI.snapshot_of": "VDI.snapshots",
	"task.subtask_of": "task.subtasks", "console.VM": "VM.consoles", "PIF.host": "host.PIFs",
	"PIF.network": "network.PIFs", "VTPM.VM": "VM.VTPMs", "crashdump.VM": "VM.crash_dumps", "crashdump.VDI": "VDI.crash_dumps",
	"PIF.bond_slave_of": "Bond.slaves", "Bond.master": "PIF.bond_master_of", "VLAN.tagged_PIF": "PIF.VLAN_slave_of",
	"tunnel.access_PIF": "PIF.tunnel_access_PIF_of", "tunnel.transport_PIF": "PIF.tunnel_transport_PIF_of",
	"network_sriov.physical_PIF": "PIF.sriov_physical_PIF_of", "network_sriov.logical_PIF": "PIF.sriov_logical_PIF_of",
	"host_cpu.host": "host.host_CPUs", "host_crashdump.host": "host.crashdumps", "host_patch.host": "host.patches",
	"host_patch.pool_patch": "pool_patch.host_patches", "Feature.host": "host.features", "Certificate.host": "host.certificates",
	"PCI.host": "host.PCIs", "PGPU.host": "host.PGPUs", "PUSB.host": "host.PUSBs",
	"VM.protection_policy": "VMPP.VMs", "VM.snapshot_schedule": "VMSS.VMs", "VM.appliance": "VM_appliance.VMs",
	"PGPU.GPU_group": "GPU_group.PGPUs", "VGPU.GPU_group": "GPU_group.VGPUs", "VGPU.type": "VGPU_type.VGPUs", "VGPU.VM": "VM.VGPUs",
	"VGPU.resident_on": "PGPU.resident_VGPUs", "VDI.metadata_of_pool": "pool.metadata_VDIs", "SR.introduced_by": "DR_task.introduced_SRs",
	"PUSB.USB_group": "USB_group.PUSBs", "VUSB.USB_group": "USB_group.VUSBs", "VUSB.VM": "VM.VUSBs",
	"PVS_server.site": "PVS_site.servers", "PVS_proxy.site": "PVS_site.proxies", "PVS_cache_storage.site": "PVS_site.cache_storage",
	"Cluster_host.cluster": "Cluster.cluster_hosts",
}

// inverse is one side of inverses, split.
type inverse struct{ class, field string }

func inverseOf(class, field string) (inverse, bool) {
	s, ok := inverses[class+"."+field]
	if !ok {
		return inverse{}, false
	}
	for i := range len(s) {
		if s[i] == '.' {
			return inverse{s[:i], s[i+1:]}, true
		}
	}
	return inverse{}, false
}

// find gives an object, or nil.
func (db *database) find(class, ref string) *object { return db.tables[class][ref] }

// need gives an object or HANDLE_INVALID.
func (db *database) need(class, ref string) (*object, error) {
	if o := db.tables[class][ref]; o != nil {
		return o, nil
	}
	return nil, fail("HANDLE_INVALID", class, ref)
}

// all gives the objects of a class in the order of their creation.
func (db *database) all(class string) []*object {
	return slices.SortedFunc(maps.Values(db.tables[class]), func(a, b *object) int {
		if a.created < b.created {
			return -1
		}
		return 1
	})
}

// many gives the objects behind refs, leaving out those that are gone.
func (db *database) many(class string, refs []string) []*object {
	out := make([]*object, 0, len(refs))
	for _, r := range refs {
		if o := db.find(class, r); o != nil {
			out = append(out, o)
		}
	}
	return out
}

// touch makes an event of a change to o and wakes who waits for one.
func (db *database) touch(o *object) {
	db.gen++
	o.modified = db.gen
	db.wake()
}

func (db *database) wake() {
	if db.changed != nil {
		close(db.changed)
		db.changed = nil
	}
}

// change gives a channel that is closed at the next change.
func (db *database) change() <-chan struct{} {
	if db.changed == nil {
		db.changed = make(chan struct{})
	}
	return db.changed
}

// create makes a record from defaults and the given fields. Fields that the class
// does not have are ignored.
func (db *database) create(class string, fields map[string]any) *object {
	return db.insert(class, "OpaqueRef:"+db.newUUID(), fields)
}

// insert is create with a reference of the caller's choice.
func (db *database) insert(class, ref string, fields map[string]any) *object {
	c := db.model.Class(class)
	o := &object{class: c, ref: ref, vals: make([]any, len(c.Fields))}
	for i, f := range c.Fields {
		o.vals[i] = f.Default
		if v, ok := fields[f.Name]; ok && !isNil(v) {
			o.vals[i] = v
		}
		if _, mirrored := mirrors[class+"."+f.Name]; mirrored {
			o.vals[i] = []string{}
		}
	}
	if f := c.Field("uuid"); f != nil && o.vals[f.Index] == "" {
		o.vals[f.Index] = db.newUUID()
	}
	db.gen++
	o.created, o.modified = db.gen, db.gen
	db.tables[class][o.ref] = o
	if c.Field("uuid") != nil {
		db.byUUID[class][o.uuid()] = o
	}
	for _, f := range c.Fields {
		if inv, ok := inverseOf(class, f.Name); ok {
			db.join(inv, o.str(f.Name), o.ref)
		}
	}
	db.wake()
	return o
}

// isNil says whether a field was left out.
func isNil(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case []string:
		return v == nil
	case map[string]string:
		return v == nil
	}
	return false
}

// mirrors are the sets that follow from a reference on the other side.
var mirrors = func() map[string]bool {
	out := map[string]bool{}
	for _, v := range inverses {
		out[v] = true
	}
	return out
}()

// set changes a field, keeps the inverse set and makes an event.
func (db *database) set(o *object, field string, v any) {
	i := o.class.Field(field).Index
	old := o.vals[i]
	switch v.(type) {
	case string, int64, float64, bool, model.DateTime:
		if old == v {
			return
		}
	}
	o.vals[i] = v
	if inv, ok := inverseOf(o.class.Name, field); ok {
		db.leave(inv, old.(string), o.ref)
		db.join(inv, v.(string), o.ref)
	}
	if field == "uuid" {
		delete(db.byUUID[o.class.Name], old.(string))
		db.byUUID[o.class.Name][v.(string)] = o
	}
	if db.tables[o.class.Name][o.ref] == o {
		db.touch(o)
	}
}

func (db *database) join(inv inverse, target, ref string) {
	if t := db.find(inv.class, target); t != nil {
		i := t.class.Field(inv.field).Index
		t.vals[i] = append(t.refs(inv.field), ref)
		db.touch(t)
	}
}

func (db *database) leave(inv inverse, target, ref string) {
	if t := db.find(inv.class, target); t != nil {
		t.vals[t.class.Field(inv.field).Index] = without(t.refs(inv.field), ref)
		db.touch(t)
	}
}

// remove deletes a record and takes it out of the sets that name it.
func (db *database) remove(o *object) {
	if db.tables[o.class.Name][o.ref] != o {
		return
	}
	for _, f := range o.class.Fields {
		if inv, ok := inverseOf(o.class.Name, f.Name); ok {
			db.leave(inv, o.str(f.Name), o.ref)
		}
	}
	delete(db.tables[o.class.Name], o.ref)
	if o.class.Field("uuid") != nil && db.byUUID[o.class.Name][o.uuid()] == o {
		delete(db.byUUID[o.class.Name], o.uuid())
	}
	db.gen++
	db.deleted = append(db.deleted, deletion{o.class.Name, o.ref, o.created, db.gen})
	if len(db.deleted) > maxDeletions {
		db.deleted = slices.Clone(db.deleted[maxDeletions/2:])
	}
	db.wake()
}

// put changes one key of a map field.
func (db *database) put(o *object, field, key, value string) {
	m := maps.Clone(o.m(field))
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	db.set(o, field, m)
}

// drop removes one key of a map field.
func (db *database) drop(o *object, field, key string) {
	if _, ok := o.m(field)[key]; !ok {
		return
	}
	m := maps.Clone(o.m(field))
	delete(m, key)
	db.set(o, field, m)
}

func without(in []string, s string) []string {
	return slices.DeleteFunc(slices.Clone(in), func(e string) bool { return e == s })
}
