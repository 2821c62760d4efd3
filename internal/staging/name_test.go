package staging

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

const (
	uuid1 = "5f0c9f4e-3c71-4f3c-9d7f-0a6a4c1b2d3e"
	uuid2 = "0a1b2c3d-0000-4000-8000-00000000beef"
)

func TestSlug(t *testing.T) {
	tests := []struct{ name, want string }{
		{"web-01", "web-01"},
		{"Web_01", "Web_01"},
		{"web 01 (old)", "web-01-old"},
		{"Größe/Übung", "Grosse-Ubung"},
		{"北京", "Bei-Jing"},
		{"naïve café", "naive-cafe"},
		{`a\b/c:d*e?f"g<h>i|j`, "a-b-c-d-e-f-g-h-i-j"},
		{"../../etc/passwd", "etc-passwd"},
		{"..", "vm"},
		{"", "vm"},
		{"---", "vm"},
		{"\x00\xff\xfe", "vm"},
		{"💾", "vm"},
		{"-rf", "rf"},
		{"a.b.c", "a-b-c"},
		{"CON", "vm-CON"},
		{"nul", "vm-nul"},
		{" aux ", "vm-aux"},
		{"COM1", "vm-COM1"},
		{"com¹", "vm-com1"},
		{"lpt9", "vm-lpt9"},
		{"COM10", "COM10"},
		{"console", "console"},
		{strings.Repeat("a", 64), strings.Repeat("a", 64)},
		{strings.Repeat("a", 65), strings.Repeat("a", 64)},
		{strings.Repeat("a", 63) + " b", strings.Repeat("a", 63)},
		{strings.Repeat("ü", 5000), strings.Repeat("u", 64)},
	}
	for _, tt := range tests {
		if got := Slug(tt.name); got != tt.want {
			t.Errorf("Slug(%.40q) = %q, want %q", tt.name, got, tt.want)
		}
	}
}

// checkSlug holds a slug to the promises of Slug.
func checkSlug(t interface{ Fatalf(string, ...any) }, name, slug string) {
	switch {
	case slug == "" || len(slug) > 64:
		t.Fatalf("Slug(%q) = %q: length %d", name, slug, len(slug))
	case strings.Trim(slug, "-") != slug:
		t.Fatalf("Slug(%q) = %q: '-' at an end", name, slug)
	case isDevice(slug):
		t.Fatalf("Slug(%q) = %q: a DOS device", name, slug)
	case Slug(slug) != slug:
		t.Fatalf("Slug(%q) = %q: its own slug is %q", name, slug, Slug(slug))
	}
	for _, r := range slug {
		if r >= utf8.RuneSelf || !isSlugRune(r) {
			t.Fatalf("Slug(%q) = %q: %q in it", name, slug, r)
		}
	}
}

func TestSlugOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.StringOfN(rapid.RuneFrom([]rune("cCoOnNmM1 -._/ü京\x00")), 0, 100, -1)).Draw(t, "name")
		checkSlug(t, name, Slug(name))
	})
}

func TestNameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sec := rapid.Int64Range(-62135596800, 253402300799).Draw(t, "time") // years 1 to 9999
		n, err := NewName(rapid.String().Draw(t, "name"), rapid.SampledFrom([]string{uuid1, uuid2, strings.ToUpper(uuid1)}).Draw(t, "uuid"),
			rapid.SampledFrom([]Kind{Online, Offline}).Draw(t, "kind"),
			time.Unix(sec, rapid.Int64Range(0, 1e9-1).Draw(t, "nanoseconds")))
		if err != nil {
			t.Fatal(err)
		}
		for _, base := range []string{n.XVA(), n.Manifest()} {
			got, err := ParseName(base)
			if err != nil || got != n {
				t.Fatalf("ParseName(%q) = %+v, %v, want %+v", base, got, err, n)
			}
		}
	})
}

func TestNewNameRefuses(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name string
		uuid string
		kind Kind
		at   time.Time
	}{
		{"no UUID", "", Online, now},
		{"path as UUID", "../../../../../../../../../../etc/pass", Online, now},
		{"UUID in braces", "{" + uuid1 + "}", Online, now},
		{"no kind", uuid1, "", now},
		{"another kind", uuid1, "allOnline", now},
		{"year of five digits", uuid1, Online, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	for _, tt := range tests {
		if n, err := NewName("vm", tt.uuid, tt.kind, tt.at); !errors.Is(err, ErrName) {
			t.Errorf("%s: got %+v, %v, want %v", tt.name, n, err, ErrName)
		}
	}
}

func TestParseName(t *testing.T) {
	good := "web-01." + uuid1 + ".online.20261122T203000Z.xva"
	n, err := ParseName(good)
	want := Name{"web-01", uuid1, Online, time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)}
	if err != nil || n != want {
		t.Fatalf("got %+v, %v, want %+v", n, err, want)
	}
	for _, bad := range []string{
		"", ".xva", "web-01.xva",
		strings.Replace(good, ".xva", "", 1),
		strings.Replace(good, ".xva", ".XVA", 1),
		strings.Replace(good, ".xva", ".xva.gz", 1),
		strings.Replace(good, ".xva", ".tmp", 1),
		strings.Replace(good, "online", "Online", 1),
		strings.Replace(good, "online", "allOnline", 1),
		strings.Replace(good, "online", "online.x", 1),
		strings.Replace(good, "5f0c9f4e", "5F0C9F4E", 1),
		strings.Replace(good, "5f0c9f4e-", "5f0c9f4e", 1),
		strings.Replace(good, "20261122T203000Z", "20261322T203000Z", 1),
		strings.Replace(good, "20261122T203000Z", "20261122T203000", 1),
		strings.Replace(good, "20261122T203000Z", "20261122T203000.5Z", 1),
		strings.Replace(good, "web-01", "", 1),
		strings.Replace(good, "web-01", "-web", 1),
		strings.Replace(good, "web-01", "nul", 1),
		strings.Replace(good, "web-01", "web/01", 1),
		strings.Replace(good, "web-01", "wéb", 1),
		strings.Replace(good, "web-01", strings.Repeat("a", 65), 1),
		"../" + good, "/" + good, `..\` + good,
	} {
		if n, err := ParseName(bad); !errors.Is(err, ErrName) {
			t.Errorf("ParseName(%q) = %+v, %v, want %v", bad, n, err, ErrName)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("web-01." + uuid1 + ".online.20261122T203000Z.xva")
	f.Add("vm-CON." + uuid2 + ".offline.00010101T000000Z.json")
	f.Add("a.b.c.d.xva")
	f.Fuzz(func(t *testing.T, base string) {
		n, err := ParseName(base)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Fatalf("ParseName(%q): %v is not %v", base, err, ErrName)
			}
			return
		}
		if base != n.XVA() && base != n.Manifest() {
			t.Fatalf("ParseName(%q) = %+v, which writes %q", base, n, n.XVA())
		}
		checkSlug(t, n.Slug, n.Slug)
	})
}
