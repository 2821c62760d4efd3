package xva

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	tarBlock = 512
	// maxDir is what fits before "/00000000.checksum" in a tar name.
	maxDir = 100 - len("/00000000.checksum")
)

// padding gives the number of zero bytes after a content of n bytes.
func padding(n int64) int { return int(-n & (tarBlock - 1)) }

// padded gives n rounded up to whole tar blocks.
func padded(n int64) int64 { return (n + tarBlock - 1) &^ (tarBlock - 1) }

// putV7Header fills h as XAPI's tar library does: V7, mode 0400, no owner, no
// magic, checksum as seven digits and NUL (reference 4.1).
func putV7Header(h *[tarBlock]byte, name string, size, mtime int64) {
	clear(h[:])
	copy(h[:100], name)
	copy(h[100:], "0000400")
	copy(h[108:], "0000000")
	copy(h[116:], "0000000")
	putOctal(h[124:135], size)
	putOctal(h[136:147], mtime)
	putOctal(h[148:155], headerSum(h))
}

// putOctal writes v as digits that fill b; what does not fit is cut off above.
func putOctal(b []byte, v int64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = '0' + byte(v&7)
		v >>= 3
	}
}

// headerSum is the sum of the header's bytes with its checksum field as spaces.
func headerSum(h *[tarBlock]byte) int64 {
	sum := int64(8 * ' ')
	for i, c := range h {
		if i < 148 || i >= 156 {
			sum += int64(c)
		}
	}
	return sum
}

// checkDir tells whether a VDI's id can serve as the directory of its chunks.
func checkDir(dir string) error {
	switch {
	case dir == "":
		return fmt.Errorf("xva: disk without a directory name")
	case len(dir) > maxDir:
		return fmt.Errorf("xva: directory name %.40q… of a disk is longer than %d bytes", dir, maxDir)
	case strings.ContainsFunc(dir, func(r rune) bool { return r == '/' || r < 0x20 || r == 0x7f }):
		return fmt.Errorf("xva: directory name %q of a disk has characters that it must not have", dir)
	}
	return nil
}

// tarHeader is what a reader needs of a header block.
type tarHeader struct {
	name string
	size int64
	kind byte // typeflag
}

// Types of entries that are read.
const (
	tarFile      = 0
	tarPax       = 'x'
	tarPaxGlobal = 'g'
)

// parseHeader reads a V7, ustar or GNU header block strictly. Entries that are
// neither files nor pax records are refused by name.
func parseHeader(h *[tarBlock]byte) (tarHeader, *FormatError) {
	var out tarHeader
	sum, ok := parseOctal(h[148:156])
	if !ok || sum != headerSum(h) {
		return out, bad(ErrFormat, "no tar header, or its checksum is wrong")
	}
	out.name = cString(h[:100])
	switch magic := string(h[257:265]); {
	case magic == "ustar\x0000":
		if prefix := cString(h[345:500]); prefix != "" {
			out.name = prefix + "/" + out.name
		}
	case magic == "ustar  \x00", magic == strings.Repeat("\x00", 8):
	default:
		return out, bad(ErrFormat, "tar header of no known kind")
	}
	switch c := h[156]; c {
	case 0, '0':
	case tarPax, tarPaxGlobal:
		out.kind = c
	case 'L', 'K', 'S', 'X', 'N':
		return out, &FormatError{Entry: out.name, Offset: -1, Err: ErrUnsupported,
			Msg: fmt.Sprintf("tar extension of type %q, which no XVA writer uses", c)}
	default:
		return out, &FormatError{Entry: out.name, Offset: -1, Err: ErrFormat,
			Msg: fmt.Sprintf("tar entry of type %q, where only plain files belong", c)}
	}
	if out.size, ok = parseOctal(h[124:136]); !ok {
		return out, &FormatError{Entry: out.name, Offset: -1, Err: ErrFormat, Msg: "tar entry without a readable size"}
	}
	return out, nil
}

// parseOctal reads a numeric field: blanks, digits, then NULs and blanks only.
func parseOctal(b []byte) (int64, bool) {
	i := 0
	for i < len(b) && b[i] == ' ' {
		i++
	}
	v, digits := int64(0), 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '7'; i++ {
		v = v<<3 | int64(b[i]-'0')
		digits++
	}
	for ; i < len(b); i++ {
		if b[i] != 0 && b[i] != ' ' {
			return 0, false
		}
	}
	return v, digits > 0
}

// cString gives a field up to its first NUL.
func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// pax holds what pax records say of the next entry.
type pax struct {
	set  bool
	path string
	size int64 // -1 where not said
}

// maxPax is the greatest length of a pax record block.
const maxPax = 64 << 10

// parsePax reads the body of a pax entry: path and size count, what changes the
// meaning of the data is refused, all else (times, owners) has no bearing here.
func parsePax(b []byte, global bool) (pax, *FormatError) {
	p := pax{set: true, size: -1}
	for s := string(b); s != ""; {
		digits, _, ok := strings.Cut(s, " ")
		n, err := strconv.ParseInt(digits, 10, 32)
		if !ok || err != nil || n <= int64(len(digits))+1 || n > int64(len(s)) || s[n-1] != '\n' {
			return p, bad(ErrFormat, "pax header with a malformed record")
		}
		key, value, ok := strings.Cut(s[len(digits)+1:n-1], "=")
		s = s[n:]
		switch {
		case !ok:
			return p, bad(ErrFormat, "pax header with a malformed record")
		case strings.HasPrefix(key, "GNU.sparse."), global && (key == "path" || key == "size"):
			return p, bad(ErrUnsupported, "pax record %.64q", key)
		case key == "path":
			p.path = value
		case key == "size":
			if p.size, err = strconv.ParseInt(value, 10, 64); err != nil || p.size < 0 {
				return p, bad(ErrFormat, "pax header with an impossible size")
			}
		}
	}
	return p, nil
}

// blockNameParts takes a chunk's name apart; ok is false if it is none.
func blockNameParts(name string) (dir string, number int64, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 1 || len(name)-i-1 != 8 {
		return "", 0, false
	}
	for _, c := range []byte(name[i+1:]) {
		if c < '0' || c > '9' {
			return "", 0, false
		}
		number = number*10 + int64(c-'0')
	}
	return name[:i], number, true
}
