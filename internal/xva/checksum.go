package xva

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// ChecksumKind is the algorithm of the checksum entries that follow each chunk.
type ChecksumKind int

const (
	// XXHash is XXH64 with seed 0 as 16 upper-case hex digits in an entry
	// ending in ".xxhash": XenServer since 8.1, XCP-ng since 8.1.
	XXHash ChecksumKind = iota
	// SHA1 is 40 lower-case hex digits in an entry ending in ".checksum":
	// all releases before.
	SHA1
)

// String gives the name used in reports: "xxhash" or "sha1".
func (k ChecksumKind) String() string {
	if k == SHA1 {
		return "sha1"
	}
	return "xxhash"
}

// Suffix gives the ending of the checksum entry's name, with its dot.
func (k ChecksumKind) Suffix() string {
	if k == SHA1 {
		return ".checksum"
	}
	return ".xxhash"
}

// Len gives the length in bytes of the checksum entry's content.
func (k ChecksumKind) Len() int {
	if k == SHA1 {
		return 2 * sha1.Size
	}
	return 16
}

// Sum gives the content of the checksum entry for a chunk.
func (k ChecksumKind) Sum(data []byte) string {
	if k == SHA1 {
		sum := sha1.Sum(data)
		return hex.EncodeToString(sum[:])
	}
	return formatXXH64(xxhash.Sum64(data))
}

func formatXXH64(sum uint64) string { return fmt.Sprintf("%016X", sum) }
