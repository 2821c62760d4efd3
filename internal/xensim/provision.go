package xensim

import (
	"encoding/xml"
	"strconv"
)

// provisionXML is what a template's other_config:disks holds: the disks that
// VM.provision makes.
type provisionXML struct {
	Disks []struct {
		Device   string `xml:"device,attr"`
		Size     int64  `xml:"size,attr"`
		SR       string `xml:"sr,attr"`
		Bootable bool   `xml:"bootable,attr"`
		Type     string `xml:"type,attr"`
	} `xml:"disk"`
}

// provisionDisks makes the disks that a template describes; none where one fails.
func (p *Pool) provisionDisks(vm *object) error {
	text := vm.m("other_config")["disks"]
	if text == "" {
		return nil
	}
	var in provisionXML
	if err := xml.Unmarshal([]byte(text), &in); err != nil {
		return internalError("other_config:disks of %s: %v", vm.ref, err)
	}
	var made []*object
	undo := func(err error) error {
		for _, vdi := range made {
			_ = p.deleteVDI(vdi) // the first error is what the caller must know
		}
		return err
	}
	for _, d := range in.Disks {
		sr := p.db.byUUID["SR"][d.SR]
		if d.SR == "" {
			sr = p.db.find("SR", p.poolObject().str("default_SR"))
		}
		if sr == nil {
			return undo(fail("UUID_INVALID", "SR", d.SR))
		}
		if d.Type != "user" {
			d.Type = "system"
		}
		vdi, err := p.createVDI(sr, d.Size, map[string]any{
			"name_label": vm.name() + " " + d.Device, "name_description": "Created by template provisioner", "type": d.Type,
		})
		if err != nil {
			return undo(err)
		}
		made = append(made, vdi)
		if _, err := strconv.Atoi(d.Device); err != nil {
			return undo(fail("INVALID_DEVICE", d.Device))
		}
		if _, err := p.createVBD(map[string]any{
			"VM": vm.ref, "VDI": vdi.ref, "userdevice": d.Device, "bootable": d.Bootable, "mode": "RW", "type": "Disk", "unpluggable": true,
			"other_config": map[string]string{"owner": ""},
		}); err != nil {
			return undo(err)
		}
	}
	return nil
}
