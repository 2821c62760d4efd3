package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// openFlags keep Open from following a link that was put in a file's place, and from waiting at a pipe.
const openFlags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK

// RenameNew uses renameat2 with RENAME_NOREPLACE; where the file system has no such thing, a second link and an unlink,
// which is as safe; where it has no links either (FAT, some network shares), a look and a rename.
func (osFS) RenameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err == nil {
		return nil
	}
	if !unsupported(err) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	if err = linkNew(from, to); err == nil || !unsupported(err) {
		return err
	}
	return renameChecked(from, to, os.Rename)
}

func linkNew(from, to string) error {
	if err := os.Link(from, to); err != nil {
		return err
	}
	if err := os.Remove(from); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

func unsupported(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) Replace(from, to string) error { return os.Rename(from, to) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // a file system whose folders cannot be synced (some network shares)
	}
	return errors.Join(err, d.Close())
}

func (osFS) Room(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	for {
		if err = unix.Statfs(dir, &st); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Frsize <= 0 {
		return 0, 0, fmt.Errorf("statfs %s: block size %d", dir, st.Frsize)
	}
	return blocks(st.Bavail, st.Frsize), blocks(st.Blocks, st.Frsize), nil
}

// blocks multiplies without overflow; some network file systems report absurd numbers.
func blocks(n uint64, size int64) int64 {
	if n > math.MaxInt64/uint64(size) {
		return math.MaxInt64
	}
	return int64(n) * size
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func isTooLong(err error) bool { return errors.Is(err, syscall.EFBIG) }

// uncache has the system forget what it keeps of the file in memory, n bytes from off on, all where n is 0. What is read next
// comes from the disk, unless the file system lies in memory. It is advice: one that does not take it reads from memory.
func uncache(f *os.File, off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
}
