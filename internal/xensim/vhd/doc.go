// Package vhd writes and reads streams of dynamic and differencing VHDs, as a
// host does for /export_raw_vdi and /import_raw_vdi (xapi-project/xen-api,
// ocaml/vhd-tool and ocaml/libs/vhd; the format is Microsoft's "Virtual Hard Disk
// Image Format Specification"). Neither side seeks, and both need memory for the
// block table alone.
package vhd

import (
	"encoding/binary"
	"errors"
)

const (
	// BlockSize is the length in bytes of a block of what Write writes.
	BlockSize = 2 << 20
	// MaxSize is the largest virtual size in bytes that a host exports: 2040 GiB
	// (Constants.max_vhd_size).
	MaxSize = 2040 << 30

	sectorSize = 512
	headerSize = 1024
	// tableOffset is where the block table is: after footer, header and one empty
	// sector.
	tableOffset = 2048
	unused      = 0xffffffff

	dynamic      = 3
	differencing = 4
)

var (
	// ErrFormat is returned for a stream that is no VHD, or none that can be read
	// without seeking.
	ErrFormat = errors.New("not a VHD that can be streamed")
	// ErrSize is returned for a disk that no VHD can hold.
	ErrSize = errors.New("impossible size of a VHD")
)

// Parent is what a differencing VHD says of the VHD that it belongs on.
type Parent struct {
	UUID [16]byte
	// Path is the file's path on the host; at most 255 bytes count.
	Path string
	// Modified is in seconds since the beginning of the year 2000.
	Modified uint32
}

// checksum is the one's complement of the sum of all bytes.
func checksum(b []byte) uint32 {
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	return ^sum
}

// footer makes the 512 bytes at both ends of a VHD.
func footer(size int64, diskType uint32, id [16]byte) []byte {
	b := make([]byte, sectorSize)
	copy(b, "conectix")
	be := binary.BigEndian
	be.PutUint32(b[8:], 2) // reserved, always set
	be.PutUint32(b[12:], 0x00010000)
	be.PutUint64(b[16:], sectorSize) // the header follows
	copy(b[28:], "caml")
	be.PutUint32(b[32:], 1)
	be.PutUint64(b[40:], uint64(size))
	be.PutUint64(b[48:], uint64(size))
	cylinders, heads, sectors := geometry(size / sectorSize)
	be.PutUint16(b[56:], uint16(cylinders))
	b[58], b[59] = byte(heads), byte(sectors)
	be.PutUint32(b[60:], diskType)
	copy(b[68:], id[:])
	be.PutUint32(b[64:], checksum(b))
	return b
}

// geometry follows the appendix of the specification.
func geometry(sectors int64) (cylinders, heads, perTrack int64) {
	sectors = min(sectors, 65535*16*255)
	var both int64 // cylinders times heads
	if sectors > 65535*16*63 {
		perTrack, heads, both = 255, 16, sectors/255
		return both / heads, heads, perTrack
	}
	perTrack, both = 17, sectors/17
	heads = max((both+1023)/1024, 4)
	if both >= heads*1024 || heads > 16 {
		perTrack, heads, both = 31, 16, sectors/31
	}
	if both >= heads*1024 {
		perTrack, heads, both = 63, 16, sectors/63
	}
	return both / heads, heads, perTrack
}

// header makes the 1024 bytes between footer and block table. The locator of the
// parent names a place in which vhd-tool leaves zeros.
func header(entries int64, parent *Parent) []byte {
	b := make([]byte, headerSize)
	copy(b, "cxsparse")
	be := binary.BigEndian
	be.PutUint64(b[8:], 1<<64-1)
	be.PutUint64(b[16:], tableOffset)
	be.PutUint32(b[24:], 0x00010000)
	be.PutUint32(b[28:], uint32(entries))
	be.PutUint32(b[32:], BlockSize)
	if parent != nil {
		copy(b[40:], parent.UUID[:])
		be.PutUint32(b[56:], parent.Modified)
		name := parent.Path[:min(len(parent.Path), 255)]
		for i := range len(name) {
			b[64+2*i+1] = name[i] // byte by byte, as vhd-tool does
		}
		locator := b[576:]
		copy(locator, "MacX")
		be.PutUint32(locator[4:], 1) // sectors
		be.PutUint32(locator[8:], uint32(len("file://")+len(name)))
		be.PutUint64(locator[16:], sectorSize+headerSize)
	}
	be.PutUint32(b[36:], checksum(b))
	return b
}
