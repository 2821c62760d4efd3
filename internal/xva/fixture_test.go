package xva

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// testDisk is a disk of a fixture.
type testDisk struct {
	dir  string
	size int64
}

// testOVA makes an ova.xml like XAPI's: one VM with the given disks, a CD drive
// with an ISO, one empty drive, one VIF.
func testOVA(disks ...testDisk) []byte {
	obj := func(class, id string, members ...member) Value {
		return structOf(member{"class", text(class)}, member{"id", text(id)}, member{"snapshot", structOf(members...)})
	}
	dict := func(kv ...string) Value {
		v := Value{tag: tagStruct}
		for i := 0; i < len(kv); i += 2 {
			v = v.with(kv[i], text(kv[i+1]))
		}
		return v
	}
	vbds := []Value{text("vbd-cd"), text("vbd-empty")}
	objects := []Value{obj("host", "host-1", member{"uuid", text("11111111-0000-0000-0000-000000000001")}, member{"hostname", text("xs1")})}
	var rest []Value
	for i, d := range disks {
		vbd := fmt.Sprintf("vbd-%d", i)
		vbds = append(vbds, text(vbd))
		rest = append(rest,
			obj("VBD", vbd, member{"uuid", text(fmt.Sprintf("22222222-0000-0000-0000-%012d", i))}, member{"VM", text("vm-1")},
				member{"VDI", text(d.dir)}, member{"device", text("xvda")}, member{"userdevice", number(int64(i))},
				member{"bootable", boolean(i == 0)}, member{"mode", text("RW")}, member{"type", text("Disk")},
				member{"unpluggable", boolean(true)}, member{"empty", boolean(false)},
				member{"currently_attached", boolean(true)}, member{"other_config", dict("owner", "")}),
			obj("VDI", d.dir, member{"uuid", text(fmt.Sprintf("33333333-0000-0000-0000-%012d", i))},
				member{"name_label", text(fmt.Sprintf("disk <%d> & ü", i))}, member{"virtual_size", number(d.size)},
				member{"SR", text("sr-1")}, member{"VBDs", set(text(vbd))}, member{"type", text("user")},
				member{"is_a_snapshot", boolean(true)}, member{"snapshot_of", text("OpaqueRef:abc")},
				member{"sm_config", dict("vhd-parent", "x")}, member{"other_config", dict("dpxen:carrier", "old", "mine", "1")}))
	}
	objects = append(objects, obj("VM", "vm-1",
		member{"uuid", text("44444444-0000-0000-0000-000000000001")}, member{"name_label", text("web ünï & <co>")},
		member{"power_state", text("Halted")}, member{"is_a_template", boolean(true)}, member{"is_a_snapshot", boolean(false)},
		member{"snapshot_time", stamp("20260101T00:00:00Z")}, member{"parent", text("OpaqueRef:gone")},
		member{"affinity", text("host-1")}, member{"memory_static_max", number(1 << 30)}, member{"VCPUs_max", number(2)},
		member{"ha_restart_priority", text("restart")}, member{"ha_always_run", boolean(true)},
		member{"HVM_shadow_multiplier", double("1")}, member{"tags", set(text("gold"))},
		member{"other_config", dict("mac_seed", "seed", "auto_poweron", "true", "dpxen:x", "y", "mine", "1")},
		member{"VBDs", set(vbds...)}, member{"VIFs", set(text("vif-1"))}, member{"future_field", set(text("kept"))}))
	objects = append(objects, rest...)
	objects = append(objects,
		obj("VBD", "vbd-cd", member{"VM", text("vm-1")}, member{"VDI", text("iso-1")}, member{"type", text("CD")}, member{"empty", boolean(false)}),
		obj("VBD", "vbd-empty", member{"VM", text("vm-1")}, member{"VDI", text(nullRef)}, member{"type", text("CD")}, member{"empty", boolean(true)}),
		obj("VIF", "vif-1", member{"uuid", text("55555555-0000-0000-0000-000000000001")}, member{"device", text("0")},
			member{"network", text("net-1")}, member{"MAC", text("aa:bb:cc:00:00:01")}, member{"MTU", number(1500)},
			member{"other_config", dict("maps_to", "OpaqueRef:elsewhere")}),
		obj("network", "net-1", member{"uuid", text("66666666-0000-0000-0000-000000000001")},
			member{"name_label", text("Pool-wide network")}, member{"bridge", text("xenbr0")}),
		obj("VDI", "iso-1", member{"virtual_size", number(700 << 20)}, member{"SR", text("sr-iso")}, member{"type", text("user")}),
		obj("SR", "sr-1", member{"uuid", text("77777777-0000-0000-0000-000000000001")}, member{"name_label", text("Local storage")},
			member{"content_type", text("user")}, member{"VDIs", set()}),
		obj("SR", "sr-iso", member{"uuid", text("77777777-0000-0000-0000-000000000002")}, member{"content_type", text("iso")}))
	version := dict("hostname", "xs1", "date", "2026-01-01", "product_version", "8.4.0", "product_brand", "XenServer",
		"build_number", "1", "xapi_major", "25", "xapi_minor", "6", "export_vsn", "2")
	return appendValue(nil, structOf(member{"version", version}, member{"objects", set(objects...)}))
}

// testBlock is a chunk of a fixture.
type testBlock struct {
	dir    string
	number int64
	data   []byte
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	if _, err := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b); err != nil {
		panic(err) // never fails
	}
	return b
}

// archive writes a fixture with the package's own Writer.
func archive(tb testing.TB, ova []byte, kind ChecksumKind, blocks ...testBlock) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf, WriterOptions{Checksum: kind})
	errs := []error{w.WriteOVA(ova)}
	for _, b := range blocks {
		errs = append(errs, w.WriteBlock(b.dir, b.number, b.data))
	}
	errs = append(errs, w.Close())
	for _, err := range errs {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return buf.Bytes()
}

// replaceOnce replaces the one occurrence of a text.
func replaceOnce(tb testing.TB, s, from, to string) string {
	tb.Helper()
	if n := strings.Count(s, from); n != 1 {
		tb.Fatalf("%q occurs %d times in the fixture", from, n)
	}
	return strings.Replace(s, from, to, 1)
}

func dirsOf(disks []Disk) []string {
	var dirs []string
	for _, d := range disks {
		dirs = append(dirs, d.Dir)
	}
	return slices.Clip(dirs)
}
