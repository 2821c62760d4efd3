package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
)

// told are the events of a session with two VMs of one name.
func told() []controller.Event {
	begin := time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)
	one := &controller.VMRef{UUID: testUUID(1), Name: "twin\x1b[0m", Pool: "prod"}
	two := &controller.VMRef{UUID: "10000000-0000-4000-8000-000000000002", Name: "twin\x1b[0m", Pool: "prod"}
	plan := &controller.Plan{Runnable: 2, Bytes: 3 << 30, Room: controller.Room{Free: 5 << 30, Folder: "/staging"}, VMs: []controller.PlannedVM{
		{UUID: one.UUID, Name: one.Name, Pool: "prod", Chosen: true}, {UUID: two.UUID, Name: two.Name, Pool: "prod", Chosen: true},
		{UUID: testUUID(3), Name: "other", Pool: "prod"}}}
	counts := &controller.Counts{Selected: 2, Running: 1, Good: 1}
	at := func(seconds int, e controller.Event) controller.Event {
		e.V, e.Session, e.Time = 1, "S1", begin.Add(time.Duration(seconds)*time.Second)
		return e
	}
	return []controller.Event{
		at(0, controller.Event{Type: controller.EventSessionStart, Action: controller.ActionBackup, Mode: controller.AllOnline}),
		at(1, controller.Event{Type: controller.EventPlan, Plan: plan}),
		at(2, controller.Event{Type: controller.EventVMStart, VM: one, Agent: "xs1", TotalEst: 2 << 30}),
		at(2, controller.Event{Type: controller.EventVMPhase, VM: one, Phase: "snapshot"}),
		at(3, controller.Event{Type: controller.EventVMPhase, VM: one, Phase: "export", Message: "waits for\nthe host"}),
		at(4, controller.Event{Type: controller.EventVMProgress, VM: one, Bytes: 1 << 20, TotalEst: 2 << 30}),
		at(5, controller.Event{Type: controller.EventVMStart, VM: two, TotalEst: 1 << 30}),
		at(31, controller.Event{Type: controller.EventVMProgress, VM: one, Bytes: 500 << 20, TotalEst: 2 << 30}),
		at(32, controller.Event{Type: controller.EventVMProgress, VM: one, Bytes: 1 << 30, TotalEst: 2 << 30, ETASeconds: 90}),
		at(40, controller.Event{Type: controller.EventVMProgress, VM: two, Bytes: 70 << 20}),
		at(61, controller.Event{Type: controller.EventVMProgress, VM: one, Bytes: 3 << 29, TotalEst: 2 << 30}),
		at(62, controller.Event{Type: controller.EventVMProgress, VM: one, Bytes: 3 << 30, TotalEst: 2 << 30}),
		at(63, controller.Event{Type: controller.EventError, VM: two, Message: "connection 1 broke"}),
		at(64, controller.Event{Type: controller.EventWarning, VM: two, Message: "slow"}),
		at(65, controller.Event{Type: controller.EventNote, Message: "all is well"}),
		at(66, controller.Event{Type: controller.EventVMEnd, VM: one, Result: &controller.VMResult{Status: controller.StatusGood, Bytes: 2 << 30, Seconds: 64, File: "one.xva"}}),
		at(126, controller.Event{Type: controller.EventHeartbeat, Counts: counts, Bytes: 3 << 30}),
		at(127, controller.Event{Type: controller.EventVMEnd, VM: two, Result: &controller.VMResult{Status: controller.StatusFailed, Error: "EXPORT\x07"}}),
		at(128, controller.Event{Type: controller.EventSummary, Report: &controller.Report{ID: "S1"}}),
	}
}

func TestResultOfNewVM(t *testing.T) {
	r := &controller.VMResult{UUID: testUUID(1), Status: controller.StatusGood, Bytes: 2 << 30, Seconds: 64, File: "one.xva", NewUUID: testUUID(1)}
	want := "good, 2.0 GiB in 1m4s: one.xva"
	if got := result(r); got != want {
		t.Errorf("made anew: got %q, want %q", got, want)
	}
	r.NewUUID = testUUID(2)
	want = "good, 2.0 GiB in 1m4s, as new VM " + testUUID(2) + ": one.xva"
	if got := result(r); got != want {
		t.Errorf("made as new: got %q, want %q", got, want)
	}
}

func TestPlainLines(t *testing.T) {
	var b bytes.Buffer
	w := (&app{out: &b}).watcher()
	for _, e := range told() {
		w.Observe(e)
	}
	w.close()
	want := `session S1: backup allOnline
plan: 2 of 3 VMs, about 3.0 GiB at most; 5.0 GiB free in /staging
[prod/twin\x1b[0m (00000000)] begun by agent xs1, about 2.0 GiB
[prod/twin\x1b[0m (00000000)] snapshot
[prod/twin\x1b[0m (00000000)] export: waits for; the host
[prod/twin\x1b[0m (10000000)] begun by agent -, about 1.0 GiB
[prod/twin\x1b[0m (00000000)] 50%, 1.0 GiB of about 2.0 GiB, 34 MiB/s, 1m30s left
[prod/twin\x1b[0m (10000000)] 70 MiB, 2.0 MiB/s
[prod/twin\x1b[0m (00000000)] 100%, 3.0 GiB of about 2.0 GiB, 68 MiB/s
[prod/twin\x1b[0m (10000000)] trying again: connection 1 broke
[prod/twin\x1b[0m (10000000)] warning: slow
note: all is well
[prod/twin\x1b[0m (00000000)] good, 2.0 GiB in 1m4s: one.xva
still at work: 1 running, 1 good, 0 failed of 2, 3.0 GiB moved
[prod/twin\x1b[0m (10000000)] failed: EXPORT\a
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if w.summary.Report == nil || w.summary.Report.ID != "S1" {
		t.Error("the summary was not kept")
	}
}

func TestJSONLines(t *testing.T) {
	var b bytes.Buffer
	w := (&app{out: &b, json: true}).watcher()
	events := told()
	for _, e := range events {
		w.Observe(e)
	}
	w.close()
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(events)-1 { // the summary comes when all else is said
		t.Fatalf("%d lines for %d events", len(lines), len(events))
	}
	for i, line := range lines {
		var e controller.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Type != events[i].Type {
			t.Errorf("line %d: %s (%v)", i, line, err)
		}
	}
}

// TestBars holds that bars come and go, that lines stand above them, and that nothing of a name reaches the terminal raw.
func TestBars(t *testing.T) {
	var b bytes.Buffer
	w := (&app{out: &b, terminal: true}).watcher()
	for _, e := range told() {
		w.Observe(e)
	}
	if len(w.bars.vms) != 0 || w.bars.est != 3<<30 {
		t.Errorf("%d bars left, %d bytes expected", len(w.bars.vms), w.bars.est)
	}
	w.close()
	w.lines.line("after")
	got := b.String()
	for _, want := range []string{"session S1: backup allOnline\n", "] good, 2.0 GiB in 1m4s: one.xva\n", `twin\x1b[0m (10000000)] failed: EXPORT\a` + "\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in the output:\n%q", want, got)
		}
	}
	if strings.Contains(got, "twin\x1b") || strings.Contains(got, "\a") || strings.Contains(got, "still at work") || !strings.HasSuffix(got, "after\n") {
		t.Errorf("output:\n%q", got)
	}
}

// TestBarsOfARestore holds that without a plan the sum is that of the VMs begun, and a session that ends early leaves no bar.
func TestBarsOfARestore(t *testing.T) {
	var b bytes.Buffer
	w := (&app{out: &b, terminal: true}).watcher()
	for _, e := range told()[2:8] {
		w.Observe(e)
	}
	if len(w.bars.vms) != 2 || w.bars.est != 3<<30 || w.bars.total.Current() != 500<<20 {
		t.Errorf("%d bars, %d of %d bytes", len(w.bars.vms), w.bars.total.Current(), w.bars.est)
	}
	w.close()
}
