package staging

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"
)

// noPieces are files that take only what lies in one piece, as on systems without a call for more.
type noPieces struct{ osFS }

func (noPieces) Create(path string, perm os.FileMode) (file, error) {
	f, err := osFS{}.Create(path, perm)
	return struct{ file }{f}, err
}

// TestWritePieces: however the bytes are cut, and whatever was written before, the file has them in their order, and they can
// be read again at any time.
func TestWritePieces(t *testing.T) {
	data := random(5*writeSize + 12345)
	for _, sys := range []fileSystem{osFS{}, noPieces{}} {
		for seed := range uint64(8) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			m := onlineManifest()
			d := open(t, sys)
			p, err := d.Create(name(t, m), nil)
			if err != nil {
				t.Fatal(err)
			}
			for rest := data; len(rest) > 0; {
				size := min(len(rest), []int{1, 4096, writeSize - 1, writeSize, writeSize, writeSize, 2 * writeSize}[rnd.IntN(7)])
				pieces := cut(rest[:size], []int{700, 1 << 14, writeSize}[rnd.IntN(3)])
				if n, err := p.WritePieces(pieces); n != size || err != nil {
					t.Fatalf("seed %d: wrote %d of %d: %v", seed, n, size, err)
				}
				rest = rest[size:]
				seen := int64(len(data) - len(rest))
				off, got := rnd.Int64N(seen+1), make([]byte, rnd.IntN(2*writeSize))
				n, err := p.ReadAt(got, off)
				want := data[off:min(seen, off+int64(len(got)))]
				if !bytes.Equal(got[:n], want) || (n < len(got)) != errors.Is(err, io.EOF) {
					t.Fatalf("seed %d: %d bytes at %d of %d: got %d, %v", seed, len(got), off, seen, n, err)
				}
			}
			path, err := p.Commit(t.Context(), expected(data), m)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("seed %d: the file has other bytes: %v", seed, err)
			}
		}
	}
}

func cut(b []byte, size int) [][]byte {
	pieces := [][]byte{nil} // an empty one does no harm
	for len(b) > 0 {
		n := min(size, len(b))
		pieces, b = append(pieces, b[:n:n]), b[n:]
	}
	return pieces
}
