package xva

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// plan is what a rewrite will write.
type plan struct {
	disks  []DiskReport
	length int64
	// unit is the length of an absent chunk of the source.
	unit int64
	// fill says that absent chunks are to be written out.
	//
	// An importer measures them by the first chunk of the archive that it gets.
	// Where a disk smaller than BlockSize comes to stand first, its successors'
	// data would land in the wrong places. Without gaps there is nothing to
	// measure.
	fill   bool
	filled int64 // bytes of zeros written for absent chunks
}

// newPlan takes the disks named by dirs from a report, in its order.
func newPlan(rep *Report, ova []byte, dirs []string) plan {
	p := plan{unit: rep.unit, length: tarBlock + padded(int64(len(ova))) + 2*tarBlock}
	for _, d := range rep.Disks {
		if d.Blocks == 0 || !slices.Contains(dirs, d.Dir) {
			continue
		}
		if len(p.disks) == 0 {
			p.fill = firstUnit(d.first, d.Size) != p.unit || d.first != p.unit
		}
		p.disks = append(p.disks, d)
		p.length += d.ArchiveBytes
		if p.fill {
			p.filled += d.absent * p.unit
			p.length += d.absent * entryBytes(p.unit)
		}
	}
	return p
}

// RewriteFill gives how many bytes of explicit zeros Rewrite writes for the same
// arguments: 0 unless a disk smaller than BlockSize comes first. Leaving that
// disk to an archive of its own avoids them.
func RewriteFill(rep *Report, dirs []string) int64 {
	return newPlan(rep, nil, dirs).filled
}

// RewriteLength gives the exact length in bytes of what Rewrite writes with the
// same arguments.
func RewriteLength(rep *Report, ova []byte, dirs []string) int64 {
	return newPlan(rep, ova, dirs).length
}

// RewriteOptions say how an archive is rewritten beyond what is in it.
type RewriteOptions struct {
	// SHA1 writes every chunk's checksum as SHA-1, whatever the source has: hosts
	// before Citrix Hypervisor 8.1 know no other, and all later ones know it too.
	// The length does not depend on it.
	SHA1 bool
}

// Rewrite copies an archive from r to w: plain whatever its packing was, with
// another ova.xml, and with only the disks named by dirs, which must be just
// those that the new ova.xml asks for. rep is what Verify found of the same
// file. Chunks are checked again as they pass, each before any byte of it is
// written, and keep their numbers, unless an importer would then misplace them
// (see RewriteFill); headers are V7 with no extensions. Reading stops after the
// last chunk that is wanted.
//
// Rewrite writes exactly RewriteLength bytes or returns an error: a
// *FormatError if the file has changed or is bad, else that of r or w, or one
// that says why the arguments do not belong together.
func Rewrite(w io.Writer, r io.Reader, rep *Report, ova []byte, dirs []string, o RewriteOptions) error {
	if err := checkRewrite(rep, ova, dirs); err != nil {
		return err
	}
	rd, err := newReader(r, ReaderOptions{}, MaxBlock)
	if err != nil {
		return err
	}
	defer rd.Close()
	c := &rewriter{plan: newPlan(rep, ova, dirs), w: NewWriter(w, WriterOptions{}), rd: rd, o: o}
	if err := c.w.WriteOVA(ova); err != nil {
		return err
	}
	for i := range c.plan.disks {
		if err := c.disk(i); err != nil {
			return err
		}
	}
	if err := c.w.Close(); err != nil {
		return err
	}
	if c.w.Written() != c.plan.length {
		return fmt.Errorf("xva: rewriting wrote %d bytes instead of %d", c.w.Written(), c.plan.length)
	}
	return nil
}

// checkRewrite tells whether the disks to be sent are those that the receiver
// will ask for.
func checkRewrite(rep *Report, ova []byte, dirs []string) error {
	o, err := ParseOVA(ova)
	if err != nil {
		return fmt.Errorf("xva: ova.xml to be written: %s", err.Error())
	}
	disks, err := o.Disks()
	if err != nil {
		return fmt.Errorf("xva: ova.xml to be written: %s", err.Error())
	}
	if len(disks) != len(dirs) {
		return fmt.Errorf("xva: ova.xml to be written asks for %d disks, %d are given", len(disks), len(dirs))
	}
	for _, d := range disks {
		i := slices.IndexFunc(rep.Disks, func(have DiskReport) bool { return have.Dir == d.Dir })
		switch {
		case !slices.Contains(dirs, d.Dir):
			return fmt.Errorf("xva: ova.xml to be written asks for disk %q, which is not given", d.Dir)
		case i < 0:
			return fmt.Errorf("xva: the file has no disk %q", d.Dir)
		case rep.Disks[i].Size != d.Size:
			return fmt.Errorf("xva: disk %q has %d bytes, ova.xml to be written says %d", d.Dir, rep.Disks[i].Size, d.Size)
		}
	}
	return nil
}

type rewriter struct {
	plan  plan
	w     *Writer
	rd    *Reader
	o     RewriteOptions
	zeros []byte
}

// disk copies the chunks of a disk of the plan.
func (c *rewriter) disk(i int) error {
	want := &c.plan.disks[i]
	got := DiskReport{Disk: want.Disk}
	changed := &FormatError{Disk: want.Dir, Offset: -1, Err: ErrFormat, Msg: "file has changed since it was verified"}
	var number int64
	for got.Blocks < want.Blocks {
		b, err := c.rd.Next()
		if errors.Is(err, io.EOF) {
			return changed
		}
		if err != nil {
			return err
		}
		if b.Dir != want.Dir {
			if got.Blocks > 0 {
				return changed
			}
			continue
		}
		got.count(b.gap, b.Length)
		if got.ArchiveBytes > want.ArchiveBytes || got.absent > want.absent {
			return changed
		}
		if number, err = c.gap(b, number); err != nil {
			return err
		}
		kind, sum := b.Checksum, b.Sum
		if c.o.SHA1 && kind != SHA1 {
			kind, sum = SHA1, SHA1.Sum(b.Data)
		}
		if err := c.w.writeChunk(b.Dir, number, b.Data, kind, sum); err != nil {
			return err
		}
		number++
	}
	if got.ArchiveBytes != want.ArchiveBytes || got.absent != want.absent || got.first != want.first {
		return changed
	}
	return nil
}

// gap goes over the absent chunks before b and gives b's number.
func (c *rewriter) gap(b *Block, number int64) (int64, error) {
	if !c.plan.fill || b.gap == 0 {
		return number + b.gap, nil
	}
	if c.zeros == nil {
		c.zeros = make([]byte, c.plan.unit)
	}
	kind := b.Checksum
	if c.o.SHA1 {
		kind = SHA1
	}
	sum := kind.Sum(c.zeros)
	for range b.gap {
		if err := c.w.writeChunk(b.Dir, number, c.zeros, kind, sum); err != nil {
			return 0, err
		}
		number++
	}
	return number, nil
}
