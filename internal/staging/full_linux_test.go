package staging

import "syscall"

// full is what the system says of a full disk.
const full = syscall.ENOSPC
