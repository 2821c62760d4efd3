// Package disk keeps the contents of the simulator's virtual disks. A disk is a
// list of references to blocks of 1 MiB: a block is zero, or generated from a
// seed whenever it is read, or stored in a sparse file; so that a pool of large
// disks costs neither memory nor room, and a snapshot costs eight bytes a block.
//
// A block that is written is recognised when it is zero, when it is what a known
// seed gives at that place, or when it is stored already. Importing what was
// exported therefore costs no room either.
package disk

import (
	"errors"
	"fmt"
)

// BlockSize is the length in bytes of a block; the last of a disk may be shorter.
const BlockSize = 1 << 20

// MaxSize is the largest size in bytes of a disk: 16 TiB, the most that any
// storage type of XenServer offers.
const MaxSize = 16 << 40

// MinExt4Size is the smallest size in bytes of a disk with Ext4 contents: that
// of its file system.
const MinExt4Size = 16 << 20

var (
	// ErrReleased is returned for an Image after Release, and for what would
	// need the file of a Store after Close.
	ErrReleased = errors.New("disk was released")
	// ErrRange is returned for an offset, block or size outside the disk.
	ErrRange = errors.New("outside the disk")
	// ErrSize is returned for a size that a disk cannot have.
	ErrSize = errors.New("impossible disk size")
)

// Kind says what a new disk holds.
type Kind int

const (
	// Zero is a disk that was never written.
	Zero Kind = iota
	// Random is incompressible in every block.
	Random
	// Sparse has data in about a quarter of its blocks, of several sorts, with
	// runs that were never written and some blocks of written zeros.
	Sparse
	// Ext4 is an ext4 file system with files in it in the first MinExt4Size
	// bytes and zeros after them. The seed makes the contents of one file.
	Ext4
	// Half has data in every block that compresses to about a half, as that of
	// many servers does.
	Half
)

// String gives the name that ParseKind takes.
func (k Kind) String() string {
	switch k {
	case Zero:
		return "zero"
	case Random:
		return "random"
	case Sparse:
		return "sparse"
	case Ext4:
		return "ext4"
	case Half:
		return "half"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// ParseKind reads the name of a kind: zero, random, sparse, ext4 or half.
func ParseKind(s string) (Kind, error) {
	for k := Zero; k <= Half; k++ {
		if k.String() == s {
			return k, nil
		}
	}
	return 0, fmt.Errorf("disk contents %q: want zero, random, sparse, ext4 or half", s)
}

// Content says what a new disk holds: equal values give equal bytes.
type Content struct {
	Kind Kind
	Seed uint64
}

// zeroBlock is handed out for blocks of zeros and never written.
var zeroBlock [BlockSize]byte
