package staging

import "fmt"

// Reservation is room set aside for one file that is being written.
type Reservation struct {
	d       *Dir
	size    int64
	written int64 // guarded by d.mu
}

// left is what is reserved and not yet written, in bytes. The caller holds d.mu.
func (r *Reservation) left() int64 { return max(0, r.size-r.written) }

// Room returns the bytes that may still be written and the size of the folder's file system. Room that is reserved counts
// as free here.
func (d *Dir) Room() (free, total int64, err error) {
	free, total, err = d.sys.Room(d.path)
	if err != nil {
		return 0, 0, fmt.Errorf("room in %s: %w", d.path, err)
	}
	return free, total, nil
}

// Reserve sets n bytes aside until Release, or is ErrNoRoom where less is free beyond what other reservations have not yet
// written. Give it to Create, so that what is written is counted off. It reserves against this process's transfers only.
func (d *Dir) Reserve(n int64) (*Reservation, error) {
	if n < 0 {
		return nil, fmt.Errorf("reserve room: negative size %d", n)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	free, _, err := d.Room()
	if err != nil {
		return nil, err
	}
	var taken int64
	for r := range d.reserved {
		taken += r.left()
	}
	if free-taken < n {
		return nil, fmt.Errorf("%w in %s: need %d bytes, %d are free and %d of them reserved", ErrNoRoom, d.path, n, free, taken)
	}
	r := &Reservation{d: d, size: n}
	d.reserved[r] = struct{}{}
	return r, nil
}

// Release gives back what was not written. It may be repeated.
func (r *Reservation) Release() {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	delete(r.d.reserved, r)
}

// admit tells whether n more bytes may be written: what is reserved may, and beyond it what no other reservation holds. A
// file that turns out larger than was estimated takes no room from others.
func (r *Reservation) admit(n int64) error {
	if r == nil {
		return nil
	}
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if n <= r.size-r.written {
		return nil
	}
	free, _, err := r.d.Room()
	if err != nil {
		return err
	}
	var others int64
	for o := range r.d.reserved {
		if o != r {
			others += o.left()
		}
	}
	if free-others < n {
		return fmt.Errorf("%w in %s: it is larger than the %d bytes that were estimated, %d are free and others have reserved %d of them",
			ErrNoRoom, r.d.path, r.size, free, others)
	}
	return nil
}

// wrote counts n bytes off, or back on (n < 0) when their file was removed. It comes after a write and before a removal, so
// that the sum errs on the safe side.
func (r *Reservation) wrote(n int64) {
	if r == nil {
		return
	}
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	r.written += n
}
