package archive

import (
	"context"
	"errors"
	"fmt"

	"github.com/dpxen/dpxen/internal/xva"
)

// chunk is one step of an export: a block to be written, or that nothing was.
type chunk struct {
	dir    string
	number int64
	data   []byte
	sum    string
	write  bool
	done   int64 // bytes of all disks behind this step
	buf    []byte
}

// scanner reads and hashes blocks in a goroutine of its own while those before
// are being written. It has a fixed number of buffers.
type scanner struct {
	kind  xva.ChecksumKind
	disks []ExportDisk
	o     ExportOptions
	total int64
	done  int64

	out  chan chunk
	free chan []byte
	quit chan struct{}
	err  error // set before out is closed
}

// depth is how many blocks may be ready or under way.
const depth = 4

func newScanner(kind xva.ChecksumKind, disks []ExportDisk, o ExportOptions) *scanner {
	s := &scanner{
		kind: kind, disks: disks, o: o,
		out: make(chan chunk, depth), free: make(chan []byte, depth), quit: make(chan struct{}),
	}
	for range depth {
		s.free <- nil // made when first used
	}
	for _, d := range disks {
		s.total += d.Image.Size()
	}
	return s
}

func (s *scanner) run(ctx context.Context) {
	defer close(s.out)
	for _, d := range s.disks {
		if err := s.disk(ctx, d); err != nil {
			s.err = fmt.Errorf("exporting disk %s: %w", d.Dir, err)
			return
		}
	}
}

// stop ends the goroutine and waits for it.
func (s *scanner) stop() {
	close(s.quit)
	for range s.out {
	}
}

// recycle gives a chunk's buffer back; its data must not be used afterwards.
func (s *scanner) recycle(c chunk) { s.free <- c.buf }

// disk steps through one disk. The numbers of chunks run ahead of the blocks
// after a keep-alive of no bytes, which has a number but no place on the disk.
func (s *scanner) disk(ctx context.Context, d ExportDisk) error {
	number, last := int64(0), (d.Image.Size()-1)/BlockSize
	if d.Image.Size() <= 0 {
		return nil
	}
	for i := int64(0); i <= last; i++ {
		ends := number == 0 || i == last
		alive := !ends && s.o.ZeroPolicy != Allocated && s.o.KeepAlive != nil && s.o.KeepAlive(d.Dir, i)
		if alive && s.o.ZeroPolicy == SkipZero {
			if err := s.step(ctx, func([]byte) (chunk, error) {
				return chunk{dir: d.Dir, number: number, write: true}, nil
			}); err != nil {
				return err
			}
			number++
			alive = false
		}
		if err := s.step(ctx, func(buf []byte) (chunk, error) {
			data, err := s.block(d.Image, i, ends || alive, buf)
			s.done += min(BlockSize, d.Image.Size()-i*BlockSize)
			return chunk{dir: d.Dir, number: number, data: data, write: data != nil}, err
		}); err != nil {
			return err
		}
		number++
	}
	return nil
}

// block reads block i if it is to be sent; no data means that it is not.
func (s *scanner) block(img BlockReader, i int64, always bool, buf []byte) ([]byte, error) {
	if !always && s.o.ZeroPolicy != SkipZero {
		sent, err := s.allocated(img, i, buf)
		if err != nil || !sent {
			return nil, err
		}
		always = true
	}
	data, zero, err := img.ReadBlock(i, buf)
	if err != nil || zero && !always {
		return nil, err
	}
	return data, nil
}

// allocated tells whether the block, or under Allocated its pair, was written.
func (s *scanner) allocated(img BlockReader, i int64, buf []byte) (bool, error) {
	first, n := i, int64(1)
	if s.o.ZeroPolicy == Allocated {
		first, n = i&^1, 2
	}
	for k := first; k < first+n && k*BlockSize < img.Size(); k++ {
		if a, ok := img.(Allocator); ok {
			if a.Allocated(k) {
				return true, nil
			}
			continue
		}
		if _, zero, err := img.ReadBlock(k, buf); err != nil || !zero {
			return err == nil, err
		}
	}
	return false, nil
}

// step makes a chunk in a free buffer, hashes it and passes it on.
func (s *scanner) step(ctx context.Context, read func(buf []byte) (chunk, error)) error {
	var buf []byte
	select {
	case buf = <-s.free:
	case <-s.quit:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := context.Cause(ctx); err != nil { // select takes either when both are ready
		return err
	}
	if buf == nil {
		buf = make([]byte, BlockSize)
	}
	c, err := read(buf)
	if err != nil {
		return err
	}
	if c.write {
		c.sum = s.kind.Sum(c.data)
	}
	c.buf, c.done = buf, s.done
	select {
	case s.out <- c:
		return nil
	case <-s.quit:
		return errStopped
	}
}

// errStopped ends the scanner's goroutine; nobody sees it.
var errStopped = errors.New("export ended early")
