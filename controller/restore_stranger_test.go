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

// TestStranger holds that the export of another VM's snapshot, which somebody has given a VM's name, is not exchanged for its
// disks: without a manifest its network interfaces alone tell.
func TestStranger(t *testing.T) {
	data := bytes.Repeat([]byte("data"), 1<<18)
	ova := bytes.Replace(testOVA(testUUID(5001), xva.SnapshotPrefix+"77", len(data)), []byte("</data>"), []byte("<value><struct>"+
		member("class", "VIF")+member("id", "Ref:9")+"<member><name>snapshot</name><value><struct>"+member("uuid", testUUID(90))+member("VM", "Ref:0")+
		member("device", "0")+member("MAC", "AA:00:00:00:00:01")+"</struct></value></member></struct></value></data>"), 1)
	path := filepath.Join(t.TempDir(), "web-01."+testUUID(1)+".online.20261122T203000Z.xva")
	if err := os.WriteFile(path, testXVAOf(t, ova, data), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		macs    []string
		req     RestoreRequest
		refused string
		warned  int
	}{
		"its own":            {macs: []string{"aa:00:00:00:00:01"}},
		"one of two":         {macs: []string{"aa:00:00:00:00:07", "aa:00:00:00:00:01"}},
		"another's":          {macs: []string{"aa:00:00:00:00:02"}, refused: "VM db-01 (" + testUUID(2) + ") has them"},
		"another's, as new":  {macs: []string{"aa:00:00:00:00:02"}, req: RestoreRequest{AsNew: true}},
		"another's, allowed": {macs: []string{"aa:00:00:00:00:02"}, req: RestoreRequest{AllowConflicts: true}, warned: 1},
		"no interfaces":      {},
	} {
		vm := &VM{UUID: testUUID(1), Name: "web-01"}
		for _, mac := range tt.macs {
			vm.NICs = append(vm.NICs, NIC{MAC: mac})
		}
		inv := &Inventory{VMs: []VM{*vm, {UUID: testUUID(2), Name: "db-01", NICs: []NIC{{MAC: "aa:00:00:00:00:01"}}}}}
		it := &target{RestoreItem: itemOf(staging.Inspect(path), KindOnline), vm: vm}
		var err error
		if it.ova, it.rawOVA, err = peekOVA(it.entry); err != nil {
			t.Fatal(err)
		}
		(&preflight{req: &tt.req, inv: inv}).stranger(it)
		if (it.Refused == "") != (tt.refused == "") || !strings.Contains(it.Refused, tt.refused) || len(it.warnings) != tt.warned {
			t.Errorf("%s: refused %q, warned %q", name, it.Refused, it.warnings)
		}
	}
}
