package archive

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/dpxen/dpxen/internal/xva"
)

// BlockReader is a disk to be exported; *disk.Image is one.
type BlockReader interface {
	// Size is the virtual size in bytes.
	Size() int64
	// ReadBlock reads block i of 1 MiB, the last one short. data is the front of
	// buf or memory that must not be changed; zero says that it is all zero.
	ReadBlock(i int64, buf []byte) (data []byte, zero bool, err error)
}

// Allocator is a BlockReader that knows which of its blocks were ever written.
type Allocator interface {
	Allocated(i int64) bool
}

// ZeroPolicy says which chunks beside the first and the last are sent (reference
// 4.3, "which chunks are present").
type ZeroPolicy int

const (
	// SkipZero reads all and sends every block that is not zero.
	SkipZero ZeroPolicy = iota
	// Extents sends every block that is allocated, zeros included: VDIs that
	// are attached by NBD. Keep-alives are whole blocks.
	Extents
	// Allocated sends pairs of blocks of which one is allocated: the blocks of
	// 2 MiB of a VHD's table, which XAPI reads since 26.0.0. No keep-alives.
	Allocated
)

// ExportDisk is a disk of the archive.
type ExportDisk struct {
	// Dir is the id of the VDI in ova.xml, "Ref:7".
	Dir   string
	Image BlockReader
}

// ExportOptions says what Export writes.
type ExportOptions struct {
	OVA []byte
	// NoOVA leaves ova.xml out: the chunks of a disk alone.
	NoOVA       bool
	OVAModTime  time.Time // zero writes 0, as hosts before 24.13.0 do
	Disks       []ExportDisk
	Checksum    Checksum
	Compression Compression
	ZeroPolicy  ZeroPolicy
	// Progress, if any, is told after each block how many bytes of the disks,
	// skipped ones included, are done. It must not take long.
	Progress func(done, total int64)
	// KeepAlive, if any, is asked once for every block but the first and last of
	// each disk whether the time without transmission is over: a chunk of no
	// bytes is inserted then, which shifts the numbers of all later chunks of
	// the disk. It is called from another goroutine than Export's.
	KeepAlive func(disk string, block int64) bool
}

// Export writes an XVA stream to w, byte for byte as XAPI would: ova.xml, the
// disks in lexicographic order of their Dir, two zero blocks; compressed as a
// whole. It ends with ctx between two blocks; a write that blocks is the caller's
// to unblock. Errors: ErrLayout, those of the disks, of w, of ctx.
func Export(ctx context.Context, w io.Writer, o ExportOptions) error {
	disks := slices.Clone(o.Disks)
	slices.SortFunc(disks, func(a, b ExportDisk) int { return strings.Compare(a.Dir, b.Dir) })
	for i := 1; i < len(disks); i++ {
		if disks[i].Dir == disks[i-1].Dir {
			return fmt.Errorf("%w: two disks named %s", ErrLayout, disks[i].Dir)
		}
	}
	out, err := compressor(&gather{w: w}, o.Compression)
	if err != nil {
		return err
	}
	kind := xva.XXHash
	if o.Checksum == SHA1 {
		kind = xva.SHA1
	}
	xw := xva.NewWriter(out, xva.WriterOptions{Checksum: kind, OVAModTime: o.OVAModTime})
	if !o.NoOVA {
		if err := xw.WriteOVA(o.OVA); err != nil {
			return fmt.Errorf("exporting ova.xml: %w", err)
		}
	}
	if err := streamDisks(ctx, xw, kind, disks, o); err != nil {
		return err
	}
	if err := xw.Close(); err != nil {
		return fmt.Errorf("exporting the end: %w", err)
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("exporting the end: %w", err)
	}
	return nil
}

// streamDisks writes what a scanner reads one step ahead.
func streamDisks(ctx context.Context, xw *xva.Writer, kind xva.ChecksumKind, disks []ExportDisk, o ExportOptions) error {
	s := newScanner(kind, disks, o)
	go s.run(ctx)
	defer s.stop()
	for c := range s.out {
		if c.write {
			if err := xw.WriteBlockSum(c.dir, c.number, c.data, c.sum); err != nil {
				return fmt.Errorf("exporting block %d of disk %s: %w", c.number, c.dir, err)
			}
		}
		s.recycle(c)
		if o.Progress != nil {
			o.Progress(c.done, s.total)
		}
	}
	return s.err
}

// compressor gives what packs for w; Close ends the packing and what w holds.
func compressor(w *gather, c Compression) (io.WriteCloser, error) {
	switch c {
	case None:
		return w, nil
	case Gzip:
		return stacked{gzip.NewWriter(w), w}, nil
	case Zstd:
		// As the zstd command packs by default.
		e, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(2<<20),
			zstd.WithEncoderConcurrency(2))
		if err != nil {
			return nil, fmt.Errorf("exporting: %w", err)
		}
		return stacked{e, w}, nil
	}
	return nil, fmt.Errorf("exporting: no such compression: %d", c)
}

// stacked closes two layers, the upper one first.
type stacked struct {
	io.WriteCloser
	under io.Closer
}

func (s stacked) Close() error {
	if err := s.WriteCloser.Close(); err != nil {
		return err
	}
	return s.under.Close()
}
