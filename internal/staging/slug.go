package staging

import (
	"strings"

	"github.com/mozillazg/go-unidecode"
)

const (
	maxSlug = 64 // bytes
	// maxSlugSource bounds what of a VM's name is looked at, in bytes; XAPI does not bound it.
	maxSlugSource = 1024
)

// Slug turns a VM's name into the first part of a file name: transliterated to ASCII, letters, digits, '_' and '-' kept,
// every run of others one '-', no '-' at an end, at most 64 bytes, never empty, never the name of a DOS device (Windows
// takes those for devices even before an extension). Different names may have the same slug; the UUID keeps files apart.
// The slug of a slug is itself.
func Slug(vmName string) string {
	if len(vmName) > maxSlugSource {
		vmName = strings.ToValidUTF8(vmName[:maxSlugSource], "")
	}
	var b strings.Builder
	gap := false
	for _, r := range unidecode.Unidecode(vmName) {
		if !isSlugRune(r) {
			gap = true
			continue
		}
		if gap {
			b.WriteByte('-')
			gap = false
		}
		b.WriteRune(r)
	}
	slug := b.String()
	slug = strings.Trim(slug, "-")
	slug = strings.TrimRight(slug[:min(len(slug), maxSlug)], "-")
	switch {
	case slug == "":
		return "vm"
	case isDevice(slug):
		return "vm-" + slug
	}
	return slug
}

func isSlugRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// isDevice tells whether Windows reserves the name (Microsoft, "Naming Files, Paths, and Namespaces").
func isDevice(slug string) bool {
	s := strings.ToUpper(slug)
	switch s {
	case "CON", "PRN", "AUX", "NUL", "CLOCK":
		return true
	}
	port, ok := strings.CutPrefix(s, "COM")
	if !ok {
		port, ok = strings.CutPrefix(s, "LPT")
	}
	return ok && len(port) == 1 && port[0] >= '0' && port[0] <= '9'
}
