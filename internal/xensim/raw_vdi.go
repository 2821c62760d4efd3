package xensim

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"

	"github.com/dpxen/dpxen/internal/xensim/disk"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// serveExportRaw answers GET /export_raw_vdi in the format raw; the end of the
// connection is the end of the disk (export_raw_vdi.ml).
func (h *simHost) serveExportRaw(w http.ResponseWriter, r *http.Request) {
	t := h.begin(w, r, "VDI.export_raw")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	vdi, err := t.rawTarget()
	if err != nil || !t.rawHere(vdi, "/export_raw_vdi", r.URL.RawQuery) {
		if err != nil {
			t.refuse(err)
		}
		return
	}
	t.end("", t.broken(t.exportRaw(vdi)))
}

// rawTarget finds the VDI by reference or uuid.
func (t *transfer) rawTarget() (*object, error) {
	p := t.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	name := t.args.get("vdi")
	if o := p.db.byUUID["VDI"][name]; o != nil {
		return o, nil
	}
	return p.db.need("VDI", name)
}

// rawHere says whether this host sees the VDI and speaks the wanted format; it
// answers itself where not.
func (t *transfer) rawHere(vdi *object, path, query string) bool {
	p := t.pool
	if f := t.args.get("format"); f != "" && f != "raw" {
		_ = t.stream.page("404 Not Found", "") // the task tells as well
		t.end("", internalError("unknown format %q", f))
		return false
	}
	p.db.mu.Lock()
	srRef := vdi.str("SR")
	sr := p.db.find("SR", srRef)
	var other *simHost
	here := false
	if sr != nil {
		other, here = p.hostSeeing(t.host, []*object{sr})
	}
	p.db.mu.Unlock()
	switch {
	case here:
		return true
	case other == nil:
		t.refuse(fail("SR_NOT_ATTACHED", srRef))
	default:
		t.redirect(other, path, query)
	}
	return false
}

// plugRaw attaches the VDI to this host's dom0.
func (t *transfer) plugRaw(vdi *object, mode string) (*disk.Image, string, error) {
	p := t.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	v := p.volumes[vdi.ref]
	if v == nil || v.image == nil {
		return nil, "", fail("VDI_NOT_AVAILABLE", vdi.ref)
	}
	vbd, err := p.plugDom0(t.host, vdi.ref, mode)
	return v.image, vbd, err
}

func (t *transfer) exportRaw(vdi *object) error {
	p := t.pool
	defer t.unblock()()
	defer t.keepSession()()
	image, vbd, err := t.plugRaw(vdi, "RO")
	if err != nil {
		t.answerPage(err)
		return err
	}
	defer p.unplugDom0(vbd, detachTime)
	p.db.mu.Lock()
	uuid, sr := vdi.uuid(), vdi.str("SR")
	p.db.mu.Unlock()
	if err := p.lag(t.ctx, sr); err != nil {
		return err
	}
	err = t.stream.writeLines(
		"HTTP/1.1 200 OK",
		"Connection: close",
		"Cache-Control: no-cache, no-store",
		"task-id:"+t.task,
		"content-type:application/octet-stream",
		`Content-Disposition: attachment; filename="`+uuid+`.raw"`,
	)
	out, progress := t.shaped(t.stream.fast()), t.progress()
	buf := make([]byte, disk.BlockSize)
	for at := int64(0); at < image.Size() && err == nil; at += disk.BlockSize {
		if ferr := p.faultOnRead(vdi.ref, at/disk.BlockSize); ferr != nil {
			_ = t.stream.internal(ferr) // into the body, as XAPI does (xen-api#4603)
			return ferr
		}
		data, _, rerr := image.ReadBlock(at/disk.BlockSize, buf)
		if rerr != nil {
			return fail("VDI_IO_ERROR", "Device I/O errors")
		}
		if err = p.pass(t.ctx, sr, len(data)); err != nil {
			break
		}
		if _, err = out.Write(data); err == nil {
			progress(at, image.Size())
		}
	}
	if err != nil {
		return fail("CLIENT_ERROR", err.Error())
	}
	return nil
}

// serveImportRaw answers PUT /import_raw_vdi: raw, of the disk's whole length or
// in the chunked protocol, into a VDI or a new one on an SR (import_raw_vdi.ml).
func (h *simHost) serveImportRaw(w http.ResponseWriter, r *http.Request) {
	chunked := len(r.TransferEncoding) > 0
	known := r.Header.Get("Content-Length") != ""
	t := h.begin(w, r, "VDI.import")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	if chunked {
		_ = t.stream.page("404 Not Found", "") // the task tells as well
		t.end("", internalError("import code cannot handle encoding: chunked"))
		return
	}
	made := !t.args.has("vdi")
	vdi, err := t.importRawTarget(made, known)
	if err != nil {
		t.refuse(err)
		return
	}
	if !t.rawHere(vdi, "/import_raw_vdi", r.URL.RawQuery) {
		return
	}
	err = t.broken(t.importRaw(vdi, known))
	if err != nil && made {
		t.pool.db.mu.Lock()
		_ = t.pool.deleteVDI(vdi) // the import's own error is what is told
		t.pool.db.mu.Unlock()
	}
	t.end(string(xmlrpc.Append(nil, vdi.ref)), err)
}

func (t *transfer) importRawTarget(made, known bool) (*object, error) {
	if !made {
		return t.rawTarget()
	}
	if !known {
		return nil, internalError("require a content-length")
	}
	p := t.pool
	ref, err := p.importTarget(t.args)
	if err != nil {
		return nil, err
	}
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	sr, err := p.db.need("SR", ref)
	if err != nil {
		return nil, err
	}
	return p.createVDI(sr, t.stream.length, map[string]any{"name_label": "Imported VDI"})
}

func (t *transfer) importRaw(vdi *object, known bool) error {
	p := t.pool
	defer t.unblock()()
	defer t.keepSession()()
	image, vbd, err := t.plugRaw(vdi, "RW")
	if err != nil {
		t.answerPage(err)
		return err
	}
	defer p.unplugDom0(vbd, 0)
	if err := t.stream.writeLines(
		"HTTP/1.1 200 OK", "Connection: close", "Cache-Control: no-cache, no-store",
		"task-id:"+t.task, "content-type:application/octet-stream",
	); err != nil {
		return fail("CLIENT_ERROR", err.Error())
	}
	var body io.Reader = t.stream
	if known {
		body = io.LimitReader(body, t.stream.length)
	}
	in := &rawInput{body: t.shapedReader(body), into: &importedDisk{p: p, vdi: vdi, img: image}, size: image.Size(), progress: t.progress()}
	if t.args.has("chunked") {
		err = in.chunks()
	} else {
		err = in.copy(0, image.Size())
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fail("VDI_IO_ERROR", "Device I/O errors")
	}
	return err
}

// rawInput writes an upload to a disk.
type rawInput struct {
	body     io.Reader
	into     io.WriterAt
	size     int64
	progress func(done, total int64)
	buf      [disk.BlockSize]byte
}

func (in *rawInput) copy(at, n int64) error {
	if at < 0 || n < 0 || at > in.size || n > in.size-at {
		return fail("VDI_IO_ERROR", "Device I/O errors")
	}
	for end := at + n; at < end; {
		// Writes end where blocks do.
		part := in.buf[:min(end-at, disk.BlockSize-at%disk.BlockSize)]
		if _, err := io.ReadFull(in.body, part); err != nil {
			return err
		}
		if _, err := in.into.WriteAt(part, at); err != nil {
			return err
		}
		at += int64(len(part))
		in.progress(at, in.size)
	}
	return nil
}

// chunks reads the chunked protocol: 12 bytes little-endian, an offset and a
// length, and data; a chunk of zeros ends it (vhd-tool's chunked.ml).
func (in *rawInput) chunks() error {
	var head [12]byte
	for {
		if _, err := io.ReadFull(in.body, head[:]); err != nil {
			return err
		}
		at, n := binary.LittleEndian.Uint64(head[:8]), binary.LittleEndian.Uint32(head[8:])
		if n == 0 {
			return nil
		}
		if at > uint64(in.size) {
			return fail("VDI_IO_ERROR", "Device I/O errors")
		}
		if err := in.copy(int64(at), int64(n)); err != nil {
			return err
		}
	}
}
