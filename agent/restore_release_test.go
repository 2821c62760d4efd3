package agent

import (
	"errors"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// hostOf is a host of a release, as XAPI tells of it.
func hostOf(name, product, xapiVersion string, apiMajor, apiMinor int64) xapi.Host {
	return xapi.Host{UUID: "host-" + name, Name: name, Enabled: true, APIMajor: apiMajor, APIMinor: apiMinor,
		SoftwareVersion: map[string]string{"product_brand": "XenServer", "product_version": product, "xapi": xapiVersion}}
}

// versioned is the file with another version block.
func versioned(t *testing.T, ova *xva.OVA, major, minor int) *xva.OVA {
	t.Helper()
	doc, err := ova.Whole(xva.WholeSpec{Disks: dirsOf(t, ova), Version: [2]int{major, minor}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := xva.ParseOVA(doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func dirsOf(t *testing.T, ova *xva.OVA) (dirs []string) {
	t.Helper()
	disks, err := ova.Disks()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		dirs = append(dirs, d.Dir)
	}
	return dirs
}

// TestPlanByRelease holds what hosts of each release are sent: checksums that all of them know, and no archive that one of
// them would refuse.
func TestPlanByRelease(t *testing.T) {
	const gib = 1 << 30
	old, middle, recent := hostOf("h76", "7.6.0", "1.110", 2, 11), hostOf("h82", "8.2.1", "1.249", 2, 15), hostOf("h83", "8.3.0", "24.16", 2, 21)
	for _, tc := range []struct {
		name    string
		hosts   []xapi.Host
		archive [2]int
		lower   bool
		sha1    bool
		lowered release
		refused string
	}{
		{"the same release", []xapi.Host{middle}, [2]int{1, 249}, false, false, release{}, ""},
		{"an older file", []xapi.Host{recent}, [2]int{1, 110}, false, false, release{}, ""},
		{"the same old release", []xapi.Host{old}, [2]int{1, 110}, false, true, release{}, ""},
		{"a newer file", []xapi.Host{middle}, [2]int{24, 16}, false, false, release{}, "--lower-version"},
		{"a newer file, lowered", []xapi.Host{middle}, [2]int{24, 16}, true, false, release{1, 249}, ""},
		{"a newer file, lowered for a host that knows SHA-1 only", []xapi.Host{old}, [2]int{1, 249}, true, true, release{1, 110}, ""},
		{"nothing to lower", []xapi.Host{recent}, [2]int{1, 249}, true, false, release{}, ""},
		{"a pool that is being upgraded: the older one may be asked", []xapi.Host{recent, middle}, [2]int{24, 16}, false, false, release{}, `host "h82"`},
		{"an older one wants SHA-1 of all", []xapi.Host{recent, old}, [2]int{1, 110}, false, true, release{}, ""},
		{"a host that does not tell", []xapi.Host{{Name: "x"}}, [2]int{24, 16}, false, false, release{}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, vm := planPool()
			v.hosts = map[xapi.Ref]xapi.Host{}
			sr := v.srs["sr2"]
			sr.PBDs = nil
			for i, h := range tc.hosts {
				ref := xapi.Ref(rune('a' + i))
				v.hosts[ref], v.pbds["of"+ref] = h, xapi.PBD{CurrentlyAttached: true, Host: ref}
				sr.PBDs = append(sr.PBDs, "of"+ref)
			}
			v.srs["sr2"] = sr
			file := versioned(t, fileOf(t, fileDisk{"Ref:1", "0", "sr-2", gib}), tc.archive[0], tc.archive[1])
			if p, err := planInPlace(v, vm, file, restoreOptions{}); err != nil || p.SHA1 != tc.sha1 || p.Lowered != (release{}) {
				t.Errorf("in place, where carriers bring the disks: %+v, %v", p, err)
			}
			p, err := planAnew(v, file, restoreOptions{Goal: goalAbsent, Lower: tc.lower})
			if tc.refused != "" {
				if !errors.Is(err, rpc.NewerArchive) || !strings.Contains(err.Error(), tc.refused) {
					t.Fatalf("got %v, want a conflict that says %q", err, tc.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.SHA1 != tc.sha1 || p.Lowered != tc.lowered {
				t.Errorf("SHA-1 %v, lowered to %s", p.SHA1, p.Lowered)
			}
			if said := strings.Contains(strings.Join(p.Warnings, "\n"), "--lower-version"); said != (tc.lowered != release{}) {
				t.Errorf("warnings: %q", p.Warnings)
			}
		})
	}
}

// TestPlanPlaces holds that disks go where they were sent by name or UUID of their former SR, and only to what the wanted
// host sees.
func TestPlanPlaces(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		name  string
		o     restoreOptions
		size  int64
		parts string
		says  string // a conflict that says this
	}{
		{"by UUID", restoreOptions{SRs: map[string]string{"sr-9": "sr-2"}}, gib, "two: Ref:1 with the VM;", ""},
		{"by name", restoreOptions{SRs: map[string]string{"file's sr-9": "sr-2"}}, gib, "two: Ref:1 with the VM;", ""},
		{"another's map", restoreOptions{SRs: map[string]string{"other": "sr-2"}, SRUUID: "sr-1"}, gib, "one: Ref:1 with the VM;", ""},
		{"one that is not there", restoreOptions{SRs: map[string]string{"sr-9": "sr-8"}}, gib, "", "no SR sr-8"},
		{"an SR that the host sees", restoreOptions{SRUUID: "sr-2", HostUUID: "host-a"}, gib, "two: Ref:1 with the VM;", ""},
		{"an SR that it does not", restoreOptions{SRUUID: "sr-1", HostUUID: "host-b"}, gib, "", `host "b" does not see SR "one"`},
		{"a host that is not there", restoreOptions{SRUUID: "sr-1", HostUUID: "host-c"}, gib, "", "no host host-c"},
		{"a disk too large for a VHD", restoreOptions{SRUUID: "sr-1"}, maxVHD + 512, "", "at most 2190433320960"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, _ := planPool()
			v.hosts = map[xapi.Ref]xapi.Host{"ha": hostOf("a", "8.3.0", "24.16", 2, 21), "hb": hostOf("b", "8.3.0", "24.16", 2, 21)}
			v.pbds["pbd1"] = xapi.PBD{CurrentlyAttached: true, Host: "ha"}
			p, err := planAnew(v, fileOf(t, fileDisk{"Ref:1", "0", "sr-9", tc.size}), tc.o)
			if tc.says != "" {
				if !errors.Is(err, rpc.Conflict) || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("got %v, want a conflict that says %q", err, tc.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := partsOf(p); got != tc.parts {
				t.Errorf("parts %q, want %q", got, tc.parts)
			}
		})
	}
}
