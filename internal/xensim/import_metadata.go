package xensim

import (
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/archive"
)

// serveImportMetadata answers PUT /import_metadata: records alone, for disks that
// are there already. Like /import it says 200 before it reads (import.ml).
func (h *simHost) serveImportMetadata(w http.ResponseWriter, r *http.Request) {
	chunked := len(r.TransferEncoding) > 0
	known := r.Header.Get("Content-Length") != ""
	t := h.begin(w, r, "VM.metadata_import")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	if chunked {
		_ = t.stream.page("403 Forbidden", "") // the task tells as well
		t.end("", fail("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"))
		return
	}
	result, err := t.importMetadata(known)
	t.end(result, t.broken(err))
}

func (t *transfer) importMetadata(known bool) (string, error) {
	p := t.pool
	defer t.unblock()()
	if err := t.stream.writeLines(
		"HTTP/1.1 200 OK", "Connection: close", "Cache-Control: no-cache, no-store",
		"task-id:"+t.task, "content-type: application/octet-stream",
	); err != nil {
		return "", fail("CLIENT_ERROR", err.Error())
	}
	var body io.Reader = t.stream
	if known {
		body = io.LimitReader(body, t.stream.length)
	}
	im := &importer{
		t: t, p: p, restore: t.args.get("restore") == "true", force: t.args.get("force") == "true",
		metadata: true, dryRun: t.args.get("dry_run") == "true", disks: t.args.disks(),
		ids: map[string]string{}, made: map[string][]string{},
	}
	_, err := archive.Import(t.ctx, body, archive.ImportOptions{
		OVA: im.records, Force: im.force, AllowXXHash: true, AllowPAX: p.release.xapi[0] >= 24,
	})
	if err != nil {
		if !im.force {
			im.undo()
		}
		return "", importError(err)
	}
	return im.finish(), nil
}

// disks gives the parameters vdi:SOURCE=DESTINATION.
func (p params) disks() map[string]string {
	out := map[string]string{}
	add := func(k, v string) {
		if source, ok := strings.CutPrefix(k, "vdi:"); ok {
			out[source] = v
		}
	}
	for k := range p.query {
		add(k, p.query.Get(k))
	}
	for k, v := range p.cookies {
		if u, err := url.QueryUnescape(k); err == nil {
			k = u
		}
		add(k, v)
	}
	return out
}

// existing finds the disk that a record of the archive stands for: the one that
// the caller mapped it to, else the one at the same place on the same SR. An
// entry of the map for a disk that the archive does not have, or to one that is
// not here, is ignored without a word, so that the record can land on the old
// disk.
func (im *importer) existing(o ovaObject) error {
	p := im.p
	if to, ok := im.disks[o.str("uuid")]; ok {
		vdi := p.db.byUUID["VDI"][to]
		if vdi == nil {
			vdi = p.db.find("VDI", to)
		}
		if vdi != nil {
			im.ids[o.id] = vdi.ref
			return nil
		}
	}
	from, _ := im.find("SR", o.str("SR"))
	if sr := p.db.byUUID["SR"][from.str("uuid")]; sr != nil {
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			if vdi.str("location") == o.str("location") {
				im.ids[o.id] = vdi.ref
				return nil
			}
		}
	}
	if im.force || im.onlyCD(o) {
		return nil
	}
	return fail("VDI_LOCATION_MISSING", from.str("uuid"), o.str("location"))
}

// snapshots makes snapshots again what they were; only metadata carries them.
func (im *importer) snapshots() {
	p := im.p
	for _, o := range im.class("VM") {
		vm := p.db.find("VM", im.ids[o.id])
		if vm == nil || !o.is("is_a_snapshot") {
			continue
		}
		p.db.set(vm, "is_a_snapshot", true)
		p.db.set(vm, "snapshot_info", o.strMap("snapshot_info"))
		if of := im.ids[o.str("snapshot_of")]; p.db.find("VM", of) != nil {
			p.db.set(vm, "snapshot_of", of)
		}
		p.updateAllowed(vm)
	}
}
