package controller

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// TestAdoptSnapshot holds what is made of exports of snapshots whose manifests are gone: under the name that they were staged
// with they are known as their VM's, and what only the manifest knew is neither taken from the snapshot nor passed over.
func TestAdoptSnapshot(t *testing.T) {
	dir := t.TempDir()
	own := "web-01." + testUUID(1) + ".offline.20261122T203000Z.xva"
	data := bytes.Repeat([]byte("data"), 1<<18+1<<10)
	ova := testOVA(testUUID(5001), xva.SnapshotPrefix+"77", len(data))
	plain, snapshot := testXVAOf(t, testOVA(testUUID(5001), "stranger", len(data)), data), testXVAOf(t, ova, data)
	here := &VM{Name: "Web 01", Settings: map[string]string{"order": "5"}}
	for name, tt := range map[string]struct {
		file    string
		data    []byte
		vm      *VM
		kind    Kind
		req     RestoreRequest
		refused string
		uuid    int
		says    string // in the warning; empty: there is none
		spec    string // the VM's name there
		order   string // likewise
	}{
		"in place":               {file: own, data: snapshot, vm: here, uuid: 1, says: "keeps its name, start order", spec: "Web 01", order: "5"},
		"made anew":              {file: own, data: snapshot, uuid: 1, says: `is named "web-01", as the file is`, spec: "web-01"},
		"as new":                 {file: own, data: snapshot, vm: here, req: RestoreRequest{AsNew: true}, uuid: 1, says: `is named "web-01"`, spec: "web-01"},
		"as new, named":          {file: own, data: snapshot, req: RestoreRequest{AsNew: true, NewName: "copy"}, uuid: 1, says: `is named "copy"`, spec: "web-01"},
		"its disks alone":        {file: strings.Replace(own, "offline", "online", 1), data: snapshot, vm: here, kind: KindOnline, uuid: 1, spec: "Web 01", order: "5"},
		"renamed":                {file: "usb.xva", data: snapshot, uuid: 5001, says: "with the snapshot's UUID and name", spec: "dpxen snapshot 77"},
		"renamed, as new":        {file: "usb.xva", data: snapshot, req: RestoreRequest{AsNew: true, NewName: "copy"}, uuid: 5001, says: `is named "copy"`, spec: "dpxen snapshot 77"},
		"a VM itself":            {file: "usb.xva", data: plain, uuid: 5001, spec: "stranger"},
		"a VM by another's name": {file: own, data: plain, uuid: 1, refused: "file " + own + ": by its name it is of VM " + testUUID(1)},
	} {
		path := filepath.Join(dir, tt.file)
		if err := os.WriteFile(path, tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if tt.kind == "" {
			tt.kind = KindOffline
		}
		item := itemOf(staging.Inspect(path), tt.kind)
		if !strings.Contains(item.Refused, tt.refused) || (item.Refused == "") != (tt.refused == "") || item.UUID != testUUID(tt.uuid) {
			t.Errorf("%s: VM %s, refused %q", name, item.UUID, item.Refused)
			continue
		}
		if item.Refused != "" {
			continue
		}
		it := &target{RestoreItem: item, vm: tt.vm, wish: wish{name: tt.req.NewName}}
		it.warnOfSnapshot(&tt.req)
		if said := strings.Join(it.warnings, "; "); !strings.Contains(said, tt.says) || (said == "") != (tt.says == "") {
			t.Errorf("%s: warned %q, want %q", name, said, tt.says)
		}
		if spec := it.spec(&tt.req, 0); spec.VMName != tt.spec || spec.Settings["order"] != tt.order {
			t.Errorf("%s: VM name %q, settings %v", name, spec.VMName, spec.Settings)
		}
	}
}

// A file that names no VM is told by its own name: of several, nothing else says which it is.
func TestAdoptedFileIsNamed(t *testing.T) {
	dir, disk := t.TempDir(), bytes.Repeat([]byte("data"), 1<<18+1<<10)
	for name, data := range map[string][]byte{
		"damaged.xva": []byte("no tar"),
		"nobody.xva":  testXVAOf(t, testOVA("", "nobody", len(disk)), disk),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		item := itemOf(staging.Inspect(path), KindOffline)
		err := noneRestored([]*RestoreItem{&item})
		if err == nil || !strings.HasPrefix(err.Error(), "file "+name+": ") || (item.Advice == "") != (name == "nobody.xva") {
			t.Errorf("%s: %v, advice %q", name, err, item.Advice)
		}
	}
}
