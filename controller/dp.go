package controller

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// DP is what Data Protector says of the session in which it starts dpxen as pre-exec or post-exec. All of it may be absent:
// what is said depends on the level, the platform and the version.
type DP struct {
	Spec       string // DATALIST: the backup specification
	Mode       string // MODE: full, incremental …
	Owner      string // OWNER
	Session    string // SESSIONID: 2026/11/22-1
	SessionKey string // SESSIONKEY: of the running session
	Preview    bool   // PREVIEW=1
	Restarted  bool   // RESTARTED=1
	SMExit     *int   // SMEXIT: the Session Manager's exit code; post-exec at session level only
	Object     bool   // the command is known to be at object level
	BDACC      *int   // BDACC: the Disk Agent's exit code; post-exec at object level only
}

// Session manager's exit codes as Data Protector documents them for SMEXIT.
var smExits = map[int]string{0: "all files were saved", 10: "some files were not saved", 11: "an agent failed",
	12: "no agent completed", 13: "the session was aborted"}

// Saved tells whether Data Protector has saved the staged files, and says what that was taken from. Only a clear success
// counts: files that may not be on any medium are not deleted.
func (d DP) Saved() (saved bool, why string) {
	switch {
	case d.SMExit != nil:
		text := smExits[*d.SMExit]
		return *d.SMExit == 0, strings.TrimSpace(fmt.Sprintf("SMEXIT %d %s", *d.SMExit, text))
	case d.BDACC != nil:
		return *d.BDACC == 0, fmt.Sprintf("BDACC %d", *d.BDACC)
	}
	return false, "neither SMEXIT nor BDACC was given"
}

// ObjectLevel tells whether the command runs at object level: it was said so, or there is a Disk Agent's code and none of the
// Session Manager.
func (d DP) ObjectLevel() bool { return d.Object || d.SMExit == nil && d.BDACC != nil }

// name is the specification for messages.
func (d DP) name() string {
	if d.Spec == "" {
		return "no specification"
	}
	return fmt.Sprintf("specification %q", d.Spec)
}

// id is the session for manifests: its ID, or its key while it has none.
func (d DP) id() string { return cmp.Or(d.Session, d.SessionKey) }

// full tells whether Data Protector's own backup is a full one, or does not say.
func (d DP) full() bool { return d.Mode == "" || strings.EqualFold(d.Mode, "full") }

// DPRecord is what a session's report keeps of the Data Protector session that it belongs to.
type DPRecord struct {
	Spec      string   `json:"spec,omitempty"`
	Sessions  []string `json:"sessions,omitempty"` // IDs and keys; more than one where a restarted session used the set again
	Owner     string   `json:"owner,omitempty"`
	Mode      string   `json:"mode,omitempty"`
	Restarted bool     `json:"restarted,omitempty"`
	Warnings  string   `json:"warnings_policy,omitempty"` // the specification's, for post-exec

	// Set by post-exec.
	Closed time.Time `json:"closed,omitzero"`
	Saved  bool      `json:"saved,omitempty"`
	Why    string    `json:"why,omitempty"` // what Saved was taken from
}

func (d DP) record(spec Spec) *DPRecord {
	r := &DPRecord{Spec: d.Spec, Owner: d.Owner, Mode: d.Mode, Restarted: d.Restarted, Warnings: spec.Warnings}
	r.join(d)
	return r
}

// join notes that the set belongs to that session too.
func (r *DPRecord) join(d DP) {
	for _, id := range []string{d.Session, d.SessionKey} {
		if id != "" {
			r.Sessions = appendNew(r.Sessions, id)
		}
	}
}

// of tells whether the record is of that session: yes, no, or not known because one of them has no ID.
func (r *DPRecord) of(d DP) (match, known bool) {
	for _, id := range []string{d.Session, d.SessionKey} {
		for _, mine := range r.Sessions {
			if id != "" && id == mine {
				return true, true
			}
		}
	}
	return false, len(r.Sessions) > 0 && d.id() != ""
}

// PartialOK tells whether Data Protector is to go on after a pre-exec that ended so: some VMs are staged and the
// specification saves them, or all are.
func (s Spec) PartialOK(r *Report, code int) bool {
	if r == nil || r.Counts().Good == 0 {
		return code == CodeOK || code == CodeWarnings && s.Warnings != WarningsFail
	}
	switch {
	case s.Partial != PartialFail:
		return true
	case code == CodeWarnings:
		return s.Warnings != WarningsFail
	}
	return code == CodeOK
}

// DPCode is a session's code as Data Protector is told it by a command that ends there: 0 for what the specification takes
// for success, else 1 to 125.
func (s Spec) DPCode(code int) int { return dpFailure(code, s.Warnings) }
