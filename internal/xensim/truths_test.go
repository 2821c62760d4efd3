package xensim

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// A crash of XAPI loses recent writes to its database, while disks and domains
// stay as they are (db_cache_impl.ml).
func TestDatabaseRolledBack(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm, running := c.vm("archive"), c.vm("web-01")
	kept := c.record("VM", vm)
	if err := p.Inject(Fault{Name: "database-rolled-back", Times: 1, Method: "VM.get_uuid"}); err != nil {
		t.Fatal(err)
	}
	c.ok("VM.add_to_other_config", vm, "lost", "yes")
	snapshot := c.str("VM.snapshot", vm, "lost")
	orphan := c.str("VDI.get_uuid", c.str("VBD.get_VDI", c.list("VM.get_VBDs", snapshot)[0]))
	gone := c.ok("VM.get_VBDs", vm).([]any)[0].(string)
	goneVDI := c.str("VBD.get_VDI", gone)
	goneUUID := c.str("VDI.get_uuid", goneVDI)
	c.ok("VDI.destroy", goneVDI)
	c.ok("VM.hard_shutdown", running)
	if _, err := c.call("VM.get_uuid", vm); err == nil {
		t.Fatal("the session outlived XAPI")
	}
	c = p.loginAgain(t)
	if _, ok := c.record("VM", vm)["other_config"].(map[string]any)["lost"]; ok {
		t.Error("a write after the last flush was kept")
	}
	c.fails("HANDLE_INVALID", "VM.get_uuid", snapshot)
	c.fails("UUID_INVALID", "VDI.get_by_uuid", goneUUID)
	if vdi := c.str("VDI.get_by_uuid", orphan); len(c.list("VDI.get_VBDs", vdi)) != 0 {
		t.Error("the disk of the lost snapshot has a VBD")
	}
	if got := c.record("VM", vm)["name_label"]; got != kept["name_label"] {
		t.Errorf("name %v", got)
	}
	if got := c.str("VM.get_power_state", running); got != halted {
		t.Errorf("a domain that ended is %s again", got)
	}
	c.ok("VM.start", running, false, false)
}

// loginAgain logs in while connections may still be reset.
func (p *Pool) loginAgain(t *testing.T) *client {
	t.Helper()
	c := p.client(t, 0)
	end := time.Now().Add(10 * time.Second)
	for {
		v, err := c.raw("session.login_with_password", "root", testPassword, "1.1", "test")
		if err == nil {
			c.session = v.(string)
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// other_config goes into snapshots, clones, exports and what is imported, and a
// revert brings the old keys back (xapi_vm_clone.ml, xapi_vm_snapshot.ml).
func TestOtherConfigIsInherited(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("archive")
	c.ok("VM.add_to_other_config", vm, "mark", "old")
	mark := func(ref string) any { return c.record("VM", ref)["other_config"].(map[string]any)["mark"] }
	snapshot := c.str("VM.snapshot", vm, "s")
	clone := c.str("VM.clone", vm, "c")
	c.ok("VM.remove_from_other_config", vm, "mark")
	if mark(snapshot) != "old" || mark(clone) != "old" || mark(vm) != nil {
		t.Errorf("snapshot %v, clone %v, VM %v", mark(snapshot), mark(clone), mark(vm))
	}
	c.ok("VM.revert", snapshot)
	if mark(vm) != "old" {
		t.Errorf("after the revert: %v", mark(vm))
	}
	res := c.do(http.MethodGet, "/export_metadata?ref="+vm+"&session_id="+c.session, nil)
	body, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Contains(body, []byte("<name>mark</name><value>old</value>")) {
		t.Errorf("exported without the key: %v", err)
	}
}

// The disk of a halted VM can be destroyed, and its VBD goes with it (xapi_vdi.ml).
func TestDiskOfHaltedVM(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("archive")
	vbd := c.list("VM.get_VBDs", vm)[0]
	c.ok("VDI.destroy", c.str("VBD.get_VDI", vbd))
	c.fails("HANDLE_INVALID", "VBD.get_uuid", vbd)
	if slices.Contains(c.list("VM.get_VBDs", vm), vbd) {
		t.Error("the VM keeps the VBD")
	}
	running := c.list("VM.get_VBDs", c.vm("web-01"))[0]
	c.fails("VDI_IN_USE", "VDI.destroy", c.str("VBD.get_VDI", running))
}

// The master's role moves, and members name the new master (session_check.ml).
func TestMasterChange(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	second := p.Info().Hosts[1]
	ref := c.str("host.get_by_uuid", second.UUID)
	c.ok("pool.designate_new_master", ref)
	other := p.client(t, 1)
	if _, err := other.raw("session.login_with_password", "root", testPassword); err != nil {
		t.Errorf("login on the new master: %v", err)
	}
	if params := p.client(t, 0).fails("HOST_IS_SLAVE", "session.login_with_password", "root", testPassword); len(params) != 1 || "http://"+params[0] != second.HTTP {
		t.Errorf("the old master names %v", params)
	}
}

// No interim answer is ever sent: curl waits a second for it and goes on.
func TestNoInterimAnswer(t *testing.T) {
	p := startPool(t)
	raw, err := net.Dial("tcp", p.Info().Hosts[0].ln())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	body := callBody("system.listMethods")
	if _, err := fmt.Fprintf(raw, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(raw)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 OK\r\n")) {
		t.Errorf("%.60s, %v", answer, err)
	}
}

func (h HostInfo) ln() string { return strings.TrimPrefix(h.HTTP, "http://") }
