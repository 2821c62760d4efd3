package controller

import "time"

// PlanVersion is the version of Plan's shape: fields may be added under it, never removed or changed.
const PlanVersion = 1

// Request says what a backup session is to do.
type Request struct {
	Mode        Mode      `json:"mode"`
	Selection   Selection `json:"selection"`
	ForceOff    bool      `json:"force_off,omitempty"`   // offline: power off hard when the clean shutdown fails
	WithMemory  bool      `json:"with_memory,omitempty"` // offline: back a suspended VM up with its memory image
	Compression string    `json:"compression,omitempty"` // "", "gzip" or "zstd", by XAPI
	// OfflineSnapshot: offline, of VMs that run: stop, snapshot, start, then export the snapshot.
	OfflineSnapshot bool `json:"offline_snapshot,omitempty"`

	// Saved is a plan that is to be followed: what it says is done, or why not is told. It is made of a request like this.
	Saved *Plan  `json:"-"`
	Again *Again `json:"again,omitempty"` // run a former session again for what did not become good; nil = the selection
}

// Plan is what a backup session would do. Every VM of the pools is in it, in the inventory's order.
type Plan struct {
	V        int           `json:"v"`
	Created  time.Time     `json:"created"`
	Request  Request       `json:"request"`
	Agents   []AgentStatus `json:"agents"`
	VMs      []PlannedVM   `json:"vms"`
	Missing  []Missing     `json:"missing,omitempty"` // asked for and not found while an agent does not answer
	Selected int           `json:"selected"`          // VMs that are chosen, refused ones included
	Runnable int           `json:"runnable"`          // VMs that would be begun
	Bytes    int64         `json:"bytes"`             // of those that would be begun
	Room     Room          `json:"room"`
	// Seconds is how long the session takes at least, by earlier ones, of which Foreseen VMs are known.
	Seconds  float64  `json:"estimated_seconds,omitempty"`
	Foreseen int      `json:"foreseen,omitempty"`
	Warnings []string `json:"warnings,omitempty"` // go into the session's report
	Risks    []string `json:"risks,omitempty"`    // are of the plan only
	Notes    []string `json:"notes,omitempty"`
	Drift    *Drift   `json:"drift,omitempty"`

	inv *Inventory // that it was made of
}

// Room is the staging folder's room, in bytes.
type Room struct {
	Folder string `json:"folder"`
	Free   int64  `json:"free"`
	Need   int64  `json:"need"`
	Short  bool   `json:"short"`
}

// Missing is something asked for that no agent that answered knows.
type Missing struct {
	Asked  string `json:"asked"` // as in the selection
	Reason string `json:"reason"`
	Error  string `json:"error"`
	VMID   *VMID  `json:"vm,omitempty"` // where it is a VM that is known
}

// PlannedVM is what would be done with one VM.
type PlannedVM struct {
	UUID     string   `json:"uuid"`
	Name     string   `json:"name"`
	Pool     string   `json:"pool"`
	PoolUUID string   `json:"pool_uuid"`
	Host     string   `json:"host,omitempty"`
	HostUUID string   `json:"host_uuid,omitempty"`
	Power    string   `json:"power_state"`
	Chosen   bool     `json:"chosen"`
	Why      string   `json:"why"`              // it is chosen, or not
	Marked   bool     `json:"marked,omitempty"` // it would be chosen but for a mark on it, which Why tells
	Agent    string   `json:"agent,omitempty"`  // the first of Agents
	Agents   []string `json:"agents,omitempty"` // in order of preference
	Action   string   `json:"action,omitempty"` // such as "snapshot, export, delete snapshot"
	// Refused says why a chosen VM is not begun; Reason is its code, Advice what to do.
	Refused  string        `json:"refused,omitempty"`
	Reason   string        `json:"reason,omitempty"`
	Advice   string        `json:"advice,omitempty"`
	Disks    []PlannedDisk `json:"disks,omitempty"`
	Excluded []PlannedDisk `json:"excluded_disks,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"` // estimate of the file's length, upper bound
	Forecast *Forecast     `json:"forecast,omitempty"`
	LastGood *time.Time    `json:"last_good,omitempty"` // its last good backup
	// Warnings hold whatever happens and go into the session's report; Risks are of the plan only.
	Warnings []string `json:"warnings,omitempty"`
	Risks    []string `json:"risks,omitempty"`
	Notes    []string `json:"notes,omitempty"`

	vm       *VM
	snapshot bool   // one is taken
	keep     []Disk // Disks
}

// PlannedDisk is a disk that would be backed up or left out.
type PlannedDisk struct {
	UserDevice string `json:"userdevice"`
	Device     string `json:"device,omitempty"`
	VDI        string `json:"vdi_uuid"`
	Name       string `json:"name,omitempty"`
	Size       int64  `json:"virtual_size"`
	SR         string `json:"sr_uuid"`
	SRName     string `json:"sr_name,omitempty"`
	Bytes      int64  `json:"bytes,omitempty"` // estimate
	Why        string `json:"why,omitempty"`   // it is left out
}

// VM returns the VM as the inventory has it; nil in a plan that was read from a file.
func (p *PlannedVM) VM() *VM { return p.vm }

// Runs tells whether the VM would be begun.
func (p *PlannedVM) Runs() bool { return p.Chosen && p.Refused == "" }

// Ref returns the VM's reference for events.
func (p *PlannedVM) Ref() *VMRef { return &VMRef{UUID: p.UUID, Name: p.Name, Pool: p.Pool} }
