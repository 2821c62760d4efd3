package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// Store holds the written blocks of any number of images in one sparse file, and
// knows the contents of all of them. Its methods, and those of different images,
// may be called concurrently.
type Store struct {
	file    *os.File
	scratch sync.Pool // *[BlockSize]byte

	fs func() (*fileSystem, error) // made when first wanted

	mu         sync.Mutex
	closed     bool
	slots      []slot
	free       []uint32
	byHash     map[uint64]uint32
	generators []generator
	known      map[Content]uint32
}

// slot is the place of one stored block in the file.
type slot struct {
	refs int32
	hash uint64
}

// OpenStore makes a store that keeps the blocks written to its images in a
// sparse file in dir, which must exist. The file is gone after Close, and on
// systems that allow it even when the process is killed.
func OpenStore(dir string) (*Store, error) {
	f, err := os.CreateTemp(dir, "xensim-*.blocks")
	if err != nil {
		return nil, fmt.Errorf("making the file for disk blocks: %w", err)
	}
	// Windows refuses while the file is open; Close removes it there.
	_ = os.Remove(f.Name())
	s := &Store{
		file:    f,
		byHash:  map[uint64]uint32{},
		known:   map[Content]uint32{},
		scratch: sync.Pool{New: func() any { return new([BlockSize]byte) }},
	}
	s.fs = sync.OnceValues(func() (*fileSystem, error) { return newFileSystem(context.Background()) })
	return s, nil
}

// Close frees the file. What was written to the store's images
// is lost.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.file.Close()
	if rerr := os.Remove(s.file.Name()); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return fmt.Errorf("closing the file for disk blocks: %w", err)
	}
	return nil
}

// Stored gives the number of bytes that the written blocks of all images take on
// disk, each counted once.
func (s *Store) Stored() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.slots)-len(s.free)) * BlockSize
}

// New makes a disk of size bytes. Errors: ErrSize for a size below zero, above
// MaxSize, or too small for an Ext4 disk.
func (s *Store) New(size int64, c Content) (*Image, error) {
	if size < 0 || size > MaxSize {
		return nil, fmt.Errorf("disk of %d bytes: %w: want 0 to %d", size, ErrSize, int64(MaxSize))
	}
	if c.Kind == Ext4 && size < MinExt4Size {
		return nil, fmt.Errorf("ext4 disk of %d bytes: %w: the minimum is %d bytes", size, ErrSize, MinExt4Size)
	}
	base, err := s.register(c)
	if err != nil {
		return nil, err
	}
	n := blocks(size)
	return &Image{store: s, size: size, base: base, baseBlocks: n, refs: make([]ref, n), fs: c.Kind == Ext4}, nil
}

// register gives the generator of c, and makes it known for recognising blocks.
func (s *Store) register(c Content) (generator, error) {
	if c.Kind == Zero {
		return zeroGenerator{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrReleased
	}
	if i, ok := s.known[c]; ok {
		return s.generators[i], nil
	}
	g, err := s.newGenerator(c)
	if err != nil {
		return nil, err
	}
	s.known[c] = uint32(len(s.generators))
	s.generators = append(s.generators, g)
	return g, nil
}

func (s *Store) newGenerator(c Content) (generator, error) {
	switch c.Kind {
	case Random:
		return newRandom(c)
	case Half:
		return newHalf(c)
	case Sparse:
		return newSparse(c)
	case Ext4:
		fs, err := s.fs()
		if err != nil {
			return nil, fmt.Errorf("making an ext4 disk: %w", err)
		}
		return newExt4(c, fs)
	}
	return nil, fmt.Errorf("no such disk contents: %v", c.Kind)
}

func (s *Store) generator(src uint32) generator {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generators[src]
}

// recognise looks for a generator that gives data at block i, the hinted one first.
func (s *Store) recognise(i int64, data []byte, hint uint32) (uint32, bool) {
	s.mu.Lock()
	gs := s.generators[:len(s.generators):len(s.generators)]
	s.mu.Unlock()
	buf := s.scratch.Get().(*[BlockSize]byte)
	defer s.scratch.Put(buf)
	if int(hint) < len(gs) && gives(gs[hint], i, data, buf) {
		return hint, true
	}
	for k := range gs {
		if uint32(k) != hint && gives(gs[k], i, data, buf) {
			return uint32(k), true
		}
	}
	return 0, false
}

// gives tells whether g makes data at block i; the first bytes settle most cases.
func gives(g generator, i int64, data []byte, buf *[BlockSize]byte) bool {
	if g.zero(i) {
		return false // written zeros have a reference of their own
	}
	head := data[:min(64, len(data))]
	if !bytes.Equal(g.block(i, buf[:len(head)]), head) {
		return false
	}
	return bytes.Equal(g.block(i, buf[:len(data)]), data)
}

// put stores data, or finds it stored, and gives its slot with one more reference.
func (s *Store) put(data []byte) (uint32, error) {
	hash := xxhash.Sum64(data)
	if n, ok := s.find(hash, data); ok {
		return n, nil
	}
	n, err := s.allocate()
	if err != nil {
		return 0, err
	}
	if _, err := s.file.WriteAt(data, int64(n)*BlockSize); err != nil {
		return 0, errors.Join(fmt.Errorf("storing a disk block: %w", err), s.release(n))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[n].hash = hash
	if _, ok := s.byHash[hash]; !ok {
		s.byHash[hash] = n
	}
	return n, nil
}

// find looks for data among the stored blocks.
func (s *Store) find(hash uint64, data []byte) (uint32, bool) {
	s.mu.Lock()
	n, ok := s.byHash[hash]
	if ok {
		s.slots[n].refs++ // so that it stays while it is compared
	}
	s.mu.Unlock()
	if !ok {
		return 0, false
	}
	buf := s.scratch.Get().(*[BlockSize]byte)
	defer s.scratch.Put(buf)
	if err := s.read(n, buf[:len(data)]); err == nil && bytes.Equal(buf[:len(data)], data) {
		return n, true
	}
	_ = s.release(n) // the caller stores data elsewhere; nothing of its own is at stake
	return 0, false
}

func (s *Store) allocate() (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, ErrReleased
	}
	if k := len(s.free); k > 0 {
		n := s.free[k-1]
		s.free = s.free[:k-1]
		s.slots[n] = slot{refs: 1}
		return n, nil
	}
	if len(s.slots) >= math.MaxInt32 {
		return 0, fmt.Errorf("storing a disk block: %w: the store is full", ErrSize)
	}
	s.slots = append(s.slots, slot{refs: 1})
	return uint32(len(s.slots) - 1), nil
}

func (s *Store) read(n uint32, buf []byte) error {
	if _, err := s.file.ReadAt(buf, int64(n)*BlockSize); errors.Is(err, os.ErrClosed) {
		return ErrReleased
	} else if err != nil {
		return fmt.Errorf("reading a stored disk block: %w", err)
	}
	return nil
}

// retain adds a reference to every slot of refs.
func (s *Store) retain(refs []ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range refs {
		if r.src == srcSlot {
			s.slots[r.n].refs++
		}
	}
}

// release drops a reference and frees the slot after the last one.
func (s *Store) release(n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	sl := &s.slots[n]
	if sl.refs--; sl.refs > 0 {
		return nil
	}
	if k, ok := s.byHash[sl.hash]; ok && k == n {
		delete(s.byHash, sl.hash)
	}
	s.free = append(s.free, n)
	if err := punchHole(s.file, int64(n)*BlockSize, BlockSize); err != nil {
		return fmt.Errorf("freeing a stored disk block: %w", err)
	}
	return nil
}
