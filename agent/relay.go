package agent

import "sync"

// relay hands received frames, in the pieces in which they came, to the one who reads them as a stream: io.Pipe, but for the
// copy that would make one piece of a frame. It is a transfer.PiecesWriter. One goroutine writes, one reads; CloseWithError may
// be called from anywhere.
type relay struct {
	mu      sync.Mutex
	changed *sync.Cond
	frame   [][]byte // what is left of the frame that is being read
	list    [][]byte // memory of frame
	err     error
}

func newRelay() *relay {
	r := &relay{}
	r.changed = sync.NewCond(&r.mu)
	return r
}

// Write is WritePieces for one piece.
func (r *relay) Write(p []byte) (int, error) { return r.WritePieces([][]byte{p}) }

// WritePieces blocks until all of the frame was read, or CloseWithError was called: then it returns that error and how much
// was read. It keeps nothing of the frame.
func (r *relay) WritePieces(pieces [][]byte) (int, error) {
	size := total(pieces)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	r.list = append(r.list[:0], pieces...)
	r.frame = r.list
	r.changed.Broadcast()
	for total(r.frame) > 0 && r.err == nil {
		r.changed.Wait()
	}
	left := total(r.frame)
	clear(r.list)
	r.frame = nil
	if left > 0 {
		return size - left, r.err
	}
	return size, nil
}

// Read blocks until there is something, and returns as much of it as p takes. After CloseWithError it returns that error.
func (r *relay) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for total(r.frame) == 0 && r.err == nil {
		r.changed.Wait()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := 0
	for n < len(p) && len(r.frame) > 0 {
		took := copy(p[n:], r.frame[0])
		n += took
		if r.frame[0] = r.frame[0][took:]; len(r.frame[0]) == 0 {
			r.frame = r.frame[1:]
		}
	}
	if total(r.frame) == 0 {
		r.changed.Broadcast()
	}
	return n, nil
}

// CloseWithError ends both sides with err; only the first call counts.
func (r *relay) CloseWithError(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
	r.changed.Broadcast()
}

func total(pieces [][]byte) int {
	n := 0
	for _, p := range pieces {
		n += len(p)
	}
	return n
}
