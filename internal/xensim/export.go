package xensim

import (
	"io"
	"net/http"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/archive"
)

// serveExport answers GET /export.
func (h *simHost) serveExport(w http.ResponseWriter, r *http.Request) {
	t := h.begin(w, r, "VM.export")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	p := t.pool
	vm, err := p.exportTarget(t.args)
	if err != nil {
		t.reject(err)
		return
	}
	if other, ok := p.exportHost(h, vm); !ok {
		if other == nil {
			t.end("", fail("NO_HOSTS_AVAILABLE")) // XAPI says nothing more
			return
		}
		t.redirect(other, r)
		return
	}
	p.db.mu.Lock()
	p.setProgress(t.task, 0)
	p.db.mu.Unlock()
	preserve := false
	if t.args.has("preserve_power_state") {
		preserve, err = strictBool(t.args.get("preserve_power_state"))
	}
	if err == nil {
		err = t.beginVM(vm, "export", failQuickly)
	}
	if err != nil {
		t.refuse(err)
		return
	}
	shape := p.faultsOnExport(vm)
	over := p.deed("export", h.name, vm, "", t.task)
	err = t.export(vm, preserve, shape)
	over(err)
	if !t.restarted() {
		t.endVM(vm)
	}
	if shape.vanish {
		p.db.mu.Lock()
		if o := p.db.find("task", t.task); o != nil {
			p.dropTask(o)
		}
		p.db.mu.Unlock()
	}
	t.end("", t.broken(err))
}

// refuse answers with an error page before any data, and fails the task.
func (t *transfer) refuse(err error) {
	err = t.broken(err)
	t.answerPage(err)
	t.end("", err)
}

func (t *transfer) answerPage(err error) {
	_ = t.stream.internal(err) // the client may be gone; the task tells as well
}

// exportTarget finds the VM of an export.
func (p *Pool) exportTarget(args params) (string, error) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if args.has("ref") {
		vm, err := p.db.need("VM", args.get("ref"))
		if err != nil {
			return "", err
		}
		return vm.ref, nil
	}
	vm := p.db.byUUID["VM"][args.get("uuid")]
	if vm == nil {
		return "", fail("UUID_INVALID", "VM", args.get("uuid"))
	}
	return vm.ref, nil
}

// strictBool reads a bool as OCaml does.
func strictBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, internalError("Invalid_argument(\"bool_of_string\")")
}

// exportHost says whether a host can export a VM, and which one else.
func (p *Pool) exportHost(h *simHost, ref string) (*simHost, bool) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	vm := p.db.find("VM", ref)
	if vm == nil {
		return nil, false
	}
	return p.hostSeeing(h, p.storageOf(vm))
}

// hostSeeing prefers the given host, then any live one that sees all the SRs.
func (p *Pool) hostSeeing(h *simHost, srs []*object) (*simHost, bool) {
	all := func(h *simHost) bool {
		for _, sr := range srs {
			if !p.sees(h, sr) {
				return false
			}
		}
		return !h.dead
	}
	if all(h) {
		return h, true
	}
	for _, o := range p.hosts {
		if all(o) {
			return o, false
		}
	}
	return nil, false
}

// export writes head and stream. The VM is locked.
func (t *transfer) export(ref string, preserve bool, shape *exportShape) error {
	p := t.pool
	if shape.headDelay > 0 && p.wait(t.ctx, shape.headDelay) != nil {
		return t.cancelled()
	}
	p.db.mu.Lock()
	vm, err := p.db.need("VM", ref)
	if err == nil {
		err = shape.before
	}
	if err != nil {
		p.db.mu.Unlock()
		t.answerPage(err)
		return err
	}
	plan := p.planExport(vm, preserve)
	p.db.mu.Unlock()

	defer t.unblock()()
	defer t.keepSession()()
	err = t.stream.writeLines(
		"HTTP/1.0 200 OK",
		"Connection: close",
		"Cache-Control: no-cache, no-store",
		"task-id: "+t.task,
		"Server: "+agentName,
		"content-type: application/octet-stream",
		`Content-Disposition: attachment; filename="export.xva"`,
	)
	if err != nil {
		return fail("CLIENT_ERROR", err.Error())
	}
	out := shape.writer(t.shaped(t.stream.fast()))
	sources := p.newSources(t)
	defer sources.detach()
	if err := archive.Export(t.ctx, out, t.exportOptions(plan, sources)); err != nil {
		return t.exportFailed(err, out)
	}
	return shape.after
}

// exportFailed reports an error in the middle of the stream as XAPI does: with a
// second answer in the same body.
func (t *transfer) exportFailed(err error, out io.Writer) error {
	var f *Failure
	if c, ok := out.(*faulty); ok && c.cut {
		return fail("CLIENT_ERROR", "connection reset")
	}
	if t.ctx.Err() != nil {
		return t.cancelled()
	}
	if asFailure(err, &f) {
		_ = t.stream.internal(f) // into the body; the client may be gone
		return f
	}
	return fail("CLIENT_ERROR", err.Error())
}

func (t *transfer) exportOptions(plan *exportPlan, sources *exportSources) archive.ExportOptions {
	p := t.pool
	o := archive.ExportOptions{
		OVA: plan.ova, OVAModTime: p.ovaTime(), Checksum: p.checksum(), Compression: p.compression(t.args),
		Progress: t.progress(), KeepAlive: sources.quiet, ZeroPolicy: zeroPolicies[p.cfg.ExportBlocks],
	}
	for _, d := range plan.disks {
		o.Disks = append(o.Disks, archive.ExportDisk{Dir: d.dir, Image: &exportSource{disk: d, all: sources}})
	}
	return o
}

// zeroPolicies are the ways to choose blocks by the names of Config.ExportBlocks.
var zeroPolicies = map[string]archive.ZeroPolicy{
	"": archive.SkipZero, "raw": archive.SkipZero, "nbd": archive.Extents, "bitmap": archive.Allocated,
}

func exportBlocks(name string) bool { _, ok := zeroPolicies[name]; return ok }

func (p *Pool) checksum() archive.Checksum {
	if p.cfg.Checksum == "sha1" || p.cfg.Checksum == "" && !p.release.xxhash {
		return archive.SHA1
	}
	return archive.XXHash
}

func (p *Pool) compression(args params) archive.Compression {
	switch args.get("use_compression") {
	case "true", "gzip":
		return archive.Gzip
	case "zstd":
		if !p.api.Less(releases[5].api) { // 8.1
			return archive.Zstd
		}
	}
	return archive.None
}

// progress gives a function that moves the task's progress, every 10 s at most.
func (t *transfer) progress() func(done, total int64) {
	every := t.pool.scaled(10 * time.Second)
	last := time.Now()
	return func(done, total int64) {
		if total <= 0 || time.Since(last) < every {
			return
		}
		last = time.Now()
		t.pool.db.mu.Lock()
		defer t.pool.db.mu.Unlock()
		t.pool.setProgress(t.task, float64(done)/float64(total))
	}
}
