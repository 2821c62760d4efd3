package xva

import "fmt"

// placer says where on its disk each chunk belongs, by the importer's rule
// (reference 4.3), and refuses what an importer would not accept or would put
// elsewhere than the exporter had it.
//
// A disk's position starts at 0. A chunk is n−last−1 units after the end of the
// former one, and the position ends where the chunk ends; so a zero-length chunk
// takes a number but no room. The unit is the length of the first chunk of the
// whole file, save where that chunk is a whole disk smaller than BlockSize: then
// it is BlockSize, as the exporter meant it.
type placer struct {
	disks []DiskReport
	index map[string]int
	i     int   // current disk
	unit  int64 // 0 until the first chunk
	pos   int64 // on the current disk
	last  int64 // number of the current disk's last chunk, or -1
}

func newPlacer(disks []Disk) *placer {
	p := &placer{index: map[string]int{}, last: -1}
	for i, d := range disks {
		p.disks = append(p.disks, DiskReport{Disk: d})
		p.index[d.Dir] = i
	}
	p.settle()
	return p
}

// settle moves on from disks that are complete.
func (p *placer) settle() {
	for p.i < len(p.disks) && p.pos >= p.disks[p.i].Size {
		p.i++
		p.pos, p.last = 0, -1
	}
}

// place gives the offset of a chunk on its disk and the number of absent chunks
// before it, and counts it.
func (p *placer) place(dir string, number, length int64) (offset, gap int64, err *FormatError) {
	if err := p.checkDisk(dir); err != nil {
		return 0, 0, err
	}
	d := &p.disks[p.i]
	fault := func(kind error, format string, args ...any) *FormatError {
		return &FormatError{Disk: dir, Offset: -1, Err: kind, Msg: fmt.Sprintf(format, args...)}
	}
	switch {
	case p.last < 0 && number != 0:
		return 0, 0, fault(ErrMissingData, "disk begins with chunk %d instead of 0", number)
	case number <= p.last:
		return 0, 0, fault(ErrFormat, "chunk %d after chunk %d", number, p.last)
	case number == 0 && length == 0:
		return 0, 0, fault(ErrFormat, "chunk 0 is empty")
	}
	if p.unit == 0 {
		p.unit = firstUnit(length, d.Size)
	}
	gap = number - p.last - 1
	start := p.pos + gap*p.unit
	if start >= d.Size || length > d.Size-start {
		return 0, 0, fault(ErrFormat, "chunk %d of %d bytes at %d reaches beyond the disk's %d bytes", number, length, start, d.Size)
	}
	d.count(gap, length)
	p.pos, p.last = start+length, number
	p.settle()
	return start, gap, nil
}

// firstUnit gives the unit of an archive whose first chunk has the given length,
// on a disk of the given size.
func firstUnit(length, size int64) int64 {
	if length < BlockSize && length >= size {
		return BlockSize
	}
	return length
}

// checkDisk tells whether a chunk of the disk dir is due.
func (p *placer) checkDisk(dir string) *FormatError {
	known, ok := p.index[dir]
	switch {
	case !ok:
		return &FormatError{Disk: dir, Offset: -1, Err: ErrFormat, Msg: "data of a disk that ova.xml does not have"}
	case p.i < len(p.disks) && known == p.i:
		return nil
	case known < p.i:
		return &FormatError{Disk: dir, Offset: -1, Err: ErrFormat, Msg: "more data of a disk that is already complete"}
	}
	return p.incomplete()
}

// incomplete is the fault of the current disk's missing rest.
func (p *placer) incomplete() *FormatError {
	d := p.disks[p.i]
	return &FormatError{Disk: d.Dir, Offset: -1, Err: ErrMissingData,
		Msg: fmt.Sprintf("disk has data up to %d of its %d bytes", p.pos, d.Size)}
}

// finish tells whether every disk is complete.
func (p *placer) finish() *FormatError {
	if p.i < len(p.disks) {
		return p.incomplete()
	}
	return nil
}
