package xva

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// TestAhead passes any bytes in any portions, both ways round the ring.
func TestAhead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "data")
		write := rapid.SliceOfN(rapid.IntRange(1, 40), 1, 20).Draw(t, "writes")
		read := rapid.IntRange(1, 40).Draw(t, "reads")
		a := newAhead(rapid.IntRange(1, 32).Draw(t, "size"))
		go func() {
			for i, rest := 0, data; len(rest) > 0; i++ {
				n := min(write[i%len(write)], len(rest))
				if m, err := a.Write(rest[:n]); m != n || err != nil {
					panic(err)
				}
				rest = rest[n:]
			}
			a.closeWrite(nil)
		}()
		var got []byte
		buf := make([]byte, read)
		for {
			n, err := a.Read(buf)
			got = append(got, buf[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || n == 0 {
				t.Fatalf("read %d, %v", n, err)
			}
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("got %x, want %x", got, data)
		}
	})
}

// TestAheadIsAhead: a writer goes on while nobody reads, up to the bound, and
// both ends learn of the other's.
func TestAheadIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAhead(10)
		wrote := make(chan error)
		if n, err := a.Write(make([]byte, 10)); n != 10 || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
		go func() {
			_, err := a.Write([]byte{1})
			wrote <- err
		}()
		synctest.Wait()
		select {
		case err := <-wrote:
			t.Fatalf("beyond the bound: %v", err)
		default:
		}
		a.closeRead(ErrChecksum)
		if err := <-wrote; !errors.Is(err, ErrChecksum) {
			t.Errorf("the writer got %v", err)
		}
		a.closeWrite(errAborted)
		if n, err := a.Read(make([]byte, 10)); n != 0 || !errors.Is(err, errAborted) {
			t.Errorf("the reader got %d, %v", n, err)
		}
	})
}
