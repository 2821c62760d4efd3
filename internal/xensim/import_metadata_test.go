package xensim

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"slices"
	"testing"
)

// disksOf gives the uuids of a VM's disks, sorted.
func (c *client) disksOf(vm string) []string {
	c.t.Helper()
	out := []string{}
	for _, vbd := range c.list("VM.get_VBDs", vm) {
		if c.str("VBD.get_type", vbd) == "Disk" {
			out = append(out, c.str("VDI.get_uuid", c.str("VBD.get_VDI", vbd)))
		}
	}
	slices.Sort(out)
	return out
}

func TestImportMetadata(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm(`Büro/"ERP": *Köln*? <ß>`)
	uuid, disks := c.str("VM.get_uuid", vm), c.disksOf(vm)
	c.ok("VM.snapshot", vm, "before")
	res := c.do(http.MethodGet, "/export_metadata?ref="+vm+"&session_id="+c.session, nil)
	file, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	put := func(query string) map[string]any {
		t.Helper()
		_, _, task := c.transferred(http.MethodPut, "/import_metadata?"+query, bytes.NewReader(file))
		return task
	}
	count := len(c.list("VM.get_all"))
	if task := put("restore=true&force=true&dry_run=true"); task["status"] != "success" || len(c.list("VM.get_all")) != count {
		t.Errorf("a dry run: %v, %d VMs of %d", task["error_info"], len(c.list("VM.get_all")), count)
	}
	c.ok("VM.get_uuid", vm)

	// An entry for a disk that nobody knows is ignored: the VM is on its old disk.
	task := put("restore=true&force=true&" + url.Values{"vdi:none": {disks[0]}}.Encode())
	if task["status"] != "success" {
		t.Fatalf("restore: %v", task["error_info"])
	}
	vm = c.str("VM.get_by_uuid", uuid)
	if got := c.disksOf(vm); !slices.Equal(got, disks) {
		t.Errorf("disks %v, they were %v", got, disks)
	}
	if len(c.list("VM.get_snapshots", vm)) != 1 {
		t.Error("the snapshot did not come along")
	}

	// A disk that is mapped lands where the map says.
	copied := c.str("VDI.get_uuid", c.str("VDI.clone", c.str("VDI.get_by_uuid", disks[0])))
	task = put("restore=true&force=true&" + url.Values{"vdi:" + disks[0]: {copied}}.Encode())
	if got := c.disksOf(c.str("VM.get_by_uuid", uuid)); task["status"] != "success" || !slices.Equal(got, []string{copied}) {
		t.Errorf("mapped to %v: %v, %v", copied, got, task["error_info"])
	}

	c.ok("VDI.destroy", c.str("VDI.get_by_uuid", disks[0]))
	if task := put(""); task["status"] != "failure" || task["error_info"].([]any)[0] != "VDI_LOCATION_MISSING" {
		t.Errorf("without its disk: %v", task["error_info"])
	}
}
