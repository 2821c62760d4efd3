package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// repair repeats `dpxen repair` until it has nothing left to do.
func (h *history) repair() error {
	var left []string
	code := 0
	for end := time.Now().Add(repairLimit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		h.revive()
		code = 0
		for _, config := range h.controllers() {
			code = max(code, h.repairOnce(config))
		}
		if h.failed() {
			return nil
		}
		st, err := h.site.dump()
		if err != nil {
			return err
		}
		left = h.leftovers(st)
		if len(left) == 0 && code == 0 {
			return nil
		}
		if code == 0 && !h.rolled {
			h.violation("repair ended with 0, and yet: %s", strings.Join(left, "; "))
			return nil
		}
	}
	h.violation("repair has not finished within %s (code %d): %s", repairLimit, code, strings.Join(left, "; "))
	return nil
}

// repairOnce has one controller repair. Where agents seldom sweep by themselves, what a dry run tells must be what is done then.
func (h *history) repairOnce(config string) (code int) {
	var told *repairReport
	if h.site.habits.sweep == seldomSwept {
		if told, _ = h.repairAs(config, "--dry-run"); told == nil {
			return 1
		}
	}
	var args []string
	if told != nil {
		args = []string{"--wait", "0"}
	}
	did, code := h.repairAs(config, args...)
	if did == nil || told == nil {
		return code
	}
	if told.waits() || did.waits() || len(told.Errors) > 0 || len(did.Errors) > 0 {
		return code // time has gone on, or the trouble is not over
	}
	if slices.ContainsFunc(h.site.agents, func(a *agentProcess) bool { return !h.site.agentOf(a).running() }) {
		return code // an armed failpoint has ended an agent in the midst of it, which no dry run can tell
	}
	h.counts.add("repairs that were told by a dry run", 1)
	told.forgetEnded(did)
	if told.lines() != did.lines() {
		h.violation("dpxen repair --dry-run told %q, and repair did %q", told.lines(), did.lines())
	}
	return code
}

// forgetEnded drops what the dry run told of transfers that repair did not meet any more: an agent ends them itself when their
// lease is out, which may be at any moment.
func (r *repairReport) forgetEnded(did *repairReport) {
	r.Actions = slices.DeleteFunc(r.Actions, func(a repairAction) bool {
		return strings.HasPrefix(a.Action, "end and clean up after the transfer") &&
			!slices.ContainsFunc(did.Actions, func(b repairAction) bool { return b.String() == a.String() })
	})
}

// repairAs runs repair for one controller; the report is nil where it said none.
func (h *history) repairAs(config string, args ...string) (*repairReport, int) {
	out, code, err := h.site.runAs(launch{config: config}, stepLimit, append([]string{"repair", "--json"}, args...)...)
	var r repairReport
	if err == nil {
		err = json.Unmarshal([]byte(jsonPart(out)), &r)
	}
	if err != nil {
		h.violation("repair %v of %s: %v: %s", args, filepath.Base(config), err, out)
		return nil, 1
	}
	h.note("repair %v of %s ended with %d: %s %v", args, filepath.Base(config), code, text(r.Actions), r.Errors)
	return &r, code
}
