package controller

import "time"

// EventVersion is the version of Event's shape: fields may be added under it, never removed or changed.
const EventVersion = 1

// Observer is told what happens in a session. Its method is called by one goroutine at a time, in order, and must return
// soon: transfers wait for it. It must not keep the pointers in an event.
type Observer interface {
	Observe(Event)
}

// EventType is the kind of an event.
type EventType string

// The kinds of event, in about the order they come in. The fields beside the common ones are named with each.
const (
	EventSessionStart EventType = "session_start" // Action, Mode
	EventPlan         EventType = "plan"          // Plan
	EventVMStart      EventType = "vm_start"      // VM, Agent, TotalEst
	EventVMPhase      EventType = "vm_phase"      // VM, Phase, Message
	EventVMProgress   EventType = "vm_progress"   // VM, Phase, Bytes, TotalEst, ETASeconds
	EventVMEnd        EventType = "vm_end"        // VM, Result
	EventWarning      EventType = "warning"       // Message, perhaps VM
	EventNote         EventType = "note"          // Message, perhaps VM
	EventError        EventType = "error"         // Message, perhaps VM: an attempt failed and is made again
	EventHeartbeat    EventType = "heartbeat"     // Counts, Bytes: nothing else was told for a while
	EventSummary      EventType = "summary"       // Report: the end of the session
)

// VMRef names a VM in events.
type VMRef struct {
	UUID string `json:"uuid"`
	Name string `json:"name"`
	Pool string `json:"pool,omitempty"` // the pool's name
}

// Counts are numbers of VMs in a session.
type Counts struct {
	Selected int `json:"selected"`
	Running  int `json:"running"`
	Good     int `json:"good"`
	Failed   int `json:"failed"` // failed, refused and cancelled
}

// Event is one thing that happened; as JSON it is one line for scripts. Readers ignore fields they do not know.
type Event struct {
	V       int       `json:"v"`
	Time    time.Time `json:"t"`
	Type    EventType `json:"type"`
	Session string    `json:"session,omitempty"`

	VM         *VMRef    `json:"vm,omitempty"`
	Agent      string    `json:"agent,omitempty"`
	Action     Action    `json:"action,omitempty"`
	Mode       Mode      `json:"mode,omitempty"`
	Phase      string    `json:"phase,omitempty"`     // such as "snapshot", "transfer", "verify"
	Bytes      int64     `json:"bytes,omitempty"`     // bytes moved so far
	TotalEst   int64     `json:"total_est,omitempty"` // bytes expected in all
	ETASeconds int64     `json:"eta_s,omitempty"`
	Message    string    `json:"message,omitempty"`
	Counts     *Counts   `json:"counts,omitempty"`
	Plan       *Plan     `json:"plan,omitempty"`
	Result     *VMResult `json:"result,omitempty"`
	Report     *Report   `json:"report,omitempty"`
}
