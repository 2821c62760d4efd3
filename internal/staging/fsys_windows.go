package staging

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/windows"
)

const openFlags = os.O_RDONLY

// RenameNew moves without MOVEFILE_REPLACE_EXISTING, and returns when the move is on disk.
func (osFS) RenameNew(from, to string) error { return move(from, to, windows.MOVEFILE_WRITE_THROUGH) }

// Replace moves over what is there, and returns when the move is on disk.
func (osFS) Replace(from, to string) error {
	return move(from, to, windows.MOVEFILE_WRITE_THROUGH|windows.MOVEFILE_REPLACE_EXISTING)
}

func move(from, to string, flags uint32) error {
	f, err := windows.UTF16PtrFromString(longPath(from))
	if err != nil {
		return err
	}
	t, err := windows.UTF16PtrFromString(longPath(to))
	if err != nil {
		return err
	}
	if err := whileOpen(func() error { return windows.MoveFileEx(f, t, flags) }); err != nil {
		return &os.LinkError{Op: "move", Old: from, New: to, Err: err}
	}
	return nil
}

// maxPath is the length from which on the system takes a path only in its long form, in characters (MAX_PATH less room for
// a name of 8.3).
const maxPath = 248

// longPath is a path as calls take it whatever its length; package os does the same for its own.
func longPath(path string) string {
	if len(path) < maxPath || !filepath.IsAbs(path) || strings.HasPrefix(path, `\\?\`) || strings.HasPrefix(path, `\\.\`) {
		return path
	}
	path = filepath.Clean(path)
	if share, ok := strings.CutPrefix(path, `\\`); ok {
		return `\\?\UNC\` + share
	}
	return `\\?\` + path
}

const (
	openPatience = 3 * time.Second // scanners and readers keep a file open for moments
	openRetry    = 20 * time.Millisecond
)

// whileOpen tries again while somebody has the file open: a file that is open can neither be replaced nor removed here.
func whileOpen(try func() error) error {
	for end := time.Now().Add(openPatience); ; time.Sleep(openRetry) {
		err := try()
		open := errors.Is(err, windows.ERROR_SHARING_VIOLATION) || errors.Is(err, windows.ERROR_ACCESS_DENIED) ||
			errors.Is(err, windows.ERROR_LOCK_VIOLATION)
		if !open || time.Now().After(end) {
			return err
		}
	}
}

// Remove removes a file, also one that somebody has just opened.
// early is for systems where the page cache has to be looked after; this one does by itself.
func early(f *os.File) file { return f }

func (osFS) Remove(path string) error { return whileOpen(func() error { return os.Remove(path) }) }

// SyncDir has nothing to do: moves are written through, and a folder cannot be flushed.
func (osFS) SyncDir(string) error { return nil }

func (osFS) Room(dir string) (free, total int64, err error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, 0, err
	}
	var f, t uint64
	if err := windows.GetDiskFreeSpaceEx(p, &f, &t, nil); err != nil {
		return 0, 0, &fs.PathError{Op: "GetDiskFreeSpaceEx", Path: dir, Err: err}
	}
	return int64(min(f, math.MaxInt64)), int64(min(t, math.MaxInt64)), nil
}

func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL) ||
		errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED)
}

func isTooLong(err error) bool { return errors.Is(err, windows.ERROR_FILE_TOO_LARGE) }

// uncache does nothing: Windows has no such advice.
func uncache(*os.File, int64, int64) {}
