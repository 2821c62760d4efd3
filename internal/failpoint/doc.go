// Package failpoint lets tests make a process fail at named places. In a usual build Hit and Pass are empty and the
// compiler removes them: nothing can switch a failpoint on. Built with the tag failpoints, the environment variable
// DPXEN_FAILPOINTS arms them: entries NAME=ACTION separated by semicolons, where ACTION is crash (the process ends at once,
// with exit code 86), error, panic, or delay:DURATION, followed by @N to wait for the Nth time the place is reached (1).
// An entry works once. docs/failpoints.md lists the names.
package failpoint

import "errors"

// ErrInjected is what Hit returns for the action error.
var ErrInjected = errors.New("failpoint")
