package xensim

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
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
	if task := put(""); task["status"] != "failure" || task["error_info"].([]any)[0] != "VDI_LOCATION_MISSING" || task["error_info"].([]any)[2] != disks[0] {
		t.Errorf("without its disk: %v", task["error_info"])
	}
}

// edited gives an archive of metadata with a changed ova.xml.
func edited(t *testing.T, file []byte, pairs ...string) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(file))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	xml, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.NewReplacer(pairs...).Replace(string(xml))
	if changed == string(xml) && len(pairs) > 0 {
		t.Fatalf("nothing to replace: %v", pairs)
	}
	return archiveOf(t, "ova.xml", changed)
}

// archiveOf makes a tar file of names and contents.
func archiveOf(t *testing.T, entries ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(entries); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: entries[i], Size: int64(len(entries[i+1])), Mode: 0o400, Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, entries[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// metadata gives /export_metadata of a VM and a function that imports it.
func (c *client) metadata(vm string) ([]byte, func(file []byte, query ...string) string) {
	c.t.Helper()
	file := c.body(c.do(http.MethodGet, "/export_metadata?"+c.query("ref", vm, "export_snapshots", "false"), nil))
	return file, func(file []byte, query ...string) string {
		c.t.Helper()
		_, _, task := c.transferred(http.MethodPut, "/import_metadata?"+c.query(query...), bytes.NewReader(file))
		if task["status"] == "success" {
			return "success"
		}
		return fmt.Sprint(task["error_info"])
	}
}

func TestImportMetadataSCSI(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm(`Büro/"ERP": *Köln*? <ß>`)
	old := c.disks(vm)["0"]
	c.ok("VDI.add_to_sm_config", old, "SCSIid", "3600")
	file, put := c.metadata(vm)
	name := func() string { // of the disk of the VM that was imported last
		t.Helper()
		vms := c.list("VM.get_by_name_label", `Büro/"ERP": *Köln*? <ß>`)
		for _, v := range vms {
			if v != vm {
				out := c.str("VDI.get_name_label", c.disks(v)["0"])
				c.ok("VM.destroy", v)
				return out
			}
		}
		t.Fatal("no VM was imported")
		return ""
	}
	other := func(label, scsi string) string {
		vdi := c.str("VDI.create", map[string]any{"SR": c.sharedSR(), "virtual_size": "4194304", "name_label": label, "type": "user"})
		c.ok("VDI.add_to_sm_config", vdi, "SCSIid", scsi)
		return vdi
	}
	other("mapped", "3601")
	c.ok("VDI.set_name_label", old, "old")
	for _, v := range []struct {
		name string
		args []string
		want string
	}{
		{"by its own SCSI id", nil, "old"},
		{"mapped by SCSI ids", []string{"vdi:3600", "3601"}, "mapped"},
		{"mapped by uuid to a SCSI id", []string{"vdi:" + c.str("VDI.get_uuid", old), "3601"}, "mapped"},
		{"mapped to nothing", []string{"vdi:3600", "none"}, "old"}, // found at its place
	} {
		if got := put(file, v.args...); got != "success" {
			t.Errorf("%s: %s", v.name, got)
		} else if got := name(); got != v.want {
			t.Errorf("%s: on %s", v.name, got)
		}
	}
	// Elsewhere, and with another place: the SCSI id finds it all the same.
	c.ok("VDI.remove_from_sm_config", old, "SCSIid")
	twin := other("twin", "3600")
	moved := edited(t, file, "<name>location</name><value>"+c.str("VDI.get_location", old), "<name>location</name><value>elsewhere")
	if got := put(moved); got != "success" || name() != "twin" {
		t.Errorf("by SCSI id: %s", got)
	}
	c.ok("VDI.remove_from_sm_config", twin, "SCSIid")
	sr := c.str("VDI.get_SR", old)
	if got := put(moved); got != "[VDI_LOCATION_MISSING "+sr+" elsewhere]" {
		t.Errorf("nowhere: %s", got)
	}
	unknown := edited(t, moved, c.str("SR.get_uuid", sr), "8c2c28d2-0000-0000-0000-000000000000")
	if got := put(unknown); got != "[VDI_CONTENT_ID_MISSING]" {
		t.Errorf("on no SR: %s", got)
	}
	if got := put(moved, "dry_run", "true", "live", "true"); got != "success" {
		t.Errorf("a migration that is only tried: %s", got)
	}
	if got := put(moved, "dry_run", "true"); got != "[VDI_LOCATION_MISSING "+sr+" elsewhere]" {
		t.Errorf("an import that is only tried: %s", got)
	}
}

func TestImportMetadataLive(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.vm("web-01") // it runs
	file, put := c.metadata(vm)
	host := c.list("host.get_all")[0]
	for _, h := range c.list("host.get_all") {
		if c.str("host.get_name_label", h) == "xen1" {
			host = h
		}
	}
	features := "00000001-00000000"
	flags := func(vendor, features string) []byte {
		return edited(t, file, "<name>last_boot_CPU_flags</name><value><struct></struct></value>", "<name>last_boot_CPU_flags</name><value><struct>"+
			"<member><name>vendor</name><value>"+vendor+"</value></member><member><name>features</name><value>"+features+"</value></member></struct></value>")
	}
	refused := "[VM_INCOMPATIBLE_WITH_THIS_HOST OpaqueRef:NULL " + host + " VM last booted on a "
	memory := "<name>memory_static_max</name><value>" + c.record("VM", vm)["memory_static_max"].(string) + "<"
	huge := edited(t, file, memory, "<name>memory_static_max</name><value>99999999999999<")
	for _, v := range []struct {
		name  string
		file  []byte
		query []string
		want  string
	}{
		{"no flags", file, []string{"check_cpu", "true"}, "success"},
		{"its own vendor", flags("GenuineIntel", features), []string{"check_cpu", "true"}, "success"},
		{"another vendor", flags("AuthenticAMD", features), []string{"check_cpu", "true"}, refused + "host which had a CPU from a different vendor.]"},
		{"more features", flags("GenuineIntel", "ffffffff-00000000"), []string{"check_cpu", "true"}, refused + "CPU with features this host's CPU does not have.]"},
		{"not checked", flags("AuthenticAMD", features), nil, "success"},
		{"too much memory", huge, []string{"live", "true", "dry_run", "true"}, "[HOST_NOT_ENOUGH_FREE_MEMORY 99999999999999 "},
		{"memory of a copy", huge, []string{"dry_run", "true"}, "success"},
	} {
		if got := put(v.file, v.query...); !strings.HasPrefix(got, v.want) {
			t.Errorf("%s: %s", v.name, got)
		}
	}
	generation := func(query ...string) any {
		before := c.list("VM.get_all")
		if got := put(file, query...); got != "success" {
			t.Fatal(got)
		}
		for _, v := range c.list("VM.get_all") {
			if !slices.Contains(before, v) {
				return c.record("VM", v)["generation_id"]
			}
		}
		return nil
	}
	own := c.record("VM", vm)["generation_id"]
	if got := generation("live", "true"); got != own {
		t.Errorf("generation %v after a migration, %v before", got, own)
	}
	if got := generation(); got == own {
		t.Errorf("generation %v of two VMs", got)
	}
}

// The MACs of a VM and of its snapshots may be there twice, those of others not.
func TestImportMetadataSeed(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("twin")
	snap := c.str("VM.snapshot", vm, "snap")
	seed := c.record("VM", vm)["other_config"].(map[string]any)["mac_seed"].(string)
	vmFile, put := c.metadata(vm)
	snapFile := c.body(c.do(http.MethodGet, "/export_metadata?"+c.query("ref", snap), nil))
	try := []string{"restore", "true", "dry_run", "true", "force", "true"}
	if got := put(vmFile, try...); got != "success" {
		t.Errorf("the VM over itself: %s", got)
	}
	if got := put(snapFile, try...); got == "success" {
		t.Error("a snapshot whose VM is not told of was taken")
	}
	both := c.body(c.do(http.MethodGet, "/export_metadata?"+c.query("ref", vm), nil))
	if got := put(both, try...); got != "success" {
		t.Errorf("the VM with its snapshot: %s", got)
	}
	stranger := edited(t, vmFile, c.str("VM.get_uuid", vm), "8c2c28d2-0000-0000-0000-000000000000")
	if got := put(stranger, try...); got != "[DUPLICATE_MAC_SEED "+seed+"]" {
		t.Errorf("another VM with these MACs: %s", got)
	}
	// Forced over a VM that runs, the VM is left out.
	c.ok("VM.start", vm, false, false)
	if got := put(vmFile, "restore", "true"); got != "[VM_BAD_POWER_STATE "+vm+" Halted Running]" {
		t.Errorf("over a VM that runs: %s", got)
	}
	if got := put(vmFile, "restore", "true", "force", "true"); got != "success" || c.str("VM.get_power_state", vm) != "Running" {
		t.Errorf("forced over a VM that runs: %s", got)
	}
}
