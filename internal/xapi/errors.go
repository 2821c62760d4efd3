package xapi

import (
	"errors"
	"strings"
)

// Sentinels for what callers decide on; use errors.Is. The first group is what XAPI answers (*Error), the second is
// about reaching it.
var (
	ErrNotFound     = errors.New("no such object in XAPI")              // HANDLE_INVALID, UUID_INVALID
	ErrBusy         = errors.New("XAPI or the object is busy")          // OTHER_OPERATION_IN_PROGRESS, TOO_BUSY …
	ErrHostDown     = errors.New("a host is down or boots")             // HOST_OFFLINE, HOST_STILL_BOOTING …
	ErrSession      = errors.New("XAPI forgets its sessions")           // SESSION_INVALID, again and again
	ErrNoSpace      = errors.New("no space on the storage repository")  // SR_FULL, SR_BACKEND_FAILURE_44
	ErrAuth         = errors.New("XAPI refuses the user")               // SESSION_AUTHENTICATION_FAILED, RBAC_PERMISSION_DENIED …
	ErrPowerState   = errors.New("wrong power state")                   // VM_BAD_POWER_STATE
	ErrDuplicateKey = errors.New("key exists in the map")               // MAP_DUPLICATE_KEY
	ErrBlocked      = errors.New("operation is blocked on the VM")      // OPERATION_BLOCKED
	ErrCancelled    = errors.New("task was cancelled")                  // TASK_CANCELLED
	ErrLacksFeature = errors.New("guest lacks the feature")             // VM_LACKS_FEATURE
	ErrInUse        = errors.New("disk is in use")                      // VDI_IN_USE
	ErrUnsupported  = errors.New("XAPI does not know the call")         // MESSAGE_METHOD_UNKNOWN, MESSAGE_REMOVED
	ErrTaskGone     = errors.New("task is gone, its outcome unknown")   // HANDLE_INVALID of a task
	ErrTaskPending  = errors.New("task did not end in time")            // it may still go on in XAPI
	ErrStalled      = errors.New("no bytes and no progress for a long") // bounded by Timeouts.StreamIdle

	ErrUnreachable = errors.New("XAPI cannot be reached")              // connection refused, cut, timed out, TLS
	ErrCertificate = errors.New("certificate of the host not trusted") // always together with ErrUnreachable
	ErrProtocol    = errors.New("reply is not XAPI's")                 // malformed, too large, redirected out of the pool
	ErrConfig      = errors.New("invalid XAPI settings")               // of New, and of the password file at login
)

// sentinels says what the codes of XAPI mean to a caller; the spellings are those of xen-api's api_errors.ml.
var sentinels = map[string]error{
	"HANDLE_INVALID":                ErrNotFound,
	"UUID_INVALID":                  ErrNotFound,
	"OTHER_OPERATION_IN_PROGRESS":   ErrBusy,
	"TOO_MANY_PENDING_TASKS":        ErrBusy,
	"HOST_STILL_BOOTING":            ErrHostDown,
	"HOST_OFFLINE":                  ErrHostDown,
	"HOST_NOT_LIVE":                 ErrHostDown,
	"CANNOT_CONTACT_HOST":           ErrHostDown,
	"TOO_BUSY":                      ErrBusy,
	"SR_FULL":                       ErrNoSpace,
	"SR_BACKEND_FAILURE_44":         ErrNoSpace,
	"SESSION_AUTHENTICATION_FAILED": ErrAuth,
	"SESSION_AUTHORIZATION_FAILED":  ErrAuth,
	"SESSION_INVALID":               ErrSession,
	"RBAC_PERMISSION_DENIED":        ErrAuth,
	"PERMISSION_DENIED":             ErrAuth,
	"VM_BAD_POWER_STATE":            ErrPowerState,
	"MAP_DUPLICATE_KEY":             ErrDuplicateKey,
	"OPERATION_BLOCKED":             ErrBlocked,
	"TASK_CANCELLED":                ErrCancelled,
	"VM_LACKS_FEATURE":              ErrLacksFeature,
	"VM_LACKS_FEATURE_SHUTDOWN":     ErrLacksFeature,
	"VM_MISSING_PV_DRIVERS":         ErrLacksFeature,
	"VDI_IN_USE":                    ErrInUse,
	"MESSAGE_METHOD_UNKNOWN":        ErrUnsupported,
	"MESSAGE_REMOVED":               ErrUnsupported,
}

// Error is a failure that XAPI answered: a code of api_errors.ml and its parameters. errors.Is finds the sentinel of
// its code.
type Error struct {
	Code   string
	Params []string
}

// Error gives the code and its parameters on one line.
func (e *Error) Error() string {
	if len(e.Params) == 0 {
		return e.Code
	}
	return e.Code + " [" + strings.Join(e.Params, "; ") + "]"
}

// Is reports whether target is the sentinel of the code.
func (e *Error) Is(target error) bool {
	s, ok := sentinels[e.Code]
	return ok && s == target
}

// param gives the i-th parameter, "" when there are fewer.
func (e *Error) param(i int) string {
	if i < len(e.Params) {
		return e.Params[i]
	}
	return ""
}

// hasCode reports whether XAPI answered that code.
func hasCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
