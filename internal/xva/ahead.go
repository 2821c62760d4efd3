package xva

import (
	"errors"
	"io"
	"sync"
)

// aheadSize is how far a writer may be ahead of its reader, in bytes.
const aheadSize = 4 << 20

// ahead is a pipe that holds up to a fixed number of bytes, so that who writes
// and who reads run beside each other, where io.Pipe has them take turns. One
// goroutine writes, another one reads.
type ahead struct {
	mu    sync.Mutex
	moved sync.Cond
	ring  []byte
	at, n int   // the first byte that was not read, and how many there are
	end   error // of the writer: what the reader gets once all is read
	gone  error // of the reader: what the writer gets
}

func newAhead(size int) *ahead {
	a := &ahead{ring: make([]byte, size)}
	a.moved.L = &a.mu
	return a
}

// Write copies p, waiting for room. After closeRead it fails with that error.
func (a *ahead) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	done := 0
	for done < len(p) {
		for a.n == len(a.ring) && a.gone == nil {
			a.moved.Wait()
		}
		if a.gone != nil {
			return done, a.gone
		}
		to := (a.at + a.n) % len(a.ring)
		k := copy(a.ring[to:min(to+len(a.ring)-a.n, len(a.ring))], p[done:])
		a.n += k
		done += k
		a.moved.Signal()
	}
	return done, nil
}

// Read gives what there is, waiting for the first byte; then closeWrite's error.
func (a *ahead) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.n == 0 && a.end == nil {
		a.moved.Wait()
	}
	if a.n == 0 || errors.Is(a.end, errAborted) {
		return 0, a.end
	}
	k := copy(p, a.ring[a.at:min(a.at+a.n, len(a.ring))])
	a.at = (a.at + k) % len(a.ring)
	a.n -= k
	a.moved.Signal()
	return k, nil
}

// closeWrite ends what is written; nil is io.EOF. After errAborted what was not
// read yet is not read any more.
func (a *ahead) closeWrite(err error) {
	if err == nil {
		err = io.EOF
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end = err
	a.moved.Signal()
}

// closeRead says that nobody reads any more, and why; nil is io.ErrClosedPipe.
func (a *ahead) closeRead(err error) {
	if err == nil {
		err = io.ErrClosedPipe
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = err
	a.moved.Signal()
}
