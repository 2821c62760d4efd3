package controller

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func code(n int) *int { return &n }

func TestSaved(t *testing.T) {
	for _, tt := range []struct {
		dp     DP
		saved  bool
		object bool
		why    string
	}{
		{DP{}, false, false, "neither SMEXIT nor BDACC was given"},
		{DP{SMExit: code(0)}, true, false, "SMEXIT 0 all files were saved"},
		{DP{SMExit: code(10)}, false, false, "SMEXIT 10 some files were not saved"},
		{DP{SMExit: code(99)}, false, false, "SMEXIT 99"},
		{DP{SMExit: code(12), BDACC: code(0)}, false, false, "SMEXIT 12 no agent completed"},
		{DP{BDACC: code(0)}, true, true, "BDACC 0"},
		{DP{Object: true}, false, true, "neither SMEXIT nor BDACC was given"},
		{DP{BDACC: code(1)}, false, true, "BDACC 1"},
	} {
		saved, why := tt.dp.Saved()
		if saved != tt.saved || why != tt.why || tt.dp.ObjectLevel() != tt.object {
			t.Errorf("%+v: got %v %q object=%v", tt.dp, saved, why, tt.dp.ObjectLevel())
		}
	}
}

// TestPostExecCode: Data Protector is not told that a session is good which died, whatever its VMs and warnings.
func TestPostExecCode(t *testing.T) {
	vms := func(all ...Status) (out []VMResult) {
		for _, s := range all {
			out = append(out, VMResult{Status: s})
		}
		return out
	}
	for _, tt := range []struct {
		name string
		r    Report
		want int
	}{
		{"good", Report{State: StateDone, VMs: vms(StatusGood)}, CodeOK},
		{"warnings", Report{State: StateDone, Code: CodeWarnings, VMs: vms(StatusGood), Warnings: []string{"w"}}, CodeOK},
		{"warnings fail", Report{State: StateDone, Code: CodeWarnings, VMs: vms(StatusGood), Warnings: []string{"w"}, DP: &DPRecord{Warnings: WarningsFail}}, CodeWarnings},
		{"some", Report{State: StateDone, Code: CodeSome, VMs: vms(StatusGood, StatusFailed)}, CodeSome},
		{"cancelled", Report{State: StateDone, Code: CodeCancelled, Cancelled: true}, CodeNone},
		{"refused", Report{State: StateDone, Code: CodePreflight}, CodePreflight},
		{"died before its plan", Report{State: StateInterrupted}, CodeNone},
		{"died before its plan, with a warning", Report{State: StateInterrupted, Warnings: []string{"w"}}, CodeNone},
		{"died at its end", Report{State: StateInterrupted, VMs: vms(StatusGood)}, CodeNone},
		{"died at its end, with a warning", Report{State: StateInterrupted, VMs: vms(StatusGood), Warnings: []string{"w"}}, CodeNone},
		{"died in its midst", Report{State: StateInterrupted, VMs: vms(StatusGood, StatusFailed)}, CodeSome},
	} {
		if tt.r.DP == nil {
			tt.r.DP = &DPRecord{}
		}
		if got := dpCode(&tt.r); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestPartialOK(t *testing.T) {
	some := &Report{VMs: []VMResult{{Status: StatusGood}, {Status: StatusFailed}}}
	all := &Report{VMs: []VMResult{{Status: StatusGood}}}
	none := &Report{VMs: []VMResult{{Status: StatusFailed}}}
	for _, tt := range []struct {
		name string
		spec Spec
		r    *Report
		code int
		want bool
	}{
		{"all good", Spec{}, all, CodeOK, true},
		{"warnings", Spec{}, all, CodeWarnings, true},
		{"warnings fail, but a VM is staged", Spec{Warnings: WarningsFail}, all, CodeWarnings, true},
		{"warnings fail and partial fails", Spec{Warnings: WarningsFail, Partial: PartialFail}, all, CodeWarnings, false},
		{"some", Spec{Partial: PartialSave}, some, CodeSome, true},
		{"some, all are wanted", Spec{Partial: PartialFail}, some, CodeSome, false},
		{"a VM is off", Spec{Partial: PartialSave}, some, CodePower, true},
		{"cancelled", Spec{Partial: PartialSave}, some, CodeCancelled, true},
		{"none", Spec{Partial: PartialSave}, none, CodeNone, false},
		{"no session", Spec{}, nil, CodeUsage, false},
		{"no VM there", Spec{}, &Report{}, CodeOK, true},
	} {
		if got := tt.spec.PartialOK(tt.r, tt.code); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}

func TestDPRecordOf(t *testing.T) {
	r := DP{Spec: "A", Session: "2026/11/23-1", SessionKey: "R-1"}.record(Spec{})
	for _, tt := range []struct {
		dp           DP
		match, known bool
	}{
		{DP{Session: "2026/11/23-1"}, true, true},
		{DP{SessionKey: "R-1"}, true, true},
		{DP{Session: "2026/11/23-2"}, false, true},
		{DP{}, false, false},
	} {
		if match, known := r.of(tt.dp); match != tt.match || known != tt.known {
			t.Errorf("%+v: %v, %v", tt.dp, match, known)
		}
	}
	r.join(DP{Session: "2026/11/23-1", SessionKey: "R-2"})
	if diff := cmp.Diff([]string{"2026/11/23-1", "R-1", "R-2"}, r.Sessions); diff != "" {
		t.Error(diff)
	}
}
