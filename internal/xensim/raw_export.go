package xensim

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/xensim/archive"
	"github.com/dpxen/dpxen/internal/xensim/disk"
	"github.com/dpxen/dpxen/internal/xensim/vhd"
)

// serveExportRaw answers GET /export_raw_vdi; the end of the connection is the end
// of the disk. Once the head is out, any failure follows as a second answer in
// the same body (export_raw_vdi.ml; xen-api#4603).
func (h *simHost) serveExportRaw(w http.ResponseWriter, r *http.Request) {
	t := h.begin(w, r, "VDI.export_raw")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	if !t.args.has("vdi") {
		t.reject(internalError("Missing vdi query parameter"))
		return
	}
	vdi, err := t.rawTarget("vdi")
	if err != nil {
		t.reject(err)
		return
	}
	if other, here := t.rawHost(t.srOf(vdi)); !here {
		if other == nil {
			t.reject(fail("NO_HOSTS_AVAILABLE"))
			return
		}
		t.redirect(other, r)
		return
	}
	format, known := t.rawFormat()
	if !known {
		t.bare("HTTP/1.0", "404 Not Found")
		t.end("", unknownFormat(format))
		return
	}
	err = t.exportRaw(vdi, format)
	if err != nil {
		err = t.broken(err)
		_ = t.stream.internal(err) // the client may be gone, and the task tells as well
	}
	t.end("", err)
}

func (t *transfer) exportRaw(vdi *object, format rawFormat) error {
	p := t.pool
	defer t.unblock()()
	defer t.keepSession()()
	p.db.mu.Lock()
	name := vdi.uuid() + "." + string(format)
	p.db.mu.Unlock()
	if err := t.stream.writeLines(
		"HTTP/1.1 200 OK",
		"Connection: close",
		"Cache-Control: no-cache, no-store",
		"task-id:"+t.task,
		"content-type:"+contentTypes[format],
		`Content-Disposition: attachment; filename="`+name+`"`,
	); err != nil {
		return fail("CLIENT_ERROR", err.Error())
	}
	if format == formatTar {
		return t.exportTar(vdi)
	}
	d, err := t.openRaw(vdi)
	if err != nil {
		return err
	}
	defer d.close()
	if format == formatVHD && d.image.Size() > vhd.MaxSize {
		return fail("VDI_TOO_LARGE", vdi.ref, "2190433320960")
	}
	if t.args.has("base") {
		if err := d.openBase(); err != nil {
			return err
		}
	}
	out := t.shaped(t.stream.fast())
	switch format {
	case formatVHD:
		err = d.exportVHD(out)
	default:
		err = d.exportPlain(out)
	}
	return t.copyFailed(err)
}

// copyFailed turns the error of a copy into what its task tells.
func (t *transfer) copyFailed(err error) error {
	var f *Failure
	if err == nil || t.ctx.Err() != nil || asFailure(err, &f) {
		return err
	}
	return deviceFailed()
}

// exportTar writes chunks with their checksums, as /export does for each disk.
func (t *transfer) exportTar(vdi *object) error {
	p := t.pool
	p.db.mu.Lock()
	v := p.volumes[vdi.ref]
	p.db.mu.Unlock()
	if v == nil || v.image == nil {
		return fail("VDI_NOT_AVAILABLE", vdi.ref)
	}
	plan := &exportPlan{disks: []exportDisk{{dir: tarDir, vdi: vdi.ref, volume: v}}}
	sources := p.newSources(t)
	defer sources.detach()
	o := t.exportOptions(plan, sources)
	o.NoOVA, o.Compression = true, archive.None
	if err := archive.Export(t.ctx, t.shaped(t.stream.fast()), o); err != nil {
		var f *Failure
		if t.ctx.Err() == nil && !asFailure(err, &f) {
			return fail("CLIENT_ERROR", err.Error())
		}
		return err
	}
	return nil
}

// rawSource is a VDI that is attached to be read, and the one that it is compared
// with.
type rawSource struct {
	t      *transfer
	vdi    *object
	image  *disk.Image
	sr     string
	vbds   []string
	backed bool // by a VHD
	base   *disk.Image
	parent *vhd.Parent
	buf    [2][]byte
}

func (t *transfer) openRaw(vdi *object) (*rawSource, error) {
	image, vbd, err := t.plugRaw(vdi, "RO")
	if err != nil {
		return nil, err
	}
	p := t.pool
	p.db.mu.Lock()
	d := &rawSource{
		t: t, vdi: vdi, image: image, sr: vdi.str("SR"), vbds: []string{vbd}, backed: p.vhdBacked(vdi),
		buf: [2][]byte{make([]byte, disk.BlockSize), make([]byte, disk.BlockSize)},
	}
	p.db.mu.Unlock()
	if err := p.lag(t.ctx, d.sr); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// close lets go of the disks; dom0 may hold them for a while after the task.
func (d *rawSource) close() {
	for _, vbd := range d.vbds {
		d.t.pool.unplugDom0(vbd, detachTime)
	}
}

// openBase attaches the VDI that only differences to are wanted.
func (d *rawSource) openBase() error {
	base, err := d.t.rawTarget("base")
	if err != nil {
		return err
	}
	image, vbd, err := d.t.plugRaw(base, "RO")
	if err != nil {
		return err
	}
	d.vbds = append(d.vbds, vbd)
	p := d.t.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if !d.backed {
		return internalError(`Failure("Cannot compute differences on non-VHD images")`)
	}
	if !p.vhdBacked(base) {
		return internalError(`Failure("Vhd_tool_wrapper.send: base VDI is not a vhd; cannot compute differences")`)
	}
	d.base, d.parent = image, p.vhdOf(base)
	return nil
}

// vhdOf tells of the VHD behind a VDI; the database is locked. The VHD's own uuid
// is not the VDI's.
func (p *Pool) vhdOf(vdi *object) *vhd.Parent {
	sr := p.db.find("SR", vdi.str("SR"))
	out := &vhd.Parent{UUID: uuid.NewSHA1(uuid.NameSpaceOID, []byte("vhd "+vdi.uuid()))}
	if strings.HasPrefix(sr.str("type"), "lvm") {
		out.Path = "/dev/VG_XenStorage-" + sr.uuid() + "/VHD-" + vdi.uuid()
	} else {
		out.Path = "/run/sr-mount/" + sr.uuid() + "/" + vdi.uuid() + ".vhd"
	}
	y2k := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	changed, err := time.Parse(dateLayout, databaseText(vdi.get("snapshot_time")))
	if err != nil || changed.Before(y2k) {
		changed = time.Now()
	}
	out.Modified = uint32(changed.Sub(y2k) / time.Second)
	return out
}

// read reads a block of the disk as an export does: faults and the SR's bandwidth
// count.
func (d *rawSource) read(i int64, buf []byte) ([]byte, error) {
	p := d.t.pool
	if err := p.faultOnRead(d.vdi.ref, i); err != nil {
		return nil, err
	}
	data, _, err := d.image.ReadBlock(i, buf)
	if err != nil {
		return nil, deviceFailed()
	}
	return data, p.pass(d.t.ctx, d.sr, len(data))
}

// differs says whether block i is not what the base has there.
func (d *rawSource) differs(i int64) (bool, error) {
	if d.image.SameBlock(d.base, i) {
		return false, nil
	}
	a, zero, err := d.image.ReadBlock(i, d.buf[0])
	if err != nil {
		return false, deviceFailed()
	}
	if i*disk.BlockSize >= d.base.Size() {
		return !zero, nil
	}
	b, _, err := d.base.ReadBlock(i, d.buf[1])
	if err != nil {
		return false, deviceFailed()
	}
	// Where one of them is longer, the other one is as if it held zeros.
	n := min(len(a), len(b))
	return string(a[:n]) != string(b[:n]) || !allZeros(a[n:]) || !allZeros(b[n:]), nil
}

func allZeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// wanted says whether block i, of 1 MiB, is to be sent: what the base has not,
// else what the VHD has, else what is not zero.
func (d *rawSource) wanted(i int64) (bool, error) {
	if i*disk.BlockSize >= d.image.Size() {
		return false, nil
	}
	if d.base != nil {
		return d.differs(i)
	}
	if d.backed {
		return d.image.Allocated(i), nil
	}
	_, zero, err := d.image.ReadBlock(i, d.buf[0])
	if err != nil {
		return false, deviceFailed()
	}
	return !zero, nil
}

const perVHDBlock = vhd.BlockSize / disk.BlockSize

// wantedPair says whether a block of a VHD is to be sent.
func (d *rawSource) wantedPair(block int64) (bool, error) {
	for k := range int64(perVHDBlock) {
		if yes, err := d.wanted(block*perVHDBlock + k); yes || err != nil {
			return yes, err
		}
	}
	return false, nil
}

// exportVHD writes a dynamic VHD, or with a base a differencing one.
func (d *rawSource) exportVHD(w io.Writer) error {
	progress, size := d.t.progress(), d.image.Size()
	if !d.backed { // such a VHD is as long as its blocks
		size = (size + vhd.BlockSize - 1) / vhd.BlockSize * vhd.BlockSize
	}
	return vhd.Write(d.t.ctx, w, vhd.WriteOptions{
		Size: size, UUID: uuid.New(), Parent: d.parent, Present: d.wantedPair, Progress: progress,
		Read: func(block int64, buf []byte) error {
			for k := range int64(perVHDBlock) {
				part := buf[k*disk.BlockSize:][:disk.BlockSize]
				n := 0
				if i := block*perVHDBlock + k; i*disk.BlockSize < d.image.Size() {
					data, err := d.read(i, d.buf[0])
					if err != nil {
						return err
					}
					n = copy(part, data)
				}
				clear(part[n:])
			}
			return nil
		},
	})
}

// exportPlain writes the bytes of the disk; with a base, zeros where nothing of
// the VHD's block differs.
func (d *rawSource) exportPlain(w io.Writer) error {
	progress, send := d.t.progress(), true
	zeros := make([]byte, disk.BlockSize)
	for at := int64(0); at < d.image.Size(); at += disk.BlockSize {
		if err := context.Cause(d.t.ctx); err != nil {
			return err
		}
		i := at / disk.BlockSize
		if d.base != nil && i%perVHDBlock == 0 {
			var err error
			if send, err = d.wantedPair(i / perVHDBlock); err != nil {
				return err
			}
		}
		data := zeros[:min(disk.BlockSize, d.image.Size()-at)]
		if send {
			var err error
			if data, err = d.read(i, d.buf[0]); err != nil {
				return err
			}
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		progress(at, d.image.Size())
	}
	return nil
}
