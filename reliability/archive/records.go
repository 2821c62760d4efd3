package archive

import (
	"crypto/sha256"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// value is an XML-RPC value: a struct, an array or a scalar's text.
type value struct {
	Struct *struct {
		Members []struct {
			Name  string `xml:"name"`
			Value value  `xml:"value"`
		} `xml:"member"`
	} `xml:"struct"`
	Array *struct {
		Values []value `xml:"data>value"`
	} `xml:"array"`
	Text string `xml:",chardata"`
	Kids []struct {
		Text string `xml:",chardata"`
	} `xml:",any"` // string, int, boolean …
}

func (v value) get(name string) value {
	if v.Struct != nil {
		for _, m := range v.Struct.Members {
			if m.Name == name {
				return m.Value
			}
		}
	}
	return value{}
}

func (v value) text() string {
	if len(v.Kids) > 0 {
		return v.Kids[0].Text
	}
	return v.Text
}

// records reads ova.xml: the VM and its disks. A disk's Device is its directory until the end of the archive is reached;
// the File has the positions.
func records(data []byte) (*File, []*disk, error) {
	var doc value
	if err := xml.Unmarshal(data, &doc); err != nil {
		return nil, nil, fmt.Errorf("ova.xml: %w", err)
	}
	objects := doc.get("objects")
	if objects.Array == nil {
		return nil, nil, fmt.Errorf("ova.xml has no objects")
	}
	by := map[string]map[string]value{}
	var vbds []value
	memory := ""
	out := &File{}
	vms := 0
	for _, o := range objects.Array.Values {
		class, id, rec := o.get("class").text(), o.get("id").text(), o.get("snapshot")
		if by[class] == nil {
			by[class] = map[string]value{}
		}
		by[class][id] = rec
		switch class {
		case "VBD":
			vbds = append(vbds, rec)
		case "VM":
			vms++
			memory = rec.get("suspend_VDI").text()
			out.VM, out.Name = rec.get("uuid").text(), rec.get("name_label").text()
		}
	}
	if vms != 1 {
		return nil, nil, fmt.Errorf("ova.xml has %d VMs", vms)
	}
	var order []*disk
	for _, vbd := range vbds {
		if vbd.get("type").text() == "CD" {
			continue
		}
		dir := vbd.get("VDI").text()
		vdi, ok := by["VDI"][dir]
		if !ok {
			continue
		}
		size, err := strconv.ParseInt(strings.TrimSpace(vdi.get("virtual_size").text()), 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("ova.xml: size of %s: %w", dir, err)
		}
		order = append(order, &disk{Disk: Disk{Device: dir, Size: size}, sum: sha256.New(), last: -1})
		out.Disks = append(out.Disks, Disk{Device: vbd.get("userdevice").text(), Size: size})
	}
	if vdi, ok := by["VDI"][memory]; ok {
		size, err := strconv.ParseInt(strings.TrimSpace(vdi.get("virtual_size").text()), 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("ova.xml: size of the memory image: %w", err)
		}
		out.Memory = true
		order = append(order, &disk{Disk: Disk{Device: memory, Size: size}, sum: sha256.New(), last: -1})
	}
	return out, order, nil
}
