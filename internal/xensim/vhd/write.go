package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
)

// WriteOptions says what Write writes.
type WriteOptions struct {
	// Size is the virtual size in bytes; the last block may be used in part.
	Size int64
	UUID [16]byte
	// Parent makes the VHD a differencing one.
	Parent *Parent
	// Present is asked once for every block, in order, before anything is written.
	Present func(block int64) (bool, error)
	// Read fills buf, of BlockSize bytes, with a block that is present, in order.
	Read func(block int64, buf []byte) error
	// Progress, if any, is told after each block how many of those present are
	// done.
	Progress func(done, total int64)
}

// bitmap says that all sectors of a block are there.
var bitmap = bytes.Repeat([]byte{0xff}, BlockSize/sectorSize/8)

// Write writes a VHD: footer, header, an empty sector, the block table, the
// blocks in order, the footer again. It ends with ctx between two blocks. Errors:
// ErrSize, those of the functions, of w, of ctx.
func Write(ctx context.Context, w io.Writer, o WriteOptions) error {
	if o.Size <= 0 || o.Size > MaxSize {
		return fmt.Errorf("writing a VHD of %d bytes: %w", o.Size, ErrSize)
	}
	entries := (o.Size + BlockSize - 1) / BlockSize
	table, present, err := blockTable(ctx, entries, o.Present)
	if err != nil {
		return err
	}
	kind := uint32(dynamic)
	if o.Parent != nil {
		kind = differencing
	}
	foot := footer(o.Size, kind, o.UUID)
	head := bytes.Join([][]byte{foot, header(entries, o.Parent), make([]byte, sectorSize), table}, nil)
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("writing the head of a VHD: %w", err)
	}
	buf := make([]byte, len(bitmap)+BlockSize)
	copy(buf, bitmap)
	for n, block := range present {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := o.Read(block, buf[len(bitmap):]); err != nil {
			return fmt.Errorf("block %d of a VHD: %w", block, err)
		}
		if _, err := w.Write(buf); err != nil {
			return fmt.Errorf("writing block %d of a VHD: %w", block, err)
		}
		if o.Progress != nil {
			o.Progress(int64(n)+1, int64(len(present)))
		}
	}
	if _, err := w.Write(foot); err != nil {
		return fmt.Errorf("writing the end of a VHD: %w", err)
	}
	return nil
}

// blockTable lays out the blocks that are present, one after another.
func blockTable(ctx context.Context, entries int64, has func(int64) (bool, error)) (table []byte, present []int64, err error) {
	table = bytes.Repeat([]byte{0xff}, int(entries*4+sectorSize-1)/sectorSize*sectorSize)
	next := uint32((tableOffset + len(table)) / sectorSize)
	for i := range entries {
		if err := context.Cause(ctx); err != nil {
			return nil, nil, err
		}
		yes, err := has(i)
		if err != nil {
			return nil, nil, fmt.Errorf("block %d of a VHD: %w", i, err)
		}
		if yes {
			binary.BigEndian.PutUint32(table[4*i:], next)
			next += uint32((len(bitmap) + BlockSize) / sectorSize)
			present = append(present, i)
		}
	}
	return table, present, nil
}
