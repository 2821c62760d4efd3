package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// step is one command of the controller and what it may do.
type step struct {
	kind   string // backup, restore, new, recreate, damaged, repair, verify, pre, post
	args   []string
	mode   string // online or offline
	vm     string // that a restore is about; of a backup: empty for all
	file   *staged
	name   string // of a VM that is made beside
	guests bool   // guests write meanwhile
	start  bool   // what is made is started
	first  bool   // the old disks are deleted first
	storm  bool   // it is run in a storm of kills
	env    []string

	night                  *night // of Data Protector, whose command this is
	saved, object, brought bool   // it says that it has saved; at object level; a restore that it starts
}

// stops tells whether the step may shut VMs down.
func (s step) stops() bool { return s.mode == "offline" || s.kind != "backup" && s.kind != "verify" }

// report is what the session's file says of it.
type report struct {
	ID      string     `json:"id"`
	Action  string     `json:"action"`
	State   string     `json:"state"`
	Ended   string     `json:"ended"`
	Code    int        `json:"code"`
	Result  string     `json:"result"`
	Started string     `json:"started"`
	VMs     []reportVM `json:"vms"`
	Intents []struct {
		Done bool `json:"done"`
	} `json:"intents"`
}

type reportVM struct {
	UUID             string `json:"uuid"`
	Name             string `json:"name"`
	Status           string `json:"status"`
	Error            string `json:"error"`
	File             string `json:"file"`
	NewUUID          string `json:"new_uuid"`
	InPlace          bool   `json:"in_place"`
	PowerBefore      string `json:"power_before"`
	PowerAfter       string `json:"power_after"`
	PowerNotRestored bool   `json:"power_not_restored"`
}

// counts of the VMs that were selected.
func (r *report) good() (good, all int) {
	for _, vm := range r.VMs {
		if vm.Status != "skipped" {
			all++
		}
		if vm.Status == "good" {
			good++
		}
	}
	return good, all
}

// limit of a step: what lasts longer hangs. Troubles end by themselves long before.
const (
	calmAfter = 12 * time.Second
	stepLimit = 90 * time.Second
)

// step runs one command under disturbance, and notes what it may have changed. first means that all was well before.
func (h *history) step(s step, first bool) error {
	if err := h.ready(&s); err != nil || len(s.args) == 0 {
		return err
	}
	if s.storm {
		return h.storm(s, first)
	}
	limit, points := h.narrow(&s), h.controllerPoints()
	h.armAgents()
	h.starts(s)
	p, err := h.site.begin(launch{limit: limit, env: append(failpoints(points), s.env...)}, s.args...)
	if err != nil {
		return err
	}
	var rival *process
	if (s.kind == "backup" || s.kind == "restore" || s.kind == "new") && h.rng.IntN(8) == 0 {
		rival = h.startRival()
	}
	calm := h.disturb(p, s)
	if !p.wait(calmAfter) {
		calm()
		h.calm()
	}
	h.outlast(p, s)
	calm()
	h.seen(p)
	if rival != nil {
		after, kill := h.killRivalAfter()
		h.endRival(rival, kill && !rival.wait(after))
	}
	if h.rng.IntN(3) > 0 {
		h.calm()
	}
	return h.after(p, s, first)
}

// starts notes what a step that begins may do.
func (h *history) starts(s step) {
	h.stops = h.stops || s.stops()
	if s.night != nil {
		h.dpRan[s.night.spec.name] = true
		h.dpSaved[s.night.spec.name] = h.dpSaved[s.night.spec.name] || s.saved
	}
}

// outlast waits until a command has ended. Nothing stands in its way any more, or what does ends soon.
func (h *history) outlast(p *process, s step) {
	if !p.wait(stepLimit - calmAfter) {
		h.violation("dpxen %s did not end within %s of calm, see %s", strings.Join(s.args, " "), stepLimit-calmAfter, filepath.Base(p.log))
		p.signal(os.Kill)
		<-p.done
	}
}

// after compares what a session said with what is, and notes what may be on disks now.
func (h *history) after(p *process, s step, first bool) error {
	out, err := os.ReadFile(p.log)
	if err != nil {
		return err
	}
	code := p.code()
	h.note("%s ended with %d: %s", s.args[0], code, lastLine(string(out)))
	if s.kind == "verify" {
		if code != 0 && code != 130 && !p.crashed() && h.verifiable() {
			h.violation("dpxen verify ended with %d on files that are proven, see %s", code, filepath.Base(p.log))
		}
		return nil
	}
	if s.kind == "repair" {
		return nil
	}
	r := &report{}
	if !p.crashed() {
		if r, err = h.spoken(p, s, string(out)); err != nil {
			return err
		}
		if r != nil && first && s.kind != "post" {
			if err := h.powerTrue(r, s, code); err != nil {
				return err
			}
		}
	}
	h.overlay(s, r, code, p.crashed())
	return h.collect()
}

// overlay notes what a restore may have put on a VM's disks.
func (h *history) overlay(s step, r *report, code int, crashed bool) {
	t := h.vms[s.vm]
	h.begun[s.name] = h.begun[s.name] || s.start
	good := !crashed && r != nil && len(r.VMs) == 1 && r.VMs[0].Status == "good"
	h.firsts[s.vm] = h.firsts[s.vm] || s.first
	switch s.kind {
	case "restore", "recreate":
		if t != nil && (s.mode == "offline" || s.kind == "recreate") {
			t.resets, t.sure = append(t.resets, s.file), nil
			if good && code == 0 {
				t.sure = s.file
			}
		}
		if t == nil { // it was absent when the round began
			h.back[s.vm] = s.file
			return
		}
		if s.kind == "recreate" {
			t.allowed = []contents{s.file.disks}
			if !good {
				t.allowed = append(t.allowed, nil) // it may be absent
			}
			return
		}
		var now []contents
		for _, c := range t.allowed {
			if !good || c == nil {
				now = append(now, c)
			}
			if c != nil {
				now = append(now, c.with(s.file.disks))
			}
			if c != nil && s.first && !good {
				now = append(now, c.less(s.file.disks)...)
			}
		}
		t.allowed, t.seen = once(now), once(append(t.seen, t.allowed...))
	case "new":
		h.adds[s.name] = s.file
		if good {
			h.adds["good "+s.name] = s.file
		}
	case "damaged":
		if good || code == 0 || code == 4 {
			h.violation("a file with a wrong bit was restored: %s", strings.Join(s.args, " "))
		}
	}
}

// spoken holds the exit code, the RESULT line and the session's file of a command that came to its end against each other.
func (h *history) spoken(p *process, s step, out string) (*report, error) {
	var word, session string
	var said, good, all int
	line := lastLine(out)
	if n, _ := fmt.Sscanf(line, "RESULT %s code=%d good=%d/%d session=%s", &word, &said, &good, &all, &session); n != 5 {
		h.violation("%s: the last line is no RESULT line: %q", filepath.Base(p.log), line)
		return nil, nil
	}
	code := said
	if exit := p.code(); s.night == nil && exit != said && (!s.brought || exit != dpExit(said)) {
		h.violation("%s: exit code %d, RESULT says %d", filepath.Base(p.log), exit, said)
	}
	if want := wordOf(code); word != want {
		h.violation("%s: RESULT says %s for code %d", filepath.Base(p.log), word, code)
	}
	if (code == 0 || code == 4) && (good != all || all == 0 && !s.brought) {
		h.violation("%s: code %d with %d of %d VMs good", filepath.Base(p.log), code, good, all)
	}
	var r *report
	if session != "-" {
		var err error
		if r, err = h.show(h.site.config, session); err != nil {
			return nil, err
		}
	}
	if s.night != nil {
		h.afterDP(p, s, r, word, said, good)
	}
	if r == nil || s.kind == "post" { // which tells of a session, and may itself not have done its work
		return r, nil
	}
	g, n := r.good()
	if r.State != "done" || r.Code != code || g != good || n != all || r.Result != line {
		h.violation("%s: session %s is %s with code %d, %d/%d good and %q", filepath.Base(p.log), session, r.State, r.Code, g, n, r.Result)
	}
	return r, nil
}

// show reads a session's report by the command line.
func (h *history) show(config, id string) (*report, error) {
	out, code, err := h.site.runAs(launch{config: config}, time.Minute, "show", "--json", id)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if bad := json.Unmarshal([]byte(jsonPart(out)), r); bad != nil || code != 0 {
		h.violation("dpxen show %s ended with %d and said %.300q (%v)", id, code, out, bad)
		r = nil
	}
	return r, nil
}

// jsonPart is the output without what was complained before it.
func jsonPart(out string) string {
	if i := strings.IndexAny(out, "[{"); i >= 0 {
		return out[i:]
	}
	return out
}

func lastLine(out string) string {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	return lines[len(lines)-1]
}

func containsAny(text string, pieces ...string) bool {
	return slices.ContainsFunc(pieces, func(p string) bool { return strings.Contains(text, p) })
}

func wordOf(code int) string {
	switch code {
	case 0:
		return "OK"
	case 4:
		return "WARN"
	case 3:
		return "PARTIAL"
	case 130:
		return "CANCELLED"
	case 2, 6, 10, 11, 12:
		return "REFUSED"
	}
	return "FAILED"
}

// powerTrue holds that a session that ends in any other way than with code 20 left its VMs in their power states.
func (h *history) powerTrue(r *report, s step, code int) error {
	if code == 20 || s.kind == "recreate" || h.rivals {
		return nil
	}
	st, err := h.site.dump()
	if err != nil {
		return err
	}
	for _, vm := range r.VMs {
		was, is := h.before.vm(vm.UUID), st.vm(vm.UUID)
		if was != nil && is != nil && !h.powerWanted(was, is.PowerState) && vm.Status != "skipped" {
			h.violation("session %s ended with %d, but VM %s is %s and was %s", r.ID, code, vm.UUID, is.PowerState, was.PowerState)
		}
	}
	return nil
}
