package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// Hosts differ by release in what they import: in the checksums they know, and in how new an archive may be (reference
// sections 4.4 and 4.5).

// release is a pair of version numbers: of the API, or of XAPI itself.
type release [2]int

func (r release) String() string { return fmt.Sprintf("%d.%d", r[0], r[1]) }

func (r release) before(o release) bool {
	return cmp.Or(cmp.Compare(r[0], o[0]), cmp.Compare(r[1], o[1])) < 0
}

// xxhashSince is the API of Citrix Hypervisor 8.1 and XCP-ng 8.1: hosts before know SHA-1 alone.
var xxhashSince = release{2, 14}

// vtpmSince is the XAPI that first exports and imports vTPMs.
var vtpmSince = release{23, 9}

// wantsSHA1 tells whether a host of the pool knows no other checksum than SHA-1, which all of them know. While a pool is
// upgraded its hosts differ.
func (v *poolView) wantsSHA1() bool {
	for _, h := range v.hosts {
		if api := (release{int(h.APIMajor), int(h.APIMinor)}); api[0] > 0 && api.before(xxhashSince) {
			return true
		}
	}
	return false
}

// xapiOf is the version of a host's XAPI, which it compares an archive's with; false where it cannot be read.
func xapiOf(h xapi.Host) (r release, ok bool) {
	major, minor, _ := strings.Cut(h.SoftwareVersion["xapi"], ".")
	minor, _, _ = strings.Cut(minor, ".")
	var errs [2]error
	r[0], errs[0] = strconv.Atoi(major)
	r[1], errs[1] = strconv.Atoi(minor)
	return r, errs[0] == nil && errs[1] == nil
}

// oldest is the host with the oldest XAPI of those that see the SR, any of which may be asked to import; false where none
// tells its version.
func (v *poolView) oldest(sr xapi.SR) (host xapi.Host, is release, ok bool) {
	for ref, h := range v.hosts {
		if !v.pluggedOn(sr, ref) {
			continue
		}
		r, known := xapiOf(h)
		if known && (!ok || r.before(is) || r == is && h.Name < host.Name) {
			host, is, ok = h, r, true
		}
	}
	return host, is, ok
}

// checkRelease refuses a whole VM whose archive is newer than the host that imports it. Carriers are written for every
// release.
func (v *poolView) checkRelease(p *restorePlan, ova *xva.OVA, lower bool) error {
	i := slices.IndexFunc(p.Parts, func(part restorePart) bool { return part.Whole })
	if i < 0 {
		return nil
	}
	host, has, ok := v.oldest(p.Parts[i].SR)
	if !ok {
		return nil // XAPI will say it
	}
	made := ova.Version()
	archive := release{made.Major, made.Minor}
	if has.before(vtpmSince) && hasVTPM(ova) {
		p.Warnings = append(p.Warnings, fmt.Sprintf("the VM's vTPM is not restored: host %q (%s) is too old for it", host.Name, productOf(host)))
	}
	if !has.before(archive) {
		return nil
	}
	if !lower {
		return rpc.Errorf(rpc.NewerArchive, "the file was made by %s %s (XAPI %s), host %q is the older %s (XAPI %s) and would refuse it: "+
			"restore to a newer host, or have the file's version lowered with --lower-version, which may lose settings",
			made.ProductBrand, made.ProductVersion, archive, host.Name, productOf(host), has)
	}
	p.Lowered = has
	p.Warnings = append(p.Warnings, fmt.Sprintf("the file was made by %s %s; its ova.xml says XAPI %s instead of %s to host %q (%s), "+
		"as asked with --lower-version: settings that this release does not know are lost",
		made.ProductBrand, made.ProductVersion, has, archive, host.Name, productOf(host)))
	return nil
}

func hasVTPM(ova *xva.OVA) bool {
	v, ok := ova.VMField("VTPMs")
	return ok && len(v.Set()) > 0
}

func productOf(h xapi.Host) string {
	return strings.TrimSpace(h.SoftwareVersion["product_brand"] + " " + h.SoftwareVersion["product_version"])
}
