package agent

import (
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// Somebody starts a second agent with the first one's name and certificate, or an agent stood still until its claim was out: the
// work under way is taken for that of a dead agent and undone. The backup fails by what was undone, which the next attempt may
// do better, so its reason is the lost claim.
func TestBackupUndoneByOthers(t *testing.T) {
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Claim = time.Minute // its renewal is far away
	a, vm := b.start(cfg), b.vm(running, 0)
	b.inject(xensim.Fault{Name: "call-slow", Method: "task.create", Times: 1, Delay: 3000 * time.Second})
	p := newPuller(t, a, vm.UUID, online())
	pulled := make(chan error, 1)
	go func() { pulled <- p.pull() }()
	for end := time.Now().Add(20 * time.Second); len(b.dump().Snapshots) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no snapshot was taken")
		}
	}
	x := b.client()
	other := newJournal(x, "xs2", cfg.Timing)
	l, err := other.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	taken, err := other.takeOver(t.Context(), vm.UUID, l.claims(vm.UUID)[0].Record.Nonce, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, snap := range b.dump().Snapshots {
		for _, d := range snap.Disks {
			if vdi, err := x.VDIByUUID(t.Context(), d.VDI.UUID); err == nil {
				b.must(nil, x.DestroyVDI(t.Context(), vdi.Ref))
			}
		}
		b.must(nil, x.DestroyVM(t.Context(), xapi.Ref(snap.Ref)))
	}
	b.must(nil, taken.release(t.Context()))
	if err = <-pulled; rpc.ReasonOf(err) != rpc.Claimed {
		t.Errorf("backup: got %v (%s), want reason %q", err, rpc.ReasonOf(err), rpc.Claimed)
	}
	if out := a.release(t, p.opening.GetKey()); out.GetSucceeded() || out.GetReason() != string(rpc.Claimed) || !out.GetPowerRestored() {
		t.Errorf("outcome: got %v", out)
	}
	again := newPuller(t, a, vm.UUID, online())
	if err := again.pull(); err != nil {
		t.Errorf("the next attempt: %v", err)
	}
	wantGood(t, a.release(t, again.opening.GetKey()))
	b.wantCleanButTasks() // the sweep that undid it would have looked for the task until the claim's term was out
}

// Two agents of one name leave each other's work alone, once both run.
func TestTwins(t *testing.T) {
	b := newBench(t, xensim.Config{VMs: 2})
	cfg := b.config("xs1", 0)
	cfg.Timing.Sweep = time.Hour // when it is told to
	a, vm, x := b.start(cfg), b.vm(halted, 0), b.client()
	time.Sleep(1100 * time.Millisecond) // the master's clock tells seconds
	timing := fastTiming()
	timing.Claim = time.Minute
	twin, err := newJournal(x, "xs1", timing).claim(t.Context(), vm.UUID, owner{Session: "session-twin", Key: "key-00000", Nonce: "0123456789abcdef"})
	b.must(nil, err)
	b.must(nil, twin.note(t.Context(), stepPower, powerNote{Before: halted}))
	actions, err := a.agent.sweeper.sweep(t.Context(), sweepOptions{AtStart: true})
	if err != nil || len(actions) != 1 || actions[0].Waiting == "" {
		t.Errorf("sweep: %+v, %v", actions, err)
	}
	if _, err := twin.check(t.Context()); err != nil {
		t.Errorf("the twin's claim: %v", err)
	}
	b.must(nil, twin.release(t.Context()))
	// What the agent has had in hand itself stays its own, whoever began it.
	c, err := a.agent.journal.claim(t.Context(), vm.UUID, owner{Session: "session-own", Key: "key-00001", Nonce: "fedcba9876543210"})
	b.must(nil, err)
	b.must(nil, c.note(t.Context(), stepPower, powerNote{Before: halted}))
	c.abandon()
	if actions, err := a.agent.sweeper.sweep(t.Context(), sweepOptions{AtStart: true}); err != nil || len(actions) == 0 || !actions[len(actions)-1].Done {
		t.Errorf("sweep of its own: %+v, %v", actions, err)
	}
	b.wantClean()
}
