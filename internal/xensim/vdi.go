package xensim

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

const (
	nullRef = "OpaqueRef:NULL"
	// coalesceTime is how long a base copy with one child stays.
	coalesceTime = 15 * time.Second
	// detachTime is how long dom0 may hold a disk after an export's task ended.
	detachTime = 3 * time.Second
	// maxChain is the longest chain of VHDs.
	maxChain = 30
)

// volume is what lies behind a VDI record.
type volume struct {
	// image is nil for base copies, which nobody can attach.
	image *disk.Image
	// own is the number of bytes in the VDI's own layer.
	own int64
	// log is there while changes are tracked, and after data_destroy.
	log *changeLog
}

func (p *Pool) registerVDI() {
	p.quick("VDI.create", vdiCreate)
	p.slow("VDI.destroy", c2((*call).destroyVDI))
	p.quick("VDI.forget", func(_ *call, args []any) (any, error) {
		vdi, err := p.needVDI(args[0].(string), "forget")
		if err != nil {
			return nil, err
		}
		p.shelve(vdi)
		p.forgetVDI(vdi)
		return "", nil
	})
	p.quick("VDI.update", func(_ *call, args []any) (any, error) {
		vdi, err := p.needVDI(args[0].(string), "update")
		if err != nil {
			return nil, err
		}
		p.account(vdi)
		return "", nil
	})
	p.slow("VDI.snapshot", func(c *call, args []any) (any, error) { return c.deriveVDI(args[0].(string), true) })
	p.slow("VDI.clone", func(c *call, args []any) (any, error) { return c.deriveVDI(args[0].(string), false) })
	p.slow("VDI.copy", vdiCopy)
	p.quick("VDI.resize", vdiResize)
	p.quick("VDI.introduce", vdiIntroduce)
	p.quick("VDI.set_on_boot", func(_ *call, args []any) (any, error) {
		vdi, err := p.needVDI(args[0].(string), "set_on_boot")
		if err != nil {
			return nil, err
		}
		p.db.set(vdi, "on_boot", args[1])
		p.updateVDI(vdi)
		return "", nil
	})
}

// recordFields types the members of a record that a client gave, keeping those
// that a constructor takes.
func (p *Pool) recordFields(class string, v any) (map[string]any, error) {
	in, _ := v.(map[string]any)
	out := map[string]any{}
	for _, f := range p.db.model.Class(class).Fields {
		x, ok := in[f.Name]
		if !ok || f.Qualifier == 'R' {
			continue
		}
		c, ok := f.Type.Coerce(x)
		if !ok {
			return nil, fail("FIELD_TYPE_ERROR", f.Name)
		}
		out[f.Name] = c
	}
	return out, nil
}

func vdiCreate(c *call, args []any) (any, error) {
	p := c.pool
	fields, err := p.recordFields("VDI", args[0])
	if err != nil {
		return nil, err
	}
	ref, _ := fields["SR"].(string)
	sr, err := p.db.need("SR", ref)
	if err != nil {
		return nil, err
	}
	if fields["type"] == "cbt_metadata" {
		return nil, fail("VDI_INCOMPATIBLE_TYPE", "", "cbt_metadata")
	}
	if err := p.checkSR(sr, "vdi_create"); err != nil {
		return nil, err
	}
	size, _ := fields["virtual_size"].(int64)
	vdi, err := p.createVDI(sr, size, fields)
	if err != nil {
		return nil, err
	}
	return vdi.ref, nil
}

// createVDI makes an empty disk; the database is locked.
func (p *Pool) createVDI(sr *object, size int64, fields map[string]any) (*object, error) {
	if err := p.usableSR(sr); err != nil {
		return nil, err
	}
	if size <= 0 || size > disk.MaxSize {
		return nil, fail("SR_BACKEND_FAILURE_79", "", fmt.Sprintf("VDI Invalid size [opterr=VDI size must be between 1 MB and %d MB]", disk.MaxSize>>20), "")
	}
	need := vhdOverhead(size)
	if isThick(sr) {
		need += size
	}
	if err := p.room(sr, need); err != nil {
		return nil, err
	}
	image, err := p.disks.New(size, disk.Content{})
	if err != nil {
		return nil, internalError("%v", err)
	}
	return p.addVDI(sr, image, 0, fields), nil
}

// addVDI makes the record of a disk and accounts for it.
func (p *Pool) addVDI(sr *object, image *disk.Image, own int64, fields map[string]any) *object {
	fields = maps.Clone(fields)
	uuid := p.db.newUUID()
	fields["uuid"], fields["location"], fields["SR"] = uuid, uuid, sr.ref
	fields["managed"] = image != nil
	if image != nil {
		fields["virtual_size"] = image.Size()
	}
	if t, _ := fields["type"].(string); t == "" {
		fields["type"] = "user"
	}
	vdi := p.db.create("VDI", fields)
	p.volumes[vdi.ref] = &volume{image: image, own: own}
	p.spend(sr, 0, vdi.num("virtual_size"))
	p.account(vdi)
	p.updateVDI(vdi)
	return vdi
}

// destroyVDI deletes a disk and the VBDs of halted VMs that name it.
func (c *call) destroyVDI(ref string) error {
	p := c.pool
	if err := p.faultOnVDI(ref, "destroy"); err != nil {
		return err
	}
	return c.patiently(standard, func() error {
		return p.locked(func() error {
			vdi, err := p.needVDI(ref, "destroy")
			if err != nil {
				return err
			}
			return p.deleteVDI(vdi)
		})
	})
}

func (p *Pool) deleteVDI(vdi *object) error {
	parent := vdi.m("sm_config")["vhd-parent"]
	v := p.volumes[vdi.ref]
	p.forgetVDI(vdi)
	p.collectBase(parent)
	if v == nil || v.image == nil {
		return nil
	}
	if err := v.image.Release(); err != nil {
		return fail("SR_BACKEND_FAILURE_202", "", err.Error(), "")
	}
	return nil
}

// forgetVDI removes the record and its VBDs; CD drives are left empty.
func (p *Pool) forgetVDI(vdi *object) {
	for _, vbd := range p.db.many("VBD", vdi.refs("VBDs")) {
		if vbd.str("type") == "CD" {
			p.db.set(vbd, "VDI", nullRef)
			p.db.set(vbd, "empty", true)
			continue
		}
		p.dropVBD(vbd)
	}
	sr := p.db.find("SR", vdi.str("SR"))
	if vdi.str("type") == "suspend" {
		for _, vm := range p.db.tables["VM"] {
			if vm.str("suspend_VDI") == vdi.ref {
				p.db.set(vm, "suspend_VDI", nullRef)
			}
		}
	}
	p.dropLog(p.volumes[vdi.ref])
	delete(p.volumes, vdi.ref)
	p.db.remove(vdi)
	if sr != nil {
		p.spend(sr, -vdi.num("physical_utilisation"), -vdi.num("virtual_size"))
	}
}

func vdiCopy(c *call, args []any) (any, error) {
	p := c.pool
	if len(args) > 3 && args[3].(string) != nullRef {
		return args[3], c.copyInto(args[0].(string), args[3].(string))
	}
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	vdi, err := p.needVDI(args[0].(string), "copy")
	if err != nil {
		return nil, err
	}
	sr, err := p.db.need("SR", args[1].(string))
	if err != nil {
		return nil, err
	}
	out, err := p.copyVDI(vdi, sr)
	if err != nil {
		return nil, err
	}
	return out.ref, nil
}

// copyInto writes the contents of a disk over those of another.
func (c *call) copyInto(from, into string) error {
	p := c.pool
	var src, dst *disk.Image
	err := p.locked(func() error {
		vdi, err := p.needVDI(from, "copy")
		if err != nil {
			return err
		}
		to, err := p.db.need("VDI", into)
		if err != nil {
			return err
		}
		switch {
		case to.is("read_only"):
			return fail("VDI_READONLY", into)
		case to.num("virtual_size") < vdi.num("virtual_size"):
			return fail("VDI_TOO_SMALL", into, strconv.FormatInt(vdi.num("virtual_size"), 10))
		}
		if err := p.checkAttachment(to, "destroy"); err != nil {
			return fail("VDI_IN_USE", into, "copy")
		}
		if p.volumes[from].image == nil || p.volumes[into].image == nil {
			return fail("VDI_NOT_AVAILABLE", from)
		}
		if src, err = p.volumes[from].image.Snapshot(); err != nil { // what the source holds now
			return internalError("%v", err)
		}
		dst = p.volumes[into].image
		p.db.put(to, "current_operations", c.task, "copy")
		return nil
	})
	if err != nil {
		return err
	}
	copied, err := c.copyBlocks(src, dst)
	return errors.Join(err, src.Release(), p.locked(func() error {
		if to := p.db.find("VDI", into); to != nil {
			p.db.drop(to, "current_operations", c.task)
			p.written(to, copied)
			p.updateVDI(to)
		}
		return nil
	}))
}

// copyBlocks copies what differs, and says how many bytes that were.
func (c *call) copyBlocks(src, dst *disk.Image) (int64, error) {
	var copied int64
	buf, old := make([]byte, disk.BlockSize), make([]byte, disk.BlockSize)
	for at := int64(0); at < src.Size(); at += disk.BlockSize {
		if c.ctx.Err() != nil {
			return copied, c.cancelled()
		}
		n := min(disk.BlockSize, src.Size()-at)
		if _, err := src.ReadAt(buf[:n], at); err != nil {
			return copied, fail("VDI_IO_ERROR", err.Error())
		}
		if _, err := dst.ReadAt(old[:n], at); err != nil {
			return copied, fail("VDI_IO_ERROR", err.Error())
		}
		if bytes.Equal(buf[:n], old[:n]) {
			continue
		}
		if _, err := dst.WriteAt(buf[:n], at); err != nil {
			return copied, fail("VDI_IO_ERROR", err.Error())
		}
		copied += n
	}
	return copied, nil
}

// copyVDI makes an independent copy on an SR.
func (p *Pool) copyVDI(vdi, sr *object) (*object, error) {
	v := p.volumes[vdi.ref]
	if v == nil || v.image == nil {
		return nil, fail("VDI_NOT_AVAILABLE", vdi.ref)
	}
	if err := p.usableSR(sr); err != nil {
		return nil, err
	}
	if err := p.room(sr, v.image.Utilisation()); err != nil {
		return nil, err
	}
	image, err := v.image.Snapshot()
	if err != nil {
		return nil, internalError("%v", err)
	}
	return p.addVDI(sr, image, image.Utilisation(), map[string]any{
		"name_label": vdi.name(), "name_description": vdi.str("name_description"), "type": vdi.str("type"),
		"other_config": vdi.m("other_config"), "tags": vdi.refs("tags"),
	}), nil
}

func vdiResize(c *call, args []any) (any, error) {
	p := c.pool
	vdi, err := p.needVDI(args[0].(string), "resize")
	if err != nil {
		return nil, err
	}
	size := args[1].(int64)
	if size < vdi.num("virtual_size") {
		return nil, fail("SR_BACKEND_FAILURE_79", "", "VDI Invalid size [opterr=shrinking not allowed]", "")
	}
	if err := p.volumes[vdi.ref].image.Resize(size); err != nil {
		return nil, fail("VDI_TOO_LARGE", vdi.ref, strconv.FormatInt(disk.MaxSize, 10))
	}
	if sr := p.db.find("SR", vdi.str("SR")); sr != nil {
		p.spend(sr, 0, size-vdi.num("virtual_size"))
	}
	p.db.set(vdi, "virtual_size", size)
	p.account(vdi)
	return "", nil
}

// vdiIntroduce makes the record of a disk that lies on an SR, such as one that was
// forgotten. One that has a record is found.
func vdiIntroduce(c *call, args []any) (any, error) {
	p, uuid := c.pool, args[0].(string)
	sr, err := p.db.need("SR", args[3].(string))
	if err != nil {
		return nil, err
	}
	if err := p.usableSR(sr); err != nil {
		return nil, err
	}
	p.takeBack(sr, uuid)
	if o := p.db.byUUID["VDI"][uuid]; o != nil && o.str("SR") == sr.ref {
		return o.ref, nil
	}
	return nil, fail("SR_BACKEND_FAILURE_46", "", "The VDI is not available [opterr=VDI "+uuid+" not found]", "")
}
