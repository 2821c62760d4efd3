package xensim

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/model"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// exportPlan is what an export writes.
type exportPlan struct {
	ova   []byte
	disks []exportDisk
	total int64
}

type exportDisk struct {
	dir    string
	vdi    string // reference
	volume *volume
}

// ovaBuilder collects the objects of an export and gives them their ids.
type ovaBuilder struct {
	p        *Pool
	preserve bool
	// whole keeps what only exports of metadata keep: snapshots and parents. parents
	// adds the VHDs behind a disk; without are kinds of devices that are left out.
	whole, parents bool
	without        map[string]bool

	ids     map[string]string
	objects map[string][]*object
}

// ovaOrder is the order of classes in ova.xml.
var ovaOrder = []string{
	"host", "VM", "VM_metrics", "VM_guest_metrics", "VBD", "VIF", "network", "VDI", "SR", "VTPM",
}

func (b *ovaBuilder) add(class, ref string) *object {
	o := b.p.db.find(class, ref)
	if o == nil || b.ids[ref] != "" {
		return o
	}
	// The counter is XAPI's own, for the life of its process.
	b.ids[ref] = "Ref:" + strconv.Itoa(b.p.nextOVA)
	b.p.nextOVA++
	b.objects[class] = append(b.objects[class], o)
	return o
}

// addVM adds a VM and all that belongs to it.
func (b *ovaBuilder) addVM(vm *object) {
	p := b.p
	b.add("VM", vm.ref)
	if !b.without["vif"] {
		for _, vif := range p.db.many("VIF", vm.refs("VIFs")) {
			b.add("VIF", vif.ref)
			b.add("network", vif.str("network"))
		}
	}
	if !b.without["vbd"] {
		for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
			b.add("VBD", vbd.ref)
			if !vbd.is("empty") {
				b.addVDI(vbd.str("VDI"))
			}
		}
	}
	if b.preserve && vm.str("power_state") == suspended {
		b.addVDI(vm.str("suspend_VDI"))
	}
	// VM_metrics travel since xapi 24.40, which is newer than any release here.
	b.add("VM_guest_metrics", vm.str("guest_metrics"))
	b.add("host", vm.str("affinity"))
	b.add("host", vm.str("resident_on"))
	if !b.without["vtpm"] {
		for _, t := range vm.refs("VTPMs") {
			b.add("VTPM", t)
		}
	}
}

func (b *ovaBuilder) addVDI(ref string) {
	vdi := b.add("VDI", ref)
	if vdi == nil {
		return
	}
	b.add("SR", vdi.str("SR"))
	if parent := b.p.db.byUUID["VDI"][vdi.m("sm_config")["vhd-parent"]]; b.parents && parent != nil && b.ids[parent.ref] == "" {
		b.addVDI(parent.ref)
	}
}

// planExport makes ova.xml for one VM and lists the disks to stream; the database
// is locked.
func (p *Pool) planExport(vm *object, preserve bool) *exportPlan {
	b := &ovaBuilder{p: p, preserve: preserve, ids: map[string]string{}, objects: map[string][]*object{}}
	b.addVM(vm)
	plan := &exportPlan{ova: b.encode()}
	stream := func(ref string) {
		vdi := p.db.find("VDI", ref)
		v := p.volumes[ref]
		if vdi == nil || v == nil || v.image == nil {
			return
		}
		if slices.ContainsFunc(plan.disks, func(d exportDisk) bool { return d.vdi == ref }) {
			return
		}
		plan.disks = append(plan.disks, exportDisk{dir: b.ids[ref], vdi: ref, volume: v})
		plan.total += vdi.num("virtual_size")
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		vdi := p.db.find("VDI", vbd.str("VDI"))
		if vbd.is("empty") || vbd.str("type") == "CD" || vdi == nil {
			continue
		}
		if sr := p.db.find("SR", vdi.str("SR")); sr != nil && sr.str("content_type") == "iso" {
			continue
		}
		stream(vdi.ref)
	}
	if preserve && vm.str("power_state") == suspended {
		stream(vm.str("suspend_VDI"))
	}
	return plan
}

func (b *ovaBuilder) encode() []byte {
	objects := []any{}
	for _, class := range ovaOrder {
		for _, o := range b.objects[class] {
			objects = append(objects, xmlrpc.Members{
				{Name: "class", Value: class}, {Name: "id", Value: b.ids[o.ref]}, {Name: "snapshot", Value: b.record(o)},
			})
		}
	}
	return xmlrpc.Append(nil, xmlrpc.Members{
		{Name: "version", Value: b.p.versionBlock()}, {Name: "objects", Value: objects},
	})
}

func (p *Pool) versionBlock() xmlrpc.Members {
	r := p.release
	return xmlrpc.Members{
		{Name: "hostname", Value: p.master().name}, {Name: "date", Value: "2024-06-01"},
		{Name: "product_version", Value: r.version}, {Name: "product_brand", Value: r.brand},
		{Name: "build_number", Value: "xensim"},
		{Name: "xapi_major", Value: int64(r.xapi[0])}, {Name: "xapi_minor", Value: int64(r.xapi[1])},
		{Name: "export_vsn", Value: int64(2)},
	}
}

// ref gives the id of an object of the archive, or the null reference.
func (b *ovaBuilder) ref(ref string) string {
	if id := b.ids[ref]; id != "" {
		return id
	}
	return nullRef
}

// verbatim are references that XAPI forgets to rewrite.
var verbatim = map[string]bool{
	"VM.scheduled_to_be_resident_on": true, "VM.appliance": true, "VM.snapshot_schedule": true, "VM.VUSBs": true,
	"VM.attached_PCIs": true, "VDI.parent": true, "VDI.snapshot_of": true, "VDI.snapshots": true,
}

// blanked are the fields of an export that lose their value, beside operations.
var blanked = map[string]bool{
	"VM.consoles": true, "VM.crash_dumps": true, "VM.blobs": true, "VM.protection_policy": true,
	"VBD.metrics": true, "VIF.metrics": true, "VDI.crash_dumps": true, "SR.PBDs": true, "network.PIFs": true, "SR.blobs": true,
	"network.blobs": true,
}

// blankedUnlessWhole are kept in exports of metadata with snapshots.
var blankedUnlessWhole = map[string]bool{
	"VM.is_a_snapshot": true, "VM.snapshot_of": true, "VM.snapshots": true, "VM.snapshot_time": true,
	"VM.transportable_snapshot_id": true, "VM.parent": true, "VM.children": true,
}

// hostFields are what an export tells of a host.
var hostFields = map[string]bool{
	"uuid": true, "name_label": true, "name_description": true, "address": true, "hostname": true,
	"API_version_major": true, "API_version_minor": true, "API_version_vendor": true, "software_version": true,
}

// record gives an object as it stands in ova.xml.
func (b *ovaBuilder) record(o *object) xmlrpc.Members {
	if o.class.Name == "VTPM" {
		return b.vtpm(o)
	}
	visible := b.p.visible[o.class]
	out := make(xmlrpc.Members, len(visible))
	for i, f := range visible {
		out[i] = xmlrpc.Member{Name: f.Name, Value: b.value(o, f)}
	}
	return out
}

func (b *ovaBuilder) value(o *object, f *model.Field) any {
	name, v := o.class.Name+"."+f.Name, o.vals[f.Index]
	zero := f.Type.Zero(b.p.db.model.Enums)
	switch {
	case f.Name == "allowed_operations" || f.Name == "current_operations" || blanked[name]:
		return zero
	case blankedUnlessWhole[name] && !b.whole:
		return zero
	case o.class.Name == "host" && !hostFields[f.Name]:
		return f.Default
	case name == "VM.power_state" && !b.preserve:
		return halted
	case name == "VM.suspend_VDI" && !b.preserve:
		return nullRef
	case f.Name == "currently_attached" && !b.preserve:
		return false
	case verbatim[name]:
		return v
	}
	switch {
	case f.Type.Kind == model.Ref:
		s, _ := v.(string)
		return b.ref(s)
	case f.Type.Kind == model.Set && f.Type.Elem.Kind == model.Ref:
		out := []string{}
		for _, r := range o.refs(f.Name) {
			if id := b.ids[r]; id != "" {
				out = append(out, id)
			}
		}
		return out
	}
	return v
}

// vtpm gives the private record under which a vTPM and its contents travel.
func (b *ovaBuilder) vtpm(o *object) xmlrpc.Members {
	return xmlrpc.Members{
		{Name: "vTPM'_VM", Value: b.ref(o.str("VM"))}, {Name: "vTPM'_uuid", Value: o.uuid()},
		{Name: "vTPM'_is_unique", Value: o.is("is_unique")}, {Name: "vTPM'_is_protected", Value: o.is("is_protected")},
		{Name: "vTPM'_content", Value: b.p.vtpms[o.ref]},
	}
}

// ovaTime is the time in the tar header of ova.xml: the export's since 24.13.
func (p *Pool) ovaTime() time.Time {
	if p.release.xapi[0] > 24 || p.release.xapi == [2]int{24, 16} {
		return time.Now()
	}
	return time.Time{}
}

func (d exportDisk) String() string { return fmt.Sprintf("%s (%s)", d.dir, d.vdi) }
