package xensim

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func (p *Pool) inject(t *testing.T, f Fault) {
	t.Helper()
	if err := p.Inject(f); err != nil {
		t.Fatal(err)
	}
}

// exported gives what came of an export: its body, whether it ended in good order,
// its task's status.
func (c *client) exported(vm string) (body []byte, status string, err error) {
	c.t.Helper()
	task := c.str("task.create", "x", "")
	res := c.export("ref", vm, "task_id", task)
	body, err = io.ReadAll(res.Body)
	r, e := c.call("task.get_record", task)
	if e != nil {
		return body, "gone", err
	}
	if r.(map[string]any)["status"] == "pending" {
		return body, c.task(task)["status"].(string), err
	}
	return body, r.(map[string]any)["status"].(string), err
}

func TestExportFaults(t *testing.T) {
	p := startPool(t, withVMs(2), func(c *Config) { c.Content = "random" })
	c := p.login(t)
	vm := c.halt("vm-02")
	good, status, err := c.exported(vm)
	if err != nil || status != "success" {
		t.Fatalf("without a fault: %v, %s", err, status)
	}
	uuid := c.str("VM.get_uuid", vm)
	for _, tc := range []struct {
		fault  Fault
		check  func(body []byte) bool
		status string
	}{
		{Fault{Name: "export-refused"}, func(b []byte) bool { return bytes.Contains(b, []byte("SR_BACKEND_FAILURE_46")) }, "failure"},
		{Fault{Name: "export-slow-head", Delay: time.Second}, func(b []byte) bool { return len(b) == len(good) }, "success"},
		{Fault{Name: "export-cut", After: 1 << 20}, func(b []byte) bool { return len(b) == 1<<20 }, "failure"},
		{Fault{Name: "export-embedded-500", After: 1 << 20}, func(b []byte) bool {
			return len(b) > 1<<20 && bytes.HasPrefix(b[1<<20:], []byte("HTTP/1.1 500 Internal Error\r\n"))
		}, "failure"},
		{Fault{Name: "export-task-fails"}, func(b []byte) bool { return len(b) == len(good) }, "failure"},
		{Fault{Name: "export-task-vanishes"}, func(b []byte) bool { return len(b) == len(good) }, "gone"},
		{Fault{Name: "export-corrupt", After: 1<<20 + 77}, func(b []byte) bool { return len(b) == len(good) }, "success"},
		{Fault{Name: "export-read-error", After: 2 << 20}, func(b []byte) bool { return bytes.Contains(b, []byte("VDI_IO_ERROR")) }, "failure"},
		{Fault{Name: "export-no-end"}, func(b []byte) bool { return len(b) == len(good)-1024 }, "success"},
		{Fault{Name: "export-stall", After: 1 << 20, Delay: time.Second}, func(b []byte) bool { return len(b) == len(good) }, "success"},
	} {
		tc.fault.Times, tc.fault.Object = 1, uuid
		if tc.fault.Name == "export-read-error" {
			tc.fault.Object = ""
		}
		p.inject(t, tc.fault)
		body, status, _ := c.exported(vm)
		if !tc.check(body) || status != tc.status {
			t.Errorf("%s: %d bytes, task %s", tc.fault.Name, len(body), status)
		}
		if left := p.Faults(); len(left) != 0 {
			t.Errorf("%s is still armed: %v", tc.fault.Name, left)
		}
		eventually(t, "the VM is free", func() bool { return len(c.ok("VM.get_current_operations", vm).(map[string]any)) == 0 })
	}
	if body, status, err := c.exported(vm); err != nil || status != "success" || len(body) != len(good) {
		t.Errorf("afterwards: %v, %s, %d bytes", err, status, len(body))
	}
}

func TestCallFaults(t *testing.T) {
	p := startPool(t, withVMs(2), func(c *Config) { c.Speedup = 20000 })
	c := p.login(t)
	vm := c.vm("vm-01")
	vdi := c.disks(vm)["0"]
	pool := c.list("pool.get_all")[0]
	for _, tc := range []struct {
		fault  Fault
		code   string
		method string
		params []any
	}{
		{Fault{Name: "snapshot-fails", Object: "vm-01"}, "SR_BACKEND_FAILURE_44", "VM.snapshot", []any{vm, "s"}},
		{Fault{Name: "sr-full", Object: "Shared storage"}, "SR_BACKEND_FAILURE_44", "VM.snapshot", []any{vm, "s"}},
		{Fault{Name: "vdi-in-use"}, "VDI_IN_USE", "VDI.destroy", []any{vdi}},
		{Fault{Name: "host-booting"}, "HOST_STILL_BOOTING", "VM.get_all", nil},
		{Fault{Name: "call-fails", Method: "VM.get_all", Code: "LICENCE_RESTRICTION", Params: []string{"x"}}, "LICENCE_RESTRICTION", "VM.get_all", nil},
		{Fault{Name: "map-duplicate"}, "MAP_DUPLICATE_KEY", "pool.add_to_other_config", []any{pool, "k", "v"}},
		{Fault{Name: "login-fails"}, "SESSION_AUTHENTICATION_FAILED", "session.login_with_password", []any{"root", testPassword}},
		{Fault{Name: "start-fails"}, "HOST_NOT_ENOUGH_FREE_MEMORY", "VM.start", []any{c.halt("vm-02"), false, false}},
		{Fault{Name: "shutdown-ignored"}, "VM_SHUTDOWN_TIMEOUT", "VM.clean_shutdown", []any{vm}},
		{Fault{Name: "shutdown-late", Delay: 1300 * time.Second}, "VM_SHUTDOWN_TIMEOUT", "VM.clean_shutdown", []any{vm}},
	} {
		tc.fault.Times = 1
		p.inject(t, tc.fault)
		c.fails(tc.code, tc.method, tc.params...)
		if left := p.Faults(); len(left) != 0 {
			t.Errorf("%s is still armed: %v", tc.fault.Name, left)
		}
	}
	p.inject(t, Fault{Name: "vdi-in-use", Skip: 1, Times: 2})
	c.fails("HANDLE_INVALID", "VDI.destroy", "OpaqueRef:x")
	c.fails("VDI_IN_USE", "VDI.destroy", "OpaqueRef:x")
	c.fails("VDI_IN_USE", "VDI.destroy", "OpaqueRef:x")
	c.fails("HANDLE_INVALID", "VDI.destroy", "OpaqueRef:x")
	if err := p.Inject(Fault{Name: "no-such-fault"}); err == nil {
		t.Error("an unknown fault was taken")
	}
	p.inject(t, Fault{Name: "call-slow", Delay: time.Millisecond})
	p.inject(t, Fault{Name: "login-slow", Delay: time.Millisecond})
	p.Clear("")
	if got := p.Faults(); len(got) != 0 {
		t.Errorf("after Clear: %v", got)
	}
	if len(FaultNames()) < 30 {
		t.Errorf("%d faults", len(FaultNames()))
	}
}

func TestLostAnswer(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	p.inject(t, Fault{Name: "answer-lost", Method: "VM.snapshot", Times: 1})
	vm := c.vm("vm-01")
	if v, err := c.call("VM.snapshot", vm, "lost"); err == nil {
		t.Fatalf("an answer came: %v", v)
	}
	if got := c.list("VM.get_by_name_label", "lost"); len(got) == 0 {
		t.Error("the snapshot was not made")
	}
	p.inject(t, Fault{Name: "session-invalid", Times: 1})
	c.fails("SESSION_INVALID", "VM.get_all")
	p.inject(t, Fault{Name: "connection-reset", Object: "xen1", Times: 1})
	c.http.CloseIdleConnections()
	if v, err := c.raw("system.listMethods"); err == nil {
		t.Errorf("a connection that was to be reset answered %.20v", v)
	}
	c.ok("system.listMethods")
}

func TestToolstackRestart(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	task := c.str("task.create", "x", "")
	p.inject(t, Fault{Name: "toolstack-restart", Times: 1, Delay: 200 * time.Second})
	if v, err := c.call("VM.get_all"); err == nil {
		t.Errorf("the call that the restart hit answered %v", v)
	}
	if _, err := c.call("session.login_with_password", "root", testPassword); err == nil {
		t.Error("a connection was taken while the toolstack restarts")
	}
	eventually(t, "the hosts are back", func() bool {
		_, err := c.call("system.listMethods")
		return err == nil
	})
	c.session = p.login(t).session
	c.fails("HANDLE_INVALID", "task.get_status", task)
}

// plugged are the VBDs by which dom0s have disks for streams. One call gives them all: each may be gone before the next.
func plugged(c *client) []string {
	c.t.Helper()
	refs := []string{}
	for ref, vbd := range c.ok("VBD.get_all_records").(map[string]any) {
		if _, ok := vbd.(map[string]any)["other_config"].(map[string]any)["task_id"]; ok {
			refs = append(refs, ref)
		}
	}
	return refs
}

// The restart ends exports and imports: their connections break, nobody undoes what an import has made, and dom0 lets go of
// the disks when XAPI is up again.
func TestToolstackRestartEndsStreams(t *testing.T) {
	p := startPool(t, withVMs(2))
	c := p.login(t)
	vm := c.halt("vm-02")
	archive := c.body(c.export("ref", vm))
	eventually(t, "dom0 lets go of the first export's disk", func() bool { return len(plugged(c)) == 0 })
	vms, disks := len(c.list("VM.get_all")), len(c.list("VDI.get_all"))
	p.inject(t, Fault{Name: "export-stall", Times: 1, After: 1 << 20, Delay: time.Hour})
	res := c.export("ref", vm)
	task := c.str("task.create", "import", "")
	conn := c.dial()
	if _, err := fmt.Fprintf(conn, "PUT /import?session_id=%s&task_id=%s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s",
		c.session, task, len(archive), archive[:len(archive)/2]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the import is on its way, and both have disks in dom0", func() bool { return len(plugged(c)) == 2 })
	p.inject(t, Fault{Name: "toolstack-restart", Times: 1, Delay: 200 * time.Second})
	_, _ = c.call("VM.get_all") // which does not answer
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the export came to its end")
	}
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("the connection of the import ended in good order")
	}
	eventually(t, "the hosts are back", func() bool {
		_, err := c.call("system.listMethods")
		return err == nil
	})
	c.session = p.login(t).session
	c.fails("HANDLE_INVALID", "task.get_status", task)
	if a, b := len(c.list("VM.get_all"))-vms, len(c.list("VDI.get_all"))-disks; a != 1 || b != 1 {
		t.Errorf("%d VMs and %d disks are left of the import, want one of each", a, b)
	}
	if still := plugged(c); len(still) > 0 {
		t.Errorf("%v are in dom0 still", still)
	}
	for _, ref := range c.list("VM.get_all") {
		if ops := c.record("VM", ref)["current_operations"]; len(ops.(map[string]any)) > 0 {
			t.Errorf("VM %s has operations %v", ref, ops)
		}
	}
}

func TestImportFaults(t *testing.T) {
	p := startPool(t, withVMs(2))
	c := p.login(t)
	archive := c.body(c.export("ref", c.halt("vm-02")))
	vms := len(c.list("VM.get_all"))
	for _, name := range []string{"import-fails-at-start", "import-fails-at-end"} {
		p.inject(t, Fault{Name: name, Times: 1})
		if r := c.imports(archive); r["status"] != "failure" {
			t.Errorf("%s: %v", name, r)
		}
		if got := len(c.list("VM.get_all")); got != vms {
			t.Errorf("%s left %d VMs", name, got-vms)
		}
	}
	p.inject(t, Fault{Name: "import-stall", Times: 1, After: 100000, Delay: time.Second})
	if r := c.imports(archive); r["status"] != "success" {
		t.Errorf("stalled: %v", r)
	}
	p.inject(t, Fault{Name: "vdi-not-available", Times: 1})
	if body, status, _ := c.exported(c.vm("vm-02")); status != "failure" || !strings.Contains(string(body), "SR_BACKEND_FAILURE_46") {
		t.Errorf("no disk: %s", status)
	}
}

func TestHostDown(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	local := c.halt("archive") // one of its disks is on the second host
	if err := p.SetHostDown("xen2", true, true); err != nil {
		t.Fatal(err)
	}
	c.fails("NO_HOSTS_AVAILABLE", "VM.start", local, false, false)
	task := c.str("task.create", "export", "")
	if answer := c.exchange("GET /export?" + c.query("ref", local, "task_id", task) + " HTTP/1.1\r\nHost: x\r\n\r\n"); answer != "" {
		t.Errorf("export of what no host sees: %q", answer) // XAPI only fails the task
	}
	if info := fmt.Sprint(c.task(task)["error_info"]); info != "[NO_HOSTS_AVAILABLE]" {
		t.Errorf("the task of an export of what no host sees: %s", info)
	}
	if err := p.SetHostDown("xen2", false, false); err != nil {
		t.Fatal(err)
	}
	if err := p.SetHostDown("xen1", true, true); err != nil {
		t.Fatal(err)
	}
	if err := p.SetMaster("xen2"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.call("VM.get_all"); err == nil {
		t.Error("a dead host answers on an open connection")
	}
	m := p.client(t, 1)
	m.session = c.session
	m.ok("VM.start", local, false, false)
	if res := m.do(http.MethodGet, "/export?"+m.query("ref", m.halt("db-01")), nil); res.StatusCode != http.StatusOK {
		t.Errorf("export from the other host: %s", res.Status)
	}
}

func TestControl(t *testing.T) {
	p := startPool(t, demo, func(c *Config) { c.Control = "127.0.0.1:0" })
	c := p.client(t, 0)
	c.base = p.Info().Control
	for _, path := range []string{"/dump", "/info", "/invariants", "/faults"} {
		if res := c.do(http.MethodGet, path, nil); res.StatusCode != http.StatusOK || len(c.body(res)) < 10 {
			t.Errorf("GET %s: %s", path, res.Status)
		}
	}
	vm := p.state(t).VMs[0]
	before := vm.digests()["0"]
	if res := c.do(http.MethodPost, "/scribble?seed=3&n=2&vdi="+vm.Disks[0].VDI.UUID, nil); res.StatusCode != http.StatusOK {
		t.Errorf("scribble: %s", res.Status)
	}
	if after := p.state(t).vm(t, vm.UUID).digests()["0"]; after == before {
		t.Error("scribble changed nothing")
	}
	if res := c.do(http.MethodPost, "/scribble?seed=3&n=2&vdi=none", nil); res.StatusCode != http.StatusBadRequest {
		t.Errorf("scribble on nothing: %s", res.Status)
	}
	if res := c.do(http.MethodPost, "/fault", strings.NewReader(`{"name":"vdi-in-use","times":3}`)); res.StatusCode != http.StatusOK || len(p.Faults()) != 1 {
		t.Errorf("fault: %s", res.Status)
	}
	if res := c.do(http.MethodDelete, "/fault?name=vdi-in-use", nil); res.StatusCode != http.StatusOK || len(p.Faults()) != 0 {
		t.Errorf("clearing: %s", res.Status)
	}
}

// A host that goes down takes the streams that go through it along. A dead one cleans up after them when it is up again, one
// that only the network lost at once.
func TestHostDownEndsStreams(t *testing.T) {
	for name, dead := range map[string]bool{"dead": true, "no network": false} {
		t.Run(name, func(t *testing.T) {
			p := startPool(t, withVMs(1))
			c := p.login(t)
			host := p.Info().Hosts[0].Name
			vm := c.halt("vm-01")
			p.inject(t, Fault{Name: "export-stall", Times: 1, After: 1 << 20, Delay: time.Hour})
			res := c.export("ref", vm)
			idle := p.client(t, 0)
			idle.ok("system.listMethods")
			eventually(t, "the disk is in dom0", func() bool { return len(plugged(c)) > 0 })
			if err := p.SetHostDown(host, true, dead); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(res.Body); err == nil {
				t.Error("the export came to its end")
			}
			if _, err := idle.call("system.listMethods"); err == nil {
				t.Error("a host that is down answers on an open connection")
			}
			if err := p.SetHostDown(host, false, false); err != nil {
				t.Fatal(err)
			}
			eventually(t, "dom0 lets go of the disks", func() bool { return len(plugged(c)) == 0 })
		})
	}
}

// An export or import that a member dies in keeps the VM busy: until the member is up again where the task was its own, until
// XAPI is restarted on the master where a client has made it there.
func TestMemberDiesInStream(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vm := c.halt("vm-01")
	m := p.client(t, 1)
	m.session = c.session
	operations := func() map[string]any { return c.ok("VM.get_current_operations", vm).(map[string]any) }
	p.inject(t, Fault{Name: "export-stall", Times: 2, After: 1 << 20, Delay: time.Hour})
	ours := c.str("task.create", "export", "")
	first := m.export("ref", vm, "task_id", ours)
	second := m.export("ref", vm)
	own := second.Header.Get("task-id")
	if err := p.SetHostDown("xen2", true, true); err != nil {
		t.Fatal(err)
	}
	for _, res := range []*http.Response{first, second} {
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("an export came to its end")
		}
	}
	if got := operations(); got[ours] != "export" || got[own] != "export" {
		t.Errorf("the member is dead, and the VM's operations are %v", got)
	}
	if err := p.SetHostDown("xen2", false, false); err != nil {
		t.Fatal(err)
	}
	c.fails("HANDLE_INVALID", "task.get_status", own)
	if got := operations(); len(got) != 1 || got[ours] != "export" {
		t.Errorf("the member is up, and the VM's operations are %v", got)
	}
	if s := c.str("task.get_status", ours); s != "pending" {
		t.Errorf("the task that nobody works on is %s", s)
	}
	c.ok("host.restart_agent", c.host("xen1"))
	known := func() bool {
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		return p.db.find("task", ours) != nil
	}
	eventually(t, "XAPI was ended and is up", func() bool { return !known() && !p.hosts[0].isDown() })
	c = p.login(t)
	if got := operations(); len(got) != 0 {
		t.Errorf("XAPI was restarted on the master, and the VM's operations are %v", got)
	}
	c.fails("HANDLE_INVALID", "task.get_status", ours)
}
