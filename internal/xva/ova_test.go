package xva

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseOVA(t *testing.T) {
	raw := testOVA(testDisk{"Ref:7", 5 << 20}, testDisk{"Ref:10", 3<<20 + 512})
	o, err := ParseOVA(raw)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := o.Bytes(); err != nil || !bytes.Equal(b, raw) {
		t.Errorf("Bytes() differs from what was read (%v)", err)
	}
	want := Version{Hostname: "xs1", Date: "2026-01-01", ProductVersion: "8.4.0", ProductBrand: "XenServer",
		BuildNumber: "1", Major: 25, Minor: 6, ExportVersion: 2}
	if d := cmp.Diff(want, o.Version()); d != "" {
		t.Error(d)
	}
	disks, err := o.Disks()
	if err != nil {
		t.Fatal(err)
	}
	if got := dirsOf(disks); !slices.Equal(got, []string{"Ref:10", "Ref:7"}) {
		t.Errorf("disks in order %v, want the lexicographic one", got)
	}
	d := disks[1]
	if d.Size != 5<<20 || d.UserDevice != "0" || !d.Bootable || d.Mode != "RW" || d.SRName != "Local storage" ||
		d.Name != "disk <0> & ü" || d.VDIUUID == "" || d.VBDUUID == "" || d.OtherConfig["mine"] != "1" {
		t.Errorf("disk read as %+v", d)
	}
	vm := o.VM()
	if vm.Name != "web ünï & <co>" || !vm.IsTemplate || vm.MemoryStaticMax != 1<<30 || vm.VCPUsMax != 2 ||
		vm.AffinityHostUUID != "11111111-0000-0000-0000-000000000001" || len(vm.Disks) != 2 || len(vm.VIFs) != 1 {
		t.Errorf("VM read as %+v", vm)
	}
	if v := vm.VIFs[0]; v.MAC != "aa:bb:cc:00:00:01" || v.NetworkName != "Pool-wide network" || v.MTU != 1500 {
		t.Errorf("VIF read as %+v", v)
	}
	if v, ok := o.VMField("HVM_shadow_multiplier"); !ok {
		t.Error("no HVM_shadow_multiplier")
	} else if f, ok := v.Float(); !ok || f != 1 {
		t.Errorf("HVM_shadow_multiplier = %q", v)
	}
}

// TestParseOVAIndented reads what other tools write: a declaration, blanks
// between tags, typed strings and integers, empty elements.
func TestParseOVAIndented(t *testing.T) {
	s := string(testOVA(testDisk{"Ref:1", 1 << 20}))
	s = strings.NewReplacer("><", ">\n\t<").Replace(s)
	s = replaceOnce(t, s, "<value>1048576</value>", "<value> <i8>1048576</i8> </value>")
	s = replaceOnce(t, s, "<value>Ref:1</value>\n\t</member>\n\t<member>\n\t<name>snapshot", "<value><string>Ref:1</string></value></member><member><name>snapshot")
	s = `<?xml version="1.0" encoding="UTF-8"?>` + "\n<!-- written by hand -->\n" + s + "\n"
	o, err := ParseOVA([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	disks, err := o.Disks()
	if err != nil || len(disks) != 1 || disks[0].Size != 1<<20 || disks[0].Dir != "Ref:1" {
		t.Errorf("disks %+v, %v", disks, err)
	}
}

func TestParseOVARefuses(t *testing.T) {
	good := string(testOVA(testDisk{"Ref:1", 1 << 20}))
	edit := func(from, to string) string { return replaceOnce(t, good, from, to) }
	bomb := `<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;">]>` + good
	for _, c := range []struct {
		name, xml string
		kind      error
		says      string
	}{
		{"empty", "", ErrFormat, "too early"},
		{"cut", good[:len(good)-20], ErrFormat, ""},
		{"appliance", `<appliance version="0.1"><vm name="x"/></appliance>`, ErrUnsupported, "appliance"},
		{"other root", "<html></html>", ErrFormat, "html"},
		{"document type", bomb, ErrFormat, "document types"},
		{"entity", edit("xs1</value></member><member><name>date", "&x;</value></member><member><name>date"), ErrFormat, "entity"},
		{"two roots", good + good, ErrFormat, ""},
		{"text after", good + "x", ErrFormat, ""},
		{"not UTF-8", edit("Pool-wide", "Pool\xffwide"), ErrFormat, "UTF-8"},
		{"other encoding", `<?xml version="1.0" encoding="ISO-8859-1"?>` + good, ErrFormat, "encoding"},
		{"duplicate member", edit("<name>product_brand</name>", "<name>date</name>"), ErrFormat, "twice"},
		{"duplicate id", edit("<value>sr-iso</value></member><member><name>snapshot", "<value>sr-1</value></member><member><name>snapshot"), ErrFormat, "two objects"},
		{"no VM", edit("<value>VM</value>", "<value>MV</value>"), ErrFormat, "no VM"},
		{"two VMs", edit("<value>host</value>", "<value>VM</value>"), ErrUnsupported, "2 VMs"},
		{"no version", edit("<name>version</name>", "<name>Version</name>"), ErrFormat, "version"},
		{"old export version", edit("<name>export_vsn</name><value>2<", "<name>export_vsn</name><value>1<"), ErrUnsupported, "export version 1"},
		{"no objects", edit("<name>objects</name>", "<name>things</name>"), ErrFormat, "objects"},
		{"text beside element", edit("<value><struct><member><name>version", "<value>x<struct><member><name>version"), ErrFormat, "text and"},
		{"unknown type", edit("<value>restart</value>", "<value><float>1</float></value>"), ErrFormat, "unknown type"},
		{"attributes", "<value" + strings.Repeat(" a=''", 2000) + "/>", ErrFormat, "markup longer"},
		{"long tag cut", "<" + strings.Repeat("v", 10000), ErrFormat, "markup longer"},
		{"deep", strings.Repeat("<value><array><data>", 100), ErrFormat, "deeper"},
		{"endless values", "<value><array><data>" + strings.Repeat("<value/>", maxValues+1), ErrFormat, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseOVA([]byte(c.xml))
			if !errors.Is(err, c.kind) || !IsBad(err) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %v, want %v saying %q", err, c.kind, c.says)
			}
		})
	}
	if _, err := ParseOVA(make([]byte, MaxOVA+1)); !errors.Is(err, ErrFormat) {
		t.Errorf("too long an ova.xml gave %v", err)
	}
}

func TestDisksRefuses(t *testing.T) {
	good := string(testOVA(testDisk{"Ref:1", 1 << 20}))
	for name, s := range map[string]string{
		"VDI missing":       replaceOnce(t, good, "<name>VDI</name><value>Ref:1<", "<name>VDI</name><value>Ref:2<"),
		"SR missing":        strings.ReplaceAll(good, "<name>SR</name><value>sr-1<", "<name>SR</name><value>sr-2<"),
		"size not a number": replaceOnce(t, good, "<value>1048576<", "<value>1 MiB<"),
		"size negative":     replaceOnce(t, good, "<value>1048576<", "<value>-1048576<"),
		"size immense":      replaceOnce(t, good, "<value>1048576<", "<value>9223372036854775807<"),
		"no size":           replaceOnce(t, good, "<name>virtual_size</name><value>1048576<", "<name>size</name><value>1048576<"),
		"slash in id":       strings.ReplaceAll(good, "Ref:1<", "../Ref:1<"),
		"long id":           strings.ReplaceAll(good, "Ref:1<", strings.Repeat("R", maxDir+1)+"<"),
	} {
		t.Run(name, func(t *testing.T) {
			o, err := ParseOVA([]byte(s))
			if err != nil {
				t.Fatal(err)
			}
			if disks, err := o.Disks(); !errors.Is(err, ErrFormat) || !IsBad(err) {
				t.Errorf("got %+v, %v", disks, err)
			}
		})
	}
}

// TestDisksWhichStream checks the choice of reference 4.5: not the CD, not what
// lies on an iso SR, and the memory image of a suspended VM.
func TestDisksWhichStream(t *testing.T) {
	s := string(testOVA(testDisk{"Ref:1", 1 << 20}, testDisk{"Ref:2", 1 << 20}, testDisk{"Ref:3", 2 << 20}))
	s = replaceOnce(t, s, "<value>1048576</value></member><member><name>SR</name><value>sr-1</value></member><member><name>VBDs</name><value><array><data><value>vbd-1<",
		"<value>1048576</value></member><member><name>SR</name><value>sr-iso</value></member><member><name>VBDs</name><value><array><data><value>vbd-1<")
	s = replaceOnce(t, s, "<name>virtual_size</name><value>2097152</value></member><member><name>SR</name><value>sr-1</value></member><member><name>VBDs</name><value><array><data><value>vbd-2</value></data></array></value></member><member><name>type</name><value>user<",
		"<name>virtual_size</name><value>2097152</value></member><member><name>SR</name><value>sr-1</value></member><member><name>type</name><value>suspend<")
	s = replaceOnce(t, s, "<name>VDI</name><value>Ref:3<", "<name>VDI</name><value>iso-1<")
	o, err := ParseOVA([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	disks, err := o.Disks()
	if err != nil || !slices.Equal(dirsOf(disks), []string{"Ref:1", "Ref:3"}) || !disks[1].Suspend || disks[1].VBDID != "" {
		t.Errorf("disks %+v, %v", disks, err)
	}
}

func TestValueRoundTrip(t *testing.T) {
	s := "<value><struct><member><name>a&amp;b</name><value>x&lt;y&gt;\"z\"&#13;\n </value></member>" +
		"<member><name>n</name><value><nil/></value></member><member><name>t</name><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value></member>" +
		"<member><name>e</name><value><array><data></data></array></value></member><member><name>i</name><value><i8>-5</i8></value></member></struct></value>"
	v, err := parseValue([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(appendValue(nil, v)); got != s {
		t.Errorf("got  %s\nwant %s", got, s)
	}
	if n := v.integer("i"); n != -5 {
		t.Errorf("i8 read as %d", n)
	}
	if got := v.str("a&b"); got != "x<y>\"z\"\r\n " {
		t.Errorf("text read as %q", got)
	}
}
