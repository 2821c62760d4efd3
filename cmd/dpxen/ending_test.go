package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
)

// TestEnding holds the end of a session that went wrong in every way: what is bad comes first.
func TestEnding(t *testing.T) {
	begin := time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)
	r := &controller.Report{ID: "S1", Action: controller.ActionRestore, Mode: controller.Offline, State: controller.StateDone, Code: 20,
		Started: begin, Ended: begin.Add(90 * time.Second), Folder: "/restore", Notes: []string{"b.xva: older"},
		Skipped: []controller.SkippedFile{{File: "b.xva", Reason: "older"}, {File: "c.xva", Reason: "of the other kind"}},
		Error:   "agent xs2: not reachable\nagent xs3: no",
		Agents:  []controller.AgentStatus{{Name: "xs1", OK: true}, {Name: "xs2", Address: "h:1", Error: "not reachable", Advice: "see its log"}},
		Intents: []controller.Intent{{Key: "1"}, {Key: "2"}, {Key: "3", Done: true}},
		VMs: []controller.VMResult{
			{UUID: testUUID(1), Name: "good", Status: controller.StatusGood, Bytes: 90 << 20, PowerBefore: controller.PowerRunning, PowerAfter: controller.PowerUnknown},
			{UUID: testUUID(2), Name: "skip", Status: controller.StatusSkipped, Notes: []string{"--exclude skip", "again"}},
			{UUID: testUUID(3), Name: "stop", Status: controller.StatusCancelled, Reason: controller.ReasonCancelled},
			{UUID: testUUID(4), Name: "off", Pool: "p", Status: controller.StatusFailed, Reason: "IMPORT_FAILED", Error: "no\x1broom", Agent: "xs1",
				Advice: "use --sr", Retries: 2, PowerBefore: controller.PowerRunning, PowerAfter: controller.PowerHalted, PowerNotRestored: true,
				Warnings: []string{"first", "second"}},
			{UUID: testUUID(5), Name: "refused", Status: controller.StatusRefused, Error: "it is paused\nand more"},
			{UUID: testUUID(6), Name: "lost", Status: controller.StatusGood, PowerBefore: controller.PowerRunning, PowerAfter: controller.PowerUnknown, PowerNotRestored: true},
		}}
	var b bytes.Buffer
	printer{w: &b, ascii: true}.ending(r, remarksShown)
	want := `
SESSION S1  restore offline  FAILED (code 20)
 selected 5 | good 2 | failed 1 | refused 1 | cancelled 1 | skipped 1 | warnings 2 | power: 1 VM NOT as before, of 2 VMs not known
 90 MiB in 1m30s (1.0 MiB/s) | retries 2 | folder /restore
ERROR   agent xs2: not reachable
ERROR   agent xs3: no
AGENT   xs2 at h:1: not reachable
        do: see its log
POWER   p/off was Running and is Halted: run dpxen repair, or set it right by hand
POWER   lost was Running, and how it is now is not known: look at it, then run dpxen repair
FAILED  p/off  IMPORT_FAILED no\x1broom (agent xs1)
        do: use --sr
REFUSED refused  it is paused; and more
CANCELLED stop  not begun, or given up
SKIPPED skip  --exclude skip; again
WARN    p/off  first
WARN    p/off  second
NOTE    b.xva: older
NOTE    2 files of the folder not restored: dpxen show --json S1 lists them
AGAIN   dpxen rerun --failed S1  runs it again for the 3 VMs that did not become good
REPAIR  2 unfinished pieces of work may be left on hosts: run dpxen repair
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("ending (-want +got):\n%s", diff)
	}
	b.Reset()
	printer{w: &b}.some("NOTE", []string{"a", "b", "c", "d"}, 2, "S1")
	if b.String() != "NOTE a\nNOTE b\nNOTE and 2 more: dpxen show S1\n" {
		t.Errorf("a long list: %s", b.String())
	}
	for want, died := range map[string]*controller.Report{
		"RUNNING (no code yet)":                           {State: controller.StateRunning},
		"INTERRUPTED (no code yet: dpxen repair ends it)": {State: controller.StateInterrupted, Code: 3},
		"INTERRUPTED (code 0)":                            {State: controller.StateInterrupted, Result: "RESULT OK code=0"},
		"REFUSED (code 2)":                                {State: controller.StateDone, Code: 2, Result: "RESULT REFUSED code=2"},
	} {
		if got := verdict(died); got != want {
			t.Errorf("verdict: got %q, want %q", got, want)
		}
	}
	r.VMs = r.VMs[:1]
	if got := numbers(r); got[len(got)-1] != "power: of 1 VM not known" {
		t.Errorf("numbers: %v", got)
	}
}

// Names that are one VM's alone are shown as they are; XAPI sets them no limit, lines do.
func TestLabels(t *testing.T) {
	l := labels{}
	long := strings.Repeat("é", 5000)
	for i, name := range []string{"one", "two", "two", long} {
		l.add("p", name, testUUID(i))
	}
	for i, want := range []string{"p/one", "p/two (" + testUUID(1)[:8] + ")"} {
		if got := l.label("p", []string{"one", "two"}[i], testUUID(i)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, want := l.label("p", long, testUUID(3)), "p/"+strings.Repeat("é", nameShown-2)+"... ("+testUUID(3)[:8]+")"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
