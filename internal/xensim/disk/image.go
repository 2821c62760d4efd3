package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ref says where a block's bytes come from: eight bytes a block, and the zero
// value is what a new disk is full of.
type ref struct {
	src uint32
	n   uint32 // the slot, for srcSlot
}

const (
	srcBase = iota // the image's own contents at this place
	srcZero        // zeros that were written
	srcSlot        // a stored block
	srcSeed        // and above: this place of generator src-srcSeed
)

// Image is a disk. Its methods may be called concurrently.
type Image struct {
	store *Store

	mu         sync.RWMutex
	size       int64
	base       generator
	baseBlocks int64 // base counts below this block; above are zeros
	refs       []ref
	hint       uint32 // the generator that was recognised last
	fs         bool   // an ext4 file system is on it
	released   bool
	changes    []byte // see Changes; nil where they are not tracked
}

// blocks gives the number of blocks of a disk of size bytes.
func blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// Size gives the size in bytes.
func (im *Image) Size() int64 {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.size
}

// length gives the length of block i, which must exist.
func (im *Image) length(i int64) int { return int(min(BlockSize, im.size-i*BlockSize)) }

func (im *Image) check(i int64) error {
	if im.released {
		return ErrReleased
	}
	if i < 0 || i >= int64(len(im.refs)) {
		return fmt.Errorf("block %d of a disk of %d blocks: %w", i, len(im.refs), ErrRange)
	}
	return nil
}

// ReadBlock reads block i of 1 MiB; the last one of a disk may be short. data is
// the front of buf or memory shared by others, which must not be changed; zero
// says that every byte of it is zero. buf must have room for the block. Errors:
// ErrRange, ErrReleased, those of the store's file.
func (im *Image) ReadBlock(i int64, buf []byte) (data []byte, zero bool, err error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.readBlock(i, buf)
}

func (im *Image) readBlock(i int64, buf []byte) (data []byte, zero bool, err error) {
	if err := im.check(i); err != nil {
		return nil, false, err
	}
	n := im.length(i)
	if len(buf) < n {
		return nil, false, fmt.Errorf("reading block %d of %d bytes: %w", i, n, io.ErrShortBuffer)
	}
	if im.isZero(i) {
		return zeroBlock[:n], true, nil
	}
	buf = buf[:n]
	switch r := im.refs[i]; r.src {
	case srcBase:
		data = im.base.block(i, buf)
	case srcSlot:
		if err := im.store.read(r.n, buf); err != nil {
			return nil, false, err
		}
		data = buf
	default:
		data = im.store.generator(r.src-srcSeed).block(i, buf)
	}
	// Only the front of a block is in a short one, which may be zeros.
	return data, n < BlockSize && allZero(data), nil
}

// isZero tells whether the whole block is known to be zero without reading it.
func (im *Image) isZero(i int64) bool {
	switch r := im.refs[i]; r.src {
	case srcBase:
		return i >= im.baseBlocks || im.base.zero(i)
	case srcZero:
		return true
	}
	return false
}

// Allocated tells whether block i was ever written, if only with zeros, as a VHD
// would have it in its table. Blocks outside the disk are not.
func (im *Image) Allocated(i int64) bool {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.check(i) != nil {
		return false
	}
	if im.refs[i].src == srcBase {
		return i < im.baseBlocks && im.base.allocated(i)
	}
	return true
}

// Utilisation gives the number of bytes in blocks that are not all zero.
func (im *Image) Utilisation() int64 {
	im.mu.RLock()
	defer im.mu.RUnlock()
	var sum int64
	for i := range int64(len(im.refs)) {
		if !im.isZero(i) {
			sum += int64(im.length(i))
		}
	}
	return sum
}

// ReadAt implements io.ReaderAt.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if off < 0 {
		return 0, fmt.Errorf("reading at %d: %w", off, ErrRange)
	}
	buf := im.store.scratch.Get().(*[BlockSize]byte)
	defer im.store.scratch.Put(buf)
	n := 0
	for n < len(p) {
		if off >= im.size {
			return n, io.EOF
		}
		data, _, err := im.readBlock(off/BlockSize, buf[:])
		if err != nil {
			return n, err
		}
		k := copy(p[n:], data[off%BlockSize:])
		n, off = n+k, off+int64(k)
	}
	return n, nil
}

// WriteAt implements io.WriterAt. What does not fit is not written, as on a block
// device: ErrRange with the number of bytes before the end.
func (im *Image) WriteAt(p []byte, off int64) (int, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if off < 0 {
		return 0, fmt.Errorf("writing at %d: %w", off, ErrRange)
	}
	n := 0
	for n < len(p) {
		if off >= im.size {
			return n, fmt.Errorf("writing at byte %d of a disk of %d: %w", off, im.size, ErrRange)
		}
		k, err := im.writePart(off/BlockSize, int(off%BlockSize), p[n:])
		if err != nil {
			return n, err
		}
		im.markChanged(off, int64(k))
		n, off = n+k, off+int64(k)
	}
	return n, nil
}

// writePart writes as much of p as goes into block i from byte at on.
func (im *Image) writePart(i int64, at int, p []byte) (int, error) {
	if err := im.check(i); err != nil {
		return 0, err
	}
	length := im.length(i)
	p = p[:min(len(p), length-at)]
	if len(p) == length {
		return length, im.put(i, p)
	}
	old, whole := im.store.scratch.Get().(*[BlockSize]byte), im.store.scratch.Get().(*[BlockSize]byte)
	defer im.store.scratch.Put(old)
	defer im.store.scratch.Put(whole)
	data, _, err := im.readBlock(i, old[:])
	if err != nil {
		return 0, err
	}
	copy(whole[:], data)
	copy(whole[at:], p)
	return len(p), im.put(i, whole[:length])
}

// put makes data the contents of block i, by the cheapest reference. A stored
// block is never written over: others may hold it.
func (im *Image) put(i int64, data []byte) error {
	r, err := im.reference(i, data)
	if err != nil {
		return err
	}
	old := im.refs[i]
	im.refs[i] = r
	if old.src == srcSlot {
		return im.store.release(old.n)
	}
	return nil
}

func (im *Image) reference(i int64, data []byte) (ref, error) {
	if allZero(data) {
		return ref{src: srcZero}, nil
	}
	if k, ok := im.store.recognise(i, data, im.hint); ok {
		im.hint = k
		im.fs = im.fs || im.store.generator(k).kind() == Ext4
		return ref{src: srcSeed + k}, nil
	}
	n, err := im.store.put(data)
	return ref{src: srcSlot, n: n}, err
}

// Resize sets the size in bytes. What is added is zeros; what is cut off is gone.
func (im *Image) Resize(size int64) error {
	if size < 0 || size > MaxSize {
		return fmt.Errorf("resizing a disk to %d bytes: %w: want 0 to %d", size, ErrSize, int64(MaxSize))
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.released {
		return ErrReleased
	}
	last := int64(len(im.refs)) - 1
	if size > im.size && last >= 0 && im.length(last) < BlockSize {
		return im.growTail(last, size)
	}
	return im.setSize(size)
}

// growTail makes the short last block longer before the disk grows, because its
// reference may stand for more than the front that counts.
func (im *Image) growTail(last, size int64) error {
	old, whole := im.store.scratch.Get().(*[BlockSize]byte), im.store.scratch.Get().(*[BlockSize]byte)
	defer im.store.scratch.Put(old)
	defer im.store.scratch.Put(whole)
	data, _, err := im.readBlock(last, old[:])
	if err != nil {
		return err
	}
	clear(whole[copy(whole[:], data):])
	if err := im.setSize(size); err != nil {
		return err
	}
	return im.put(last, whole[:im.length(last)])
}

func (im *Image) setSize(size int64) error {
	n := blocks(size)
	var err error
	for i := n; i < int64(len(im.refs)); i++ {
		if r := im.refs[i]; r.src == srcSlot {
			err = errors.Join(err, im.store.release(r.n))
		}
	}
	if k := int64(len(im.refs)); n > k {
		im.refs = append(im.refs, make([]ref, n-k)...)
	} else {
		im.refs = im.refs[:n:n]
	}
	im.baseBlocks = min(im.baseBlocks, n)
	old := im.size
	im.size = size
	im.growChanges(old)
	return err
}

// Snapshot gives a disk with the same contents. Both are independent of each
// other from then on; blocks are shared until one of them is written.
func (im *Image) Snapshot() (*Image, error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.released {
		return nil, ErrReleased
	}
	im.store.retain(im.refs)
	return &Image{
		store: im.store, size: im.size, base: im.base, baseBlocks: im.baseBlocks,
		refs: append([]ref(nil), im.refs...), hint: im.hint, fs: im.fs,
	}, nil
}

// Release frees the blocks that no other image holds. A second call does nothing.
func (im *Image) Release() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.released {
		return nil
	}
	err := im.setSize(0)
	im.released = true
	return err
}

// Digest gives the SHA-256 of the whole contents in lower-case hex.
func (im *Image) Digest(ctx context.Context) (string, error) {
	buf := im.store.scratch.Get().(*[BlockSize]byte)
	defer im.store.scratch.Put(buf)
	h := sha256.New()
	for i := range blocks(im.Size()) {
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("digesting a disk: %w", err)
		}
		data, _, err := im.ReadBlock(i, buf[:])
		if err != nil {
			return "", fmt.Errorf("digesting a disk: %w", err)
		}
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func allZero(b []byte) bool {
	for len(b) > BlockSize {
		if !bytes.Equal(b[:BlockSize], zeroBlock[:]) {
			return false
		}
		b = b[BlockSize:]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}
