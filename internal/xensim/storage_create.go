package xensim

import (
	"maps"
	"slices"
	"strings"
)

// drivers are the kinds of SR that hosts can make, with the keys of device_config
// that each wants and the error for one that is missing (XE_SR_ERRORCODES).
var drivers = map[string][]missingConfig{
	"ext": {{"device", "90"}}, "lvm": {{"device", "90"}}, "file": {{"location", "90"}},
	"nfs":       {{"server", "102"}, {"serverpath", "101"}},
	"lvmoiscsi": {{"target", "90"}, {"targetIQN", "96"}, {"SCSIid", "107"}},
	"lvmohba":   {{"SCSIid", "107"}},
	"smb":       {{"server", "102"}}, "iso": {{"location", "90"}}, "udev": {{"location", "90"}},
	"hba": {}, "iscsi": {},
}

// missingConfig is a key of device_config and the number of the error without it.
type missingConfig struct{ key, code string }

// sharedDrivers are those whose SRs several hosts can use.
var sharedDrivers = []string{"nfs", "lvmoiscsi", "lvmohba", "smb", "iso", "hba", "iscsi"}

func (p *Pool) registerStorage() {
	p.quick("SR.create", srCreate)
	p.quick("SR.introduce", srIntroduce)
	p.quick("SR.destroy", c2(func(_ *call, ref string) error { return p.destroySR(ref) }))
	p.quick("SR.probe", srProbe)
	p.quick("SR.get_supported_types", func(*call, []any) (any, error) {
		return slices.Sorted(maps.Keys(drivers)), nil
	})
	p.quick("SR.assert_can_host_ha_statefile", c2(func(_ *call, ref string) error {
		sr, err := p.db.need("SR", ref)
		if err != nil {
			return err
		}
		return p.canHoldStatefile(sr)
	}))
	p.slow("SR.make", removed)
	p.quick("PBD.create", pbdCreate)
}

// checkDriver wants a known kind of SR and all that its driver must be told.
func checkDriver(kind string, config map[string]string) error {
	wanted, ok := drivers[kind]
	if !ok {
		return fail("SR_UNKNOWN_DRIVER", kind)
	}
	for _, w := range wanted {
		if config[w.key] == "" {
			return fail("SR_BACKEND_FAILURE_"+w.code, "", "The request is missing the "+w.key+" parameter", "")
		}
	}
	return nil
}

// srCreate makes an SR, with a PBD for its host or, where it is shared, for all.
func srCreate(c *call, args []any) (any, error) {
	p := c.pool
	host, err := p.db.need("host", args[0].(string))
	if err != nil {
		return nil, err
	}
	config, size := args[1].(map[string]string), args[2].(int64)
	kind, shared := strings.ToLower(args[5].(string)), args[7].(bool)
	if err := checkDriver(kind, config); err != nil {
		return nil, err
	}
	if size <= 0 {
		size = p.cfg.SRSize
	}
	sr := p.db.create("SR", map[string]any{
		"name_label": args[3], "name_description": args[4], "type": kind, "content_type": args[6], "shared": shared,
		"sm_config": args[8], "physical_size": size,
	})
	for _, h := range p.hosts {
		if h.ref == host.ref || shared {
			p.db.create("PBD", map[string]any{
				"host": h.ref, "SR": sr.ref, "currently_attached": !h.dead, "device_config": config,
			})
		}
	}
	p.updateSR(sr)
	return sr.ref, nil
}

// srIntroduce makes the record of an SR that exists already. What it holds is
// found when a PBD is plugged.
func srIntroduce(c *call, args []any) (any, error) {
	p := c.pool
	uuid, kind := args[0].(string), strings.ToLower(args[3].(string))
	if _, ok := drivers[kind]; !ok {
		return nil, fail("SR_UNKNOWN_DRIVER", kind)
	}
	if p.db.byUUID["SR"][uuid] != nil {
		return nil, fail("SR_UUID_EXISTS", uuid)
	}
	sr := p.db.create("SR", map[string]any{
		"uuid": uuid, "name_label": args[1], "name_description": args[2], "type": kind, "content_type": args[4], "shared": args[5],
		"sm_config": args[6], "physical_size": int64(-1), "physical_utilisation": int64(-1),
	})
	p.updateSR(sr)
	return sr.ref, nil
}

// destroySR deletes an SR and its storage (xapi_sr_operations.ml gives the order).
func (p *Pool) destroySR(ref string) error {
	sr, err := p.db.need("SR", ref)
	if err != nil {
		return err
	}
	if err := p.checkSR(sr, "destroy"); err != nil {
		return err
	}
	for _, vdi := range p.db.many("VDI", slices.Clone(sr.refs("VDIs"))) {
		if err := p.deleteVDI(vdi); err != nil {
			return err
		}
	}
	p.emptyShelf(sr.uuid())
	p.dropSR(sr)
	return nil
}

// checkSR says why an operation on an SR is not possible.
func (p *Pool) checkSR(sr *object, op string) error {
	if !srCan(sr, op) {
		return fail("SR_OPERATION_NOT_SUPPORTED", sr.ref)
	}
	if op != "destroy" && op != "forget" {
		return nil
	}
	pbds := p.db.many("PBD", sr.refs("PBDs"))
	if slices.ContainsFunc(pbds, func(o *object) bool { return o.is("currently_attached") }) {
		return fail("SR_HAS_PBD", sr.ref)
	}
	if op == "forget" {
		return nil
	}
	if len(pbds) == 0 {
		return fail("SR_HAS_NO_PBDS", sr.ref)
	}
	if slices.ContainsFunc(p.db.many("VDI", sr.refs("VDIs")), func(o *object) bool { return o.is("managed") }) {
		return fail("SR_NOT_EMPTY")
	}
	return nil
}

// srCan says whether the driver of an SR offers an operation.
func srCan(sr *object, op string) bool {
	if holdsVHDs(sr) || !strings.HasPrefix(op, "vdi_") {
		return holdsVHDs(sr) || op != "update"
	}
	return op == "vdi_introduce" || sr.str("type") == "iso" && (op == "vdi_create" || op == "vdi_destroy")
}

// updateSR recomputes what may be done with an SR.
func (p *Pool) updateSR(sr *object) {
	out := []string{}
	for _, op := range p.db.model.Enums["storage_operations"] {
		cbt := strings.HasSuffix(op, "_cbt") || op == "vdi_data_destroy" || op == "vdi_list_changed_blocks"
		if cbt && !p.db.model.Has(p.api, "inverness") {
			continue
		}
		if p.checkSR(sr, op) == nil {
			out = append(out, op)
		}
	}
	if !slices.Equal(out, sr.refs("allowed_operations")) {
		p.db.set(sr, "allowed_operations", out)
	}
}

// dropSR removes the records of an SR and its PBDs.
func (p *Pool) dropSR(sr *object) {
	for _, pbd := range p.db.many("PBD", slices.Clone(sr.refs("PBDs"))) {
		p.db.remove(pbd)
	}
	p.db.remove(sr)
}

// pbdCreate connects a host and an SR; there is one PBD for each pair.
func pbdCreate(c *call, args []any) (any, error) {
	p := c.pool
	f, err := p.recordFields("PBD", args[0])
	if err != nil {
		return nil, err
	}
	hostRef, _ := f["host"].(string)
	host, err := p.db.need("host", hostRef)
	if err != nil {
		return nil, err
	}
	srRef, _ := f["SR"].(string)
	sr, err := p.db.need("SR", srRef)
	if err != nil {
		return nil, err
	}
	for _, pbd := range p.db.many("PBD", sr.refs("PBDs")) {
		if pbd.str("host") == host.ref {
			return nil, fail("PBD_EXISTS", sr.ref, host.ref, pbd.ref)
		}
	}
	pbd := p.db.create("PBD", map[string]any{"host": host.ref, "SR": sr.ref, "device_config": f["device_config"]})
	p.updateSR(sr)
	return pbd.ref, nil
}

// srProbe lists, as XML, the SRs that can be found where device_config points.
func srProbe(c *call, args []any) (any, error) {
	p := c.pool
	if _, err := p.db.need("host", args[0].(string)); err != nil {
		return nil, err
	}
	config, kind := args[1].(map[string]string), strings.ToLower(args[2].(string))
	if err := checkDriver(kind, config); err != nil {
		return nil, err
	}
	uuids := []string{}
	for _, pbd := range p.db.all("PBD") {
		sr := p.db.find("SR", pbd.str("SR"))
		if sr != nil && sr.str("type") == kind && sameDevice(kind, pbd.m("device_config"), config) && !slices.Contains(uuids, sr.uuid()) {
			uuids = append(uuids, sr.uuid())
		}
	}
	for uuid, s := range p.shelves {
		if s.kind == kind && sameDevice(kind, s.config, config) {
			uuids = append(uuids, uuid)
		}
	}
	slices.Sort(uuids)
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" ?>\n<SRlist>\n")
	for _, u := range uuids {
		b.WriteString("\t<SR>\n\t\t<UUID>\n\t\t\t" + u + "\n\t\t</UUID>\n\t</SR>\n")
	}
	b.WriteString("</SRlist>\n")
	return b.String(), nil
}

// sameDevice says whether two configurations point at the same storage.
func sameDevice(kind string, a, b map[string]string) bool {
	for _, w := range drivers[kind] {
		if a[w.key] != b[w.key] {
			return false
		}
	}
	return true
}
