package vhd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

const (
	// maxEntries bounds the block table, of which the used entries are kept in
	// memory: twice what the largest disk needs.
	maxEntries = 1 << 21
	// maxBlock bounds a block; its bitmap is kept in memory.
	maxBlock = 64 << 20
	// piece is the most that is written at once, and never across a multiple of
	// it on the disk.
	piece = 1 << 20
)

// ReadOptions says what Read does with a stream.
type ReadOptions struct {
	// Length is that of the stream in bytes. The last sector of it is the footer,
	// so that it must be right.
	Length int64
	// Size is that of the disk in bytes. What a block holds behind it, up to the
	// next multiple of BlockSize, is dropped: hosts round disks up to that.
	Size int64
	// Into takes the sectors that the VHD has; all others are left alone, whatever
	// the kind of the VHD.
	Into io.WriterAt
	// Progress, if any, is told after each block how many of all are done.
	Progress func(done, total int64)
}

// Read reads a VHD that begins with its footer and writes its sectors, as
// vhd-tool's "serve" does: a differencing VHD is applied on what the disk holds,
// and so is a dynamic one. A fixed VHD, which has its footer at the end alone,
// is refused, as hosts do. It ends with ctx between two writes. Errors:
// ErrFormat, those of r (io.ErrUnexpectedEOF where it ends early), of Into, of
// ctx.
func Read(ctx context.Context, r io.Reader, o ReadOptions) error {
	d := &reader{ctx: ctx, r: bufio.NewReaderSize(r, 64<<10), o: o}
	start := make([]byte, headerSize)
	if err := d.read(start[:sectorSize]); err != nil {
		return err
	}
	at, err := parseFooter(start[:sectorSize])
	if err != nil {
		return err
	}
	if err := d.skipTo(at); err != nil {
		return err
	}
	if err := d.read(start); err != nil {
		return err
	}
	h, err := parseHeader(start)
	if err != nil {
		return err
	}
	used, err := d.table(h)
	if err != nil {
		return err
	}
	d.bitmap = make([]byte, (h.block/sectorSize/8+sectorSize-1)/sectorSize*sectorSize)
	d.buf = make([]byte, min(piece, h.block))
	for n, e := range used {
		if err := d.block(h, int64(e>>32), int64(uint32(e))); err != nil {
			return err
		}
		if o.Progress != nil {
			o.Progress(int64(n)+1, int64(len(used)))
		}
	}
	if err := d.skipTo((o.Length - 1) &^ (sectorSize - 1)); err != nil {
		return err
	}
	if err := d.read(start[:sectorSize]); err != nil {
		return err
	}
	_, err = parseFooter(start[:sectorSize])
	return err
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// parseFooter gives the place of the header.
func parseFooter(b []byte) (int64, error) {
	be := binary.BigEndian
	if string(b[:8]) != "conectix" {
		return 0, malformed("no footer, but %q", b[:8])
	}
	if v := be.Uint32(b[12:]); v != 0x00010000 {
		return 0, malformed("version %#x", v)
	}
	if k := be.Uint32(b[60:]); k < 2 || k > differencing {
		return 0, malformed("disk of type %d", k)
	}
	if err := verify(b, 64); err != nil {
		return 0, err
	}
	at := be.Uint64(b[16:])
	if at > 1<<62 {
		return 0, malformed("its header is at %#x: a fixed disk", at)
	}
	return int64(at), nil
}

// verify looks at a checksum, which counts as zeros in itself.
func verify(b []byte, at int) error {
	sum, c := binary.BigEndian.Uint32(b[at:]), slices.Clone(b)
	clear(c[at : at+4])
	if want := checksum(c); sum != want {
		return malformed("checksum %08x instead of %08x", sum, want)
	}
	return nil
}

type layout struct {
	table, entries int64
	block          int64 // bytes
}

func parseHeader(b []byte) (layout, error) {
	be := binary.BigEndian
	if string(b[:8]) != "cxsparse" {
		return layout{}, malformed("no header, but %q", b[:8])
	}
	if be.Uint64(b[8:]) != 1<<64-1 || be.Uint32(b[24:]) != 0x00010000 {
		return layout{}, malformed("header of another version")
	}
	if err := verify(b, 36); err != nil {
		return layout{}, err
	}
	h := layout{entries: int64(be.Uint32(b[28:])), block: int64(be.Uint32(b[32:]))}
	table := be.Uint64(b[16:])
	switch {
	case table > 1<<62:
		return layout{}, malformed("block table at %#x", table)
	case bits.OnesCount64(uint64(h.block)) != 1 || h.block < 8*sectorSize || h.block > maxBlock:
		return layout{}, malformed("blocks of %d bytes", h.block)
	case h.entries > maxEntries:
		return layout{}, malformed("%d blocks", h.entries)
	}
	h.table = int64(table)
	return h, nil
}

// reader is a stream that cannot go back.
type reader struct {
	ctx    context.Context
	r      *bufio.Reader
	o      ReadOptions
	at     int64
	bitmap []byte
	buf    []byte
}

func (d *reader) read(b []byte) error {
	n, err := io.ReadFull(d.r, b)
	d.at += int64(n)
	return d.failed(err)
}

func (d *reader) skipTo(at int64) error {
	if at < d.at {
		return malformed("what should be at %d comes after %d", at, d.at)
	}
	n, err := io.CopyN(io.Discard, d.r, at-d.at)
	d.at += n
	return d.failed(err)
}

func (d *reader) failed(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("reading a VHD at byte %d: %w", d.at, err)
	}
	return nil
}

// table gives the used entries in the order of their places, place in the upper
// and number in the lower half. Of several at one place the last counts.
func (d *reader) table(h layout) ([]uint64, error) {
	if err := d.skipTo(h.table); err != nil {
		return nil, err
	}
	var used []uint64
	var entry [4]byte
	for i := range h.entries {
		if err := d.read(entry[:]); err != nil {
			return nil, err
		}
		if at := binary.BigEndian.Uint32(entry[:]); at != unused {
			used = append(used, uint64(at)<<32|uint64(i))
		}
	}
	slices.Sort(used)
	kept := used[:0]
	for i, e := range used {
		if i+1 == len(used) || used[i+1]>>32 != e>>32 {
			kept = append(kept, e)
		}
	}
	return kept, nil
}

// block reads the block at a sector of the stream, bitmap first, and writes runs
// of sectors that are there.
func (d *reader) block(h layout, sector, number int64) error {
	if err := d.skipTo(sector * sectorSize); err != nil {
		return err
	}
	if err := d.read(d.bitmap); err != nil {
		return err
	}
	sectors := h.block / sectorSize
	for from := int64(0); from < sectors; {
		set, to := d.set(from), from+1
		for to < sectors && d.set(to) == set {
			to++
		}
		length := (to - from) * sectorSize
		var err error
		if set {
			err = d.write(number*h.block+from*sectorSize, length)
		} else {
			err = d.skipTo(d.at + length)
		}
		if err != nil {
			return err
		}
		from = to
	}
	return nil
}

func (d *reader) set(sector int64) bool { return d.bitmap[sector/8]&(0x80>>(sector%8)) != 0 }

// write passes n bytes of the stream on to the disk.
func (d *reader) write(at, n int64) error {
	limit := (d.o.Size + BlockSize - 1) / BlockSize * BlockSize
	if at > limit || n > limit-at {
		return malformed("data behind the disk's end, at %d", at)
	}
	for n > 0 {
		if err := context.Cause(d.ctx); err != nil {
			return err
		}
		part := d.buf[:min(n, int64(len(d.buf)), piece-at%piece)]
		if err := d.read(part); err != nil {
			return err
		}
		if inside := min(int64(len(part)), d.o.Size-at); inside > 0 {
			if _, err := d.o.Into.WriteAt(part[:inside], at); err != nil {
				return fmt.Errorf("writing what a VHD holds at %d: %w", at, err)
			}
		}
		at, n = at+int64(len(part)), n-int64(len(part))
	}
	return nil
}
