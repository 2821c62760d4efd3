package staging

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Of a long file the system is told to write out what was written, earlyStep bytes at a time, and no more than about earlyLag
// bytes of it are still on their way to the disk. What has got there is dropped from the page cache: nobody reads it soon, and
// without this a night's backups push out all that others need. And the sync at the end, for which other files on the disk
// have to wait, finds little left to do.
const (
	earlyStep = 8 << 20
	earlyLag  = 64 << 20
)

// earlyFile is a file that is written from its beginning to its end.
type earlyFile struct {
	*os.File
	calls     earlyCalls
	off       bool  // the file system has no such thing
	length    int64 // written
	begun     int64 // of it: the system was told to write it out
	onDisk    int64 // of it: was written out and dropped
	step, lag int64
}

// earlyCalls are the system calls that it uses; tests watch them.
type earlyCalls struct {
	syncRange func(fd int, off, n int64, flags int) error
	advise    func(fd int, off, n int64, advice int) error
}

// early returns f, written out early unless it lies in memory.
func early(f *os.File) file {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		return memoryFile{f}
	}
	return &earlyFile{File: f, calls: earlyCalls{unix.SyncFileRange, unix.Fadvise}, step: earlyStep, lag: earlyLag}
}

// Write writes b, and sees to it that what lies before gets to the disk. An error of that is one of the write: the system tells
// it once only, and a later sync would know nothing of it.
func (f *earlyFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, f.wrote(n, err)
}

// wrote counts n bytes more, and returns the error of them.
func (f *earlyFile) wrote(n int, err error) error {
	f.length += int64(n)
	if err == nil && !f.off && f.length-f.begun >= f.step {
		err = f.push()
	}
	return err
}

// push begins to write out what is new, and waits for what is far behind.
func (f *earlyFile) push() error {
	fd := int(f.Fd())
	err := f.calls.syncRange(fd, f.begun, f.length-f.begun, unix.SYNC_FILE_RANGE_WRITE)
	if err != nil {
		return f.failed(err)
	}
	f.begun = f.length
	behind := f.begun - f.lag - f.onDisk
	if behind < f.step {
		return nil
	}
	err = f.calls.syncRange(fd, f.onDisk, behind,
		unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	if err != nil {
		return f.failed(err)
	}
	if err := f.calls.advise(fd, f.onDisk, behind, unix.FADV_DONTNEED); err != nil {
		return f.failed(err)
	}
	f.onDisk += behind
	return nil
}

// failed turns early writing off where there is no such thing; the sync at the end does all then.
func (f *earlyFile) failed(err error) error {
	for _, none := range []error{unix.ENOSYS, unix.EINVAL, unix.ESPIPE, unix.EOPNOTSUPP, unix.EPERM} {
		if errors.Is(err, none) {
			f.off = true
			return nil
		}
	}
	return &fs.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
}
