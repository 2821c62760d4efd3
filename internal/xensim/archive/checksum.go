package archive

import (
	"crypto/sha1"
	"fmt"
	"path"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// checksum reads the entry after a chunk and compares. The kind is told by the
// entry's ending; its content is compared as a string.
func (im *importer) checksum(name string, data []byte) error {
	h, err := im.in.next()
	if err != nil {
		return err
	}
	ext := path.Ext(h.name)
	var want string
	switch {
	case ext == ".checksum":
		want = fmt.Sprintf("%x", sha1.Sum(data))
	case ext == ".xxhash" && im.o.AllowXXHash:
		want = fmt.Sprintf("%016X", xxhash.Sum64(data))
	case !im.o.AllowXXHash:
		return failure("Stream_vdi.Failure", "Expected to find an inline checksum file, instead found a file called: %s", h.name)
	default:
		return failure("Stream_vdi.Failure", "Found unsupported checksum file: %s", h.name)
	}
	if h.size > maxSum {
		return internal(nil, "checksum entry %s of %d bytes is larger than %d", h.name, h.size, maxSum)
	}
	got, err := im.in.content(h.size)
	if err != nil {
		return err
	}
	if err := im.in.skip(h.padding()); err != nil {
		return err
	}
	if strings.TrimSuffix(h.name, ext) != name {
		// XAPI looks the name up among those it has computed. A name of an
		// earlier chunk would be compared with that one's; here it is unknown.
		return internal(nil, "Not_found")
	}
	if string(got) != want && !im.o.Force {
		return failure("Stream_vdi.Invalid_checksum", "Block %s checksum failed: original = %s; recomputed = %s",
			name, got, want)
	}
	return nil
}

// keep notes a chunk's sum for the table at the end. Hosts that know XXH64 take
// the kind of the entry after the chunk, which in such archives is SHA-1.
func (im *importer) keep(name string, data []byte) error {
	if len(im.sums) >= maxSums {
		return internal(nil, "more than %d chunks for a table of checksums", maxSums)
	}
	if im.sums == nil {
		im.sums = map[string]string{}
	}
	im.sums[name] = fmt.Sprintf("%x", sha1.Sum(data))
	return nil
}

// table reads the entry that ends archives with export_vsn below 2, whatever its
// name, and compares.
func (im *importer) table() error {
	h, err := im.in.next()
	if err != nil {
		return err
	}
	if h.size > maxOVA {
		return internal(nil, "table of checksums of %d bytes is larger than %d", h.size, maxOVA)
	}
	raw, err := im.in.content(h.size)
	if err != nil {
		return err
	}
	want, err := im.o.Table(raw)
	if err != nil {
		return err
	}
	for name, sum := range im.sums {
		if want[name] != sum && !im.o.Force {
			return &Failure{Code: CodeChecksums, Err: fmt.Errorf("chunk %s: %s instead of %s", name, sum, want[name])}
		}
	}
	return nil
}
