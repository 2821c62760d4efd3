package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// fileDisk is a disk of a made-up file.
type fileDisk struct {
	dir, device, sr string
	size            int64
}

// fileOf makes the ova.xml of a file with these disks and one interface.
func fileOf(t *testing.T, disks ...fileDisk) *xva.OVA {
	t.Helper()
	member := func(name, value string) string {
		return "<member><name>" + name + "</name>" + value + "</member>"
	}
	text := func(s string) string { return "<value>" + s + "</value>" }
	set := func(items ...string) string {
		return "<value><array><data>" + strings.Join(items, "") + "</data></array></value>"
	}
	object := func(class, id string, members ...string) string {
		return "<value><struct>" + member("class", text(class)) + member("id", text(id)) +
			member("snapshot", "<value><struct>"+strings.Join(members, "")+"</struct></value>") + "</struct></value>"
	}
	var objects, vbds []string
	for i, d := range disks {
		vbd, sr := fmt.Sprintf("Ref:vbd%d", i), fmt.Sprintf("Ref:sr%d", i)
		vbds = append(vbds, text(vbd))
		objects = append(objects,
			object("VBD", vbd, member("uuid", text(vbd)), member("VDI", text(d.dir)), member("type", text("Disk")),
				member("mode", text("RW")), member("userdevice", text(d.device)), member("empty", "<value><boolean>0</boolean></value>")),
			object("VDI", d.dir, member("uuid", text("vdi-"+d.dir)), member("name_label", text(d.dir)), member("SR", text(sr)),
				member("type", text("user")), member("virtual_size", text(fmt.Sprint(d.size)))),
			object("SR", sr, member("uuid", text(d.sr)), member("name_label", text("file's "+d.sr)), member("content_type", text("user"))))
	}
	objects = append(objects,
		object("network", "Ref:net", member("uuid", text("net-1")), member("name_label", text("lan"))),
		object("VIF", "Ref:vif", member("device", text("0")), member("network", text("Ref:net")), member("MAC", text("aa:bb:cc:dd:ee:ff"))),
		object("VM", "Ref:vm", member("uuid", text("vm-1")), member("name_label", text("web")), member("power_state", text("Halted")),
			member("VBDs", set(vbds...)), member("VIFs", set(text("Ref:vif")))))
	doc := "<value><struct>" + member("version", "<value><struct>"+member("export_vsn", text("2"))+"</struct></value>") +
		member("objects", set(objects...)) + "</struct></value>"
	ova, err := xva.ParseOVA([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return ova
}

// planPool is a pool with two usable SRs, one that is not plugged and one for ISOs; its VM has disks at 0 and 1 and a CD at 3.
func planPool() (*poolView, xapi.VM) {
	const gib = 1 << 30
	v := &poolView{
		srs: map[xapi.Ref]xapi.SR{
			"sr1": {Ref: "sr1", UUID: "sr-1", Name: "one", Type: "lvm", ContentType: "user", PhysicalSize: 20 * gib, PBDs: []xapi.Ref{"pbd1"}},
			"sr2": {Ref: "sr2", UUID: "sr-2", Name: "two", Type: "nfs", ContentType: "user", PhysicalSize: 20 * gib, PBDs: []xapi.Ref{"pbd1"}},
			"sr3": {Ref: "sr3", UUID: "sr-3", Name: "away", Type: "nfs", ContentType: "user", PhysicalSize: 20 * gib, PBDs: []xapi.Ref{"pbd2"}},
			"sr4": {Ref: "sr4", UUID: "sr-4", Name: "isos", Type: "iso", ContentType: "iso", PBDs: []xapi.Ref{"pbd1"}},
			"sr5": {Ref: "sr5", UUID: "sr-5", Name: "full", Type: "lvm", ContentType: "user", PhysicalSize: gib, PhysicalUtilisation: gib, PBDs: []xapi.Ref{"pbd1"}},
		},
		pbds: map[xapi.Ref]xapi.PBD{"pbd1": {CurrentlyAttached: true}, "pbd2": {}},
		vbds: map[xapi.Ref]xapi.VBD{
			"vbd0": {Ref: "vbd0", UserDevice: "0", Type: "Disk", VDI: "vdi0"},
			"vbd1": {Ref: "vbd1", UserDevice: "1", Type: "Disk", VDI: "vdi1"},
			"vbd3": {Ref: "vbd3", UserDevice: "3", Type: "CD", Empty: true},
		},
		vdis: map[xapi.Ref]xapi.VDI{
			"vdi0": {Ref: "vdi0", UUID: "old-0", SR: "sr1", VirtualSize: gib, PhysicalUtilisation: gib},
			"vdi1": {Ref: "vdi1", UUID: "old-1", SR: "sr2", VirtualSize: 2 * gib, PhysicalUtilisation: gib},
		},
		networks: map[xapi.Ref]xapi.Network{"net": {UUID: "net-1", Name: "lan"}},
	}
	return v, xapi.VM{Ref: "vm", UUID: "vm-1", Name: "web", VBDs: []xapi.Ref{"vbd0", "vbd1", "vbd3"}}
}

// TestPlanInPlace holds where disks go, what stays, and what is refused before anything is imported.
func TestPlanInPlace(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		name  string
		disks []fileDisk
		o     restoreOptions
		parts string // SR: disks; …
		stay  int
		err   error
		says  string
	}{
		{"each on the SR of the disk it replaces, whatever the file says",
			[]fileDisk{{"Ref:10", "0", "sr-3", gib}, {"Ref:2", "1", "sr-3", 2 * gib}}, restoreOptions{}, "one: Ref:10; two: Ref:2;", 0, nil, ""},
		{"a disk that the file does not have stays", []fileDisk{{"Ref:1", "0", "", gib}}, restoreOptions{}, "one: Ref:1;", 1, nil, ""},
		{"a position that is free goes to the file's SR", []fileDisk{{"Ref:1", "5", "sr-2", gib}}, restoreOptions{}, "two: Ref:1;", 2, nil, ""},
		{"all to the SR that is asked for, in the order of their names",
			[]fileDisk{{"Ref:10", "0", "", gib}, {"Ref:7", "1", "", 2 * gib}}, restoreOptions{SRUUID: "sr-2"}, "two: Ref:10 Ref:7;", 0, nil, ""},
		{"a free position and an SR that is not plugged", []fileDisk{{"Ref:1", "5", "sr-3", gib}}, restoreOptions{}, "", 0, rpc.Conflict, "--sr"},
		{"a free position and an SR of another pool", []fileDisk{{"Ref:1", "5", "sr-9", gib}}, restoreOptions{}, "", 0, rpc.Conflict, "--sr"},
		{"a disk of another size", []fileDisk{{"Ref:1", "0", "", gib + 512}}, restoreOptions{}, "", 0, rpc.Conflict, "--as-new"},
		{"a CD drive at the position", []fileDisk{{"Ref:1", "3", "", gib}}, restoreOptions{}, "", 0, rpc.Conflict, "CD"},
		{"an SR for ISOs", []fileDisk{{"Ref:1", "0", "", gib}}, restoreOptions{SRUUID: "sr-4"}, "", 0, rpc.Conflict, "ISO"},
		{"an SR that is not there", []fileDisk{{"Ref:1", "0", "", gib}}, restoreOptions{SRUUID: "sr-9"}, "", 0, rpc.Conflict, "no SR"},
		{"no room", []fileDisk{{"Ref:1", "0", "", gib}}, restoreOptions{SRUUID: "sr-5"}, "", 0, rpc.SRFull, "--delete-first"},
		{"two disks at one position", []fileDisk{{"Ref:1", "0", "", gib}, {"Ref:2", "0", "", gib}}, restoreOptions{}, "", 0, rpc.Archive, "two disks"},
		{"a position that is none", []fileDisk{{"Ref:1", "xvda", "", gib}}, restoreOptions{}, "", 0, rpc.Archive, "no position"},
		{"no disk at all", nil, restoreOptions{}, "", 0, rpc.Conflict, "no disk"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, vm := planPool()
			p, err := planInPlace(v, vm, fileOf(t, tc.disks...), tc.o)
			if tc.err != nil {
				if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("got %v, want %v that says %q", err, tc.err, tc.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := partsOf(p); got != tc.parts || len(p.Untouched) != tc.stay {
				t.Errorf("parts %q and %d untouched, want %q and %d", got, len(p.Untouched), tc.parts, tc.stay)
			}
		})
	}
}

// TestPlanAnew holds that the VM comes last, with the disk of its first position, and what is warned of.
func TestPlanAnew(t *testing.T) {
	const gib = 1 << 30
	v, _ := planPool()
	file := fileOf(t, fileDisk{"Ref:3", "2", "sr-1", gib}, fileDisk{"Ref:9", "0", "sr-2", gib}, fileDisk{"Ref:4", "10", "sr-1", gib})
	p, err := planAnew(v, file, restoreOptions{Goal: goalAbsent})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := partsOf(p), "one: Ref:3 Ref:4; two: Ref:9 with the VM;"; got != want {
		t.Errorf("parts %q, want %q", got, want)
	}
	v.networks = nil
	if p, err = planAnew(v, file, restoreOptions{Goal: goalAsNew}); err != nil || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "lan") {
		t.Errorf("a network that the pool lacks: %v, warnings %q", err, p.Warnings)
	}
	if _, err = planAnew(v, fileOf(t, fileDisk{"Ref:1", "0", "sr-3", gib}), restoreOptions{Goal: goalAbsent}); !errors.Is(err, rpc.Conflict) {
		t.Errorf("an SR that is not plugged: %v", err)
	}
}

func partsOf(p *restorePlan) string {
	var b strings.Builder
	for _, part := range p.Parts {
		b.WriteString(part.SR.Name + ":")
		for _, d := range part.Disks {
			b.WriteString(" " + d.Dir)
		}
		if part.Whole {
			b.WriteString(" with the VM")
		}
		b.WriteString("; ")
	}
	return strings.TrimSpace(b.String())
}
