package xensim

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/dpxen/dpxen/internal/xensim/archive"
	"github.com/dpxen/dpxen/internal/xensim/disk"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// serveImport answers PUT /import. It says 200 before it reads the body; only the
// task tells the outcome.
func (h *simHost) serveImport(w http.ResponseWriter, r *http.Request) {
	chunked := len(r.TransferEncoding) > 0
	known := r.Header.Get("Content-Length") != ""
	t := h.begin(w, r, "VM.import")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	p := t.pool
	sr, err := p.importTarget(t.args)
	if err != nil {
		t.refuse(err) // a client that follows the task alone must learn of it
		return
	}
	p.db.mu.Lock()
	other, here := p.hostSeeing(h, []*object{p.db.find("SR", sr)})
	iso := p.db.find("SR", sr).str("content_type") == "iso"
	p.db.mu.Unlock()
	switch {
	case !here && other == nil:
		t.reject(fail("NO_HOSTS_AVAILABLE"))
		return
	case !here:
		t.redirect(other, r)
		return
	case iso:
		t.bare("HTTP/1.1", "400 Bad Request")
		t.refuse(fail("SR_OPERATION_NOT_SUPPORTED"))
		return
	case chunked:
		t.bare("HTTP/1.1", "403 Forbidden")
		t.refuse(fail("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"))
		return
	}
	over := p.deed("import", h.name, "", sr, t.task)
	result, err := t.importVM(sr, known)
	over(err)
	if err != nil {
		t.refuse(err) // after the answer of success
		return
	}
	t.end(result, t.broken(nil))
}

// namedSR finds the SR that a parameter names.
func (p *Pool) namedSR(args params) (string, error) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if args.has("sr_id") {
		_, err := p.db.need("SR", args.get("sr_id"))
		return args.get("sr_id"), err
	}
	if sr := p.db.byUUID["SR"][args.get("sr_uuid")]; sr != nil {
		return sr.ref, nil
	}
	return "", fail("UUID_INVALID", "SR", args.get("sr_uuid"))
}

// importTarget finds the SR that takes the disks of an archive.
func (p *Pool) importTarget(args params) (string, error) {
	if args.has("sr_id") || args.has("sr_uuid") {
		return p.namedSR(args)
	}
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	ref := p.poolObject().str("default_SR")
	if p.db.find("SR", ref) == nil {
		return "", fail("DEFAULT_SR_NOT_FOUND", ref)
	}
	return ref, nil
}

func (t *transfer) importVM(sr string, known bool) (string, error) {
	p := t.pool
	defer t.unblock()()
	defer t.keepSession()()
	if err := t.stream.writeLines(
		"HTTP/1.1 200 OK",
		"Connection: close",
		"Cache-Control: no-cache, no-store",
		"task-id:"+t.task,
		"content-type: application/octet-stream",
	); err != nil {
		return "", fail("CLIENT_ERROR", err.Error())
	}
	var body io.Reader = t.stream
	if known {
		body = io.LimitReader(body, t.stream.length)
	}
	im := &importer{t: t, p: p, sr: sr, restore: t.args.flag("restore"), force: t.args.flag("force")}
	if err := im.receive(body); err != nil {
		return "", importError(err)
	}
	return string(xmlrpc.Append(nil, im.finish())), nil
}

// receive reads an archive and makes what is in it, or nothing where that fails
// and force is not set.
func (im *importer) receive(body io.Reader) error {
	p, t := im.p, im.t
	im.ids, im.made = map[string]string{}, map[string][]string{}
	if err := p.faultOnImport(); err != nil {
		return err
	}
	_, err := archive.Import(t.ctx, t.shapedReader(body), archive.ImportOptions{
		OVA: im.records, Force: im.force, Progress: t.progress(),
		AllowXXHash: p.release.xxhash, AllowPAX: p.release.xapi[0] >= 24,
		ExportVersion: func() int { return int(im.exportVersion) }, Table: checksumTable,
	})
	if err == nil {
		p.db.mu.Lock()
		p.fixTask(t.task)
		p.db.mu.Unlock()
		err = p.faultOnImportEnd()
	}
	if t.restarted() {
		return errToolstack // whoever would clean up is gone
	}
	im.detach()
	if err != nil && !im.force {
		im.undo()
	}
	return err
}

// checksumTable reads the map of file names to SHA-1 sums that ends old archives.
func checksumTable(raw []byte) (map[string]string, error) {
	v, err := xmlrpc.DecodeValue(raw)
	if err != nil {
		return nil, err
	}
	return ovaObject{fields: map[string]any{"table": v}}.strMap("table"), nil
}

// importError gives what XAPI tells for errors that have no code of their own.
func importError(err error) error {
	var own *Failure
	var theirs *archive.Failure
	if errors.As(err, &own) || errors.As(err, &theirs) {
		return err
	}
	if errors.Is(err, xmlrpc.ErrMalformed) {
		return fail("IMPORT_ERROR", err.Error())
	}
	return fail("IMPORT_ERROR", "INTERNAL_ERROR: [ "+err.Error()+" ]")
}

// finish completes what was imported and gives the VMs: only those that are no
// snapshots, if there are any.
func (im *importer) finish() []string {
	p := im.p
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	plain, snapshots := []string{}, []string{}
	for _, ref := range im.made["VM"] {
		vm := p.db.find("VM", ref)
		if vm == nil {
			continue
		}
		p.db.drop(vm, "current_operations", im.t.task)
		p.updateAllowed(vm)
		if vm.is("is_a_snapshot") {
			snapshots = append(snapshots, ref)
		} else {
			plain = append(plain, ref)
		}
	}
	for _, ref := range im.made["VDI"] {
		if vdi := p.db.find("VDI", ref); vdi != nil {
			p.updateVDI(vdi)
		}
	}
	if len(plain) == 0 {
		plain = snapshots
	}
	return plain
}

// detach takes the imported disks out of dom0, before the task ends.
func (im *importer) detach() {
	im.p.db.mu.Lock()
	defer im.p.db.mu.Unlock()
	for _, ref := range im.plugged {
		if vbd := im.p.db.find("VBD", ref); vbd != nil {
			im.p.dropVBD(vbd)
		}
	}
}

// undo destroys everything that a failed import made.
func (im *importer) undo() {
	p := im.p
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	for _, ref := range im.made["VM"] {
		if vm := p.db.find("VM", ref); vm != nil {
			p.dropVM(vm)
		}
	}
	for _, ref := range im.made["VDI"] {
		if vdi := p.db.find("VDI", ref); vdi != nil {
			_ = p.deleteVDI(vdi) // the import's own error is what is told
		}
	}
	for _, ref := range im.made["network"] {
		if n := p.db.find("network", ref); n != nil && len(n.refs("VIFs")) == 0 {
			p.db.remove(n)
		}
	}
}

// importedDisk is a disk that takes data. It accounts for what is written.
type importedDisk struct {
	p   *Pool
	vdi *object
	img *disk.Image
}

// WriteAt writes a block and accounts for it; a full SR gives an I/O error.
func (d *importedDisk) WriteAt(b []byte, off int64) (int, error) {
	d.p.db.mu.Lock()
	sr := d.p.db.find("SR", d.vdi.str("SR"))
	if sr == nil || d.p.db.find("VDI", d.vdi.ref) == nil {
		d.p.db.mu.Unlock()
		return 0, fail("VDI_IO_ERROR", "Device I/O errors")
	}
	if !isThick(sr) {
		if d.p.room(sr, int64(len(b))) != nil {
			d.p.db.mu.Unlock()
			return 0, &archive.Failure{Code: archive.CodeVDIIOError, Params: []string{"Device I/O errors"}}
		}
		d.p.written(d.vdi, int64(len(b)))
	}
	d.p.db.mu.Unlock()
	if err := d.p.pass(d.p.ctx, sr.ref, len(b)); err != nil {
		return 0, err
	}
	n, err := d.img.WriteAt(b, off)
	if err != nil {
		return n, fmt.Errorf("writing at %s: %w", strconv.FormatInt(off, 10), err)
	}
	return n, nil
}
