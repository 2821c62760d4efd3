package xensim

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// counts says how many records there are of what an import makes.
func (c *client) counts() map[string]int {
	c.t.Helper()
	eventually(c.t, "dom0 lets go of all disks", func() bool {
		for _, dom0 := range c.ok("VM.get_all_records_where", `field "is_control_domain"="true"`).(map[string]any) {
			if len(dom0.(map[string]any)["VBDs"].([]any)) > 0 {
				return false
			}
		}
		return true
	})
	out := map[string]int{}
	for _, class := range []string{"VM", "VBD", "VIF", "VDI", "network", "VM_metrics", "VM_guest_metrics", "VBD_metrics", "VIF_metrics"} {
		out[class] = len(c.list(class + ".get_all"))
	}
	return out
}

func TestImport(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("installer")
	c.ok("VM.add_to_blocked_operations", vm, "hard_reboot", "x")
	c.ok("VM.add_to_other_config", vm, "mine", "1")
	c.ok("VM.add_to_other_config", vm, "auto_poweron", "true")
	c.ok("VM.add_tags", vm, "t")
	old := c.record("VM", vm)
	archive := c.body(c.export("ref", vm))
	task := c.str("task.create", "import", "")
	sr := c.list("SR.get_by_name_label", "Local storage on xen1")[0]
	answer := c.put(archive, "task_id", task, "sr_uuid", c.str("SR.get_uuid", sr))
	if want := "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id:" + task +
		"\r\ncontent-type: application/octet-stream\r\n\r\n"; answer != want {
		t.Errorf("answer %q", answer)
	}
	rec := c.task(task)
	refs := c.result(rec)
	if len(refs) != 1 || rec["other_config"].(map[string]any)["object_creation"] != "complete" {
		t.Fatalf("task %v", rec)
	}
	r := c.record("VM", refs[0])
	config := r["other_config"].(map[string]any)
	seed := old["other_config"].(map[string]any)["mac_seed"]
	if r["uuid"] == old["uuid"] || config["mac_seed"] == seed || config["mine"] != "1" || config["import_task"] != task || config["auto_poweron"] != "true" {
		t.Errorf("imported: uuid %v, other_config %v", r["uuid"], config)
	}
	if r["name_label"] != "installer" || r["power_state"] != "Halted" || len(r["blocked_operations"].(map[string]any)) != 0 ||
		fmt.Sprint(r["tags"]) != "[t]" || r["generation_id"] == old["generation_id"] || r["version"] != "0" || r["is_a_template"] != false {
		t.Errorf("imported: %v", r)
	}
	state := p.state(t)
	a, b := state.vm(t, old["uuid"].(string)), state.vm(t, r["uuid"].(string))
	if !maps.Equal(a.digests(), b.digests()) || a.VIFs[0].MAC == b.VIFs[0].MAC || a.VIFs[0].Network != b.VIFs[0].Network {
		t.Errorf("imported %+v, original %+v", b, a)
	}
	for _, d := range b.Disks {
		if d.Type == "CD" && (d.Empty || d.VDI.Name != "install.iso") {
			t.Errorf("the CD drive has %+v", d)
		}
	}
	for _, vdi := range c.disks(refs[0]) {
		v := c.record("VDI", vdi)
		if v["SR"] != sr || v["sm_config"].(map[string]any)["import_task"] != task || len(v["VBDs"].([]any)) != 1 {
			t.Errorf("imported VDI: %v", v)
		}
	}
	c.ok("VM.start", refs[0], false, false)
}

func TestImportedNetworks(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("web-01")
	archive := c.body(c.export("ref", vm))
	net := c.list("network.get_by_name_label", networkName)[0]
	c.ok("network.set_name_label", net, "renamed")
	refs := c.result(c.imports(archive)) // found by its bridge
	if got := c.str("VIF.get_network", c.list("VM.get_VIFs", refs[0])[0]); got != net {
		t.Errorf("network %s, want %s", got, net)
	}
	changed := bytes.ReplaceAll(archive, []byte("<value>xenbr0</value>"), []byte("<value>xenbr9</value>"))
	before := c.counts()["network"]
	refs = c.result(c.imports(changed))
	made := c.str("VIF.get_network", c.list("VM.get_VIFs", refs[0])[0])
	if c.counts()["network"] != before+1 || c.str("network.get_name_label", made) != networkName {
		t.Errorf("the network is %s", c.str("network.get_name_label", made))
	}
}

func TestRestore(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("twin")
	uuid, macs := c.str("VM.get_uuid", vm), p.state(t).vm(t, c.str("VM.get_uuid", vm)).VIFs
	archive := c.body(c.export("ref", vm))
	snap := c.str("VM.snapshot", vm, "s")
	c.ok("VM.set_is_a_template", snap, false)
	fromSnapshot := c.body(c.export("ref", snap))

	code := func(task map[string]any) string {
		t.Helper()
		if task["status"] != "failure" {
			t.Fatalf("the import did not fail: %v", task)
		}
		return task["error_info"].([]any)[0].(string)
	}
	counts := c.counts()
	if got := code(c.imports(fromSnapshot, "restore", "true")); got != "DUPLICATE_MAC_SEED" {
		t.Errorf("an export of a snapshot beside its VM: %s", got)
	}
	if got := code(c.imports(archive, "restore", "true")); got != "VM_TO_IMPORT_IS_NOT_NEWER_VERSION" {
		t.Errorf("over the original: %s", got)
	}
	if got := c.counts(); !maps.Equal(got, counts) {
		t.Errorf("refused imports left something: %v, before %v", got, counts)
	}
	oldDisk := c.disks(vm)["0"]
	refs := c.result(c.imports(archive, "restore", "true", "force", "true"))
	c.fails("HANDLE_INVALID", "VM.get_uuid", vm)
	if c.str("VM.get_uuid", refs[0]) != uuid || c.str("VM.get_version", refs[0]) != "1" {
		t.Errorf("forced: %v", c.record("VM", refs[0]))
	}
	if got := p.state(t); !slices.Equal(got.vm(t, uuid).VIFs, macs) || len(got.Orphans) != 1 || got.Orphans[0].UUID != c.str("VDI.get_uuid", oldDisk) {
		t.Errorf("VIFs %v, orphans %v", got.vm(t, uuid).VIFs, got.Orphans)
	}
	c.ok("VM.destroy", refs[0])
	c.ok("VM.destroy", snap)
	refs = c.result(c.imports(archive, "restore", "true"))
	if got := p.state(t).vm(t, c.str("VM.get_uuid", refs[0])); got.UUID != uuid || !slices.Equal(got.VIFs, macs) {
		t.Errorf("restored: %+v", got)
	}
}

func TestReplaceFailsInBetween(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("twin")
	archive := c.body(c.export("ref", vm))
	if err := p.Inject(Fault{Name: "import-fails-between", Times: 1}); err != nil {
		t.Fatal(err)
	}
	if r := c.imports(archive, "restore", "true", "force", "true"); r["status"] != "failure" {
		t.Fatalf("task %v", r)
	}
	if got := c.record("VM", vm); len(got["VBDs"].([]any)) != 0 || len(got["VIFs"].([]any)) != 0 {
		t.Errorf("what is left: %v", got)
	}
}

func TestImportRefused(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("archive")
	archive := c.body(c.export("ref", vm))
	counts := c.counts()
	block := bytes.Index(archive, []byte("/00000001")) + 600
	flipped := slices.Clone(archive)
	flipped[block] ^= 1
	noXML := slices.Clone(archive)
	copy(noXML, "ovb.xml")
	newer := bytes.Replace(archive, []byte("<name>xapi_major</name><value>24"), []byte("<name>xapi_major</name><value>99"), 1)
	noVDIs := bytes.ReplaceAll(archive, []byte("<name>class</name><value>VDI<"), []byte("<name>class</name><value>VDX<"))
	for name, tc := range map[string]struct {
		archive []byte
		codes   string
	}{
		"checksum": {flipped, "IMPORT_ERROR IMPORT_ERROR_SOME_CHECKSUMS_FAILED"}, "truncated": {archive[:len(archive)/2], "IMPORT_ERROR_PREMATURE_EOF"},
		"empty": {nil, "IMPORT_ERROR_PREMATURE_EOF IMPORT_ERROR"}, "no ova.xml": {noXML, "IMPORT_ERROR_PREMATURE_EOF"}, "newer": {newer, "IMPORT_INCOMPATIBLE_VERSION"},
		"garbage": {bytes.Repeat([]byte("x"), 4096), "IMPORT_ERROR_PREMATURE_EOF"}, "no VDIs": {noVDIs, "IMPORT_ERROR_FAILED_TO_FIND_OBJECT"},
	} {
		r := c.imports(tc.archive)
		code := fmt.Sprint(r["error_info"].([]any)[0])
		if r["status"] != "failure" || !slices.Contains(strings.Fields(tc.codes), code) {
			t.Errorf("%s: %v", name, r)
		}
		if got := c.counts(); !maps.Equal(got, counts) {
			t.Errorf("%s left something: %v, before %v", name, got, counts)
		}
	}
	if r := c.imports(flipped, "force", "true"); r["status"] != "success" {
		t.Errorf("forced in spite of a checksum: %v", r)
	}
	iso := c.list("SR.get_by_name_label", "ISO library")[0]
	task := c.str("task.create", "x", "")
	if got := c.put(archive, "sr_id", iso, "task_id", task); !strings.HasPrefix(got, "HTTP/1.1 400 Bad Request") {
		t.Errorf("ISO: %.60s", got)
	}
	if r := c.task(task); fmt.Sprint(r["error_info"]) != "[SR_OPERATION_NOT_SUPPORTED]" {
		t.Errorf("ISO: %v", r)
	}
	pool := c.list("pool.get_all")[0]
	defaultSR := c.str("pool.get_default_SR", pool)
	c.ok("pool.set_default_SR", pool, nullRef)
	for query, want := range map[string]string{
		"sr_uuid none": "[UUID_INVALID SR none]", "sr_id none": "[HANDLE_INVALID SR none]", "x y": "[DEFAULT_SR_NOT_FOUND " + nullRef + "]",
	} {
		task := c.str("task.create", "x", "")
		got := c.put(archive, append(strings.Fields(query), "task_id", task)...)
		if r := c.task(task); !strings.HasPrefix(got, "HTTP/1.1 500 Internal Error") || fmt.Sprint(r["error_info"]) != want {
			t.Errorf("%s: %.60s, task %v", query, got, r["error_info"])
		}
	}
	c.ok("pool.set_default_SR", pool, defaultSR)
	local := c.list("SR.get_by_name_label", "Local storage on xen2")[0]
	if got := c.put(nil, "sr_id", local); !strings.HasPrefix(got, "HTTP/1.1 302 Found\r\n") || !strings.Contains(got, "\r\nLocation: "+p.Info().Hosts[1].HTTP+"/import?") {
		t.Errorf("probe: %s", got)
	}
	if got := c.put(nil); !strings.HasPrefix(got, "HTTP/1.1 200 OK") || !strings.Contains(got, "\r\ntask-id:OpaqueRef:") {
		t.Errorf("probe of a shared SR: %s", got)
	}
	task = c.str("task.create", "x", "")
	got := c.exchange("PUT /import?" + c.query("task_id", task) + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	if r := c.task(task); !strings.HasPrefix(got, "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n\r\nHTTP/1.1 500 Internal Error\r\n") || r["error_info"].([]any)[0] != "IMPORT_ERROR_CANNOT_HANDLE_CHUNKED" {
		t.Errorf("chunked: %s, %v", got, r)
	}
}

func TestImportLengths(t *testing.T) {
	p := startPool(t, withVMs(2))
	c := p.login(t)
	archive := c.body(c.export("ref", c.halt("vm-02")))
	for _, length := range []string{"", "Content-Length: 1125899906842624\r\n"} {
		task := c.str("task.create", "x", "")
		conn := c.dial()
		if _, err := fmt.Fprintf(conn, "PUT /import?%s HTTP/1.1\r\nHost: x\r\n%s\r\n", c.query("task_id", task), length); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(archive[:len(archive)-1024]); err != nil {
			t.Fatal(err)
		}
		if r := c.task(task); r["status"] != "success" {
			t.Errorf("with %q: %v", length, r)
		}
	}
}

func TestImportFillsTheSR(t *testing.T) {
	p := startPool(t, withVMs(2), func(c *Config) { c.SRSize = 40 << 20; c.DiskSize = 16 << 20; c.Content = "random" })
	c := p.login(t)
	archive := c.body(c.export("ref", c.halt("vm-02")))
	counts := c.counts()
	r := c.imports(archive)
	if r["status"] != "failure" || r["error_info"].([]any)[0] != "VDI_IO_ERROR" {
		t.Errorf("task %v", r)
	}
	if got := c.counts(); !maps.Equal(got, counts) {
		t.Errorf("left behind: %v, before %v", got, counts)
	}
}
