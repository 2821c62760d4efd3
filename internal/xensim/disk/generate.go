package disk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// generator makes the blocks of one Content. It is read-only and shared.
type generator interface {
	kind() Kind
	// block gives the first len(buf) bytes of block i, in buf or in memory that
	// must not be changed; a shorter buf gets the front of the same block.
	block(i int64, buf []byte) []byte
	// zero tells whether block i is all zero, allocated whether it counts as
	// written all the same.
	zero(i int64) bool
	allocated(i int64) bool
}

type zeroGenerator struct{}

func (zeroGenerator) kind() Kind                       { return Zero }
func (zeroGenerator) block(_ int64, buf []byte) []byte { return zeroBlock[:len(buf)] }
func (zeroGenerator) zero(int64) bool                  { return true }
func (zeroGenerator) allocated(int64) bool             { return false }

// noise gives incompressible bytes: AES-CTR under a key made from kind and seed,
// the block's number in the upper half of the counter. Several GB/s a core.
type noise struct{ aes cipher.Block }

func newNoise(label string, seed uint64) (noise, error) {
	sum := sha256.Sum256(fmt.Appendf(nil, "xensim %s %d", label, seed))
	b, err := aes.NewCipher(sum[:16])
	if err != nil {
		return noise{}, fmt.Errorf("making a generator: %w", err)
	}
	return noise{aes: b}, nil
}

// fill writes the stream number n into buf.
func (g noise) fill(n uint64, buf []byte) {
	var iv [aes.BlockSize]byte
	binary.BigEndian.PutUint64(iv[:], n)
	stream := cipher.NewCTR(g.aes, iv[:])
	const piece = 16 << 10 // so that the source of zeros stays in the nearest cache
	for len(buf) > 0 {
		k := min(piece, len(buf))
		stream.XORKeyStream(buf[:k], zeroBlock[:k])
		buf = buf[k:]
	}
}

type random struct{ noise noise }

func newRandom(c Content) (generator, error) {
	n, err := newNoise("random", c.Seed)
	return random{n}, err
}

func (random) kind() Kind { return Random }

func (g random) block(i int64, buf []byte) []byte {
	g.noise.fill(uint64(i), buf)
	return buf
}

func (random) zero(int64) bool      { return false }
func (random) allocated(int64) bool { return true }

// half has noise in the first half of every page and text in the second.
type half struct {
	noise noise
	seed  uint64
}

func newHalf(c Content) (generator, error) {
	n, err := newNoise("half", c.Seed)
	return half{n, c.Seed}, err
}

func (half) kind() Kind { return Half }

func (g half) block(i int64, buf []byte) []byte {
	const page = 4 << 10
	g.noise.fill(uint64(i), buf)
	var line [page / 2]byte
	sparse{seed: g.seed}.text(i, line[:])
	for at := page / 2; at < len(buf); at += page {
		copy(buf[at:], line[:])
	}
	return buf
}

func (half) zero(int64) bool      { return false }
func (half) allocated(int64) bool { return true }

// sparse decides by groups of 16 blocks: an eighth is full, a quarter mixed, the
// rest never written; the first group is always mixed so that small disks have
// something of everything.
type sparse struct {
	seed  uint64
	noise noise
}

func newSparse(c Content) (generator, error) {
	n, err := newNoise("sparse", c.Seed)
	return sparse{c.Seed, n}, err
}

func (sparse) kind() Kind { return Sparse }

const (
	unwritten = iota
	writtenZeros
	fullNoise
	text
	oneSector
	halfNoise
)

// sort says what block i holds.
func (g sparse) sort(i int64) int {
	const groupBlocks = 16
	h := mix(g.seed, uint64(i))
	data := fullNoise + int(h>>8%4)
	if i == 0 { // whose presence in an export does not depend on it
		if g.seed%2 == 1 {
			return writtenZeros
		}
		return data
	}
	group := mix(^g.seed, uint64(i/groupBlocks)) % 8
	if i < groupBlocks {
		group = 1
	}
	switch {
	case group == 0, group <= 2 && h%4 < 2:
		return data
	case group <= 2 && h%4 == 2:
		return writtenZeros
	}
	return unwritten
}

func (g sparse) zero(i int64) bool      { return g.sort(i) <= writtenZeros }
func (g sparse) allocated(i int64) bool { return g.sort(i) != unwritten }

func (g sparse) block(i int64, buf []byte) []byte {
	switch g.sort(i) {
	case fullNoise:
		g.noise.fill(uint64(i), buf)
	case text:
		g.text(i, buf)
	case oneSector:
		clear(buf)
		at := int(mix(g.seed+1, uint64(i)) % (BlockSize / 512) * 512)
		if at < len(buf) {
			g.noise.fill(uint64(i), buf[at:min(at+512, len(buf))])
		}
	case halfNoise:
		half := min(BlockSize/2, len(buf))
		g.noise.fill(uint64(i), buf[:half])
		clear(buf[half:])
	default:
		return zeroBlock[:len(buf)]
	}
	return buf
}

// text fills buf with numbered lines, which compress well.
func (g sparse) text(i int64, buf []byte) {
	line := fmt.Appendf(nil, "seed %016x block %08d: the quick brown fox jumps over the lazy dog\n", g.seed, i)
	n := copy(buf, line)
	for n < len(buf) {
		n += copy(buf[n:], buf[:n])
	}
}

// mix is a hash of two numbers (the finaliser of SplitMix64).
func mix(a, b uint64) uint64 {
	z := a*0x9e3779b97f4a7c15 + b + 0x632be59bd9b4e019
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
