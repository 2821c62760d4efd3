package xensim

import (
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

// rawFormat is a format of /export_raw_vdi and /import_raw_vdi.
type rawFormat string

const (
	formatRaw   rawFormat = "raw"
	formatVHD   rawFormat = "vhd"
	formatTar   rawFormat = "tar"
	formatQCOW2 rawFormat = "qcow2"
)

// contentTypes are those of exports.
var contentTypes = map[rawFormat]string{
	formatRaw: "application/octet-stream", formatVHD: "application/vhd", formatTar: "application/x-tar",
	formatQCOW2: "application/x-qemu-disk",
}

// tarDir is the directory of the chunks of a disk in the format tar
// (vdi_tar_export_dir).
const tarDir = "vdi"

// rawFormat gives the format that a request asks for; false where this release
// does not know it.
func (t *transfer) rawFormat() (rawFormat, bool) {
	name := "raw"
	if t.args.has("format") {
		name = t.args.get("format")
	}
	f, own := rawFormat(strings.ToLower(name)), t.pool.release.xapi
	switch {
	case f == formatTar && own[0] == 1 && own[1] < 160: // since 8.0
	case f == formatQCOW2 && (own[0] < 25 || own[0] == 25 && own[1] < 27):
	case contentTypes[f] != "":
		return f, true
	}
	return rawFormat(name), false
}

func unknownFormat(f rawFormat) error { return internalError("Unknown format %s", f) }

// rawTarget finds the VDI that a parameter names by reference or uuid.
func (t *transfer) rawTarget(name string) (*object, error) {
	p := t.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	id := t.args.get(name)
	if o := p.db.find("VDI", id); o != nil {
		return o, nil
	}
	if o := p.db.byUUID["VDI"][id]; o != nil {
		return o, nil
	}
	return nil, fail("UUID_INVALID", "VDI", id)
}

// rawHost says whether this host sees an SR, and which one else does.
func (t *transfer) rawHost(srRef string) (*simHost, bool) {
	p := t.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	sr := p.db.find("SR", srRef)
	if sr == nil {
		return nil, false
	}
	return p.hostSeeing(t.host, []*object{sr})
}

func (t *transfer) srOf(vdi *object) string {
	t.pool.db.mu.Lock()
	defer t.pool.db.mu.Unlock()
	return vdi.str("SR")
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

// deviceFailed is what XAPI makes of any failure of the tools that copy disks.
func deviceFailed() error { return fail("VDI_IO_ERROR", "Device I/O errors") }

// vhdBacked says whether a VHD lies behind a VDI; the database is locked.
func (p *Pool) vhdBacked(vdi *object) bool {
	sr := p.db.find("SR", vdi.str("SR"))
	return sr != nil && sr.str("content_type") != "iso" && vdi.m("sm_config")["type"] != "raw"
}
