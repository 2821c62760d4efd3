package staging

import "golang.org/x/sys/windows"

const (
	// full is what the system says of a full disk.
	full = windows.ERROR_DISK_FULL
	// tooLong is what it says of a file that may not grow.
	tooLong = windows.ERROR_FILE_TOO_LARGE
)

// wearing are what a file system says that has become read-only, or lost its network or its disk.
var wearing = []error{windows.ERROR_CRC, windows.ERROR_WRITE_PROTECT, windows.ERROR_NETNAME_DELETED, windows.ERROR_NOT_READY}
