package controller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestSettle(t *testing.T) {
	backup := Intent{Nonce: "abc", VMUUID: testUUID(1), PoolUUID: testUUID(poolA), PowerBefore: PowerRunning, StopsVM: true}
	asNew := Intent{Nonce: "abc", VMUUID: testUUID(1), PoolUUID: testUUID(poolA)}
	for name, tt := range map[string]struct {
		intent  Intent
		actions []SweepAction
		now     string
		done    bool
		power   bool // not restored
	}{
		"nothing left":         {backup, nil, PowerRunning, true, false},
		"still off":            {backup, nil, PowerHalted, true, true},
		"done":                 {backup, []SweepAction{{VMUUID: testUUID(1), Action: "start VM", Done: true}}, PowerRunning, true, false},
		"failed":               {backup, []SweepAction{{VMUUID: testUUID(1), Action: "start VM", Error: "no memory", PowerNotRestored: true}}, PowerHalted, false, true},
		"the last word":        {backup, []SweepAction{{VMUUID: testUUID(1), Error: "its disks were deleted first", Done: true, PowerNotRestored: true}}, PowerHalted, true, true},
		"left for later":       {backup, []SweepAction{{VMUUID: testUUID(1), Waiting: "claimed"}}, PowerRunning, false, false},
		"another VM's":         {backup, []SweepAction{{VMUUID: testUUID(2), Waiting: "claimed"}}, PowerRunning, true, false},
		"by nonce":             {asNew, []SweepAction{{Object: "abc", Waiting: "XAPI works on it"}}, PowerHalted, false, false},
		"by name":              {asNew, []SweepAction{{Object: "dpxen carrier abc", Error: "in use"}}, PowerHalted, false, false},
		"an unknown key":       {asNew, []SweepAction{{Object: "dpxen:what", Waiting: "unknown"}}, PowerHalted, true, false},
		"power is not known":   {backup, []SweepAction{{VMUUID: testUUID(1), Error: "x", PowerNotRestored: true}}, "", false, true},
		"switched off by hand": {Intent{Nonce: "n", VMUUID: testUUID(1), PoolUUID: testUUID(poolA), PowerBefore: PowerRunning}, nil, PowerHalted, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Report{VMs: []VMResult{{UUID: testUUID(1), PoolUUID: testUUID(poolA)}}, Intents: []Intent{tt.intent}}
			p := &sweptPool{actions: tt.actions, vms: map[string]VM{testUUID(1): {Power: tt.now}}}
			p.settle(r, &r.Intents[0])
			if r.Intents[0].Done != tt.done || r.VMs[0].PowerNotRestored != tt.power {
				t.Errorf("done %t, power not restored %t", r.Intents[0].Done, r.VMs[0].PowerNotRestored)
			}
		})
	}
}

// TestNotAsBefore: a VM of which nothing is left to repair, but that is off, is told of once, and lets repair end with 20.
func TestNotAsBefore(t *testing.T) {
	in := Intent{VMUUID: testUUID(1), VMName: "web", PoolUUID: testUUID(poolA), PowerBefore: PowerRunning, StopsVM: true}
	for name, tt := range map[string]struct {
		now  string
		told []SweepAction
		want int
	}{
		"as before":    {PowerRunning, nil, 0},
		"off":          {PowerHalted, nil, 1},
		"told already": {PowerHalted, []SweepAction{{VMUUID: testUUID(1), Error: "no memory", Done: true, PowerNotRestored: true}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			of := &Report{ID: "s", Action: ActionRestore, VMs: []VMResult{{UUID: in.VMUUID, PoolUUID: in.PoolUUID}}, Intents: []Intent{in, in}}
			rep := &RepairReport{Actions: tt.told}
			for i := range of.Intents {
				(&sweptPool{vms: map[string]VM{in.VMUUID: {Power: tt.now}}}).settle(of, &of.Intents[i])
				rep.notAsBefore(of, of.Intents[i])
			}
			if len(rep.Actions) != tt.want {
				t.Errorf("told: %+v", rep.Actions)
			}
			rep.Code = repairCode(rep, nil)
			second := &RepairReport{Code: CodeOK}
			second.follow(rep)
			want := map[int]int{0: CodeOK, 1: CodePower}[tt.want]
			if rep.Code != want || second.Code != want || len(second.Actions) != tt.want {
				t.Errorf("code %d and then %d, %+v", rep.Code, second.Code, second.Actions)
			}
		})
	}
}

// TestWaitsOff: a VM that is off while another agent tries to start it lets repair end with 20 too, and no longer than it is off.
func TestWaitsOff(t *testing.T) {
	in := Intent{VMUUID: testUUID(1), VMName: "web", PoolUUID: testUUID(poolA), PowerBefore: PowerRunning, StopsVM: true}
	online := in
	online.StopsVM = false
	for name, tt := range map[string]struct {
		in   Intent
		now  string
		want int
	}{
		"off":                         {in, PowerHalted, CodePower},
		"up":                          {in, PowerRunning, CodeSome},
		"switched off by its user":    {online, PowerHalted, CodeSome},
		"what it is now is not known": {in, "", CodeSome},
	} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			s := mustSession(t, c, Report{Action: ActionRestore, VMs: []VMResult{{UUID: testUUID(1), PoolUUID: testUUID(poolA)}}, Intents: []Intent{tt.in}})
			waits := []SweepAction{{VMUUID: testUUID(1), Action: "clean up", Waiting: "agent xs2 is at work on the VM"}}
			rep := &RepairReport{Actions: waits}
			c.settleRepaired(rep, []*session{s}, map[string]*sweptPool{testUUID(poolA): {actions: waits, vms: map[string]VM{testUUID(1): {Power: tt.now}}}})
			if code := repairCode(rep, nil); code != tt.want {
				t.Errorf("code %d, want %d: %+v", code, tt.want, rep.Actions)
			}
			second := &RepairReport{Code: CodeOK}
			second.follow(rep)
			if second.Code != CodeOK {
				t.Errorf("the next round, which finds it up, ends with %d", second.Code)
			}
		})
	}
}

// busyAgent is at work in its sweep for longer than anybody waits.
type busyAgent struct{ *toldAgent }

func (a *busyAgent) Sweep(ctx context.Context, _ *agentv1.SweepRequest) (*agentv1.SweepResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestStillOff: the pool's only agent tries to start a VM for longer than repair waits, which says that the VM is off.
func TestStillOff(t *testing.T) {
	p := newPKI(t)
	vms := []*agentv1.VM{{Uuid: testUUID(1), Name: "off", PowerState: agentv1.PowerState_POWER_STATE_HALTED},
		{Uuid: testUUID(2), Name: "up", PowerState: agentv1.PowerState_POWER_STATE_RUNNING}}
	busy := &busyAgent{&toldAgent{host: toldHost("xs1"), check: toldPool(poolA, 10, 10), pages: [][]*agentv1.VM{vms}}}
	cfg := p.config(AgentConfig{Name: "xs1", Address: p.serve("xs1", busy, certs.PeerPolicy{})})
	cfg.Timing.ReleaseTimeout = 500 * time.Millisecond
	c := mustController(t, cfg, Options{Version: "test"})
	var intents []Intent
	for i, vm := range vms {
		intents = append(intents, Intent{Key: fmt.Sprint(i), Nonce: fmt.Sprintf("nonce-of-%d", i), VMUUID: vm.GetUuid(), VMName: vm.GetName(), PoolUUID: testUUID(poolA),
			Agent: "xs0", PowerBefore: PowerRunning, StopsVM: true})
	}
	s := mustSession(t, c, Report{Action: ActionBackup, Intents: intents})
	if err := s.lock.Unlock(); err != nil { // it dies
		t.Fatal(err)
	}
	rep, err := c.Repair(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	var off []string
	for _, a := range rep.Actions {
		if a.PowerNotRestored && a.Waiting != "" {
			off = append(off, a.VMName)
		}
	}
	if !slices.Equal(off, []string{"off"}) || rep.Code != CodePower || !strings.Contains(fmt.Sprint(rep.Errors), "still at work") {
		t.Errorf("off %q, code %d, %+v", off, rep.Code, rep)
	}
}

func TestPowerAdvice(t *testing.T) {
	for now, want := range map[string]string{PowerHalted: "start it", PowerPaused: "unpause it", PowerSuspended: "resume it", PowerUnknown: "look whether"} {
		if got := powerAdvice(ActionBackup, now); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q", now, got)
		}
	}
}

// What a session has left in a pool that no agent speaks for is not repaired, whoever else answers.
func TestRepairOfPoolWithoutAgent(t *testing.T) {
	for _, dry := range []bool{true, false} {
		c := stateOnly(t)
		s := mustSession(t, c, Report{Action: ActionBackup, VMs: []VMResult{{UUID: testUUID(1), PoolUUID: testUUID(poolA)}},
			Intents: []Intent{{VMUUID: testUUID(1), VMName: "web", PoolUUID: testUUID(poolA), PowerBefore: PowerRunning, StopsVM: true}}})
		rep := &RepairReport{DryRun: dry}
		c.settleRepaired(rep, []*session{s}, map[string]*sweptPool{testUUID(poolB): {}})
		if code := repairCode(rep, nil); code != CodeSome || len(rep.Errors) != 1 || !strings.Contains(rep.Errors[0], "VM web, is not known") || !strings.Contains(rep.Errors[0], s.id) {
			t.Errorf("dry=%t: code %d, %q", dry, code, rep.Errors)
		}
		if dry {
			if _, err := s.finish(c.o.Now(), nil); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestNotAsBeforeInDryRun: a dry run tells of such a VM as the run does, unless it would be brought back, and notes nothing.
func TestNotAsBeforeInDryRun(t *testing.T) {
	in := Intent{Key: "k", Nonce: "0123456789abcdef", VMUUID: testUUID(1), VMName: "web", PoolUUID: testUUID(poolA), PowerBefore: PowerRunning, StopsVM: true}
	about := SweepAction{VMUUID: in.VMUUID, VMName: in.VMName}
	of := func(action, waiting string) SweepAction {
		a := about
		a.Action, a.Waiting = action, waiting
		return a
	}
	for name, tt := range map[string]struct {
		would []SweepAction
		want  int
	}{
		"nothing left":       {nil, 1},
		"entries left":       {[]SweepAction{of("remove the journal's entries", "")}, 1},
		"would be started":   {[]SweepAction{of("remove the journal's entries", ""), of("start VM", "")}, 0},
		"an agent is at it":  {[]SweepAction{of(endTransfer, "")}, 0},
		"waits for a while":  {[]SweepAction{of("clean up", "somebody's")}, 0},
		"of another machine": {[]SweepAction{{VMUUID: testUUID(2), Action: "start VM"}}, 1},
	} {
		c := stateOnly(t)
		s := mustSession(t, c, Report{Action: ActionRestore, VMs: []VMResult{{UUID: in.VMUUID, PoolUUID: in.PoolUUID}}, Intents: []Intent{in}})
		rep := &RepairReport{DryRun: true, Actions: tt.would}
		c.settleRepaired(rep, []*session{s}, map[string]*sweptPool{in.PoolUUID: {actions: tt.would, vms: map[string]VM{in.VMUUID: {Power: PowerHalted}}}})
		if told := len(rep.Actions) - len(tt.would); told != tt.want {
			t.Errorf("%s: told: %+v", name, rep.Actions)
		}
		if r := s.snapshot(); r.Intents[0].Done || r.VMs[0].PowerNotRestored {
			t.Errorf("%s: the dry run noted %+v", name, r)
		}
	}
}

// TestRepairFindsStaged: what was committed before its session was killed is good.
func TestRepairFindsStaged(t *testing.T) {
	c := stateOnly(t)
	path := stagedBackup{n: 1, name: "web", mode: AllOnline, pool: poolA}.stage(t, c.cfg.Staging)
	stagedBackup{n: 2, name: "db", mode: AllOnline, pool: poolA}.stage(t, c.cfg.Staging)
	pool := testUUID(poolA)
	r := &Report{ID: "s", Action: ActionBackup, State: StateRunning, Folder: c.cfg.Staging, VMs: []VMResult{
		{UUID: testUUID(1), PoolUUID: pool, Status: StatusRunning}, {UUID: testUUID(2), PoolUUID: pool, Status: StatusFailed},
		{UUID: testUUID(3), PoolUUID: pool, Status: StatusRunning}}}
	other := *r
	other.ID, other.VMs = "another", append([]VMResult(nil), r.VMs...)
	r.findStaged()
	if vm := r.VMs[0]; vm.Status != StatusGood || vm.File != base(path) || vm.Bytes == 0 || len(vm.Digest) != 32 || len(vm.Warnings) != 1 {
		t.Errorf("staged: %+v", vm)
	}
	if r.VMs[1].Status != StatusFailed || r.VMs[2].Status != StatusRunning {
		t.Errorf("others: %+v", r.VMs)
	}
	other.findStaged()
	if other.VMs[0].Status != StatusRunning {
		t.Errorf("another session's file: %+v", other.VMs[0])
	}
}

func TestFolderMarker(t *testing.T) {
	c := stateOnly(t)
	c.cfg.Staging = filepath.Join(t.TempDir(), "mount", "staging")
	_, lock, err := c.openStaging("one")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.openStaging("two"); !is[*LockedError](err) || ExitCode(nil, err) != CodeLocked {
		t.Errorf("while it is locked: %v", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	away := c.cfg.Staging + ".away"
	if err := os.Rename(c.cfg.Staging, away); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		_, _, err := c.openStaging("three")
		if !is[*PreflightError](err) || ExitCode(nil, err) != CodePreflight {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := c.planRoom(); !is[*PreflightError](err) {
			t.Errorf("%s, plan: %v", when, err)
		}
	}
	refused("without folder")
	if err := os.Mkdir(c.cfg.Staging, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("with the empty mount point")
	if entries, err := os.ReadDir(c.cfg.Staging); err != nil || len(entries) != 0 {
		t.Errorf("written to the mount point: %v, %v", entries, err)
	}
	remove(t, c.cfg.Staging)
	if err := os.Rename(away, c.cfg.Staging); err != nil {
		t.Fatal(err)
	}
	if _, lock, err = c.openStaging("four"); err != nil {
		t.Fatalf("mounted again: %v", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
}

// TestStateFolderAway: a state folder that seems not to be mounted is told of, once.
func TestStateFolderAway(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline})
	_, lock, err := c.openStaging(s.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(lock.Unlock(), s.unlock()); err != nil {
		t.Fatal(err)
	}
	away := c.cfg.State + ".away"
	if err := os.Rename(c.cfg.State, away); err != nil {
		t.Fatal(err)
	}
	rep, err := c.Repair(t.Context(), true)
	if err != nil || len(rep.Notes) != 1 || !strings.Contains(rep.Notes[0], "mounted") {
		t.Errorf("repair: %+v, %v", rep, err)
	}
	for i, want := range []int{1, 0} {
		s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline})
		r, err := s.finish(c.o.Now(), nil)
		if err != nil || len(r.Warnings) != want {
			t.Errorf("session %d there: %q, %v", i, r.Warnings, err)
		}
	}
}

// TestFinish: what was over before its end was asked for is not cancelled, and a state that cannot be written is told.
func TestFinish(t *testing.T) {
	c := stateOnly(t)
	begin := func() *runner {
		s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, VMs: []VMResult{{UUID: testUUID(1), Status: StatusGood}}})
		return &runner{c: c, s: s}
	}
	if r, err := begin().finish(nil, true); err != nil || r.Code != CodeOK || r.Cancelled {
		t.Errorf("asked too late: %+v, %v", r, err)
	}
	if r, err := begin().finish(errCancelled, true); err != nil || r.Code != CodeCancelled || r.State != StateDone {
		t.Errorf("cancelled: %+v, %v", r, err)
	}
	b := begin()
	if err := os.RemoveAll(c.sessionsDir()); err != nil {
		t.Fatal(err)
	}
	b.result(0, func(vm *VMResult) { vm.Bytes = 1 })
	b.result(0, func(vm *VMResult) { vm.Bytes = 2 })
	r, err := b.finish(nil, false)
	if err == nil || r.Code != ExitCode(r, err) || r.Code == CodeOK || r.Result != ResultLine(r, r.Code) || len(r.Warnings) != 1 {
		t.Errorf("without state folder: %+v, %v", r, err)
	}
	if errors.Is(err, errCancelled) || time.Since(r.Started) < 0 {
		t.Errorf("without state folder: %v", err)
	}
}

// TestSettleTellsOfDisks: of a restore whose session died the report says where the VM is not on its former disks.
func TestSettleTellsOfDisks(t *testing.T) {
	former := []string{testUUID(11), testUUID(12)}
	for name, tt := range map[string]struct {
		status Status
		now    []string
		want   string
	}{
		"as they were":  {StatusRunning, former, ""},
		"and one more":  {StatusRunning, append([]string{testUUID(13)}, former...), ""},
		"exchanged":     {StatusRunning, []string{testUUID(13), testUUID(14)}, "they were exchanged"},
		"one exchanged": {StatusFailed, []string{testUUID(11), testUUID(14)}, "they were exchanged"},
		"deleted first": {StatusFailed, nil, "lacks disks"},
		"good":          {StatusGood, []string{testUUID(13), testUUID(14)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := Intent{VMUUID: testUUID(1), PoolUUID: testUUID(poolA), PowerBefore: PowerRunning, StopsVM: true, Former: former}
			r := &Report{Action: ActionRestore, VMs: []VMResult{{UUID: in.VMUUID, PoolUUID: in.PoolUUID, Status: tt.status}}, Intents: []Intent{in}}
			vm := VM{Power: PowerRunning}
			for _, uuid := range tt.now {
				vm.Disks = append(vm.Disks, Disk{VDI: uuid})
			}
			(&sweptPool{vms: map[string]VM{in.VMUUID: vm}}).settle(r, &r.Intents[0])
			if got := strings.Join(r.VMs[0].Warnings, "; "); (got != "") != (tt.want != "") || !strings.Contains(got, tt.want) {
				t.Errorf("warnings %q, want %q", got, tt.want)
			}
			waits := &Report{Action: ActionRestore, Intents: []Intent{in}}
			(&sweptPool{vms: map[string]VM{in.VMUUID: vm}, actions: []SweepAction{{VMUUID: in.VMUUID, Waiting: "claimed"}}}).settle(waits, &waits.Intents[0])
			if w := waits.VMs[0].Warnings; len(w) > 0 {
				t.Errorf("where something is left to be repaired: %v", w)
			}
			gone := &Report{Action: ActionRestore, Intents: []Intent{in}}
			(&sweptPool{}).settle(gone, &gone.Intents[0])
			if w := gone.VMs[0].Warnings; len(w) > 0 {
				t.Errorf("where nobody could look: %v", w)
			}
		})
	}
}

// TestSettleMadeAsNew: a VM that was made as new, and that its session did not hear of, is in the report by its UUID, and who runs
// the session again is told that there will be two.
func TestSettleMadeAsNew(t *testing.T) {
	c := stateOnly(t)
	c.o.Now = time.Now
	in := Intent{VMUUID: testUUID(1), PoolUUID: testUUID(poolA), Nonce: newNonce(), Action: ActionRestore}
	s := mustSession(t, c, Report{Action: ActionRestore, RestoreRequest: &RestoreRequest{Mode: Online, AsNew: true}, Intents: []Intent{in},
		VMs: []VMResult{{UUID: in.VMUUID, Name: "web", PoolUUID: in.PoolUUID, Status: StatusRunning}}})
	swept := &sweptPool{actions: []SweepAction{{nonce: nonceOf(in.Nonce), Action: rpc.ActionKeepMade, Object: "web copy " + testUUID(7), Done: true}}}
	s.note(func(r *Report) { swept.settle(r, &r.Intents[0]) })
	if err := s.retire(time.Now()); err != nil {
		t.Fatal(err)
	}
	vm := s.snapshot().VMs[0]
	if vm.NewUUID != testUUID(7) || len(vm.Warnings) != 1 || !strings.Contains(vm.Warnings[0], testUUID(7)) {
		t.Errorf("%+v", vm)
	}
	f, err := c.Former(s.id)
	if err != nil {
		t.Fatal(err)
	}
	if w := c.madeBefore(f); len(w) != 1 || !strings.Contains(w[0], testUUID(7)) {
		t.Errorf("run again: %q", w)
	}
}

// TestBare: a VM that was off, and whose disks were deleted first for restored ones that never came, is told of once.
func TestBare(t *testing.T) {
	in := Intent{VMUUID: testUUID(1), PoolUUID: testUUID(poolA), PowerBefore: PowerHalted, Done: true, DeletesFirst: true, Former: []string{testUUID(11)}}
	empty := &sweptPool{vms: map[string]VM{in.VMUUID: {Power: PowerHalted}}}
	for name, tt := range map[string]struct {
		dry  bool
		told []SweepAction
		pool *sweptPool
		want int
	}{
		"no disks":          {false, nil, empty, 1},
		"dry":               {true, nil, empty, 1},
		"a dry run that":    {true, []SweepAction{{VMUUID: in.VMUUID, Action: "put the VM on its former disks"}}, empty, 1},
		"cleaned up, bare":  {false, []SweepAction{{VMUUID: in.VMUUID, Action: "remove the journal's entries", Done: true}}, empty, 2},
		"told already":      {false, []SweepAction{{VMUUID: in.VMUUID, Error: "restore again", Done: true}}, empty, 1},
		"it has its disks":  {false, nil, &sweptPool{vms: map[string]VM{in.VMUUID: {Disks: []Disk{{VDI: testUUID(11)}}}}}, 0},
		"it is not there":   {false, nil, &sweptPool{vms: map[string]VM{}}, 0},
		"nobody could look": {false, nil, &sweptPool{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			rep := &RepairReport{DryRun: tt.dry, Actions: tt.told}
			rep.bare(&Report{ID: "s"}, in, tt.pool)
			if len(rep.Actions) != tt.want {
				t.Errorf("told: %+v", rep.Actions)
			}
		})
	}
}

// What an agent keeps of a VM that was made as new is no news where the session's report names that VM as the one it has restored:
// who reads that it is not known would delete it.
func TestDropKnown(t *testing.T) {
	r := &RepairReport{Actions: []SweepAction{
		{Action: rpc.ActionKeepMade, Object: "neu " + testUUID(3), Done: true},
		{Action: rpc.ActionKeepMade, Object: "neu " + testUUID(4), Done: true},
		{Action: "remove the journal's entries", Object: "abc", Done: true},
	}}
	want := r.Actions[1:]
	r.Actions = slices.Clone(r.Actions)
	r.dropKnown([]*session{
		{report: Report{VMs: []VMResult{{UUID: testUUID(1)}}}},
		{report: Report{VMs: []VMResult{{UUID: testUUID(1)}, {UUID: testUUID(2), NewUUID: testUUID(3)}}}},
	})
	if !slices.Equal(want, r.Actions) {
		t.Errorf("left %+v, want %+v", r.Actions, want)
	}
}
