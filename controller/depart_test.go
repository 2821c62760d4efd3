package controller

import (
	"context"
	"testing"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// The agent of a later attempt finds a VM that is off because of an earlier one: it knows of no other state.
func TestDepartAfterEarlierAttempt(t *testing.T) {
	off := departure{ending: ending{Known: true, Before: "Halted", After: "Halted", PowerRestored: true}}
	on := departure{ending: ending{Known: true, Before: "Halted", After: PowerRunning, PowerRestored: true}}
	first := Intent{Key: "1", Nonce: "n", VMUUID: testUUID(1), PoolUUID: testUUID(poolA), Agent: "xs1", PowerBefore: PowerRunning, StopsVM: true}
	other := first
	other.VMUUID = testUUID(2)
	halted := first
	halted.PowerBefore, halted.StopsVM = "Halted", false
	for name, tt := range map[string]struct {
		earlier     Intent
		left        departure
		notRestored bool
	}{
		"it ran before the first":   {first, off, true},
		"it was started at last":    {first, on, false},
		"it was off from the start": {halted, off, false},
		"another VM's attempt":      {other, off, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			last := tt.earlier
			last.Key, last.VMUUID = "2", testUUID(1)
			s := mustSession(t, c, Report{Action: ActionRestore, VMs: []VMResult{{UUID: testUUID(1), PoolUUID: testUUID(poolA)}},
				Intents: []Intent{tt.earlier, last}})
			r := &runner{c: c, s: s}
			r.depart(0, &agentConn{name: "xs1"}, last, tt.left)
			vm := s.snapshot().VMs[0]
			if vm.PowerNotRestored != tt.notRestored || vm.PowerAfter != tt.left.After {
				t.Errorf("got not restored %t, %s after %s", vm.PowerNotRestored, vm.PowerAfter, vm.PowerBefore)
			}
			if _, err := s.finish(c.o.Now(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// finderAgent says what it found left.
type finderAgent struct {
	toldAgent
	found []*agentv1.SweepAction
	asked []*agentv1.Intent
}

func (a *finderAgent) Sweep(_ context.Context, req *agentv1.SweepRequest) (*agentv1.SweepResponse, error) {
	a.asked = append(a.asked, req.GetIntents()...)
	return &agentv1.SweepResponse{Actions: a.found}, nil
}

// XAPI's database fell back between two attempts, and the last one did not hear of what the first had done.
func TestDepartAfterForgottenAttempt(t *testing.T) {
	disk := Intent{Key: "1", Nonce: "n", VMUUID: testUUID(1), PoolUUID: testUUID(poolA), Agent: "xs1", Disks: []string{testUUID(7)}}
	off := disk
	off.Disks, off.StopsVM, off.PowerBefore = nil, true, PowerRunning
	action := func(name string, s *agentv1.SweepAction) []*agentv1.SweepAction {
		s.VmUuid, s.Action = testUUID(1), name
		return []*agentv1.SweepAction{s}
	}
	for name, tt := range map[string]struct {
		first Intent
		last  []string // disks that the last attempt knows
		after string
		found []*agentv1.SweepAction
		asks  bool
		left  int
		isOff bool
	}{
		"its disk is deleted":      {disk, nil, PowerRunning, action("delete", &agentv1.SweepAction{Done: true}), true, 0, false},
		"nothing of it there":      {disk, nil, PowerRunning, nil, true, 0, false},
		"it has to wait":           {disk, nil, PowerRunning, action("delete", &agentv1.SweepAction{Waiting: "later"}), true, 1, false},
		"its disk was known":       {disk, disk.Disks, PowerRunning, nil, false, 0, false},
		"the VM was off from then": {off, nil, "Halted", action(rpc.ActionStartVM, &agentv1.SweepAction{Done: true}), true, 0, false},
		"and cannot be started":    {off, nil, "Halted", action(rpc.ActionStartVM, &agentv1.SweepAction{Error: "no memory"}), true, 1, true},
		"and the agent lets it be": {off, nil, "Halted", nil, true, 1, true},
		"it was started since":     {off, nil, PowerRunning, nil, false, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			agent := &finderAgent{found: tt.found}
			c := mustController(t, p.config(AgentConfig{Name: "xs1", Address: p.serve("xs1", agent, certs.PeerPolicy{})}), Options{})
			last := tt.first
			last.Key, last.Disks, last.StopsVM, last.PowerBefore = "2", tt.last, false, tt.after
			s := mustSession(t, c, Report{Action: ActionBackup, VMs: []VMResult{{UUID: testUUID(1), PoolUUID: testUUID(poolA)}},
				Intents: []Intent{tt.first, last}})
			r := &runner{c: c, s: s}
			r.depart(0, c.agent("xs1"), last, departure{ending: ending{Known: true, Before: tt.after, After: tt.after, PowerRestored: true}})
			rep := s.snapshot()
			if got := len(rep.Unfinished()); got != tt.left || len(rep.VMs[0].Warnings) != tt.left || rep.VMs[0].PowerNotRestored != tt.isOff {
				t.Errorf("%d intents are open, want %d; %+v", got, tt.left, rep.VMs[0])
			}
			if (len(agent.asked) > 0) != tt.asks {
				t.Errorf("the agent was asked about %d attempts", len(agent.asked))
			}
			if _, err := s.finish(c.o.Now(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// An agent that was started anew in mid-transfer, and cannot look at the VM, does not know that it has switched it off before.
func TestDepartOfAgentThatSawNothing(t *testing.T) {
	intent := Intent{Key: "1", Nonce: "n", VMUUID: testUUID(1), PoolUUID: testUUID(poolA), Agent: "xs1", PowerBefore: PowerRunning, StopsVM: true}
	online := intent
	online.StopsVM = false
	for name, tt := range map[string]struct {
		intent      Intent
		before      bool
		after       string
		notRestored bool
	}{
		"it may be off":     {intent, true, PowerUnknown, true},
		"it was looked at":  {intent, true, PowerRunning, false},
		"nothing was begun": {intent, false, PowerUnknown, false},
		"online":            {online, true, PowerUnknown, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			s := mustSession(t, c, Report{Action: ActionBackup, VMs: []VMResult{{UUID: testUUID(1), PoolUUID: testUUID(poolA)}}, Intents: []Intent{tt.intent}})
			left := departure{ending: ending{Known: true, After: tt.after, PowerRestored: true}}
			left.unseen(tt.intent, tt.before)
			r := &runner{c: c, s: s}
			r.depart(0, &agentConn{name: "xs1"}, tt.intent, left)
			if vm := s.snapshot().VMs[0]; vm.PowerNotRestored != tt.notRestored || s.snapshot().Intents[0].Done == tt.notRestored {
				t.Errorf("got not restored %t, done %t", vm.PowerNotRestored, s.snapshot().Intents[0].Done)
			}
			if _, err := s.finish(c.o.Now(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a restore that deletes first has left off is started by the next attempt, which finds it so.
func TestRetryStartsWhatRan(t *testing.T) {
	for name, tt := range map[string]struct {
		before string
		tries  int
		first  bool
		start  bool
	}{
		"first attempt": {PowerRunning, 1, true, false},
		"second":        {PowerRunning, 2, true, true},
		"it was off":    {"Halted", 2, true, false},
		"the old disks": {PowerRunning, 2, false, false},
	} {
		c := stateOnly(t)
		v := &vmRestore{restore: &restore{runner: runner{c: c}, req: RestoreRequest{DeleteFirst: tt.first}}, item: &target{}, before: tt.before, tries: tt.tries}
		if got := v.spec().Start; got != tt.start {
			t.Errorf("%s: start is %t", name, got)
		}
	}
}

// A VM that may lack the disks that were deleted first is not started on the controller's word.
func TestIntentMessage(t *testing.T) {
	running := agentv1.PowerState_POWER_STATE_RUNNING
	for name, tt := range map[string]struct {
		intent Intent
		want   agentv1.PowerState
	}{
		"stops the VM":     {Intent{PowerBefore: PowerRunning, StopsVM: true}, running},
		"does not stop it": {Intent{PowerBefore: PowerRunning}, 0},
		"deletes first":    {Intent{PowerBefore: PowerRunning, StopsVM: true, DeletesFirst: true}, 0},
	} {
		if got := tt.intent.message().GetPowerBefore(); got != tt.want {
			t.Errorf("%s: power before is %s", name, got)
		}
	}
}

// A VM that does not exist was deleted by its user; an agent that was given another pool in mid-session cannot tell.
func TestConfirmOfVMThatIsNotThere(t *testing.T) {
	p := newPKI(t)
	for name, pool := range map[string]int{"deleted": poolA, "another pool": poolB} {
		t.Run(name, func(t *testing.T) {
			agent := &toldAgent{host: toldHost("xs1"), check: toldPool(pool, 11, 11)}
			c := mustController(t, p.config(AgentConfig{Name: "xs1", Address: p.serve("xs1", agent, certs.PeerPolicy{})}), Options{})
			r := &runner{c: c}
			end, err := r.confirm(t.Context(), c.agent("xs1"), Intent{Key: "1", Nonce: "n", VMUUID: testUUID(7), PoolUUID: testUUID(poolA),
				Agent: "xs1", PowerBefore: PowerRunning, StopsVM: true})
			if other := pool == poolB; is[*foreignPool](err) != other || end.PowerRestored == other {
				t.Errorf("got %+v, %v", end, err)
			}
		})
	}
}
