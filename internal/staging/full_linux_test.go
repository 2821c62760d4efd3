package staging

import "syscall"

const (
	// full is what the system says of a full disk.
	full = syscall.ENOSPC
	// tooLong is what it says of a file that may not grow.
	tooLong = syscall.EFBIG
)

// wearing are what a file system says that has become read-only, lost its quota, its network or its disk.
var wearing = []error{syscall.EIO, syscall.EROFS, syscall.EDQUOT, syscall.ESTALE, syscall.ENODEV, syscall.ENOENT}
