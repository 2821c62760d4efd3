package xensim

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// halt gives a VM that is halted.
func (c *client) halt(name string) string {
	c.t.Helper()
	vm := c.vm(name)
	if c.str("VM.get_power_state", vm) != "Halted" {
		c.ok("VM.hard_shutdown", vm)
	}
	return vm
}

// ova reads the first entry of an archive and decodes it.
func ova(t *testing.T, archive []byte) (raw []byte, objects map[string][]map[string]any) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	h, err := r.Next()
	if err != nil || h.Name != "ova.xml" {
		t.Fatalf("first entry: %v, %v", h, err)
	}
	if raw, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	v, err := xmlrpc.DecodeValue(raw)
	if err != nil {
		t.Fatal(err)
	}
	objects = map[string][]map[string]any{}
	for _, o := range v.(map[string]any)["objects"].([]any) {
		m := o.(map[string]any)
		s := m["snapshot"].(map[string]any)
		s["id"] = m["id"]
		class := m["class"].(string)
		objects[class] = append(objects[class], s)
	}
	return raw, objects
}

func TestExportHead(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("archive")
	task := c.str("task.create", "label", "description")
	if host := c.str("VM.get_resident_on", vm); host != nullRef {
		t.Fatal("not halted")
	}
	// One of its disks is on a local SR of the second host.
	q := c.query("uuid", c.str("VM.get_uuid", vm), "task_id", task)
	got := c.exchange("GET /export?" + q + " HTTP/1.1\r\nHost: x\r\n\r\n")
	if want := "HTTP/1.1 302 Found\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n" +
		"Location: " + p.Info().Hosts[1].HTTP + "/export?" + q + "\r\n\r\n"; got != want {
		t.Errorf("redirect:\n%s\nwant\n%s", got, want)
	}
	if got := c.str("task.get_status", task); got != "pending" {
		t.Errorf("the task is %s after a redirect", got)
	}
	m := p.client(t, 1)
	m.session = c.session
	got = m.exchange("GET /export/?" + q + " HTTP/1.1\r\nHost: x\r\n\r\n")
	head, body, _ := strings.Cut(got, "\r\n\r\n")
	if want := "HTTP/1.0 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id: " + task + "\r\nServer: " + agentName +
		"\r\ncontent-type: application/octet-stream\r\nContent-Disposition: attachment; filename=\"export.xva\""; head != want {
		t.Errorf("head:\n%s\nwant\n%s", head, want)
	}
	if len(body)%512 != 0 || strings.Trim(body[len(body)-1024:], "\x00") != "" {
		t.Errorf("%d bytes, the end %q", len(body), body[len(body)-16:])
	}
	r := c.record("task", task)
	if r["status"] != "success" || r["result"] != "" || r["progress"] != 1.0 {
		t.Errorf("task: %v", r)
	}
}

func TestExportContents(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("installer")
	c.ok("VM.add_to_other_config", vm, "dpxen:x", "kept")
	snap := c.str("VM.snapshot", vm, "exported")
	c.ok("VM.set_is_a_template", snap, false)
	res := c.export("ref", snap)
	raw, o := ova(t, c.body(res))
	if bytes.Contains(raw, []byte("> <")) || !bytes.HasPrefix(raw, []byte("<value><struct><member><name>version</name>")) {
		t.Errorf("ova.xml begins %.100s", raw)
	}
	v := o["VM"][0]
	for k, want := range map[string]any{
		"uuid": c.str("VM.get_uuid", snap), "name_label": "exported", "is_a_template": false, "is_a_snapshot": false, "snapshot_of": nullRef,
		"power_state": "Halted", "parent": nullRef, "snapshot_time": c.record("VM", vm)["snapshot_time"], "resident_on": nullRef,
	} {
		if v[k] != want {
			t.Errorf("VM.%s = %v, want %v", k, v[k], want)
		}
	}
	if got := v["other_config"].(map[string]any); got["dpxen:x"] != "kept" || got["mac_seed"] == "" {
		t.Errorf("other_config %v", got)
	}
	if len(v) != 91 { // all fields and the id
		t.Errorf("the VM has %d fields", len(v)-1)
	}
	ids := map[string]bool{}
	for _, list := range o {
		for _, x := range list {
			ids[x["id"].(string)] = true
		}
	}
	for _, ref := range v["VBDs"].([]any) {
		if !ids[ref.(string)] {
			t.Errorf("VBD %v is not in the archive", ref)
		}
	}
	if len(o["VDI"]) != 2 || len(o["SR"]) != 2 || len(o["VIF"]) != 1 || len(o["network"]) != 1 || len(o["VBD"]) != 2 {
		t.Errorf("objects: %d VDIs, %d SRs, %d VIFs, %d networks, %d VBDs", len(o["VDI"]), len(o["SR"]), len(o["VIF"]), len(o["network"]), len(o["VBD"]))
	}
	for _, vbd := range o["VBD"] {
		if vbd["currently_attached"] != false || vbd["metrics"] != nullRef || vbd["VM"] != v["id"] {
			t.Errorf("VBD %v", vbd)
		}
	}
	for _, sr := range o["SR"] {
		if len(sr["PBDs"].([]any)) != 0 {
			t.Errorf("SR with PBDs: %v", sr)
		}
	}
	if i, j := bytes.Index(raw, []byte("<value>VBD</value>")), bytes.Index(raw, []byte("<value>SR</value>")); i < 0 || j < i {
		t.Error("classes are out of order")
	}
}

func TestExportKinds(t *testing.T) {
	for _, tc := range []struct {
		name, version, checksum, compression, suffix string
		magic                                        []byte
	}{
		{"xxhash", "", "", "", ".xxhash", []byte("ova.xml")},
		{"sha1 by version", "7.6", "", "", ".checksum", []byte("ova.xml")},
		{"sha1", "", "sha1", "none", ".checksum", []byte("ova.xml")},
		{"gzip", "", "", "true", "", []byte{0x1f, 0x8b}},
		{"gzip by name", "", "", "gzip", "", []byte{0x1f, 0x8b}},
		{"zstd", "", "", "zstd", "", []byte{0x28, 0xb5, 0x2f, 0xfd}},
		{"no zstd yet", "7.6", "", "zstd", ".checksum", []byte("ova.xml")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := startPool(t, withVMs(2), func(c *Config) { c.ProductVersion, c.Checksum = tc.version, tc.checksum })
			c := p.login(t)
			vm := c.halt("vm-02")
			uuid := c.str("VM.get_uuid", vm)
			archive := c.body(c.export("ref", vm, "use_compression", tc.compression))
			if !bytes.HasPrefix(archive, tc.magic) {
				t.Errorf("begins %x", archive[:8])
			}
			if tc.suffix != "" && !bytes.Contains(archive, []byte("/00000000"+tc.suffix+"\x00")) {
				t.Errorf("no %s entries", tc.suffix)
			}
			r := c.imports(archive)
			if r["status"] != "success" {
				t.Fatalf("import: %v", r)
			}
			imported := c.result(r)[0]
			state := p.state(t)
			a, b := state.vm(t, uuid), state.vm(t, c.str("VM.get_uuid", imported))
			if a.digests()["0"] != b.digests()["0"] || a.digests()["0"] == "" {
				t.Errorf("disks differ: %v, %v", a.digests(), b.digests())
			}
		})
	}
}

func TestExportRefused(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	task := c.str("task.create", "x", "")
	res := c.export("ref", vm, "task_id", task)
	if body := string(c.body(res)); res.StatusCode != http.StatusInternalServerError || !strings.Contains(body, "VM_BAD_POWER_STATE: [ "+vm+"; halted, suspended; running ]") {
		t.Errorf("running VM: %s %s", res.Status, body)
	}
	if r := c.task(task); r["status"] != "failure" || r["error_info"].([]any)[0] != "VM_BAD_POWER_STATE" {
		t.Errorf("task: %v", r)
	}
	for _, args := range [][]string{{"uuid", "none"}, {"ref", "OpaqueRef:none"}, {"ref", vm, "preserve_power_state", "maybe"}, {"ref", vm, "task_id", "OpaqueRef:none"}} {
		if res := c.export(args...); res.StatusCode != http.StatusInternalServerError {
			t.Errorf("%v: %s", args, res.Status)
		}
	}
	task = c.str("task.create", "x", "")
	if res := c.export("ref", vm, "session_id", "OpaqueRef:none", "task_id", task); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("no session: %s", res.Status)
	}
	if r := c.task(task); fmt.Sprint(r["error_info"]) != "[SESSION_AUTHENTICATION_FAILED]" {
		t.Errorf("task: %v", r)
	}
	vm = c.halt("web-01")
	res = c.do(http.MethodGet, "/export?ref="+vm, nil, func(r *http.Request) { r.SetBasicAuth("root", testPassword) })
	if res.StatusCode != http.StatusOK {
		t.Errorf("Basic: %s", res.Status)
	}
	task = c.str("task.create", "x", "")
	for what, header := range map[string]string{"": "", "&session_id=OpaqueRef:x": "root:" + testPassword, "&session_id=": "", "&task_id=" + task: "root:wrong"} {
		res := c.do(http.MethodGet, "/export?ref="+vm+what, nil, func(r *http.Request) {
			if user, password, ok := strings.Cut(header, ":"); ok {
				r.SetBasicAuth(user, password)
			}
		})
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%q with %q: %s", what, header, res.Status)
		}
	}
	if r := c.record("task", task); r["status"] != "failure" || fmt.Sprint(r["error_info"]) != "[SESSION_AUTHENTICATION_FAILED]" {
		t.Errorf("the task of an export that was not let in: %v, %v", r["status"], r["error_info"])
	}
	c.body(res)
	res = c.do(http.MethodGet, "/export?ref="+vm+"&session_id=wrong", nil, func(r *http.Request) {
		r.Header.Set("Cookie", "session_id="+c.session+"&x=y")
	})
	if res.StatusCode != http.StatusOK {
		t.Errorf("cookie: %s", res.Status)
	}
	c.body(res)
}

func TestExportLocksTheVM(t *testing.T) {
	p := startPool(t, withVMs(2), func(c *Config) { c.Bandwidth = 2 << 20; c.Content = "random"; c.DiskSize = 8 << 20 })
	c := p.login(t)
	vm := c.halt("vm-02")
	task := c.str("task.create", "x", "")
	res := c.export("ref", vm, "task_id", task)
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	if got := c.ok("VM.get_current_operations", vm).(map[string]any); got[task] != "export" {
		t.Errorf("current operations: %v", got)
	}
	if got := c.list("VM.get_allowed_operations", vm); slices.Contains(got, "start") || !slices.Contains(got, "export") {
		t.Errorf("allowed: %v", got)
	}
	if got := c.fails("OTHER_OPERATION_IN_PROGRESS", "VM.start", vm, false, false); !slices.Equal(got, []string{"VM", vm, "export", task}) {
		t.Errorf("start: %v", got)
	}
	second := c.export("ref", vm) // several exports may run at once
	if second.StatusCode != http.StatusOK {
		t.Error(second.Status)
	}
	_ = second.Body.Close()
	destroy := c.str("Async.VM.destroy", vm) // waits for the export, until it is cancelled
	c.ok("task.cancel", destroy)
	if r := c.task(destroy); r["status"] != "cancelled" || r["error_info"].([]any)[0] != "TASK_CANCELLED" {
		t.Errorf("destroy: %v", r)
	}
	c.ok("task.cancel", task)
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Log("the stream ended without an error, as streams without a length do")
	}
	if r := c.task(task); r["status"] != "cancelled" {
		t.Errorf("cancelled export: %v", r)
	}
	eventually(t, "the VM is free", func() bool { return len(c.ok("VM.get_current_operations", vm).(map[string]any)) == 0 })
	eventually(t, "dom0 let go", func() bool { return len(c.list("VDI.get_VBDs", c.disks(vm)["0"])) == 1 })
	c.ok("VM.start", vm, false, false)
}

func TestSuspendedExport(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vm := c.vm("vm-01")
	p.db.mu.Lock()
	p.db.set(p.db.find("VM", vm), "memory_dynamic_max", int64(16<<20))
	p.db.mu.Unlock()
	c.ok("VM.suspend", vm)
	_, o := ova(t, c.body(c.export("ref", vm)))
	if o["VM"][0]["power_state"] != "Halted" || o["VM"][0]["suspend_VDI"] != nullRef || len(o["VDI"]) != 1 {
		t.Errorf("plain: %v, %d VDIs", o["VM"][0]["power_state"], len(o["VDI"]))
	}
	archive := c.body(c.export("ref", vm, "preserve_power_state", "true"))
	_, o = ova(t, archive)
	if o["VM"][0]["power_state"] != "Suspended" || len(o["VDI"]) != 2 {
		t.Errorf("preserved: %v, %d VDIs", o["VM"][0]["power_state"], len(o["VDI"]))
	}
	r := c.imports(archive)
	if r["status"] != "success" {
		t.Fatalf("import: %v", r)
	}
	vms := c.list("VM.get_by_name_label", "vm-01")
	for _, v := range vms {
		if c.str("VM.get_power_state", v) != "Suspended" || c.str("VM.get_suspend_VDI", v) == nullRef {
			t.Errorf("imported: %v", c.record("VM", v))
		}
		c.ok("VM.resume", v, false, false)
	}
	if len(vms) != 2 {
		t.Errorf("%d VMs", len(vms))
	}
}

func TestKeepAliveBlocks(t *testing.T) {
	p := startPool(t, withVMs(2), func(c *Config) { c.KeepAliveBlocks = 3; c.Content = "zero"; c.DiskSize = 20 << 20 })
	c := p.login(t)
	r := tar.NewReader(bytes.NewReader(c.body(c.export("ref", c.halt("vm-02")))))
	empty := 0
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Size == 0 && strings.HasPrefix(h.Name, "Ref:") {
			empty++
		}
	}
	if empty < 4 {
		t.Errorf("%d empty blocks", empty)
	}
}

func TestExportMetadata(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	c.ok("VM.snapshot", vm, "snap")
	res := c.do(http.MethodGet, "/export_metadata?"+c.query("ref", vm), nil)
	if res.ContentLength <= 0 || res.Proto != "HTTP/1.0" {
		t.Errorf("%s with length %d", res.Proto, res.ContentLength)
	}
	answer := c.exchange("GET /export_metadata?" + c.query("ref", vm, "export_snapshots", "false") + " HTTP/1.1\r\nHost: x\r\n\r\n")
	head := regexp.MustCompile(`^HTTP/1.0 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id: OpaqueRef:[-0-9a-f]+\r\n` +
		`Server: [^\r]+\r\ncontent-type: application/octet-stream\r\nContent-Length: \d+\r\n` +
		`Content-Disposition: attachment; filename="export.xva"\r\n\r\nova.xml\x00`)
	if !head.MatchString(answer) {
		t.Errorf("the answer begins %.400q", answer)
	}
	_, o := ova(t, c.body(res))
	if len(o["VM"]) != 2 || o["VM"][1]["is_a_snapshot"] != true {
		t.Errorf("%d VMs", len(o["VM"]))
	}
	// All but default templates: 8 VMs, a snapshot and, if not left out, 2 control domains.
	for dom0, want := range map[string]int{"true": 11, "false": 9} {
		_, o = ova(t, c.body(c.do(http.MethodGet, "/export_metadata?"+c.query("all", "true", "export_snapshots", "false", "include_dom0", dom0), nil)))
		if len(o["VM"]) != want {
			t.Errorf("%d VMs in all", len(o["VM"]))
		}
	}
	parents := func(wish string) int {
		_, o := ova(t, c.body(c.do(http.MethodGet, "/export_metadata?"+c.query("ref", vm, "include_vhd_parents", wish), nil)))
		return len(o["VDI"])
	}
	if a, b := parents("false"), parents("true"); b != a+len(c.disks(vm)) {
		t.Errorf("%d VDIs, with their parents %d", a, b)
	}
}

func TestExportMetadataWithout(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	p.db.mu.Lock()
	p.db.create("VTPM", map[string]any{"VM": vm})
	p.db.mu.Unlock()
	count := func(without string) string {
		_, o := ova(t, c.body(c.do(http.MethodGet, "/export_metadata?"+c.query("ref", vm, "excluded_device_types", without), nil)))
		return fmt.Sprint(len(o["VIF"]), len(o["network"]), len(o["VBD"]), len(o["VDI"]), len(o["SR"]), len(o["VTPM"]),
			len(o["VM"][0]["VIFs"].([]any)), len(o["VM"][0]["VBDs"].([]any)), len(o["VM"][0]["VTPMs"].([]any)))
	}
	all := count("")
	if all != "1 1 2 1 1 1 1 2 1" {
		t.Errorf("with all devices: %s", all)
	}
	for without, want := range map[string]string{
		"vgpu": all, "vif": "0 0 2 1 1 1 0 2 1", "VBD": "1 1 0 0 0 1 1 0 1", "vtpm": "1 1 2 1 1 0 1 2 0", "vif,vbd,vtpm": "0 0 0 0 0 0 0 0 0",
	} {
		if got := count(without); got != want {
			t.Errorf("without %s: %s, want %s", without, got, want)
		}
	}
	for _, query := range []string{"&excluded_device_types=floppy", "&all=yes", "&uuid=x"} {
		_, _, task := c.transferred(http.MethodGet, "/export_metadata?"+strings.Replace("ref="+vm+query, "ref="+vm+"&uuid", "uuid", 1), nil)
		if task["status"] != "failure" {
			t.Errorf("%s: %v", query, task["status"])
		}
	}
	old := startPool(t, demo, version("8.2")).login(t)
	_, o := ova(t, old.body(old.do(http.MethodGet, "/export_metadata?"+old.query("ref", old.vm("web-01"), "excluded_device_types", "vif"), nil)))
	if len(o["VIF"]) != 1 {
		t.Error("8.2 leaves devices out")
	}
}

// A VM is locked while its metadata is exported, and one that cannot be is told of
// in two answers.
func TestExportMetadataLocks(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01")
	c.ok("VM.add_to_blocked_operations", vm, "metadata_export", "not now")
	task := c.str("task.create", "x", "")
	answer := c.exchange("GET /export_metadata?" + c.query("ref", vm, "task_id", task) + " HTTP/1.1\r\nHost: x\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 500 internal error\r\ncontent-length: 0\r\n\r\nHTTP/1.1 500 Internal Error\r\n") {
		t.Errorf("answered %.200q", answer)
	}
	if r := c.task(task); fmt.Sprint(r["error_info"]) != "[OPERATION_BLOCKED "+vm+" not now]" {
		t.Errorf("the task tells %v", r["error_info"])
	}
}

// TestExportBlocks exports one disk by each choice of blocks. Which chunks there
// are follows from what was written to the disk.
func TestExportBlocks(t *testing.T) {
	for choice, want := range map[string]string{
		// Blocks 3 (data) and 6 (zeros) of 14 were written; 0 and 13 are always there.
		"raw": "0 3 13", "nbd": "0 3 6 13", "bitmap": "0 2 3 6 7 13",
	} {
		t.Run(choice, func(t *testing.T) {
			p := startPool(t, withVMs(2), func(c *Config) {
				c.Content, c.DiskSize, c.ExportBlocks, c.KeepAliveBlocks = "zero", 13<<20+512, choice, -1
			})
			c := p.login(t)
			vm := c.halt("vm-02")
			vdi := c.disks(vm)["0"]
			var chunks bytes.Buffer
			for at, b := range map[uint64]byte{3 << 20: 7, 6 << 20: 0} {
				_ = binary.Write(&chunks, binary.LittleEndian, at)
				_ = binary.Write(&chunks, binary.LittleEndian, uint32(512))
				chunks.Write(bytes.Repeat([]byte{b}, 512))
			}
			chunks.Write(make([]byte, 12))
			c.rawImport("/import_raw_vdi?chunked&vdi="+vdi, chunks.Bytes())
			file := c.body(c.export("ref", vm))
			if got := chunkNumbers(t, file); got != want {
				t.Errorf("chunks %s, want %s", got, want)
			}
			refs := c.result(c.imports(file))
			s := p.state(t)
			if a, b := s.vm(t, c.str("VM.get_uuid", vm)).digests(), s.vm(t, c.str("VM.get_uuid", refs[0])).digests(); !maps.Equal(a, b) {
				t.Errorf("imported %v, exported %v", b, a)
			}
		})
	}
	// A keep-alive is a chunk without bytes in a raw scan, a whole one over NBD, and
	// nothing where a bitmap is followed.
	for choice, want := range map[string]string{"raw": "0 4- 8- 12- 16", "nbd": "0 4 8 12 13", "bitmap": "0 13"} {
		p := startPool(t, withVMs(2), func(c *Config) {
			c.Content, c.DiskSize, c.ExportBlocks, c.KeepAliveBlocks = "zero", 13<<20+512, choice, 3
		})
		c := p.login(t)
		if got := chunkNumbers(t, c.body(c.export("ref", c.halt("vm-02")))); got != want {
			t.Errorf("%s: chunks %s, want %s", choice, got, want)
		}
	}
	if _, err := New(Config{ExportBlocks: "some"}); err == nil {
		t.Error("an unknown choice of blocks was taken")
	}
}

// chunkNumbers lists the chunks of an archive of one disk, those without bytes
// with a dash.
func chunkNumbers(t *testing.T, file []byte) string {
	t.Helper()
	var out []string
	for r := tar.NewReader(bytes.NewReader(file)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(out, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		_, number, ok := strings.Cut(h.Name, "/")
		n, err := strconv.Atoi(number)
		if !ok || err != nil {
			continue // ova.xml, a checksum
		}
		s := strconv.Itoa(n)
		if h.Size == 0 {
			s += "-"
		}
		out = append(out, s)
	}
}
