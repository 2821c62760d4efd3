package staging

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"
)

// writeSize is the size of writes to disk, in bytes; they start at multiples of it.
const writeSize = 1 << 20

// Partial is a file that is being written. It is used by one goroutine at a time and ends with Commit or Abort.
type Partial struct {
	d    *Dir
	name Name
	path string
	room *Reservation

	f      file
	buf    []byte    // less than writeSize, not yet written
	bytes  int64     // accepted, including buf
	onDisk int64     // written to f
	digest hash.Hash // of the algorithm in d.o
	err    error     // the first failure of Write; sticks
	closed bool

	written fs.FileInfo // once all of it is written: the file
	sum     string      // and its digest, in hexadecimal
}

// Create starts a file called n (see NewName) in .dpxen/partial. What is written counts against room, which may be nil.
// Errors: ErrExists where a file of that name is there, finished or not; ErrName; ErrNoRoom.
func (d *Dir) Create(n Name, room *Reservation) (*Partial, error) {
	if d.o.ReadOnly {
		return nil, fmt.Errorf("create %s: %w", n.XVA(), ErrReadOnly)
	}
	if err := n.validate(); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	for _, name := range []string{n.XVA(), n.Manifest()} {
		if _, err := os.Lstat(d.final(name)); err == nil {
			return nil, fmt.Errorf("create %s: %w", name, ErrExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("create: %w", err)
		}
	}
	digest, err := NewDigest(d.o.Digest)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", n.XVA(), err)
	}
	path := d.partial(n.XVA())
	f, err := d.sys.Create(path, fileMode)
	if err != nil {
		return nil, fmt.Errorf("create: %w", exists(noRoom(err)))
	}
	return &Partial{d: d, name: n, path: path, room: room, f: f, buf: make([]byte, 0, writeSize),
		digest: digest}, nil
}

// exists puts ErrExists to the system's error.
func exists(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", ErrExists, err)
	}
	return err
}

// Name returns the name the file will have.
func (p *Partial) Name() Name { return p.name }

// Bytes returns how many bytes Write has accepted.
func (p *Partial) Bytes() int64 { return p.bytes }

// Write appends b, which it does not keep. Up to 1 MiB waits in memory. After a failure every later call and Commit return
// the same error; a full disk is ErrNoRoom.
func (p *Partial) Write(b []byte) (int, error) {
	if p.closed && p.err == nil {
		return 0, fmt.Errorf("write %s: %w", p.name.XVA(), fs.ErrClosed)
	}
	done := 0
	for p.err == nil && done < len(b) {
		rest := b[done:]
		if len(p.buf) == 0 && len(rest) >= writeSize {
			whole := rest[:writeSize] // no copy
			done += writeSize
			p.bytes += writeSize
			p.flush(whole)
			continue
		}
		n := min(len(rest), writeSize-len(p.buf))
		p.buf = append(p.buf, rest[:n]...)
		done += n
		p.bytes += int64(n)
		if len(p.buf) == writeSize {
			p.flush(p.buf)
			p.buf = p.buf[:0]
		}
	}
	return done, p.err
}

// WritePieces is Write for what lies in pieces: 1 MiB that would begin at a multiple of it is written without a copy.
func (p *Partial) WritePieces(pieces [][]byte) (int, error) {
	size := length(pieces)
	if _, ok := p.f.(piecesFile); ok && !p.closed && p.err == nil && len(p.buf) == 0 && size == writeSize {
		p.bytes += writeSize
		p.flush(pieces...)
		return writeSize, p.err
	}
	done := 0
	for _, b := range pieces {
		n, err := p.Write(b)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// flush writes to the file while another processor computes the digest.
func (p *Partial) flush(pieces ...[]byte) {
	size := length(pieces)
	if err := p.room.admit(int64(size)); err != nil {
		p.err = fmt.Errorf("write %s: %w", p.name.XVA(), err)
		return
	}
	var sums sync.WaitGroup
	sums.Go(func() {
		for _, b := range pieces {
			p.digest.Write(b)
		}
	})
	n, err := p.put(pieces)
	sums.Wait()
	p.onDisk += int64(n)
	p.room.wrote(int64(n))
	if err == nil && n < size {
		err = io.ErrShortWrite
	}
	if err != nil {
		p.err = fmt.Errorf("write %s: %w", p.name.XVA(), noRoom(err))
	}
}

// length is how many bytes there are in all pieces.
func length(pieces [][]byte) int {
	n := 0
	for _, b := range pieces {
		n += len(b)
	}
	return n
}

// put hands bytes to the system: in pieces only where WritePieces saw that the file takes them.
func (p *Partial) put(pieces [][]byte) (int, error) {
	if len(pieces) == 1 {
		return p.f.Write(pieces[0])
	}
	return p.f.(piecesFile).WritePieces(pieces)
}

// ReadAt reads what Write has accepted once more, also what waits in memory. io.EOF comes with the last byte of it.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) {
	n := 0
	if off < p.onDisk {
		var err error
		if n, err = p.f.ReadAt(b[:min(int64(len(b)), p.onDisk-off)], off); err != nil {
			return n, fmt.Errorf("read %s again: %w", p.name.XVA(), err)
		}
	}
	if rest := off + int64(n) - p.onDisk; rest >= 0 && rest < int64(len(p.buf)) {
		n += copy(b[n:], p.buf[rest:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Abort closes and removes the file. It may be called at any time and repeated; after a Commit it does nothing.
func (p *Partial) Abort() error {
	if p.closed {
		return nil
	}
	p.closed = true
	var err error
	if p.f != nil {
		err = p.f.Close()
	}
	p.room.wrote(-p.onDisk)
	if err = errors.Join(err, removeAny(p.d.sys, p.path)); err != nil {
		return fmt.Errorf("abort %s: %w", p.name.XVA(), err)
	}
	return nil
}

// removeAny removes a file that may be gone already.
func removeAny(sys fileSystem, path string) error {
	if err := sys.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
