package agent

import (
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// A VM that is off for a backup, and whose start its user has blocked meanwhile: a dry run says what the sweep will come to.
func TestSweepOfBlockedStart(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	vm, x := b.vm(running, 0), b.client()
	a := b.agent(nil)
	c := b.deadWork(x, vm.UUID, "0123456789abcdef", time.Minute)
	b.must(nil, c.note(t.Context(), stepPower, powerNote{Before: running}))
	b.must(nil, x.HardShutdown(t.Context(), xapi.Ref(vm.Ref)))
	b.must(nil, x.AddBlockedOperation(t.Context(), xapi.Ref(vm.Ref), "start", "ask the owner"))
	for _, dry := range []bool{true, false} {
		actions, err := a.agent.sweeper.sweep(t.Context(), sweepOptions{DryRun: dry, DeadSessions: []string{"session-dead"}})
		if err != nil || len(actions) != 1 || actions[0].Action != rpc.ActionStartVM || actions[0].Err == nil || !actions[0].PowerNotRestored {
			t.Errorf("dry %v: %+v, %v", dry, actions, err)
		}
	}
	b.must(nil, x.RemoveBlockedOperation(t.Context(), xapi.Ref(vm.Ref), "start"))
	if _, err := a.agent.sweeper.sweep(t.Context(), sweepOptions{DeadSessions: []string{"session-dead"}}); err != nil {
		t.Error(err)
	}
	b.wantClean()
}
