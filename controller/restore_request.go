package controller

import "time"

// RestoreRequest says what a restore session is to do.
type RestoreRequest struct {
	Mode      Mode      `json:"mode"`
	Selection Selection `json:"selection"` // by the names and UUIDs in the manifests

	From      string    `json:"from,omitempty"`       // folder with the files; empty = the configured restore folder
	Files     []string  `json:"files,omitempty"`      // these only; names in the folder, or paths
	At        time.Time `json:"at,omitzero"`          // the newest not after it
	DPSession string    `json:"dp_session,omitempty"` // of that Data Protector session only
	Adopt     bool      `json:"adopt,omitempty"`      // Files may lack a manifest: made by other tools, proven by verification

	// Spec is the backup specification whose files Data Protector has restored, where it starts the restore: then only what it
	// has brought is restored, nothing is restored twice from a file that lies there, and Selection may be empty. See
	// docs/data-protector.md and docs/adr/0010.
	Spec  string `json:"spec,omitempty"`
	Again bool   `json:"again,omitempty"` // with Spec: also files of earlier restores, and VMs that were restored from them

	AsNew    bool              `json:"as_new,omitempty"`
	NewName  string            `json:"new_name,omitempty"`
	Recreate bool              `json:"recreate,omitempty"`
	Start    bool              `json:"start,omitempty"`
	Pool     string            `json:"pool,omitempty"`     // name or UUID; empty = the pool that the VM is or was in
	ToHost   string            `json:"to_host,omitempty"`  // name or UUID of the host that is to be the VM's affinity, and to see its disks
	SR       string            `json:"sr,omitempty"`       // name or UUID
	SRs      map[string]string `json:"srs,omitempty"`      // from the file's to the pool's, by name or UUID; SR for the others
	Networks map[string]string `json:"networks,omitempty"` // from the file's to the pool's, by name or UUID

	// Map says more of the same for pools and single VMs; what is said here beats it.
	Map *RestoreMap `json:"map,omitempty"`
	// AllowConflicts makes warnings of what else refuses a VM: that it exists in another pool, that another VM has one of its
	// MAC addresses, that the pool lacks one of its networks.
	AllowConflicts bool `json:"allow_conflicts,omitempty"`
	// LowerVersion has the version of the host's XAPI written into the ova.xml of a VM that is made anew, where the file's is
	// newer: settings that the host does not know are lost. Else such a file is refused.
	LowerVersion bool `json:"lower_version,omitempty"`

	// Rerun: Files are what a former session left undone, so what was asked of the others names nothing now, and is no slip.
	Rerun bool `json:"-"`

	KeepOldDisks  bool `json:"keep_old_disks,omitempty"`
	DeleteFirst   bool `json:"delete_first,omitempty"`
	ForceOff      bool `json:"force_off,omitempty"`
	DiscardMemory bool `json:"discard_memory,omitempty"`
}
