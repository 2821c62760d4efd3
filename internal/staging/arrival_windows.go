package staging

import (
	"errors"
	"io/fs"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// fileBasicInfo is FILE_BASIC_INFO of winbase.h; times are in units of 100 ns since 1601.
type fileBasicInfo struct {
	CreationTime, LastAccessTime, LastWriteTime, ChangeTime int64
	FileAttributes                                          uint32
	_                                                       uint32
}

// changed returns the time of the last change to the file or its attributes, and its number in the volume.
func changed(path string, _ fs.FileInfo) (at time.Time, file uint64, err error) {
	name, err := windows.UTF16PtrFromString(longPath(path))
	if err != nil {
		return time.Time{}, 0, err
	}
	h, err := windows.CreateFile(name, windows.FILE_READ_ATTRIBUTES, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_FLAG_OPEN_REPARSE_POINT|windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
	if err != nil {
		return time.Time{}, 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { err = errors.Join(err, windows.CloseHandle(h)) }()
	var basic fileBasicInfo
	if err := windows.GetFileInformationByHandleEx(h, windows.FileBasicInfo, (*byte)(unsafe.Pointer(&basic)), uint32(unsafe.Sizeof(basic))); err != nil {
		return time.Time{}, 0, &fs.PathError{Op: "GetFileInformationByHandleEx", Path: path, Err: err}
	}
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(h, &info); err != nil {
		return time.Time{}, 0, &fs.PathError{Op: "GetFileInformationByHandle", Path: path, Err: err}
	}
	ft := windows.Filetime{LowDateTime: uint32(basic.ChangeTime), HighDateTime: uint32(basic.ChangeTime >> 32)}
	return time.Unix(0, ft.Nanoseconds()), uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow), nil
}

// device names the volume that holds a path, by its mount point.
func device(path string) (string, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return "", err
	}
	volume := make([]uint16, windows.MAX_PATH+1)
	if err := windows.GetVolumePathName(name, &volume[0], uint32(len(volume))); err != nil {
		return "", &fs.PathError{Op: "GetVolumePathName", Path: path, Err: err}
	}
	return strings.ToLower(windows.UTF16ToString(volume)), nil
}
