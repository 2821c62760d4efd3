package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// checkSessions holds that every session is in a final state, and that what it says is true.
func (h *history) checkSessions() error {
	for _, config := range h.controllers() {
		if err := h.checkSessionsOf(config); err != nil {
			return err
		}
	}
	return nil
}

// listedSession is a session as the list has it.
type listedSession struct {
	ID     string `json:"id"`
	State  string `json:"state"`
	Open   int    `json:"open_intents"`
	Code   int    `json:"code"`
	Result string `json:"result"`
	Error  string `json:"error"`
}

// sessions lists what a controller has done.
func (h *history) sessions(config string) ([]listedSession, error) {
	out, code, err := h.site.runAs(launch{config: config}, time.Minute, "sessions", "--json")
	if err != nil {
		return nil, err
	}
	var list []listedSession
	if err := json.Unmarshal([]byte(jsonPart(out)), &list); err != nil || code != 0 {
		h.violation("dpxen sessions ended with %d: %v: %s", code, err, out)
	}
	return list, nil
}

func (h *history) checkSessionsOf(config string) error {
	list, err := h.sessions(config)
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.Open != 0 || s.Error != "" || s.State != "done" && s.State != "interrupted" || s.Result == "" {
			h.violation("session %s is %s with %d open intents, result %q, %s", s.ID, s.State, s.Open, s.Result, s.Error)
			continue
		}
		if h.known[s.ID] {
			continue
		}
		h.known[s.ID] = true
		h.counts.add("sessions", 1)
		r, err := h.written(config, s.ID)
		if err != nil {
			h.violation("session %s has no state that can be read: %v", s.ID, err)
			continue
		}
		if r.State != s.State || r.Code != s.Code || r.Result != s.Result {
			h.violation("session %s is listed as %s with code %d and %q, and its state has %s, %d, %q", s.ID, s.State, s.Code, s.Result, r.State, r.Code, r.Result)
		}
		h.checkSession(r)
	}
	return nil
}

// written reads a session's report from the state folder: a command for each of hundreds would take longer than what made them.
func (h *history) written(config, id string) (*report, error) {
	folder := "state"
	if config == h.site.rival {
		folder = "rival-state"
	}
	data, err := os.ReadFile(h.site.path(filepath.Join(folder, "sessions", id+".json")))
	if err != nil {
		return nil, err
	}
	r := &report{}
	return r, json.Unmarshal(data, r)
}

// checkSession holds one session's report against the files and VMs.
func (h *history) checkSession(r *report) {
	good, all := r.good()
	if want := fmt.Sprintf("RESULT %s code=%d good=%d/%d session=%s", wordOf(r.Code), r.Code, good, all, r.ID); r.Result != want {
		h.violation("session %s says %q, and its VMs make %q", r.ID, r.Result, want)
	}
	if (r.Code == 0 || r.Code == 4) && r.State != "done" && all == 0 {
		h.violation("session %s died before it knew its VMs, and says %q", r.ID, r.Result)
	}
	if r.Ended == "" {
		h.violation("session %s has no end", r.ID)
	}
	for _, vm := range r.VMs {
		switch vm.Status {
		case "good", "failed", "refused", "skipped", "cancelled":
		default:
			h.violation("session %s: VM %s is %s", r.ID, vm.UUID, vm.Status)
		}
		if vm.PowerNotRestored && r.Code != 20 {
			h.violation("session %s: VM %s is not in its power state, and the code is %d", r.ID, vm.UUID, r.Code)
		}
		if r.Action != "backup" {
			continue
		}
		has := slices.ContainsFunc(h.files, func(f *staged) bool {
			return f.session == r.ID && f.vm == vm.UUID && (vm.File == "" || filepath.Base(f.path) == vm.File)
		})
		if vm.Status == "good" && !has {
			h.violation("session %s says that VM %s is good, and there is no proven file %q of it", r.ID, vm.UUID, vm.File)
		}
		if vm.Status != "good" && has {
			h.violation("session %s says that VM %s is %s (%s), and there is a proven file of it", r.ID, vm.UUID, vm.Status, vm.Error)
		}
	}
}
