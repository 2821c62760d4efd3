package controller

import (
	"slices"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
)

// ReportVersion is the version of the session file's shape: fields may be added under it, never removed or changed.
const ReportVersion = 1

// Action is what a session does.
type Action string

// The actions.
const (
	ActionBackup  Action = "backup"
	ActionRestore Action = "restore"
)

// State is how far a session has come.
type State string

// The states. Running and done are in the session's file; interrupted is what a file that says running means once nobody
// holds its lock: the session died.
const (
	StateRunning     State = "running"
	StateDone        State = "done"
	StateInterrupted State = "interrupted"
)

// Status is what became of one VM.
type Status string

// The statuses. Good, failed, refused and cancelled VMs were selected; skipped ones were left out by policy.
const (
	StatusPending   Status = "pending"   // not begun; only while the session runs or after it died
	StatusRunning   Status = "running"   // begun; likewise
	StatusGood      Status = "good"      // proven, or restored
	StatusFailed    Status = "failed"    // begun and failed
	StatusRefused   Status = "refused"   // not begun: its state or the room does not allow it
	StatusSkipped   Status = "skipped"   // left out by policy
	StatusCancelled Status = "cancelled" // not begun, or given up, because the session was cancelled
)

// Report is a session: its state while it runs and its result when it is done. It is the content of
// STATE/sessions/ID.json.
type Report struct {
	V         int        `json:"v"`
	ID        string     `json:"id"`
	Action    Action     `json:"action"`
	Mode      Mode       `json:"mode"`
	State     State      `json:"state"`
	Started   time.Time  `json:"started"`
	Ended     time.Time  `json:"ended,omitzero"`
	Seconds   float64    `json:"seconds,omitempty"` // from begin to end, whatever the clock was set to meanwhile; 0 where it died
	Version   string     `json:"version"`           // of the program
	DPSession string     `json:"dp_session,omitempty"`
	DPSpec    string     `json:"dp_spec,omitempty"`
	DP        *DPRecord  `json:"dp,omitempty"` // of a session that Data Protector started
	Folder    string     `json:"folder"`       // where files are written to or read from
	Selection *Selection `json:"selection,omitempty"`

	// What was asked for, of which Selection is a part.
	Request        *Request        `json:"request,omitempty"`
	RestoreRequest *RestoreRequest `json:"restore_request,omitempty"`
	RerunOf        string          `json:"rerun_of,omitempty"` // the session that this one runs again for what did not become good

	Agents   []AgentStatus `json:"agents,omitempty"`
	VMs      []VMResult    `json:"vms"`
	Intents  []Intent      `json:"intents,omitempty"`
	Warnings []string      `json:"warnings,omitempty"` // of the session as a whole
	Notes    []string      `json:"notes,omitempty"`    // likewise: what policy left out, for example
	Skipped  []SkippedFile `json:"skipped_files,omitempty"`
	Drift    *Drift        `json:"drift,omitempty"` // VMs that may not be backed up as they ought to be, when it ended

	Cancelled bool   `json:"cancelled,omitempty"` // a cancel request or signal ended it
	Error     string `json:"error,omitempty"`     // why nothing could run, or what else went wrong
	Advice    string `json:"advice,omitempty"`    // what to do about it
	Code      int    `json:"code"`                // the exit code, once done
	Result    string `json:"result,omitempty"`    // the RESULT line, once done
}

// VMResult is what became of one VM in a session.
type VMResult struct {
	UUID     string `json:"uuid"`
	Name     string `json:"name"`
	Pool     string `json:"pool,omitempty"` // the pool's name
	PoolUUID string `json:"pool_uuid,omitempty"`
	Agent    string `json:"agent,omitempty"`
	Status   Status `json:"status"`
	Error    string `json:"error,omitempty"`  // what, with the host where it matters
	Reason   string `json:"reason,omitempty"` // its code, see the Reason constants and rpc.Reason
	Advice   string `json:"advice,omitempty"` // what to do next

	HeldBy *rpc.Holder `json:"held_by,omitempty"` // who works on it, where the reason is CLAIMED

	File   string `json:"file,omitempty"` // name in the folder, without path
	Path   string `json:"path,omitempty"` // a restore's file, absolute: those of several folders may have one name
	Bytes  int64  `json:"bytes,omitempty"`
	Digest string `json:"digest,omitempty"` // of the file, hexadecimal
	// DigestAlgorithm is xxh3-128, blake3 or sha256.
	DigestAlgorithm string `json:"digest_algorithm,omitempty"`

	Seconds     float64 `json:"seconds,omitempty"`
	Retries     int     `json:"retries,omitempty"`
	NewUUID     string  `json:"new_uuid,omitempty"` // of a VM that a restore made anew
	InPlace     bool    `json:"in_place,omitempty"` // a restore that kept the VM's record
	Arrival     string  `json:"arrival,omitempty"`  // a restore's file as it lay there, see staging.Arrival
	PowerBefore string  `json:"power_before,omitempty"`
	PowerAfter  string  `json:"power_after,omitempty"`
	// DowntimeSeconds is how long the VM was down for it: from the request to shut down until it was started again.
	DowntimeSeconds float64 `json:"downtime_seconds,omitempty"`
	// StartDue: once it is restored the session starts it, in its order, and has not done so yet.
	StartDue bool `json:"start_due,omitempty"`
	// PowerNotRestored: the VM is known not to be in its former power state. Code 20.
	PowerNotRestored bool `json:"power_not_restored,omitempty"`

	Excluded []PlannedDisk `json:"excluded_disks,omitempty"`
	Warnings []string      `json:"warnings,omitempty"`
	Notes    []string      `json:"notes,omitempty"`

	// Attempts that failed and were followed by another, in order; equal ones in a row are one. What the last attempt came to
	// is what the fields above say.
	Attempts []Attempt `json:"attempts,omitempty"`
}

// Attempt is one or more attempts at a VM that failed and were followed by another.
type Attempt struct {
	Agent  string    `json:"agent,omitempty"`
	Began  time.Time `json:"began"` // the first of them
	Ended  time.Time `json:"ended"` // the last of them
	Times  int       `json:"times"`
	Reason string    `json:"reason,omitempty"` // as in VMResult
	Error  string    `json:"error"`            // of the first of them
}

// maxAttempts bounds the attempts that are kept of one VM.
const maxAttempts = 50

// addAttempt adds an attempt, or counts it to the one before; again says that it did.
func (r *VMResult) addAttempt(a Attempt) (again bool) {
	if n := len(r.Attempts); n > 0 {
		// Reports that were given away share the elements, so one is never changed in place.
		if last := r.Attempts[n-1]; last.Agent == a.Agent && last.Reason == a.Reason || n >= maxAttempts {
			last.Times += a.Times
			last.Ended = a.Ended
			r.Attempts = append(slices.Clone(r.Attempts[:n-1]), last)
			return true
		}
	}
	r.Attempts = append(slices.Clone(r.Attempts), a)
	return false
}

// Reasons that the controller itself gives a VM's result; those that an agent gives are rpc.Reason's.
const (
	ReasonIntegrity   = "INTEGRITY"   // a file is damaged or contradictory, or what came was; code 5
	ReasonPowerState  = "POWER_STATE" // the VM's power state does not allow it
	ReasonNoRoom      = "NO_ROOM"     // the staging folder has no room for it
	ReasonFileExists  = "FILE_EXISTS" // the staging folder has a file of that VM and second
	ReasonStaging     = "STAGING"     // the staging folder cannot be written
	ReasonState       = "STATE"       // the state folder cannot be written, so nothing may be begun
	ReasonSRFull      = "SR_FULL"     // an SR has no room for its snapshot
	ReasonChain       = "CHAIN"       // a disk's chain of snapshots is too long for another one
	ReasonUnreachable = "UNREACHABLE" // no agent of its pool answers
	ReasonProblem     = "PROBLEM"     // the agent says that it cannot be backed up
	ReasonNotFound    = "VM_NOT_FOUND"
	ReasonCancelled   = "CANCELLED"
	ReasonNoManifest  = "NO_MANIFEST" // a file's manifest is not there
)

// Intent is work that an agent was told to do, written before it was told. Done means that nothing of it is left on any
// host: only intents that are not done are for repair.
type Intent struct {
	Key         string    `json:"key"`   // the transfer's
	Nonce       string    `json:"nonce"` // names what the agent makes
	VMUUID      string    `json:"vm_uuid"`
	VMName      string    `json:"vm_name"`
	PoolUUID    string    `json:"pool_uuid"`
	Agent       string    `json:"agent"`
	Action      Action    `json:"action"`
	PowerBefore string    `json:"power_before,omitempty"`
	Time        time.Time `json:"time"`
	Done        bool      `json:"done,omitempty"`
	StopsVM     bool      `json:"stops_vm,omitempty"` // it may switch the VM off: not to know its end is not to know its power state
	// DeletesFirst: the VM's disks may be gone before others have come in their place.
	DeletesFirst bool `json:"deletes_first,omitempty"`
	// Disks are the UUIDs of the disks of the snapshot that an agent has taken for it.
	Disks []string `json:"snapshot_disks,omitempty"`
	// Former are the UUIDs of the disks of a VM that is restored in place, as they were before.
	Former []string `json:"former_disks,omitempty"`

	Session string `json:"-"` // whose it is, where intents of several are together
}

// Unfinished returns the intents that are not done.
func (r *Report) Unfinished() []Intent {
	var open []Intent
	for _, i := range r.Intents {
		if !i.Done {
			open = append(open, i)
		}
	}
	return open
}

// Took is how long the session took: 0 where it did not end, negative where nobody counted and its clock was set back.
func (r *Report) Took() time.Duration { return lasted(r.Seconds, r.Started, r.Ended) }

// lasted is how long something took by what was counted, else by the clock.
func lasted(seconds float64, began, ended time.Time) time.Duration {
	switch {
	case ended.IsZero():
		return 0
	case seconds > 0:
		return time.Duration(seconds * float64(time.Second))
	}
	return ended.Sub(began)
}

// Counts counts the VMs of the session that were selected.
func (r *Report) Counts() Counts {
	var c Counts
	for _, vm := range r.VMs {
		if vm.Status == StatusSkipped {
			continue
		}
		c.Selected++
		switch vm.Status {
		case StatusGood:
			c.Good++
		case StatusRunning:
			c.Running++
		case StatusFailed, StatusRefused, StatusCancelled:
			c.Failed++
		case StatusPending, StatusSkipped:
		}
	}
	return c
}
