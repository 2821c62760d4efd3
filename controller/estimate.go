package controller

import (
	"strings"

	"github.com/dustin/go-humanize"
)

// diskEnds are the first and the last block of a disk, which are in a file also where nothing was ever written to them.
const diskEnds = 2 << 20

// estimateDisk returns an upper bound of the bytes that a disk takes in a file: the smaller of its virtual size and what it
// takes along its chain with both ends of the disk (the virtual size where that is unknown), plus 1 % for headers and checksums
// (DESIGN section 4).
func estimateDisk(d Disk) int64 {
	n := d.Size
	if d.Physical > 0 {
		n = min(n, plus(d.Physical, diskEnds))
	}
	return plus(n, n/100+min(n%100, 1))
}

// overhead is what a file takes beside its disks: ova.xml and the end of the archive, in bytes.
const overhead = 1 << 20

// estimate returns an upper bound of the length of a file with these disks, in bytes.
func estimate(disks []Disk) int64 {
	total := int64(overhead)
	for _, d := range disks {
		total = plus(total, estimateDisk(d))
	}
	return total
}

func plannedDisk(d Disk) PlannedDisk {
	return PlannedDisk{UserDevice: d.UserDevice, Device: d.Device, VDI: d.VDI, Name: d.Name, Size: d.Size, SR: d.SR,
		SRName: d.SRName}
}

// Bounds of the headroom that a snapshot wants on a thin SR: the smaller of 10 GiB and 10 % of the SR.
const thinHeadroom = 10 << 30

// thick tells whether a snapshot on an SR of this type takes the disk's virtual size at once: the LVM types, where
// every volume is inflated.
func thick(srType string) bool {
	return strings.HasPrefix(strings.ToLower(srType), "lvm")
}

// snapshotNeed returns the free bytes that the SR should have for a snapshot of these disks of one VM, of which only those
// on the SR count; 0 where none is.
func snapshotNeed(sr *SR, disks []Disk) int64 {
	var virtual int64
	on := false
	for _, d := range disks {
		if d.SR == sr.UUID {
			on = true
			virtual = plus(virtual, d.Size)
		}
	}
	switch {
	case !on:
		return 0
	case thick(sr.Type):
		return virtual
	}
	return min(thinHeadroom, sr.Size/10)
}

// size writes bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
