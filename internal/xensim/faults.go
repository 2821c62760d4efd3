package xensim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fault is a misbehaviour of the pool: which, where, how often. Names lists them.
type Fault struct {
	// Name is one of FaultNames.
	Name string `json:"name"`
	// Object narrows the fault to a VM, VDI, SR or host: its uuid, name or reference.
	// Empty means any. Method narrows faults of calls to one method.
	Object string `json:"object,omitempty"`
	Method string `json:"method,omitempty"`
	// Skip lets so many occasions pass first; Times is how often the fault happens
	// then, 0 meaning until it is cleared.
	Skip  int `json:"skip,omitempty"`
	Times int `json:"times,omitempty"`
	// After is a position in bytes of a stream, for faults in streams.
	After int64 `json:"after,omitempty"`
	// Delay is simulated time, for faults that delay.
	Delay time.Duration `json:"delay,omitempty"`
	// Code and Params replace the error that the fault gives.
	Code   string   `json:"code,omitempty"`
	Params []string `json:"params,omitempty"`
}

// faultNames says what each fault does.
var faultNames = map[string]string{
	"export-refused":        "GET /export answers 500 before any data (SR_BACKEND_FAILURE_46)",
	"export-slow-head":      "GET /export sends its head only after Delay",
	"export-cut":            "the connection of an export breaks after After bytes",
	"export-embedded-500":   "an export ends with a second HTTP answer, a 500, after After bytes",
	"export-task-fails":     "the export's body is complete, but its task fails (VDI_IO_ERROR)",
	"export-corrupt":        "one bit at After of an export's body is wrong",
	"export-read-error":     "the disk gives an I/O error at After",
	"export-no-end":         "an export ends without its two zero blocks, in good order",
	"export-task-vanishes":  "the export's body is complete, but its task is gone",
	"export-stall":          "an export stops for Delay after After bytes",
	"snapshot-fails":        "VM.snapshot fails (SR_BACKEND_FAILURE_44)",
	"start-fails":           "VM.start fails (HOST_NOT_ENOUGH_FREE_MEMORY)",
	"shutdown-ignored":      "the guest ignores a clean shutdown",
	"shutdown-late":         "the guest takes Delay for a clean shutdown",
	"vdi-in-use":            "VDI.destroy fails (VDI_IN_USE)",
	"vdi-not-available":     "a disk cannot be attached (SR_BACKEND_FAILURE_46)",
	"import-fails-at-start": "an import fails before it reads anything (IMPORT_ERROR)",
	"import-fails-at-end":   "an import fails when all data is in (VDI_IO_ERROR)",
	"import-fails-between":  "a forced restore fails after the old VM's VBDs and VIFs are gone",
	"import-stall":          "an import stops reading for Delay after After bytes",
	"sr-full":               "an SR has no room (SR_BACKEND_FAILURE_44)",
	"session-invalid":       "a call finds all sessions gone (SESSION_INVALID)",
	"login-fails":           "login fails (SESSION_AUTHENTICATION_FAILED)",
	"login-slow":            "login takes Delay",
	"host-booting":          "a call fails (HOST_STILL_BOOTING)",
	"call-fails":            "a call fails with Code and Params",
	"call-slow":             "a call takes Delay more",
	"answer-lost":           "a call is executed, but its connection breaks before the answer",
	"map-duplicate":         "add_to_other_config fails (MAP_DUPLICATE_KEY)",
	"connection-reset":      "new connections are reset",
	"database-rolled-back":  "XAPI crashes on the next call: what was written since the fault was armed is lost, storage and domains stay",
	"toolstack-restart":     "on the next call XAPI is restarted: all sessions, tasks, connections, exports and imports are lost, and new connections are reset for Delay",
}

// FaultNames gives the names of all faults with what they do.
func FaultNames() map[string]string { return maps.Clone(faultNames) }

// armed is a fault that was injected.
type armed struct {
	Fault
	skipped, done int
}

// faultSet holds the injected faults.
type faultSet struct {
	mu   sync.Mutex
	list []*armed
}

// Inject arms a fault. Several of one name may be armed; the first that fits an
// occasion happens.
func (p *Pool) Inject(f Fault) error {
	if _, ok := faultNames[f.Name]; !ok {
		return fmt.Errorf("xensim: no fault is named %q; there are %s", f.Name,
			strings.Join(slices.Sorted(maps.Keys(faultNames)), ", "))
	}
	if f.Name == "database-rolled-back" {
		p.db.mu.Lock()
		p.flushDatabase()
		p.db.mu.Unlock()
	}
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	p.faults.list = append(p.faults.list, &armed{Fault: f})
	return nil
}

// Clear disarms the faults of a name, or all for the empty one.
func (p *Pool) Clear(name string) {
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	p.faults.list = slices.DeleteFunc(p.faults.list, func(a *armed) bool { return name == "" || a.Name == name })
}

// Faults gives the faults that are armed, with Times and Skip as they were.
func (p *Pool) Faults() []Fault {
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	out := []Fault{}
	for _, a := range p.faults.list {
		out = append(out, a.Fault)
	}
	return out
}

// hit says whether a fault happens now, on the objects or method given by names.
func (p *Pool) hit(name, method string, objects ...string) (Fault, bool) {
	s := &p.faults
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, a := range s.list {
		if a.Name != name || a.Object != "" && !slices.Contains(objects, a.Object) {
			continue
		}
		if a.Method != "" && a.Method != strings.TrimPrefix(method, "Async.") && a.Method != method {
			continue
		}
		if a.skipped < a.Skip {
			a.skipped++
			continue
		}
		a.done++
		if a.Times > 0 && a.done >= a.Times {
			s.list = slices.Delete(s.list, i, i+1)
		}
		return a.Fault, true
	}
	return Fault{}, false
}

// any says whether a fault of the name is armed, without counting.
func (s *faultSet) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list) > 0
}

// failure gives the fault's own error, or the given one.
func (f Fault) failure(code string, params ...string) error {
	if f.Code != "" {
		return &Failure{Code: f.Code, Params: f.Params}
	}
	return fail(code, params...)
}

// names gives what a fault may call an object; the database is locked.
func (p *Pool) names(class, ref string) []string {
	if o := p.db.find(class, ref); o != nil {
		return []string{ref, o.uuid(), o.name()}
	}
	return []string{ref}
}

func (p *Pool) lockedNames(class, ref string) []string {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	return p.names(class, ref)
}
