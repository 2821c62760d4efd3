package xensim

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"

	"github.com/dpxen/dpxen/internal/xensim/archive"
	"github.com/dpxen/dpxen/internal/xensim/disk"
	"github.com/dpxen/dpxen/internal/xensim/vhd"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// serveImportRaw answers PUT /import_raw_vdi into a VDI, or in the format raw into
// a new one on an SR. It says 200 before it reads the body; only the task tells
// the outcome (import_raw_vdi.ml).
func (h *simHost) serveImportRaw(w http.ResponseWriter, r *http.Request) {
	up := &upload{encoding: r.TransferEncoding, known: r.Header.Get("Content-Length") != ""}
	t := h.begin(w, r, "VDI.import")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	up.transfer = t
	if t.args.has("vdi") {
		vdi, err := t.rawTarget("vdi")
		if err != nil {
			t.reject(err)
			return
		}
		up.vdi, up.sr = vdi, t.srOf(vdi)
	} else if err := up.findSR(); err != nil {
		up.refuse(err)
		return
	}
	if up.sr == "" {
		t.bare("HTTP/1.1", "400 Bad Request")
		t.end("", fail("VDI_MISSING"))
		return
	}
	if other, here := t.rawHost(up.sr); !here {
		if other == nil {
			up.refuse(fail("NO_HOSTS_AVAILABLE"))
			return
		}
		t.redirect(other, r)
		return
	}
	if status, err := up.check(); err != nil {
		t.bare("HTTP/1.0", status)
		t.end("", err)
		return
	}
	if err := up.run(); err != nil {
		up.refuse(t.broken(err))
		return
	}
	t.end(string(xmlrpc.Append(nil, up.vdi.ref)), nil)
}

// upload is a disk that comes in.
type upload struct {
	*transfer
	encoding []string
	known    bool // the length of the body
	vdi      *object
	sr       string
	format   rawFormat
}

// findSR finds the SR that is to get a new VDI, if one is named.
func (u *upload) findSR() error {
	if !u.args.has("sr_id") && !u.args.has("sr_uuid") {
		return nil
	}
	sr, err := u.pool.namedSR(u.args)
	u.sr = sr
	return err
}

// refuse tells of a failure twice, as XAPI does: a status of its own, perhaps
// after that of success, and then the page of the failure.
func (u *upload) refuse(err error) {
	u.bare("HTTP/1.1", "400 Bad Request")
	_ = u.stream.internal(err) // the client may be gone, and the task tells as well
	u.end("", err)
}

// check refuses what the importer does not take, with the status that tells so.
func (u *upload) check() (status string, err error) {
	const missing, bad = "404 Not Found", "400 Bad Request"
	format, known := u.rawFormat()
	u.format = format
	switch {
	case !known:
		return missing, unknownFormat(format)
	case format != formatRaw && u.args.has("chunked"):
		return missing, internalError("Cannot handle chunked VHD")
	case len(u.encoding) > 0:
		return missing, internalError("Cannot handle encoding: %s", u.encoding[0])
	case u.vdi != nil, format == formatRaw && u.known:
		return "", nil
	case format == formatVHD:
		return bad, internalError("Importing a VHD directly into an SR not yet supported")
	case format == formatQCOW2:
		return bad, internalError("Importing a QCOW2 directly into an SR not yet supported")
	}
	return bad, internalError("Not enough info supplied to import")
}

// create makes the VDI where the client named an SR only.
func (u *upload) create() error {
	if u.vdi != nil {
		return nil
	}
	p := u.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	sr, err := p.db.need("SR", u.sr)
	if err != nil {
		return err
	}
	u.vdi, err = p.createVDI(sr, u.stream.length, map[string]any{"name_label": "Imported VDI"})
	return err
}

// run says 200 and reads the body into the disk.
func (u *upload) run() error {
	defer u.unblock()()
	defer u.keepSession()()
	if err := u.create(); err != nil {
		return err
	}
	if err := u.stream.writeLines(
		"HTTP/1.1 200 OK", "Connection: close", "Cache-Control: no-cache, no-store",
		"task-id:"+u.task, "content-type: application/octet-stream",
	); err != nil {
		return fail("CLIENT_ERROR", err.Error())
	}
	image, vbd, err := u.plugRaw(u.vdi, "RW")
	if err != nil {
		return err
	}
	defer u.pool.unplugDom0(vbd, 0)
	return u.receive(image)
}

func (u *upload) receive(image *disk.Image) error {
	var body io.Reader = u.stream
	length := image.Size()
	if u.known {
		body, length = io.LimitReader(body, u.stream.length), u.stream.length
	}
	body = u.shapedReader(body)
	into := &importedDisk{p: u.pool, vdi: u.vdi, img: image}
	in := &rawInput{body: body, into: into, size: image.Size(), progress: u.progress()}
	var err error
	switch {
	case u.format == formatTar:
		return u.receiveTar(body, into, image.Size())
	case u.format == formatVHD:
		err = vhd.Read(u.ctx, body, vhd.ReadOptions{Length: length, Size: image.Size(), Into: into, Progress: u.progress()})
	case u.args.has("chunked"):
		err = in.chunks()
	case length == 0:
		err = deviceFailed() // "Non-zero size required"
	default:
		if err = in.copy(0, min(length, image.Size())); err == nil && length > image.Size() {
			err = deviceFailed()
		}
	}
	if err != nil && u.ctx.Err() == nil {
		return deviceFailed() // the tool that copies does not tell why
	}
	return err
}

// receiveTar reads chunks as /import does, of one disk.
func (u *upload) receiveTar(body io.Reader, into io.WriterAt, size int64) error {
	p := u.pool
	_, err := archive.ImportDisks(u.ctx, body, []archive.Expected{{Dir: tarDir, Size: size, Image: into}}, archive.ImportOptions{
		Progress: u.progress(), AllowXXHash: p.release.xxhash, AllowPAX: p.release.xapi[0] >= 24,
	})
	var f *archive.Failure
	if errors.As(err, &f) {
		return f.Plain()
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
		return deviceFailed()
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
// length, and data; offset and length zero end it (vhd-tool's chunked.ml).
func (in *rawInput) chunks() error {
	var head [12]byte
	for {
		if _, err := io.ReadFull(in.body, head[:]); err != nil {
			return err
		}
		at, n := binary.LittleEndian.Uint64(head[:8]), binary.LittleEndian.Uint32(head[8:])
		if at == 0 && n == 0 {
			return nil
		}
		if at > uint64(in.size) {
			return deviceFailed()
		}
		if err := in.copy(int64(at), int64(n)); err != nil {
			return err
		}
	}
}
