package disk

import "fmt"

const pieceSize = 4096

// Scribble writes n pieces of 4 KiB, as a guest would: contents and places come
// from the seed, so that the same call on an equal disk gives an equal disk. On a
// disk with an ext4 file system only the contents of a file change.
func (im *Image) Scribble(seed uint64, n int) error {
	g, err := newNoise("scribble", seed)
	if err != nil {
		return err
	}
	var piece [pieceSize]byte
	for k := range uint64(max(n, 0)) {
		off, room, err := im.scribblePlace(mix(seed, k))
		if err != nil || room == 0 {
			return err
		}
		g.fill(k, piece[:])
		if _, err := im.WriteAt(piece[:min(room, pieceSize)], off); err != nil {
			return fmt.Errorf("scribbling on a disk: %w", err)
		}
	}
	return nil
}

// scribblePlace gives an offset and the bytes from there to the end of the disk.
func (im *Image) scribblePlace(h uint64) (off, room int64, err error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.fs && im.size >= MinExt4Size {
		fs, err := im.store.fs()
		if err != nil {
			return 0, 0, err
		}
		off = fs.places[h%uint64(len(fs.places))]
	} else if pieces := uint64(im.size) / pieceSize; pieces > 0 {
		off = int64(h%pieces) * pieceSize
	}
	return off, im.size - off, nil
}
