package disk

// ChangeBlock is the size in bytes of what one bit of a change map stands for, as
// in XAPI's changed block tracking.
const ChangeBlock = 64 << 10

// changeBytes gives the length of the change map of a disk of size bytes.
func changeBytes(size int64) int64 {
	return ((size+ChangeBlock-1)/ChangeBlock + 7) / 8
}

// TrackChanges makes the image note which blocks of ChangeBlock bytes are written
// from now on, or stop that. What was noted before is forgotten.
func (im *Image) TrackChanges(on bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.changes = nil
	if on {
		im.changes = make([]byte, changeBytes(im.size))
	}
}

// Changes gives a copy of the change map: one bit a block, the first block in the
// highest bit of the first byte. It is nil where changes are not tracked. What is
// added to a disk by Resize counts as changed.
func (im *Image) Changes() []byte {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.changes == nil {
		return nil
	}
	return append([]byte{}, im.changes...)
}

// markChanged notes that n bytes at off were written.
func (im *Image) markChanged(off, n int64) {
	if im.changes == nil || n <= 0 {
		return
	}
	for b := off / ChangeBlock; b <= (off+n-1)/ChangeBlock; b++ {
		if b/8 < int64(len(im.changes)) {
			im.changes[b/8] |= 0x80 >> (b % 8)
		}
	}
}

// growChanges makes the change map fit a disk that is longer or shorter now.
func (im *Image) growChanges(old int64) {
	if im.changes == nil {
		return
	}
	fresh := make([]byte, changeBytes(im.size))
	copy(fresh, im.changes)
	im.changes = fresh
	im.markChanged(old, im.size-old)
}
