package xva

import (
	"fmt"
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
