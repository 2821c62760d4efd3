package agent

import (
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// New work of a marked nonce begins between a sweep's reading of the journal and its look at what came late: the task of its
// export is its own, and stays.
func TestLateObjectsOfNewWork(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	vm := b.vm(halted, 0)
	b.deadWork(x, vm.UUID, nonce, time.Minute)
	a := b.agent(nil)
	old, err := a.agent.journal.takeOver(ctx, vm.UUID, nonce, true)
	b.must(nil, err)
	b.must(nil, old.release(ctx))
	l, err := a.agent.journal.read(ctx)
	b.must(nil, err)
	if len(l.overs) != 1 {
		t.Fatalf("%d marks", len(l.overs))
	}
	c, err := a.agent.journal.claim(ctx, vm.UUID, owner{Session: "session-dead", Key: "key-00001", Nonce: nonce})
	b.must(nil, err)
	_, err = x.Call(ctx, "task.create", exportLabel(nonce), "")
	b.must(nil, err)
	if actions, again := a.agent.lateObjects(ctx, l.overs[0], time.Now(), false); len(actions) > 0 || again {
		t.Errorf("got %+v, again %v", actions, again)
	}
	if left := b.dump().Tasks; len(left) != 1 {
		t.Errorf("tasks: got %v", left)
	}
	b.must(nil, c.release(ctx))
}
