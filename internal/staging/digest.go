package staging

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

// Digests of files, as manifests name them. All of them find what disks, memory and networks do to bytes. SHA-256 and
// BLAKE3 also stand against somebody who changes a file on purpose, if their values are kept where he cannot change those.
const (
	DigestXXH3   = "xxh3-128" // XXH3 with 128 bits, seed 0, in big-endian order as xxhsum prints it
	DigestBLAKE3 = "blake3"   // with 256 bits
	DigestSHA256 = "sha256"
)

// DefaultDigest is what Create uses where Options name none: the one that costs least.
const DefaultDigest = DigestXXH3

// Digests returns the names that NewDigest knows, the default first.
func Digests() []string { return []string{DigestXXH3, DigestBLAKE3, DigestSHA256} }

// ErrDigest says that a digest has a name that is not known.
var ErrDigest = errors.New("unknown digest")

// NewDigest returns the digest of that name; empty is DefaultDigest. The error is ErrDigest.
func NewDigest(name string) (hash.Hash, error) {
	switch name {
	case "", DigestXXH3:
		return xxh3Sum{xxh3.New()}, nil
	case DigestBLAKE3:
		return blake3.New(), nil
	case DigestSHA256:
		return sha256.New(), nil
	}
	return nil, fmt.Errorf("%w %.40q: there are %s", ErrDigest, name, strings.Join(Digests(), ", "))
}

// xxh3Sum is XXH3's 128 bits as a hash.Hash; the library's own Sum is that of 64.
type xxh3Sum struct{ *xxh3.Hasher }

// Size returns 16.
func (xxh3Sum) Size() int { return 16 }

// Sum appends the 128 bits of what was written.
func (h xxh3Sum) Sum(b []byte) []byte {
	sum := h.Sum128().Bytes()
	return append(b, sum[:]...)
}
