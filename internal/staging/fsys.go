package staging

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// fileSystem is what writing needs of the operating system, so that tests can make any step of it fail. Reading uses
// package os directly.
type fileSystem interface {
	// Create makes a file that is not there (fs.ErrExist otherwise), for writing, and for reading it again.
	Create(path string, perm fs.FileMode) (file, error)
	// Mkdir makes a folder that is not there (fs.ErrExist otherwise).
	Mkdir(path string, perm fs.FileMode) error
	// RenameNew renames a file durably where the folder is synced after; never over another (fs.ErrExist).
	RenameNew(from, to string) error
	// Replace renames a file, over another where there is one.
	Replace(from, to string) error
	// Remove removes a file.
	Remove(path string) error
	// SyncDir makes the names in a folder durable.
	SyncDir(dir string) error
	// Room returns the bytes free to us and in total on the folder's file system.
	Room(dir string) (free, total int64, err error)
}

// file is an open file that is being written.
type file interface {
	io.Writer
	io.ReaderAt
	Sync() error
	Stat() (fs.FileInfo, error)
	Close() error
}

// piecesFile is a file that takes what lies in pieces by one call of the system. WritePieces returns how many bytes of them
// were written, all unless there is an error.
type piecesFile interface {
	WritePieces(pieces [][]byte) (int, error)
}

// osFS is the real one; the platform's parts are in fsys_linux.go and fsys_windows.go.
type osFS struct{}

func (osFS) Create(path string, perm fs.FileMode) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err // not f: a nil *os.File in the interface would not be nil
	}
	return early(f), nil
}

func (osFS) Mkdir(path string, perm fs.FileMode) error { return os.Mkdir(path, perm) }

// renameChecked is the last resort where a file system offers nothing that is atomic. The staging folder's lock keeps
// other sessions away meanwhile.
func renameChecked(from, to string, rename func(from, to string) error) error {
	if _, err := os.Lstat(to); err == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return rename(from, to)
}

// MakeFolders makes a folder, for its owner only, and those above it that are missing, so that they stay: what is written
// durably into a folder is lost where the folder's own name is.
func MakeFolders(path string) error { return makeFolders(osFS{}, path) }

func makeFolders(sys fileSystem, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	switch above := filepath.Dir(path); {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("not a folder")}
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist) || above == path:
		return err
	default:
		if err := makeFolders(sys, above); err != nil {
			return err
		}
		return makeFolder(sys, path)
	}
}

// makeFolder makes one folder durably; one that is there is as good.
func makeFolder(sys fileSystem, path string) error {
	err := sys.Mkdir(path, dirMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return noRoom(err)
	}
	return sys.SyncDir(filepath.Dir(path))
}

// noRoom puts ErrNoRoom to an error that means a full disk or quota, or a file that may not grow any longer.
func noRoom(err error) error {
	switch {
	case err == nil || errors.Is(err, ErrNoRoom):
		return err
	case isFull(err):
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	case isTooLong(err):
		return fmt.Errorf("%w for a file so long (the file system's limit, or this process's: ulimit -f): %w", ErrNoRoom, err)
	}
	return err
}

// WriteFileDurable replaces the file path with data as a whole: a temporary file beside it (".NAME.RANDOM.tmp"), fsync,
// rename over, fsync of the folder. After an error the former content stands, except where only the last step failed:
// then it is the former or the new. A full disk is ErrNoRoom.
func WriteFileDurable(path string, data []byte, perm fs.FileMode) error {
	return writeDurable(osFS{}, path, data, perm)
}

// RemoveTemporaries removes what WriteFileDurable left beside path where its process was killed. Nobody may be writing it.
func RemoveTemporaries(path string) error { return removeTemporaries(osFS{}, path) }

func removeTemporaries(sys fileSystem, path string) error {
	dir, base := filepath.Split(path)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+base+".") && strings.HasSuffix(e.Name(), temporary) {
			errs = append(errs, removeAny(sys, filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// temporary ends the names of files that WriteFileDurable writes.
const temporary = ".tmp"

func writeDurable(sys fileSystem, path string, data []byte, perm fs.FileMode) error {
	dir, base := filepath.Split(path)
	temp := filepath.Join(dir, "."+base+"."+rand.Text()+temporary)
	if err := failpoint.Hit("staging/durable/before-write"); err != nil {
		return err
	}
	err := writeNew(sys, temp, data, perm)
	if err == nil {
		failpoint.Pass("staging/durable/before-rename")
		err = sys.Replace(temp, path)
		if err != nil {
			err = errors.Join(err, sys.Remove(temp))
		}
	}
	if err == nil {
		failpoint.Pass("staging/durable/before-sync")
		err = sys.SyncDir(filepath.Clean(dir))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, noRoom(err))
	}
	return nil
}

// writeNew writes and syncs a file that is not there; on an error it is removed again.
func writeNew(sys fileSystem, path string, data []byte, perm fs.FileMode) error {
	f, err := sys.Create(path, perm)
	if err != nil {
		return err
	}
	n, err := f.Write(data)
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		_, err = checkLength(f, int64(len(data)))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, sys.Remove(path))
	}
	return nil
}

func checkLength(f file, want int64) (fs.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != want {
		return nil, fmt.Errorf("%w: %d bytes on disk, %d received", ErrMismatch, info.Size(), want)
	}
	return info, nil
}
