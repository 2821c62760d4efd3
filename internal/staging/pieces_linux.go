package staging

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// memoryFile is a file that is not written out early.
type memoryFile struct{ *os.File }

// WritePieces implements piecesFile.
func (f memoryFile) WritePieces(pieces [][]byte) (int, error) { return writePieces(f.File, pieces) }

// WritePieces is Write for what lies in pieces.
func (f *earlyFile) WritePieces(pieces [][]byte) (int, error) {
	n, err := writePieces(f.File, pieces)
	return n, f.wrote(n, err)
}

// maxPieces is the most that the system takes at once: IOV_MAX.
const maxPieces = 1024

// writePieces writes all of them where the file stands.
func writePieces(f *os.File, pieces [][]byte) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	left, total := pieces, 0
	var failed error
	err = conn.Write(func(fd uintptr) bool {
		for len(left) > 0 {
			var n int
			n, failed = unix.Writev(int(fd), left[:min(len(left), maxPieces)])
			if errors.Is(failed, unix.EINTR) {
				continue
			}
			if failed == nil && n <= 0 && len(left[0]) > 0 {
				failed = io.ErrShortWrite // without it a device that takes nothing would be asked for ever
			}
			if failed != nil {
				return true
			}
			total += n
			left = behind(left, n)
		}
		return true
	})
	if failed != nil {
		return total, &fs.PathError{Op: "write", Path: f.Name(), Err: failed}
	}
	return total, err
}

// behind is what follows the first n bytes. pieces stays as it is.
func behind(pieces [][]byte, n int) [][]byte {
	for len(pieces) > 0 && n >= len(pieces[0]) {
		n -= len(pieces[0])
		pieces = pieces[1:]
	}
	if n > 0 {
		pieces = slices.Clone(pieces)
		pieces[0] = pieces[0][n:]
	}
	return pieces
}
