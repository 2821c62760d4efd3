package transfer

import (
	"fmt"
	"io"
	"testing"
)

// A connection that breaks may say EOF too, within another error: that is no end of what is read.
func TestReadFromTakesOnlyEOFForTheEnd(t *testing.T) {
	broken := fmt.Errorf("connection lost: %w", io.EOF)
	s := NewSender(0)
	if n, err := s.ReadFrom(failingReader{broken}); err == nil || n != 0 {
		t.Errorf("got %d bytes, %v; want the error", n, err)
	}
	if n, err := NewSender(0).ReadFrom(failingReader{io.EOF}); err != nil || n != 0 {
		t.Errorf("an empty stream: got %d bytes, %v", n, err)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }
