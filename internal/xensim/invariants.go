package xensim

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// mayDangle are references that XAPI too leaves behind.
var mayDangle = map[string]bool{
	"VM.snapshot_of": true, "VM.parent": true, "VDI.snapshot_of": true, "VDI.parent": true, "pool.default_SR": true,
	"pool.suspend_image_SR": true, "pool.crash_dump_SR": true, "VM.scheduled_to_be_resident_on": true,
	"session.tasks": true, "session.subject": true, "VM.suspend_SR": true,
}

// checkAfter notes the first call after which the database contradicts itself,
// where the configuration wants it.
func (p *Pool) checkAfter(method string) {
	if !p.cfg.Check || strings.Contains(method, ".get_") {
		return
	}
	if err := p.CheckInvariants(); err != nil {
		p.logf("after %s: %v", method, err)
	}
}

// CheckInvariants says what in the database contradicts itself: references to
// nothing, sets that do not mirror the other side, disks without storage, space
// that does not add up. Nil means that all is well, and was whenever it was asked;
// with Config.Check that is after every call.
func (p *Pool) CheckInvariants() error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if p.violation != nil {
		return p.violation
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("xensim: "+format, args...)) }
	for class, table := range p.db.tables {
		if class == "role" {
			continue // they never change, and are many
		}
		for _, o := range table {
			for _, f := range o.class.Fields {
				p.checkField(o, f, class, bad)
			}
		}
	}
	for _, vdi := range p.db.all("VDI") {
		if p.db.find("SR", vdi.str("SR")) == nil {
			bad("VDI %s has no SR", vdi.uuid())
		}
		if p.volumes[vdi.ref] == nil {
			bad("VDI %s has no storage", vdi.uuid())
		}
	}
	for ref := range p.volumes {
		if p.db.find("VDI", ref) == nil {
			bad("storage without a VDI: %s", ref)
		}
	}
	for _, sr := range p.db.all("SR") {
		var used, virtual int64
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			used += vdi.num("physical_utilisation")
			virtual += vdi.num("virtual_size")
		}
		if sr.num("physical_size") < 0 && used == 0 {
			continue // introduced, but never plugged
		}
		if used != sr.num("physical_utilisation") || virtual != sr.num("virtual_allocation") {
			bad("SR %s says %d and %d bytes, but its VDIs add up to %d and %d", sr.name(),
				sr.num("physical_utilisation"), sr.num("virtual_allocation"), used, virtual)
		}
	}
	p.violation = errors.Join(errs...)
	return p.violation
}

func (p *Pool) checkField(o *object, f *model.Field, class string, bad func(string, ...any)) {
	name := class + "." + f.Name
	check := func(target, ref string) {
		if _, known := p.db.tables[target]; known && ref != nullRef && ref != "" && !mayDangle[name] && p.db.find(target, ref) == nil {
			bad("%s of %s names nothing: %s", name, o.uuid(), ref)
		}
	}
	switch {
	case f.Type.Kind == model.Ref:
		ref := o.str(f.Name)
		check(f.Type.Name, ref)
		if inv, ok := inverseOf(class, f.Name); ok {
			if t := p.db.find(inv.class, ref); t != nil && !slices.Contains(t.refs(inv.field), o.ref) {
				bad("%s.%s of %s lacks %s", inv.class, inv.field, t.uuid(), o.ref)
			}
		}
	case f.Type.Kind == model.Set && f.Type.Elem.Kind == model.Ref:
		for _, ref := range o.refs(f.Name) {
			check(f.Type.Elem.Name, ref)
		}
	}
}
