package xensim

import (
	"bytes"
	"net/http"
	"strconv"

	"github.com/dpxen/dpxen/internal/xensim/archive"
)

// serveExportMetadata answers GET /export_metadata: an archive of ova.xml alone,
// with its length.
func (h *simHost) serveExportMetadata(w http.ResponseWriter, r *http.Request) {
	t := h.begin(w, r, "VM.export_metadata")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	p := t.pool
	ova, err := p.planMetadata(t.args)
	if err != nil {
		t.refuse(err)
		return
	}
	var out bytes.Buffer
	if err := archive.Export(t.ctx, &out, archive.ExportOptions{OVA: ova, OVAModTime: p.ovaTime()}); err != nil {
		t.refuse(internalError("%v", err))
		return
	}
	err = t.stream.writeLines(
		"HTTP/1.0 200 OK",
		"Connection: close",
		"Cache-Control: no-cache, no-store",
		"Content-Length: "+strconv.Itoa(out.Len()),
		"task-id: "+t.task,
		"Server: "+agentName,
		"content-type: application/octet-stream",
		`Content-Disposition: attachment; filename="export.xva"`,
	)
	if err == nil {
		_, err = t.stream.Write(out.Bytes())
	}
	if err != nil {
		err = fail("CLIENT_ERROR", err.Error())
	}
	t.end("", t.broken(err))
}

// planMetadata makes ova.xml for one VM, with its snapshots, or for all.
func (p *Pool) planMetadata(args params) ([]byte, error) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	b := &ovaBuilder{p: p, preserve: true, whole: true, ids: map[string]string{}, objects: map[string][]*object{}}
	withSnapshots := args.get("export_snapshots") != "false"
	add := func(vm *object) {
		b.addVM(vm)
		if withSnapshots {
			for _, s := range p.db.many("VM", vm.refs("snapshots")) {
				b.addVM(s)
			}
		}
	}
	if args.get("all") == "true" {
		for _, vm := range p.db.all("VM") {
			if !vm.is("is_a_snapshot") && !isDefaultTemplate(vm) && (!vm.is("is_control_domain") || args.get("include_dom0") == "true") {
				add(vm)
			}
		}
		return b.encode(), nil
	}
	ref := args.get("ref")
	if args.has("uuid") {
		vm := p.db.byUUID["VM"][args.get("uuid")]
		if vm == nil {
			return nil, fail("UUID_INVALID", "VM", args.get("uuid"))
		}
		ref = vm.ref
	}
	vm, err := p.db.need("VM", ref)
	if err != nil {
		return nil, err
	}
	b.whole = withSnapshots
	add(vm)
	return b.encode(), nil
}
