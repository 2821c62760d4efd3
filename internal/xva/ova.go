package xva

import (
	"strings"
)

// Classes of objects in ova.xml.
const (
	classVM      = "VM"
	classVBD     = "VBD"
	classVDI     = "VDI"
	classVIF     = "VIF"
	classSR      = "SR"
	classNetwork = "network"
	classHost    = "host"
)

// exportVersion is the only one that hosts have written since XenServer 4.1.
const exportVersion = 2

// object is an entry of ova.xml's list of objects.
type object struct {
	class  string
	id     string
	record Value
	whole  Value // as in the file: class, id, snapshot and what else there is
}

// OVA is a parsed ova.xml: what a host wrote about one virtual machine. It is
// never changed, and may be used by several goroutines.
type OVA struct {
	root    Value
	version Version
	objects []object
	byID    map[string]int
	vm      int
}

// Version is the version block of ova.xml: the host that wrote it.
type Version struct {
	Hostname, Date, ProductVersion, ProductBrand, BuildNumber string
	// Major and Minor are the version of XAPI; a host refuses files with a
	// greater pair than its own.
	Major, Minor int
	// ExportVersion is 2 in every file this package accepts.
	ExportVersion int
}

// ParseOVA reads an ova.xml. b is not retained. It is bounded in length, depth
// and number of values, expands no entities, and accepts indentation, an XML
// declaration and typed strings, which other tools write. Errors are
// *FormatError; the appliance format of the first releases, other export
// versions and files with several machines are ErrUnsupported.
func ParseOVA(b []byte) (*OVA, error) {
	root, err := parseValue(b)
	if err != nil {
		return nil, err
	}
	o := &OVA{root: root, byID: map[string]int{}, vm: -1}
	if err := o.readVersion(); err != nil {
		return nil, err
	}
	list, ok := root.Field("objects")
	if !ok || !list.IsSet() {
		return nil, bad(ErrFormat, "ova.xml has no list of objects")
	}
	machines := 0
	for i, item := range list.kids {
		obj, err := readObject(i, item)
		if err != nil {
			return nil, err
		}
		if _, dup := o.byID[obj.id]; dup {
			return nil, bad(ErrFormat, "ova.xml has two objects with the id %.64q", obj.id)
		}
		o.byID[obj.id] = len(o.objects)
		if obj.class == classVM {
			machines++
			o.vm = len(o.objects)
		}
		o.objects = append(o.objects, obj)
	}
	switch machines {
	case 0:
		return nil, bad(ErrFormat, "ova.xml describes no VM")
	case 1:
		return o, nil
	}
	return nil, bad(ErrUnsupported, "a file with %d VMs, as a metadata export has", machines)
}

func (o *OVA) readVersion() error {
	v, ok := o.root.Field("version")
	if !ok || !v.IsStruct() {
		return bad(ErrFormat, "ova.xml has no version block")
	}
	o.version = Version{
		Hostname: v.str("hostname"), Date: v.str("date"),
		ProductVersion: v.str("product_version"), ProductBrand: v.str("product_brand"),
		BuildNumber: v.str("build_number"),
		Major:       int(v.integer("xapi_major")), Minor: int(v.integer("xapi_minor")),
		ExportVersion: int(v.integer("export_vsn")),
	}
	if o.version.ExportVersion != exportVersion {
		return bad(ErrUnsupported, "export version %d; hosts since XenServer 4.1 write %d",
			o.version.ExportVersion, exportVersion)
	}
	return nil
}

func readObject(i int, item Value) (object, error) {
	obj := object{class: item.str("class"), id: item.str("id"), whole: item}
	var ok bool
	obj.record, ok = item.Field("snapshot")
	switch {
	case obj.class == "" || obj.id == "":
		return obj, bad(ErrFormat, "object %d of ova.xml has no class or no id", i)
	case !ok || !obj.record.IsStruct():
		return obj, bad(ErrFormat, "%s %.64q of ova.xml has no record", obj.class, obj.id)
	}
	return obj, nil
}

// Bytes writes the ova.xml as XAPI does: one value, no declaration, no blanks.
// Everything that was read is in it.
func (o *OVA) Bytes() ([]byte, error) { return appendValue(nil, o.root), nil }

// Version gives the version block.
func (o *OVA) Version() Version { return o.version }

// VMField gives a field of the VM's record, in XAPI's names.
func (o *OVA) VMField(name string) (Value, bool) { return o.objects[o.vm].record.Field(name) }

// VMRecord gives the whole record of the VM.
func (o *OVA) VMRecord() Value { return o.objects[o.vm].record }

// Object gives the record of the object with an id such as "Ref:7", and its
// class.
func (o *OVA) Object(id string) (class string, record Value, ok bool) {
	i, ok := o.byID[id]
	if !ok {
		return "", Value{}, false
	}
	return o.objects[i].class, o.objects[i].record, true
}

// find gives the record of an object of the given class.
func (o *OVA) find(class, id string) (Value, bool) {
	i, ok := o.byID[id]
	if !ok || o.objects[i].class != class {
		return Value{}, false
	}
	return o.objects[i].record, true
}

// isNull tells whether a reference names nothing: databases hold the null
// reference, and in old fields the empty string.
func isNull(ref string) bool {
	ref = strings.TrimSpace(ref)
	return ref == "" || ref == nullRef
}
