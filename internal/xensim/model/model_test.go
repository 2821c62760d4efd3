package model

import (
	"slices"
	"testing"
)

func TestLoad(t *testing.T) {
	m := Load()
	vm := m.Class("VM")
	if vm == nil || len(vm.Fields) != 90 {
		t.Fatalf("VM is not there in full: %+v", vm)
	}
	for name, want := range map[string]any{
		"generation_id": "0:0", "HVM_shadow_multiplier": 1.0, "snapshot_time": Epoch,
		"power_state": "Halted", "snapshot_of": NullRef, "is_a_template": false, "order": int64(0),
	} {
		if got := vm.Field(name).Default; got != want {
			t.Errorf("default of VM.%s = %#v, want %#v", name, got, want)
		}
	}
	host := m.Class("host")
	if got := host.Field("license_server").Default.(map[string]string); got["port"] != "27000" || len(got) != 2 {
		t.Errorf("default of host.license_server = %v", got)
	}
	if got := host.Field("virtual_hardware_platform_versions").Default.([]int64); !slices.Equal(got, []int64{0}) {
		t.Errorf("default of virtual_hardware_platform_versions = %v", got)
	}
	if got := m.Class("session").Messages["login_with_password"]; got.Session || got.Required() != 2 || len(got.Params) != 4 {
		t.Errorf("login_with_password = %+v", got)
	}
	if got := m.Class("VM").Messages["snapshot"]; !got.Session || got.Required() != 2 || len(got.Params) != 3 {
		t.Errorf("VM.snapshot = %+v", got)
	}
	if got := m.Errors["VM_BAD_POWER_STATE"]; len(got) != 3 {
		t.Errorf("VM_BAD_POWER_STATE has parameters %v", got)
	}
}

func TestVersions(t *testing.T) {
	m := Load()
	since := m.Class("VM").Messages["snapshot"].Params[2].Since
	if m.Has(Version{2, 15}, since) {
		t.Errorf("ignore_vdis (since %s) is shown on 8.2", since)
	}
	if !m.Has(Version{2, 21}, since) {
		t.Errorf("ignore_vdis (since %s) is hidden on 8.4", since)
	}
	if !m.Has(Version{2, 11}, "rio") || m.Has(Version{1, 20}, "dundee") {
		t.Error("code names are compared wrongly")
	}
}

func TestCoerce(t *testing.T) {
	cases := []struct {
		typ  string
		in   any
		want any
		ok   bool
	}{
		{"int", "12", int64(12), true},
		{"int", int64(12), int64(12), true},
		{"int", "x", nil, false},
		{"int", 1.5, nil, false},
		{"bool", "true", nil, false},
		{"bool", true, true, true},
		{"float", int64(3), 3.0, true},
		{"float", "3", nil, false},
		{"VM ref", "", NullRef, true},
		{"string", int64(1), nil, false},
	}
	for _, c := range cases {
		typ, err := ParseType(c.typ)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := typ.Coerce(c.in)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: Coerce(%#v) = %#v, %v; want %#v, %v", c.typ, c.in, got, ok, c.want, c.ok)
		}
	}
	set, err := ParseType("VDI ref set")
	if err != nil {
		t.Fatal(err)
	}
	got, ok := set.Coerce([]any{"a", "b", "a"})
	if !ok || !slices.Equal(got.([]string), []string{"a", "b"}) {
		t.Errorf("set: %v, %v", got, ok)
	}
	m, err := ParseType("(enum vm_operations -> string) map")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := m.Coerce(map[string]any{"start": int64(1)}); ok {
		t.Error("a map of ints passed as a map of strings")
	}
}
