package agent

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
)

// deadWork is a claim of an agent that has died; it stands for ttl.
func (b *bench) deadWork(x *xapi.Client, vm, nonce string, ttl time.Duration) *claim {
	b.t.Helper()
	timing := fastTiming()
	timing.Claim = ttl
	c, err := newJournal(x, "gone", timing).claim(b.t.Context(), vm, owner{Session: "session-dead", Key: "key-00000", Nonce: nonce})
	b.must(nil, err)
	return c
}

// A restore is cancelled while XAPI is slow to destroy a VBD: what XAPI does in the end is seen by the cleanup, which puts
// the former disk back.
func TestCancelledWhileVBDIsDestroyed(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(halted, 0)
	archive := b.backUp(vm.UUID, online())
	a := b.agent(nil)
	b.inject(xensim.Fault{Name: "call-slow", Method: "VBD.destroy", Times: 1, Delay: 500 * time.Second})
	p := newPusher(t, a, vm.UUID, archive, online().GetKind())
	go func() {
		for a.agent.ctx.Err() == nil {
			if j, ok := a.agent.jobs.Lookup(p.opening.GetKey()); ok {
				if now, _ := j.progress(); now.Phase == phaseSwapping {
					time.Sleep(50 * time.Millisecond) // until the call is under way
					j.release()
					return
				}
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_ = p.push(t.Context()) // how it ends is in the outcome
	if out := a.awaitDone(t, p.opening.GetKey()); out.Succeeded || len(out.Leftovers) > 0 {
		t.Errorf("outcome: got %+v", out)
	}
	time.Sleep(600 * time.Millisecond) // XAPI is through with the call by now, whoever waits for it
	b.wantClean()
	wantSame(t, "VMs", b.before.VMs, b.dump().VMs)
}

// An agent has died at the exchange of disks, and XAPI comes to its last call, the destruction of a VBD, only after all is
// repaired: the VM keeps its disk.
func TestLateVBDDestroy(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	vm := b.vm(halted, 0)
	rec, err := x.VMByUUID(ctx, vm.UUID)
	b.must(nil, err)
	var old xapi.VBD
	for _, ref := range rec.VBDs {
		vbd, err := x.VBD(ctx, ref)
		b.must(nil, err)
		if vbd.Type == "Disk" {
			old = vbd
		}
	}
	c := b.deadWork(x, vm.UUID, nonce, time.Minute)
	b.must(nil, c.note(ctx, stepRestore, restoreNote{}))
	b.must(nil, c.note(ctx, stepSwap, swapNote{Blocked: prior(rec), Steps: []swapStep{{Device: old.UserDevice,
		Old: vm.Disks[0].VDI.UUID, New: "00000000-0000-0000-0000-000000000000", Mode: old.Mode, Bootable: old.Bootable, Unpluggable: old.Unpluggable}}}))
	sw := &swapper{xapi: x, vm: rec.Ref, session: "session-dead"}
	b.must(nil, sw.block(ctx))

	a := b.agent(nil)
	_, err = a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{"session-dead"}})
	b.must(nil, err)
	b.wantClean()
	if err := x.DestroyVBD(ctx, old.Ref); !errors.Is(err, xapi.ErrNotFound) {
		t.Errorf("the late call: got %v, want that there is no such VBD any more", err)
	}
	wantSame(t, "VMs", b.before.VMs, b.dump().VMs)
}

// XAPI takes a dead agent's snapshot, or blocks an operation as it asked for, only after the first sweep: the journal keeps
// its entries until the claim has run out, and the next sweep sees to it.
func TestLateCallsOfTheDead(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4})
	ctx, x := t.Context(), b.client()
	const first, second = "0123456789abcdef", "fedcba9876543210"
	name := snapshotPrefix + first
	vm, other := b.vm(halted, 0), b.vm(halted, 1)
	const ttl = 8 * time.Second
	c := b.deadWork(x, vm.UUID, first, ttl)
	b.must(nil, c.note(ctx, stepSnapshot, snapshotNote{Name: name}))
	c = b.deadWork(x, other.UUID, second, ttl)
	b.must(nil, c.note(ctx, stepSwap, swapNote{Steps: []swapStep{{Device: "0", Old: other.Disks[0].VDI.UUID,
		New: "00000000-0000-0000-0000-000000000000", Mode: "RW", Bootable: true, Unpluggable: true}}}))

	a := b.agent(nil)
	o := sweepOptions{DeadSessions: []string{"session-dead"}}
	for _, dry := range []bool{true, false} {
		o.DryRun = dry
		actions, err := a.agent.sweeper.sweep(ctx, o)
		b.must(nil, err)
		for _, uuid := range []string{vm.UUID, other.UUID} {
			if !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.VM == uuid && s.Waiting != "" }) {
				t.Errorf("dry=%t: got %+v, want that VM %s waits", dry, actions, uuid)
			}
		}
	}
	_, _, err := x.Snapshot(ctx, xapi.Ref(vm.Ref), name, nil)
	b.must(nil, err)
	b.must(nil, x.AddBlockedOperation(ctx, xapi.Ref(other.Ref), "start", (&swapper{session: "session-dead"}).message()))

	for end := time.Now().Add(30 * time.Second); len(b.dump().PoolOtherConfig) > len(b.before.PoolOtherConfig); {
		if time.Now().After(end) {
			t.Fatalf("the journal keeps %v", b.dump().PoolOtherConfig)
		}
		time.Sleep(100 * time.Millisecond)
		_, err := a.agent.sweeper.sweep(ctx, o)
		b.must(nil, err)
	}
	b.wantClean()
	wantSame(t, "VMs", b.before.VMs, b.dump().VMs)
}

// An agent has died between making the task of an import and the import, when another import had brought its carrier: XAPI
// never ends such a task, and an agent whose cleanups have to be quick does not wait for it longer than it may.
func TestTaskOfDeadImport(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	c := b.deadWork(x, b.vm(running, 0).UUID, nonce, time.Minute)
	v, err := x.Call(ctx, "task.create", importLabel(nonce), "")
	b.must(nil, err)
	ref, err := v.Ref()
	b.must(nil, err)
	task, err := x.Task(ctx, ref)
	b.must(nil, err)
	b.must(nil, c.note(ctx, stepImport+"0", importNote{Task: task.UUID}))
	_, err = x.Call(ctx, "task.create", importLabel(nonce), "") // it died before it noted this one
	b.must(nil, err)
	made, err := x.CallAsync(ctx, "clone", "VM.clone", b.ref(b.vm(halted, 0)), xva.CarrierName(nonce))
	b.must(nil, err)
	carrier, err := x.VM(ctx, xapi.Ref(made))
	b.must(nil, err)
	b.must(nil, x.SetIsATemplate(ctx, carrier.Ref, true))
	b.must(nil, x.AddToVMMap(ctx, carrier.Ref, "other_config", xva.CarrierKey, nonce))
	for _, ref := range carrier.VBDs {
		vbd, err := x.VBD(ctx, ref)
		b.must(nil, err)
		if vbd.Type == "Disk" {
			b.must(nil, x.AddToVDIOtherConfig(ctx, vbd.VDI, xva.CarrierKey, nonce))
		}
	}
	a := b.agent(func(cfg *Config) { cfg.Timing.Cleanup, cfg.Timing.XAPI.Cancel = 6*time.Second, 0 })
	actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{"session-dead"}})
	b.must(nil, err)
	for _, action := range actions {
		if !action.Done && action.VM != "" { // the others are about marks
			t.Errorf("not done: %+v", action)
		}
	}
	b.wantClean()
}

// An agent has died between making the task of an export and the export: the task goes, and one of the same kind that is
// another's stays.
func TestTaskOfDeadExport(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	const nonce, other = "0123456789abcdef", "fedcba9876543210"
	c := b.deadWork(x, b.vm(running, 0).UUID, nonce, time.Minute)
	b.must(nil, c.note(ctx, stepPower, powerNote{Before: running}))
	for _, label := range []string{exportLabel(nonce), exportLabel(other)} {
		_, err := x.Call(ctx, "task.create", label, "")
		b.must(nil, err)
	}
	a := b.agent(nil)
	for _, dry := range []bool{true, false} {
		actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{"session-dead"}, DryRun: dry})
		b.must(nil, err)
		if !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Object == exportLabel(nonce) && s.Done == !dry }) {
			t.Errorf("dry=%t: got %+v, want the task dropped", dry, actions)
		}
	}
	if left := b.dump().Tasks; len(left) != 1 || !strings.HasPrefix(left[0], exportLabel(other)) {
		t.Errorf("tasks: got %v", left)
	}
}

// XAPI makes the task of an agent that has died only when the next attempt is exporting already, and that one succeeds: the
// late task goes all the same.
func TestLateTaskOfDeadExport(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 4 << 20})
	ctx, x := t.Context(), b.client()
	a := b.agent(nil)
	vm := b.vm(running, 0)
	p := newPuller(t, a, vm.UUID, online())
	late := sync.OnceValue(func() error {
		_, err := x.Call(ctx, "task.create", exportLabel(p.opening.GetNonce()), "")
		return err
	})
	p.onFrame = late
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	p.wantArchive(vm.Disks)
	wantGood(t, a.release(t, p.opening.GetKey()))
	b.wantClean()
	if left := b.dump().Tasks; len(left) > 0 {
		t.Errorf("tasks: got %v", left)
	}
}

// XAPI makes the task of an agent that has died only when the next attempt is importing already, and that one succeeds: the
// late task goes all the same.
func TestLateTaskOfDeadImport(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	b.scribble(vm)
	a := b.agent(nil)
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	p.breakAt = 1 << 20
	if err := p.push(ctx); !errors.Is(err, errBreak) {
		t.Fatalf("first stream: got %v, want it broken off", err)
	}
	_, err := x.Call(ctx, "task.create", importLabel(p.opening.GetNonce()), "")
	b.must(nil, err)
	p.opening.Attempt = 2
	if err := p.push(ctx); err != nil {
		t.Fatalf("restore: %v", err)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	wantSame(t, "disks", digests(vm), digests(b.vmNow(vm.UUID)))
	b.wantClean()
	if left := b.dump().Tasks; len(left) > 0 {
		t.Errorf("tasks: got %v", left)
	}
}

// An agent has died at the deletion of disks that a restore deletes first, and XAPI comes to its last call only after all is
// repaired: the disk is none of the VM's any more, and the VM is restored again.
func TestLateVDIDestroy(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	b.inject(xensim.Fault{Name: "call-slow", Method: "VDI.destroy", Times: 1, Delay: 2000 * time.Second}) // 2 s here
	cfg := b.config("mortal", 0)
	cfg.Timing.Stop, cfg.Timing.Claim = time.Millisecond, 20*time.Second
	cfg.Timing.Cleanup = time.Nanosecond // a process that dies cleans nothing up
	cfg.Timing.XAPI.Outage, cfg.Timing.XAPI.Cancel = 10*time.Millisecond, 10*time.Millisecond
	mortal := b.start(cfg)
	p := newPusher(t, mortal, vm.UUID, archive, kindOnline)
	p.spec.DeleteFirst = true
	p.opening.Nonce = nonce
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.push(ctx) }() // it ends with its agent
	for len(b.pool.Faults()) > 0 {                      // until the call is under way
		if err := sleep(ctx, time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	mortal.stop()
	<-ended
	if n := len(digests(b.vmNow(vm.UUID))); n != 0 {
		t.Fatalf("the VM has %d disks; the test came too late", n)
	}

	a := b.agent(nil)
	actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{p.opening.GetSessionId()}})
	b.must(nil, err)
	if !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Lost && s.PowerNotRestored }) {
		t.Errorf("repair: got %+v, want it to tell of the disks", actions)
	}
	_, err = x.VDIByUUID(ctx, vm.Disks[0].VDI.UUID)
	t.Logf("after the repair: %v", err)
	b.must(nil, sleep(ctx, 2500*time.Millisecond)) // XAPI is through with it
	if now := b.vmNow(vm.UUID); now.PowerState != halted || len(digests(now)) != 0 || len(now.Blocked) != 0 {
		t.Errorf("after the late call: got %+v", now)
	}
	again := newPusher(t, a, vm.UUID, archive, kindOnline)
	again.spec.Start = true
	if err := again.push(ctx); err != nil {
		t.Fatal(err)
	}
	wantGood(t, a.release(t, again.opening.GetKey()))
	wantSame(t, "disks", digests(vm), digests(b.vmNow(vm.UUID)))
	b.wantClean()
}

// The task of an import is made, and its answer is lost: no host has heard of that task, and its end, which would never come,
// is not waited for.
func TestLostTaskOfImport(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	a := b.agent(func(cfg *Config) { cfg.Timing.XAPI.Cancel = time.Minute })
	b.inject(xensim.Fault{Name: "answer-lost", Method: "task.create", Times: 1})
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	began := time.Now()
	if err := p.push(t.Context()); err == nil {
		t.Error("the restore succeeded without its task")
	}
	out := a.awaitDone(t, p.opening.GetKey())
	if out.Succeeded || len(out.Leftovers) > 0 || len(out.Warnings) > 0 || time.Since(began) > 30*time.Second {
		t.Errorf("outcome after %s: %+v", time.Since(began), out)
	}
	b.wantClean()
	wantSame(t, "VMs", b.before.VMs, b.dump().VMs)
}

// An agent has died when it lifted the blocks of an exchange, and XAPI comes to its last call only after the repair has given
// the VM its user's own block back: that stands in the end.
func TestLateUnblock(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	ctx, x := t.Context(), b.client()
	const own = "my user says no"
	vm := b.vm(halted, 0)
	rec, err := x.VMByUUID(ctx, vm.UUID)
	b.must(nil, err)
	b.must(nil, x.AddBlockedOperation(ctx, rec.Ref, "copy", own))
	rec, err = x.VM(ctx, rec.Ref)
	b.must(nil, err)
	c := b.deadWork(x, vm.UUID, "0123456789abcdef", 5*time.Second)
	b.must(nil, c.note(ctx, stepRestore, restoreNote{}))
	b.must(nil, c.note(ctx, stepSwap, swapNote{Blocked: prior(rec)}))
	sw := &swapper{xapi: x, vm: rec.Ref, session: "session-dead"}
	b.must(nil, sw.block(ctx))
	b.must(nil, c.note(ctx, stepSwapped, nil))

	a := b.agent(nil)
	repair := func() (waits bool) {
		t.Helper()
		actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{"session-dead"}})
		b.must(nil, err)
		return slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Waiting != "" && s.Again > 0 })
	}
	repair()
	if now := b.vmNow(vm.UUID).Blocked; len(now) != 1 || now["copy"] != own {
		t.Fatalf("after the repair: got %v", now)
	}
	b.must(nil, x.RemoveBlockedOperation(ctx, rec.Ref, "copy")) // the dead agent's
	for end := time.Now().Add(100 * time.Second); repair(); b.must(nil, sleep(ctx, 50*time.Millisecond)) {
		if time.Now().After(end) {
			t.Fatal("it waits for ever")
		}
	}
	if now := b.vmNow(vm.UUID).Blocked; len(now) != 1 || now["copy"] != own {
		t.Errorf("after the late call: got %v", now)
	}
}

// An agent has made a VM as new and dies before it can say so. An attempt of the same restore at another agent learns of it and
// makes no second one; a repair tells of it.
func TestMadeAndNotTold(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{true, false} {
		b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
		ctx := t.Context()
		vm := b.vm(halted, 0)
		archive := b.backUp(vm.UUID, online())
		b.inject(xensim.Fault{Name: "call-slow", Method: "Async.VM.start", Times: 1, Delay: 3000 * time.Second}) // 3 s here
		cfg := b.config("mortal", 0)
		cfg.Timing.Stop, cfg.Timing.Claim = time.Millisecond, 5*time.Second
		cfg.Timing.XAPI.Outage, cfg.Timing.XAPI.Cancel = 10*time.Millisecond, 10*time.Millisecond
		mortal := b.start(cfg)
		pusher := func(a *runningAgent) *pusher {
			p := newPusher(t, a, vm.UUID, archive, kindOnline)
			p.spec.AsNew, p.spec.NewName, p.spec.Start = true, "another", true
			p.opening.Nonce, p.opening.SessionId = "0123456789abcdef", "session-dead"
			return p
		}
		begin := func() chan error {
			p, ended := pusher(mortal), make(chan error, 1)
			go func() { ended <- p.push(ctx) }() // it ends with its agent
			return ended
		}
		ended := begin()
		for len(b.pool.Faults()) > 0 { // until the VM is being started
			select {
			case err := <-ended: // the agent is quick to give XAPI up
				t.Logf("begun anew: %v", err)
				ended = begin()
			default:
				b.must(nil, sleep(ctx, time.Millisecond))
			}
		}
		mortal.stop()
		<-ended

		a := b.agent(nil)
		for end := time.Now().Add(60 * time.Second); ; b.must(nil, sleep(ctx, 100*time.Millisecond)) {
			var told bool
			if again {
				err := pusher(a).push(ctx)
				told = err != nil && strings.Contains(err.Error(), "not made a second time")
			} else {
				actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DeadSessions: []string{"session-dead"}})
				b.must(nil, err)
				told = slices.ContainsFunc(actions, func(s sweepAction) bool {
					return strings.HasPrefix(s.Action, "keep the VM") && strings.HasPrefix(s.Object, "another ")
				})
			}
			if told {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("again %v: nothing tells of the VM that was made", again)
			}
		}
		made := 0
		for _, v := range b.dump().VMs {
			if v.Name == "another" {
				made++
			}
		}
		if made != 1 {
			t.Errorf("again %v: %d VMs were made", again, made)
		}
	}
}

// The sweep cleans up after an agent that died when it had made a VM as new, and keeps what names the VM, however long its
// controller takes to come back; one that says that it has heard of the VM is told nothing, and nothing is kept.
func TestMadeIsRememberedForTheNextAttempt(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	const nonce = "0123456789abcdef"
	vm := b.vm(halted, 0)
	archive := b.backUp(vm.UUID, online())
	c := b.deadWork(x, nonce, nonce, 50*time.Millisecond)
	b.must(nil, c.note(ctx, stepRestore, restoreNote{Goal: goalAsNew}))
	b.must(nil, c.note(ctx, stepMade, madeNote{UUID: vm.UUID})) // any VM without the mark will do
	b.must(nil, sleep(ctx, 100*time.Millisecond))
	a := b.agent(func(cfg *Config) { cfg.Timing.Claim = 500 * time.Millisecond })
	left := func(step string) bool { return b.dump().PoolOtherConfig[keyPrefix+nonce+":"+step] != "" }
	for end := time.Now().Add(60 * time.Second); left(stepRestore); b.must(nil, sleep(ctx, 100*time.Millisecond)) {
		if time.Now().After(end) {
			t.Fatal("the work is not cleaned up")
		}
		_, err := a.agent.sweeper.sweep(ctx, sweepOptions{})
		b.must(nil, err)
	}
	b.must(nil, sleep(ctx, 1200*time.Millisecond)) // the claim of the sweep has run out, twice
	actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{})
	b.must(nil, err)
	if !left(stepMade) || !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Action == rpc.ActionTellMade && s.Again > time.Hour }) {
		t.Errorf("sweep: %+v", actions)
	}
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	p.spec.AsNew, p.opening.Nonce = true, nonce
	if err := p.push(ctx); err == nil || !strings.Contains(err.Error(), "not made a second time") {
		t.Errorf("the next attempt: %v", err)
	}
	for _, dry := range []bool{true, false} {
		actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DryRun: dry, HeardSessions: []string{"session-dead"}})
		b.must(nil, err)
		if slices.ContainsFunc(actions, func(s sweepAction) bool {
			return s.Action == rpc.ActionTellMade || strings.HasPrefix(s.Action, "keep the VM")
		}) {
			t.Errorf("dry %v: %+v", dry, actions)
		}
	}
	wantSame(t, "journal", b.before.PoolOtherConfig, withoutMarks(b.dump().PoolOtherConfig))
}
