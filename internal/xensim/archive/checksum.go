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
