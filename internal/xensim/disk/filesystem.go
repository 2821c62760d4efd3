package disk

import (
	"context"
	"fmt"

	"github.com/dpxen/dpxen/internal/xensim/disk/ext4"
)

// fileSystem is the ext4 file system that all Ext4 disks of a store begin with.
type fileSystem struct {
	blocks [MinExt4Size / BlockSize][]byte // nil: zeros
	places []int64                         // offsets of the pieces that differ between seeds
}

func newFileSystem(ctx context.Context) (*fileSystem, error) {
	img, err := ext4.Image(ctx)
	if err != nil {
		return nil, err
	}
	if len(img) != MinExt4Size {
		return nil, fmt.Errorf("file system of %d bytes: %w", len(img), ErrSize)
	}
	fs := &fileSystem{}
	if fs.places, err = ext4.SeedPlaces(img); err != nil {
		return nil, err
	}
	for i := range fs.blocks {
		if b := img[i*BlockSize:][:BlockSize]; !allZero(b) {
			fs.blocks[i] = append([]byte(nil), b...) // so that the zeros can go
		}
	}
	return fs, nil
}

type ext4Generator struct {
	fs     *fileSystem
	noise  noise
	places [MinExt4Size / BlockSize][]int // offsets within each block
}

func newExt4(c Content, fs *fileSystem) (generator, error) {
	n, err := newNoise("ext4", c.Seed)
	if err != nil {
		return nil, err
	}
	g := &ext4Generator{fs: fs, noise: n}
	for _, p := range fs.places {
		g.places[p/BlockSize] = append(g.places[p/BlockSize], int(p%BlockSize))
	}
	return g, nil
}

func (*ext4Generator) kind() Kind { return Ext4 }

func (g *ext4Generator) zero(i int64) bool {
	return i >= int64(len(g.fs.blocks)) || g.fs.blocks[i] == nil
}

func (g *ext4Generator) allocated(i int64) bool { return !g.zero(i) }

func (g *ext4Generator) block(i int64, buf []byte) []byte {
	if g.zero(i) {
		return zeroBlock[:len(buf)]
	}
	if len(g.places[i]) == 0 {
		return g.fs.blocks[i][:len(buf)]
	}
	copy(buf, g.fs.blocks[i])
	for _, at := range g.places[i] {
		if at < len(buf) {
			g.noise.fill(uint64(i*BlockSize+int64(at)), buf[at:min(at+pieceSize, len(buf))])
		}
	}
	return buf
}
