package xensim

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"

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
	file, err := t.exportMetadata()
	if err == nil {
		err = t.stream.writeLines(
			"HTTP/1.0 200 OK",
			"Connection: close",
			"Cache-Control: no-cache, no-store",
			"task-id: "+t.task,
			"Server: "+agentName,
			"content-type: application/octet-stream",
			"Content-Length: "+strconv.Itoa(len(file)),
			`Content-Disposition: attachment; filename="export.xva"`,
		)
		if err == nil {
			_, err = t.stream.Write(file)
		}
		if err != nil {
			err = fail("CLIENT_ERROR", err.Error())
		}
		t.end("", t.broken(err))
		return
	}
	var wanted *unasked
	if !errors.As(err, &wanted) { // a failure while the archive is made is told twice
		_ = t.stream.writeLines("HTTP/1.1 500 internal error", "content-length: 0")
	}
	t.refuse(err)
}

// unasked is a request for metadata that cannot be understood.
type unasked struct{ error }

// Unwrap gives the failure.
func (u *unasked) Unwrap() error { return u.error }

// metadataWish is what a request for metadata asks for.
type metadataWish struct {
	all, snapshots, dom0, parents bool
	// without are the kinds of devices that are left out.
	without map[string]bool
}

func (t *transfer) metadataWish() (metadataWish, error) {
	w := metadataWish{without: map[string]bool{}}
	for _, f := range []struct {
		name  string
		value *bool
		usual bool
	}{
		{"include_vhd_parents", &w.parents, false}, {"all", &w.all, false}, {"export_snapshots", &w.snapshots, true},
		{"include_dom0", &w.dom0, true},
	} {
		*f.value = f.usual
		if t.args.query.Has(f.name) {
			var err error
			if *f.value, err = strictBool(t.args.query.Get(f.name)); err != nil {
				return w, err
			}
		}
	}
	list := t.args.query.Get("excluded_device_types")
	if own := t.pool.release.xapi; list == "" || own[0] < 24 || own[0] == 24 && own[1] < 13 {
		return w, nil
	}
	for kind := range strings.SplitSeq(strings.ToLower(list), ",") {
		switch kind {
		case "vif", "vbd", "vgpu", "vtpm":
			w.without[kind] = true
		default:
			return w, internalError("Failure(\"Importexport.Devicetype.of_string: Type '%s' not one of [vif; vbd; vgpu; vtpm]\")", kind)
		}
	}
	return w, nil
}

// exportMetadata makes the archive, with all VMs locked meanwhile.
func (t *transfer) exportMetadata() ([]byte, error) {
	p := t.pool
	wish, err := t.metadataWish()
	if err != nil {
		return nil, &unasked{err}
	}
	vms, err := t.metadataVMs(wish)
	if err != nil {
		return nil, &unasked{err}
	}
	for _, vm := range vms {
		p.db.mu.Lock()
		o := p.db.find("VM", vm)
		dom0 := o != nil && o.is("is_control_domain")
		p.db.mu.Unlock()
		if dom0 {
			continue
		}
		if err := t.beginVM(vm, "metadata_export", failQuickly); err != nil {
			return nil, err
		}
		defer t.endVM(vm)
	}
	var out bytes.Buffer
	if err := archive.Export(t.ctx, &out, archive.ExportOptions{OVA: p.planMetadata(vms, wish), OVAModTime: p.ovaTime()}); err != nil {
		return nil, internalError("%v", err)
	}
	return out.Bytes(), nil
}

// metadataVMs gives the VMs that are asked for: one, or all but default templates.
func (t *transfer) metadataVMs(wish metadataWish) ([]string, error) {
	p := t.pool
	if !wish.all {
		vm, err := p.exportTarget(t.args)
		return []string{vm}, err
	}
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	var out []string
	for _, vm := range p.db.all("VM") {
		if !isDefaultTemplate(vm) && (!vm.is("is_control_domain") || wish.dom0) {
			out = append(out, vm.ref)
		}
	}
	return out, nil
}

// planMetadata makes ova.xml, with snapshots where they are wanted.
func (p *Pool) planMetadata(vms []string, wish metadataWish) []byte {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	b := &ovaBuilder{
		p: p, preserve: true, whole: wish.snapshots, parents: wish.parents, without: wish.without,
		ids: map[string]string{}, objects: map[string][]*object{},
	}
	for _, vm := range p.db.many("VM", vms) {
		b.addVM(vm)
		if wish.snapshots {
			for _, s := range p.db.many("VM", vm.refs("snapshots")) {
				b.addVM(s)
			}
		}
	}
	return b.encode()
}
