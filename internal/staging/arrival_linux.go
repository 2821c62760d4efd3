package staging

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// changed returns the time of the last change to the file or its attributes, which nobody can set, and its inode.
func changed(path string, info fs.FileInfo) (at time.Time, file uint64, err error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}, 0, fmt.Errorf("%s: no inode is known", path)
	}
	return time.Unix(int64(st.Ctim.Sec), int64(st.Ctim.Nsec)), st.Ino, nil //nolint:unconvert // 32 bits on some systems
}

// device names the file system that holds a path.
func device(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("%s: no device is known", path)
	}
	return fmt.Sprint(st.Dev), nil
}
