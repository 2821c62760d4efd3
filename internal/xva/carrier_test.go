package xva

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustParse(tb testing.TB, b []byte) *OVA {
	tb.Helper()
	o, err := ParseOVA(b)
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

func TestCarrier(t *testing.T) {
	o := mustParse(t, testOVA(testDisk{"Ref:1", 1 << 20}, testDisk{"Ref:10", 3<<20 + 512}, testDisk{"Ref:7", 5 << 20}))
	b, err := o.Carrier(CarrierSpec{Nonce: "N0NCE", Disks: []string{"Ref:7", "Ref:10"}, SRUUID: "sr-uuid"})
	if err != nil {
		t.Fatal(err)
	}
	c := mustParse(t, b)
	vm := c.VM()
	if vm.Name != "dpxen carrier N0NCE" || !vm.IsTemplate || vm.PowerState != "Halted" || len(vm.VIFs) != 0 || len(vm.Tags) != 0 || vm.SuspendVDI != "" {
		t.Errorf("carrier is %+v", vm)
	}
	mark := map[string]string{CarrierKey: "N0NCE"}
	if d := cmp.Diff(mark, vm.OtherConfig); d != "" {
		t.Error(d)
	}
	if got := dirsOf(vm.Disks); !slices.Equal(got, []string{"Ref:10", "Ref:7"}) {
		t.Fatalf("carries %v", got)
	}
	was := o.VM().Disks
	for i, d := range vm.Disks {
		if d := cmp.Diff(mark, d.OtherConfig); d != "" {
			t.Error(d)
		}
		w := was[i+1]
		if d.Size != w.Size || d.Name != w.Name || d.UserDevice != w.UserDevice || d.Bootable != w.Bootable || d.Mode != w.Mode ||
			d.Type != w.Type || d.SRUUID != "sr-uuid" || len(d.SMConfig) != 0 || len(d.VBDOtherConfig) != 0 {
			t.Errorf("disk %d is %+v, was %+v", i, d, w)
		}
	}
	for _, no := range []string{"mac_seed", "auto_poweron", "aa:bb:cc", "Pool-wide", "gold", "host-1", "iso-1", "vif-1", "Ref:1<", "owner",
		"vhd-parent", "future_field", "ünï", "restart</value></member><member><name>ha", "mine"} {
		if strings.Contains(string(b), no) {
			t.Errorf("carrier still has %q", no)
		}
	}
	if _, ok := c.VMField("parent"); !ok {
		t.Error("without the field parent a host takes the file for an ancient one")
	}
	if v := c.Version(); v.Major != 1 || v.Minor != 9 || v.ExportVersion != 2 {
		t.Errorf("version %+v", v)
	}
	again, err := o.Carrier(CarrierSpec{Nonce: "N0NCE", Disks: []string{"Ref:10", "Ref:7"}, SRUUID: "sr-uuid"})
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("not the same the second time (%v)", err)
	}
}

// suspendedOVA has a memory image, which no VBD names.
func suspendedOVA(tb testing.TB) *OVA {
	tb.Helper()
	s := string(testOVA(testDisk{"Ref:1", 1 << 20}))
	image := newObject("VDI", "Ref:5", structOf(member{"virtual_size", number(2 << 20)}, member{"SR", text("sr-1")}, member{"type", text("suspend")}))
	const end = "</data></array></value></member></struct></value>"
	s = strings.TrimSuffix(s, end) + string(appendValue(nil, image)) + end
	s = replaceOnce(tb, s, "<value>Halted</value></member>", "<value>Suspended</value></member><member><name>suspend_VDI</name><value>Ref:5</value></member>")
	return mustParse(tb, []byte(s))
}

func TestCarrierRefuses(t *testing.T) {
	o := suspendedOVA(t)
	for name, spec := range map[string]CarrierSpec{
		"no nonce":     {Disks: []string{"Ref:1"}},
		"no disks":     {Nonce: "n"},
		"unknown disk": {Nonce: "n", Disks: []string{"Ref:1", "Ref:2"}},
		"twice":        {Nonce: "n", Disks: []string{"Ref:1", "Ref:1"}},
		"memory image": {Nonce: "n", Disks: []string{"Ref:5"}},
		"nonce":        {Nonce: "a\x00b", Disks: []string{"Ref:1"}},
		"not UTF-8":    {Nonce: "a\xff", Disks: []string{"Ref:1"}},
	} {
		if _, err := o.Carrier(spec); err == nil || IsBad(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhole(t *testing.T) {
	o := mustParse(t, testOVA(testDisk{"Ref:1", 1 << 20}, testDisk{"Ref:7", 5 << 20}))
	b, err := o.Whole(WholeSpec{UUID: "own-uuid", Name: "own <name>", Disks: []string{"Ref:7"}, ImportNonce: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	w := mustParse(t, b)
	vm := w.VM()
	if vm.UUID != "own-uuid" || vm.Name != "own <name>" || vm.IsTemplate || vm.IsSnapshot || vm.PowerState != "Halted" || vm.MemoryStaticMax != 1<<30 {
		t.Errorf("VM is %+v", vm)
	}
	want := map[string]string{CarrierKey: "n1", "mac_seed": "seed", "mine": "1"}
	if d := cmp.Diff(want, vm.OtherConfig); d != "" {
		t.Error(d)
	}
	if got := dirsOf(vm.Disks); !slices.Equal(got, []string{"Ref:7"}) {
		t.Errorf("disks %v", got)
	}
	if d := cmp.Diff(map[string]string{CarrierKey: "n1", "mine": "1"}, vm.Disks[0].OtherConfig); d != "" {
		t.Error(d)
	}
	r := w.VMRecord()
	if r.str("ha_restart_priority") != "" || r.boolean("ha_always_run") || r.str("parent") != nullRef || r.str("affinity") != "host-1" {
		t.Error("HA or parent stayed, or affinity went")
	}
	if got := r.stringSet("future_field"); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("future_field = %v", got)
	}
	if got := r.stringSet("VBDs"); !slices.Equal(got, []string{"vbd-cd", "vbd-empty", "vbd-1"}) {
		t.Errorf("VBDs = %v", got)
	}
	if len(vm.VIFs) != 1 || vm.VIFs[0].MAC != "aa:bb:cc:00:00:01" || vm.VIFs[0].NetworkName != "Pool-wide network" || vm.VIFs[0].OtherConfig["maps_to"] != "" {
		t.Errorf("VIFs %+v", vm.VIFs)
	}
	if vm.VIFs[0].UUID == o.VM().VIFs[0].UUID || vm.Disks[0].VBDUUID == o.VM().Disks[1].VBDUUID {
		t.Error("VIF or VBD kept a UUID that a host may find in use")
	}
	if strings.Contains(string(b), "Ref:1<") || strings.Contains(string(b), "vbd-0") {
		t.Error("the disk left out is still named")
	}
	if _, iso, ok := w.Object("iso-1"); !ok || iso.stringMap("other_config")[CarrierKey] != "" {
		t.Error("the CD went, or was marked as ours")
	}
	if v := w.Version(); v != o.Version() {
		t.Errorf("version %+v", v)
	}
}

func TestWholeAsNew(t *testing.T) {
	o := mustParse(t, testOVA(testDisk{"Ref:1", 1 << 20}))
	for _, old := range []string{"Pool-wide network", "66666666-0000-0000-0000-000000000001"} {
		b, err := o.Whole(WholeSpec{Disks: []string{"Ref:1"}, DropMACs: true, NetworkMap: map[string]string{old: "Lab & test"}})
		if err != nil {
			t.Fatal(err)
		}
		vm := mustParse(t, b).VM()
		if v := vm.VIFs[0]; v.MAC != "" || v.NetworkName != "Lab & test" || v.Bridge != "" {
			t.Errorf("VIF %+v", v)
		}
		if d := cmp.Diff(map[string]string{"mine": "1"}, vm.OtherConfig); d != "" {
			t.Error(d)
		}
		if vm.UUID != o.VM().UUID || vm.Disks[0].VBDUUID != o.VM().Disks[0].VBDUUID {
			t.Error("UUIDs changed without a nonce")
		}
	}
}

func TestWholeMemory(t *testing.T) {
	o := suspendedOVA(t)
	b, err := o.Whole(WholeSpec{Disks: []string{"Ref:1", "Ref:5"}, KeepMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	if vm := mustParse(t, b).VM(); vm.PowerState != "Suspended" || vm.SuspendVDI != "Ref:5" || len(vm.Disks) != 2 {
		t.Errorf("kept: %+v", vm)
	}
	if b, err = o.Whole(WholeSpec{Disks: []string{"Ref:1"}}); err != nil {
		t.Fatal(err)
	}
	if vm := mustParse(t, b).VM(); vm.PowerState != "Halted" || vm.SuspendVDI != "" || len(vm.Disks) != 1 {
		t.Errorf("discarded: %+v", vm)
	}
}

func TestWholeRefuses(t *testing.T) {
	o := suspendedOVA(t)
	for name, spec := range map[string]WholeSpec{
		"unknown disk":      {Disks: []string{"Ref:2"}},
		"memory of halted":  {Disks: []string{"Ref:1", "Ref:5"}},
		"memory missing":    {Disks: []string{"Ref:1"}, KeepMemory: true},
		"unknown network":   {NetworkMap: map[string]string{"x": "y"}},
		"two names for one": {NetworkMap: map[string]string{"Pool-wide network": "y", "66666666-0000-0000-0000-000000000001": "z"}},
		"name":              {Name: "a\x01"},
	} {
		if _, err := o.Whole(spec); err == nil || IsBad(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
