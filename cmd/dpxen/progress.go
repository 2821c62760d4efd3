package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/dpxen/dpxen/controller"
)

// progressEvery is the time between two lines about the bytes of one VM.
const progressEvery = 30 * time.Second

// watcher tells of a session while it runs: as JSON lines, as plain lines, or as lines above bars. It keeps the summary,
// which is told when all else is.
type watcher struct {
	json    *json.Encoder // or nil
	bars    *bars         // or nil
	lines   printer
	summary controller.Event

	labels labels
	vms    map[string]*moving // by pool and UUID
}

// moving is how far a VM was when a line last told of it.
type moving struct {
	told  time.Time
	bytes int64
}

// watcher makes the watcher that fits the output.
func (a *app) watcher() *watcher {
	w := &watcher{lines: a.log(), labels: labels{}, vms: map[string]*moving{}}
	switch {
	case a.json:
		w.json = json.NewEncoder(a.out)
		w.json.SetEscapeHTML(false)
	case a.terminal:
		w.bars = newBars(a.out)
		w.lines.w = above{bars: w.bars, out: a.out}
	}
	return w
}

// above writes above the bars, and directly once they are gone.
type above struct {
	bars *bars
	out  io.Writer
}

func (w above) Write(b []byte) (int, error) {
	if n, err := w.bars.all.Write(b); err == nil {
		return n, nil
	}
	return w.out.Write(b)
}

// close ends the bars.
func (w *watcher) close() {
	if w.bars != nil {
		w.bars.close()
	}
}

// Observe implements controller.Observer.
func (w *watcher) Observe(e controller.Event) {
	if e.Type == controller.EventSummary {
		w.summary = e
		return
	}
	if w.json != nil {
		_ = w.json.Encode(e) // a reader that went away does not stop the session
		return
	}
	w.learn(e)
	if w.bars != nil {
		w.bars.observe(e, w.name(e.VM))
	}
	w.tell(e)
}

// learn notes the VMs' names, so that two of one name are told apart.
func (w *watcher) learn(e controller.Event) {
	if e.Plan != nil {
		for i := range e.Plan.VMs {
			if vm := &e.Plan.VMs[i]; vm.Chosen {
				w.labels.add(vm.Pool, vm.Name, vm.UUID)
			}
		}
	}
	if e.VM != nil {
		w.labels.add(e.VM.Pool, e.VM.Name, e.VM.UUID)
	}
}

func (w *watcher) name(vm *controller.VMRef) string {
	if vm == nil {
		return ""
	}
	return w.labels.label(vm.Pool, vm.Name, vm.UUID)
}

// tell prints the line of an event, if it has one.
func (w *watcher) tell(e controller.Event) {
	at := ""
	if e.VM != nil {
		at = "[" + w.name(e.VM) + "] "
	}
	switch e.Type {
	case controller.EventSessionStart:
		w.lines.line("session %s: %s %s", e.Session, e.Action, e.Mode)
	case controller.EventPlan:
		if e.Plan != nil {
			w.lines.line("plan: %d of %s, about %s at most; %s free in %s", e.Plan.Runnable, plural(len(e.Plan.VMs), "VM"),
				size(e.Plan.Bytes), size(e.Plan.Room.Free), e.Plan.Room.Folder)
		}
	case controller.EventVMStart:
		w.lines.line("%sbegun by agent %s, about %s", at, orDash(e.Agent), size(e.TotalEst))
		w.moved(e)
	case controller.EventVMPhase:
		if w.bars == nil || e.Message != "" { // else the bar says it
			w.lines.line("%s%s", at, join(e.Phase, oneLine(e.Message)))
		}
	case controller.EventVMProgress:
		if text := w.moved(e); text != "" && w.bars == nil {
			w.lines.line("%s%s", at, text)
		}
	case controller.EventVMEnd:
		if e.Result != nil {
			w.lines.line("%s%s", at, result(e.Result))
		}
	case controller.EventWarning:
		w.lines.line("%swarning: %s", at, oneLine(e.Message))
	case controller.EventNote:
		w.lines.line("%snote: %s", at, oneLine(e.Message))
	case controller.EventError:
		w.lines.line("%strying again: %s", at, oneLine(e.Message))
	case controller.EventHeartbeat:
		if e.Counts != nil && w.bars == nil {
			c := e.Counts
			w.lines.line("still at work: %d running, %d good, %d failed of %d, %s moved", c.Running, c.Good, c.Failed, c.Selected, size(e.Bytes))
		}
	case controller.EventSummary:
	}
}

// moved is the text about a VM's bytes, empty until it is time for the next.
func (w *watcher) moved(e controller.Event) string {
	if e.VM == nil {
		return ""
	}
	key := e.VM.Pool + "/" + e.VM.UUID
	last := w.vms[key]
	if last == nil || e.Type == controller.EventVMStart {
		w.vms[key] = &moving{told: e.Time}
		return ""
	}
	since := e.Time.Sub(last.told)
	if since < progressEvery {
		return ""
	}
	text := size(e.Bytes)
	if e.TotalEst > 0 {
		text = fmt.Sprintf("%d%%, %s of about %s", min(100*e.Bytes/e.TotalEst, 100), text, size(e.TotalEst))
	}
	if more := e.Bytes - last.bytes; more >= 0 {
		text += fmt.Sprintf(", %s/s", size(int64(float64(more)/since.Seconds())))
	}
	if e.ETASeconds > 0 {
		text += ", " + took(time.Duration(e.ETASeconds)*time.Second) + " left"
	}
	last.told, last.bytes = e.Time, e.Bytes
	return text
}

// result is the line at the end of a VM.
func result(r *controller.VMResult) string {
	if r.Status == controller.StatusGood {
		text := fmt.Sprintf("good, %s in %s", size(r.Bytes), seconds(r.Seconds))
		if r.DowntimeSeconds > 0 {
			text += ", down for " + seconds(r.DowntimeSeconds)
		}
		if r.NewUUID != "" && r.NewUUID != r.UUID { // the report may be lost, and the new VM has the name of the old one
			text += ", as new VM " + r.NewUUID
		}
		return join(text, r.File)
	}
	return join(string(r.Status), oneLine(r.Error))
}

func join(what, more string) string {
	switch {
	case more == "":
		return what
	case what == "":
		return more
	}
	return what + ": " + more
}
