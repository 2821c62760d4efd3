package xapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
)

// heldBack is how many of an archive's last bytes are sent only when its reader has given io.EOF. They are more than
// what an importer can do without, which are the two zero blocks at the end.
const heldBack = 4096

// bodyError is a fault of the archive's reader, as against one of the connection.
type bodyError struct{ err error }

// Error gives the reader's error.
func (e *bodyError) Error() string { return e.err.Error() }

// Unwrap gives the reader's error.
func (e *bodyError) Unwrap() error { return e.err }

// maxEmptyReads is how often a reader may give nothing without an error.
const maxEmptyReads = 100

// send copies exactly length bytes. Faults of body are *bodyError, others are the connection's.
func send(w io.Writer, body io.Reader, length int64) error {
	buf := make([]byte, wireBuffer)
	var read int64
	held, empty := 0, 0
	for {
		n, err := body.Read(buf[held:])
		held, read = held+n, read+int64(n)
		switch {
		case read > length:
			return &bodyError{fmt.Errorf("archive is longer than the %d bytes announced", length)}
		case errors.Is(err, io.EOF) && read < length:
			return &bodyError{fmt.Errorf("archive ends after %d of %d bytes: %w", read, length, io.ErrUnexpectedEOF)}
		case errors.Is(err, io.EOF):
			_, err := w.Write(buf[:held])
			return err
		case err != nil:
			return &bodyError{err}
		case n > 0:
			empty = 0
		default:
			if empty++; empty > maxEmptyReads {
				return &bodyError{io.ErrNoProgress}
			}
		}
		if held == len(buf) {
			if _, err := w.Write(buf[:held-heldBack]); err != nil {
				return err
			}
			held = copy(buf, buf[held-heldBack:])
		}
	}
}

// drain reads the answer of an import, which comes before the archive is read and says nothing but that it will be:
// closing the connection before the host does would lose what is on its way. It gives the refusal where the answer is
// one, and then ends the sending.
func drain(w *wire) error {
	if err := w.answer(http.MethodPut); err != nil {
		return nil //nolint:nilerr // a connection without an answer says nothing; the task does
	}
	if w.resp.StatusCode == http.StatusOK {
		_, err := io.Copy(io.Discard, w.resp.Body)
		_ = err // the same
		return nil
	}
	page := statusError(w.resp.StatusCode, readPage(w.resp.Body))
	w.close()
	return page
}
