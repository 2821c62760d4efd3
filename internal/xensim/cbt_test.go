package xensim

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

// changed gives the numbers of the blocks that list_changed_blocks names.
func (c *client) changed(from, to string) []int {
	c.t.Helper()
	bits, err := base64.StdEncoding.DecodeString(c.str("VDI.list_changed_blocks", from, to))
	if err != nil {
		c.t.Fatal(err)
	}
	out := []int{}
	for i := range len(bits) * 8 {
		if bits[i/8]&(0x80>>(i%8)) != 0 {
			out = append(out, i)
		}
	}
	return out
}

// writeAt writes to a disk as a client of /import_raw_vdi in the form chunked.
func (p *Pool) writeAt(t *testing.T, vdi string, blocks ...int64) {
	t.Helper()
	p.db.mu.Lock()
	image := p.volumes[vdi].image
	p.db.mu.Unlock()
	for _, b := range blocks {
		if _, err := image.WriteAt([]byte{1}, b*disk.ChangeBlock); err != nil {
			t.Fatal(err)
		}
	}
}

// snapVDI makes a snapshot of a VM with one disk and gives the disk's.
func (c *client) snapVDI(vm string) (snapshot, vdi string) {
	c.t.Helper()
	snapshot = c.str("VM.snapshot", vm, "s")
	return snapshot, c.disks(snapshot)["0"]
}

func TestChangedBlocks(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vm := c.vm("vm-01")
	vdi := c.disks(vm)["0"]
	before, early := c.snapVDI(vm)
	c.fails("VDI_NO_CBT_METADATA", "VDI.list_changed_blocks", early, early)
	c.ok("VDI.enable_cbt", vdi) // the VM runs
	c.ok("VDI.enable_cbt", vdi) // a second time does nothing
	if c.ok("VDI.get_cbt_enabled", vdi) != true {
		t.Error("CBT is not enabled")
	}
	p.writeAt(t, vdi, 0, 9)
	first, a := c.snapVDI(vm)
	p.writeAt(t, vdi, 3, 9)
	second, b := c.snapVDI(vm)
	p.writeAt(t, vdi, 48)
	_, d := c.snapVDI(vm)
	if c.ok("VDI.get_cbt_enabled", a) != true {
		t.Error("a snapshot of a tracked disk has no log")
	}
	check := func(from, to string, want ...int) {
		t.Helper()
		if got := c.changed(from, to); !slices.Equal(got, want) {
			t.Errorf("changed blocks %v, want %v", got, want)
		}
	}
	check(a, b, 3, 9)
	check(b, d, 48)
	check(a, d, 3, 9, 48)
	check(a, a)
	if got := c.fails("VDI_IN_USE", "VDI.list_changed_blocks", a, vdi); !slices.Equal(got, []string{vdi, "list_changed_blocks"}) {
		t.Errorf("of a disk in use: %v", got)
	}
	c.fails("SR_BACKEND_FAILURE_460", "VDI.list_changed_blocks", d, a) // the wrong way round
	c.fails("VDI_NO_CBT_METADATA", "VDI.list_changed_blocks", early, d)
	// A log survives its data, and what a destroyed snapshot knew goes to the next.
	c.ok("VM.destroy", first)
	c.ok("VDI.data_destroy", a)
	check(a, d, 3, 9, 48)
	c.ok("VM.destroy", second)
	c.ok("VDI.destroy", b)
	check(a, d, 3, 9, 48)
	c.ok("VM.destroy", before)
	c.ok("VM.hard_shutdown", vm)
	check(d, vdi)
	c.ok("VDI.disable_cbt", vdi)
	c.fails("VDI_NO_CBT_METADATA", "VDI.list_changed_blocks", a, vdi)
}

func TestDataDestroy(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vm := c.vm("vm-01")
	vdi := c.disks(vm)["0"]
	snapshot, plain := c.snapVDI(vm)
	c.fails("VDI_NO_CBT_METADATA", "VDI.data_destroy", plain)
	c.ok("VM.destroy", snapshot)
	c.ok("VDI.enable_cbt", vdi)
	if got := c.fails("OPERATION_NOT_ALLOWED", "VDI.data_destroy", vdi); !strings.HasPrefix(got[0], "VDI is not a snapshot") {
		t.Errorf("data_destroy of a disk in use: %v", got)
	}
	snapshot, s := c.snapVDI(vm)
	c.fails("OPERATION_NOT_ALLOWED", "VDI.enable_cbt", s)
	begin := time.Now()
	if got := c.fails("VDI_IN_USE", "VDI.data_destroy", s); !slices.Equal(got, []string{s, "data_destroy"}) {
		t.Errorf("with a VBD: %v", got)
	}
	if took := time.Since(begin); took < p.scaled(dataDestroyPatience) {
		t.Errorf("it gave up after %s", took)
	}
	if got := c.str("VDI.get_type", s); got != "system" {
		t.Errorf("the type after a failure is %s", got)
	}
	c.ok("VM.destroy", snapshot)
	c.ok("VDI.data_destroy", s)
	r := c.record("VDI", s)
	if r["type"] != "cbt_metadata" || r["cbt_enabled"] != true || fmt.Sprint(r["sm_config"]) != "map[]" {
		t.Errorf("after data_destroy: %v", r)
	}
	for _, op := range []string{"VDI.clone", "VDI.snapshot", "VDI.enable_cbt"} {
		if got := c.fails("VDI_INCOMPATIBLE_TYPE", op, s); !slices.Equal(got, []string{s, "cbt_metadata"}) {
			t.Errorf("%s: %v", op, got)
		}
	}
	c.fails("VDI_INCOMPATIBLE_TYPE", "VDI.get_nbd_info", s)
	c.fails("VDI_INCOMPATIBLE_TYPE", "VBD.create", map[string]any{
		"VM": vm, "VDI": s, "userdevice": "7", "bootable": false, "mode": "RO", "type": "Disk", "empty": false,
	})
	if got := c.body(c.do(http.MethodGet, "/export_raw_vdi?"+c.query("vdi", s), nil)); !strings.Contains(string(got), "VDI_NOT_AVAILABLE") {
		t.Errorf("export of a disk without data: %.200q", got)
	}
	c.ok("VDI.data_destroy", s)
	c.ok("VDI.destroy", s)
	iso := c.ok("VDI.get_by_name_label", "install.iso").([]any)[0].(string)
	c.fails("SR_OPERATION_NOT_SUPPORTED", "VDI.enable_cbt", iso)
}

func TestNBDInfo(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vdi := c.disks(c.vm("web-01"))["0"]
	if got := c.ok("VDI.get_nbd_info", vdi).([]any); len(got) != 0 {
		t.Errorf("without a network for NBD: %v", got)
	}
	c.ok("network.add_purpose", c.list("network.get_by_name_label", networkName)[0], "nbd")
	got := c.ok("VDI.get_nbd_info", vdi).([]any)
	if len(got) != 2 {
		t.Fatalf("%d records, want one a host: %v", len(got), got)
	}
	r := got[0].(map[string]any)
	if r["exportname"] != "/"+c.str("VDI.get_uuid", vdi)+"?session_id="+c.session || r["port"] != "10809" ||
		r["address"] != "127.0.0.1" || r["subject"] != "xen1" || !strings.HasPrefix(r["cert"].(string), "-----BEGIN CERTIFICATE-----") {
		t.Errorf("record: %v", r)
	}
	// A local disk is served by its host alone.
	if got := c.ok("VDI.get_nbd_info", c.disks(c.vm("db-01"))["1"]).([]any); len(got) != 1 {
		t.Errorf("a local disk: %v", got)
	}
}
