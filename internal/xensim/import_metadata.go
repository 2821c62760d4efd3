package xensim

import (
	"io"
	"net/http"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/archive"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// serveImportMetadata answers PUT /import_metadata: records alone, for disks that
// are there already. Like /import it says 200 before it reads (import.ml).
func (h *simHost) serveImportMetadata(w http.ResponseWriter, r *http.Request) {
	known := r.Header.Get("Content-Length") != ""
	t := h.begin(w, r, "VM.metadata_import")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	result, err := t.importMetadata(known)
	if err != nil {
		t.refuse(err) // after the answer of success
		return
	}
	t.end(result, t.broken(nil))
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
		t: t, p: p, restore: t.args.flag("restore"), force: t.args.flag("force"), metadata: true, dryRun: t.args.flag("dry_run"),
		live: t.args.flag("live"), checkCPU: t.args.flag("check_cpu"), disks: t.args.disks(),
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
	return string(xmlrpc.Append(nil, im.finish())), nil
}

// flag reads a bool of the query, of which only "true" counts.
func (p params) flag(name string) bool { return p.query.Get(name) == "true" }

// disks gives the parameters vdi:SOURCE=DESTINATION.
func (p params) disks() map[string]string {
	out := map[string]string{}
	for k := range p.query {
		if source, ok := strings.CutPrefix(k, "vdi:"); ok && source != "" {
			out[source] = p.query.Get(k)
		}
	}
	return out
}

// existing finds the disk that a record of the archive stands for: the one that
// the caller mapped it to, by uuid or SCSI id; the one with the same SCSI id; the
// one at the same place on the same SR; the one that a migration noted in
// maps_to. An entry of the map for a disk that the archive does not have is
// ignored without a word, as is one to a disk that is not here, so that the
// record can land on the old disk.
func (im *importer) existing(o ovaObject) error {
	iso, err := im.onISO(o)
	if err != nil {
		return err
	}
	if iso {
		im.findISO(o)
		return nil
	}
	p := im.p
	found := im.mapped(o)
	from, _ := im.find("SR", o.str("SR"))
	sr := p.db.byUUID["SR"][from.str("uuid")]
	if found == nil && sr != nil {
		for _, vdi := range p.db.many("VDI", sr.refs("VDIs")) {
			if vdi.str("location") == o.str("location") {
				found = vdi
			}
		}
	}
	if found == nil {
		found = p.db.find("VDI", o.strMap("other_config")["maps_to"])
	}
	switch {
	case found != nil:
		im.ids[o.id] = found.ref
		if !im.dryRun {
			im.syncConfig(o, found)
		}
		return nil
	case im.force:
		return nil
	case im.dryRun && im.live: // the disk is mirrored later
		im.ids[o.id] = o.id
		return nil
	case sr == nil:
		return fail("VDI_CONTENT_ID_MISSING")
	}
	return fail("VDI_LOCATION_MISSING", sr.ref, o.str("location"))
}

// mapped finds the disk by the map of the caller, else by its SCSI id.
func (im *importer) mapped(o ovaObject) *object {
	p := im.p
	scsi := o.strMap("sm_config")["SCSIid"]
	bySCSI := func(id string) *object {
		for _, vdi := range p.db.all("VDI") {
			if id != "" && vdi.m("sm_config")["SCSIid"] == id {
				return vdi
			}
		}
		return nil
	}
	to, ok := im.disks[o.str("uuid")]
	if !ok && scsi != "" {
		to, ok = im.disks[scsi]
	}
	if !ok {
		return bySCSI(scsi)
	}
	if vdi := p.db.byUUID["VDI"][to]; vdi != nil {
		return vdi
	}
	return bySCSI(to)
}

// syncConfig takes over the one key of other_config that follows the archive.
func (im *importer) syncConfig(o ovaObject, vdi *object) {
	const key = "config-drive"
	if v, ok := o.strMap("other_config")[key]; ok {
		im.p.db.put(vdi, "other_config", key, v)
	} else if _, ok := vdi.m("other_config")[key]; ok {
		im.p.db.drop(vdi, "other_config", key)
	}
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
