package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// Users clone what an import has made, a VM that is made anew, or a disk: what they get inherits our marks, and is theirs. It
// outlasts the sweep of the work, and a dry run says nothing of it.
func TestSweepLeavesCopies(t *testing.T) {
	t.Parallel()
	for _, goal := range []restoreGoal{goalAsNew, goalInPlace} {
		b := newBench(t, xensim.Config{VMs: 2})
		ctx, x := t.Context(), b.client()
		const nonce = "0123456789abcdef"
		vm := b.vm(halted, 0)
		call := func(method string, args ...any) xapi.Ref {
			ref, err := x.CallAsync(ctx, "as a user", method, args...)
			b.must(nil, err)
			return xapi.Ref(ref)
		}
		made := call("VM.copy", xapi.Ref(vm.Ref), xva.CarrierName(nonce), xapi.NullRef)
		b.must(nil, x.AddToVMMap(ctx, made, "other_config", xva.CarrierKey, nonce))
		rec, err := x.VM(ctx, made)
		b.must(nil, err)
		var disk xapi.Ref
		for _, ref := range rec.VBDs {
			if vbd, err := x.VBD(ctx, ref); err == nil && vbd.Type == "Disk" {
				disk = vbd.VDI
			}
		}
		b.must(nil, x.AddToVDIOtherConfig(ctx, disk, xva.CarrierKey, nonce))
		call("VDI.add_to_sm_config", disk, importTaskKey, "a task")
		clones := []xapi.Ref{call("VM.clone", made, "a user's clone")}
		loose := call("VDI.clone", disk)
		if goal == goalInPlace {
			b.must(nil, x.SetIsATemplate(ctx, made, true)) // a carrier, as all that such a restore makes
		}
		subject := nonce
		if goal == goalInPlace {
			subject = vm.UUID
		}
		c := b.deadWork(x, subject, nonce, time.Minute)
		b.must(nil, c.note(ctx, stepRestore, restoreNote{Goal: goal}))
		a := b.agent(nil)
		for _, dry := range []bool{true, false} {
			actions, err := a.agent.sweeper.sweep(ctx, sweepOptions{DryRun: dry, DeadSessions: []string{"session-dead"}})
			b.must(nil, err)
			n := 0
			for _, s := range actions {
				if strings.HasPrefix(s.Action, "delete ") {
					n++
				}
			}
			if n != 2 { // its disk and its record
				t.Errorf("goal %d, dry %v: %+v", goal, dry, actions)
			}
		}
		if _, err := x.VM(ctx, made); err == nil {
			t.Errorf("goal %d: what was made is left", goal)
		}
		for _, ref := range clones {
			clone, err := x.VM(ctx, ref)
			if err != nil || len(clone.VBDs) != len(rec.VBDs) {
				t.Errorf("goal %d: the user's clone: %v, %d VBDs", goal, err, len(clone.VBDs))
			}
		}
		if _, err := x.VDI(ctx, loose); err != nil {
			t.Errorf("goal %d: the user's disk: %v", goal, err)
		}
	}
}

// A VM that is made anew, whose disks are of two SRs, cannot be started or copied before it has them all, and can afterwards.
func TestMadeVMWaitsForItsDisks(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	vm := b.vm(halted, 0)
	srs := b.dump().SRs
	other := slices.IndexFunc(srs, func(sr xensim.SRState) bool {
		return sr.UUID != vm.Disks[0].VDI.SR && !strings.Contains(sr.Name, "ISO")
	})
	v, err := x.Call(ctx, "SR.get_by_uuid", srs[other].UUID)
	b.must(nil, err)
	sr, err := v.Ref()
	b.must(nil, err)
	root, err := x.VDIByUUID(ctx, vm.Disks[0].VDI.UUID)
	b.must(nil, err)
	copied, err := x.CallAsync(ctx, "a second disk", "VDI.copy", root.Ref, sr)
	b.must(nil, err)
	b.must(x.CreateVBD(ctx, xapi.VBDSpec{VM: xapi.Ref(vm.Ref), VDI: xapi.Ref(copied), UserDevice: "1", Mode: "RW", Type: "Disk"}))
	archive := b.backUp(vm.UUID, online())
	b.inject(xensim.Fault{Name: "call-slow", Method: "VBD.create", Times: 1, Delay: 1000 * time.Second}) // 1 s here
	a := b.agent(nil)
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	p.spec.AsNew, p.spec.NewName = true, "another"
	done := make(chan error, 1)
	go func() { done <- p.push(ctx) }()
	for len(b.pool.Faults()) > 0 {
		b.must(nil, sleep(ctx, time.Millisecond))
	}
	another := func() (vm xensim.VMState) {
		for _, vm = range b.dump().VMs {
			if vm.Name == "another" {
				return vm
			}
		}
		t.Fatal("there is no VM")
		return vm
	}
	if got := another().Blocked; !strings.Contains(got["start"], "still bringing disks") || got["clone"] == "" {
		t.Errorf("before its disks are there: blocked %v", got)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	if got := another(); len(got.Blocked) > 0 || len(digests(got)) != 2 {
		t.Errorf("afterwards: blocked %v, disks %v", got.Blocked, digests(got))
	}
}

// A restore that keeps the old disks is begun anew after its agent has died past the exchange: what the VM had before the session
// is told of, and not the first attempt's copies alone.
func TestKeptByTheAttemptBefore(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(halted, 0)
	archive := b.backUp(vm.UUID, online())
	a := b.agent(nil)
	for attempt := range 2 {
		p := newPusher(t, a, vm.UUID, archive, kindOnline)
		p.spec.KeepOldDisks, p.opening.SessionId = true, "session-1"
		if err := p.push(t.Context()); err != nil {
			t.Fatal(err)
		}
		out := a.release(t, p.opening.GetKey())
		var kept []string
		for _, d := range p.result.GetKeptDisks() {
			kept = append(kept, d.GetVdiUuid())
		}
		told := slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, "are kept as "+vm.Disks[0].VDI.UUID) })
		if len(kept) != attempt+1 || !slices.Contains(kept, vm.Disks[0].VDI.UUID) || told != (attempt == 1) {
			t.Errorf("attempt %d: kept %v, warnings %v", attempt+1, kept, out.Warnings)
		}
	}
}

// A disk that another VM has too is told of before anything is done: that VM keeps it.
func TestPlanTellsOfSharedDisks(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 4, DiskSize: 1 << 20})
	ctx, x := t.Context(), b.client()
	vm, other := b.vm(halted, 0), b.vm(halted, 1)
	view, err := readPoolView(ctx, x)
	b.must(nil, err)
	disk, err := x.VDIByUUID(ctx, vm.Disks[0].VDI.UUID)
	b.must(nil, err)
	if view.shared(&disk, xapi.Ref(vm.Ref)) || view.shared(nil, xapi.Ref(vm.Ref)) {
		t.Error("the VM's own disk is taken for shared")
	}
	b.must(x.CreateVBD(ctx, xapi.VBDSpec{VM: xapi.Ref(other.Ref), VDI: disk.Ref, UserDevice: "9", Mode: "RW", Type: "Disk"}))
	archive := b.backUp(vm.UUID, online())
	p := newPusher(t, b.agent(nil), vm.UUID, archive, kindOnline)
	if err := p.push(ctx); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(p.result.GetWarnings(), func(w string) bool { return strings.Contains(w, "another VM uses the disk at position 0 too") }) {
		t.Errorf("warnings: %v", p.result.GetWarnings())
	}
}

// A VM was made as new while nobody was there to be told: whoever has the transfer released then hears of it.
func TestMadeWhileTheControllerWasGone(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(halted, 0)
	archive := b.backUp(vm.UUID, online())
	for _, gone := range []bool{true, false} {
		ctx, leave := context.WithCancel(t.Context())
		a := b.agent(nil)
		p := newPusher(t, a, vm.UUID, archive, kindOnline)
		p.spec.AsNew, p.spec.NewName, p.spec.Start = true, "another", true
		if gone {
			b.inject(xensim.Fault{Name: "call-slow", Method: "Async.VM.start", Times: 1, Delay: 1000 * time.Second}) // 1 s here
		}
		ended := make(chan error, 1)
		go func() { ended <- p.push(ctx) }()
		if gone {
			for len(b.pool.Faults()) > 0 {
				b.must(nil, sleep(ctx, time.Millisecond))
			}
			leave()
		}
		if err := <-ended; (err != nil) != gone {
			t.Errorf("gone %t: %v", gone, err)
		}
		for made := false; !made; b.must(nil, sleep(t.Context(), 10*time.Millisecond)) {
			made = slices.ContainsFunc(b.dump().VMs, func(v xensim.VMState) bool { return v.Name == "another" && v.PowerState == running })
		}
		b.must(nil, sleep(t.Context(), 500*time.Millisecond))
		out := a.release(t, p.opening.GetKey())
		told := slices.ContainsFunc(out.Warnings, func(w string) bool { return strings.Contains(w, `made completely, as "another"`) })
		if told != gone || !out.GetSucceeded() {
			t.Errorf("gone %t: %v", gone, out)
		}
		leave()
	}
}

// A restore as new is given up while the VM is started, and the result goes into a stream that nobody listens to any more: who
// released it hears of the VM in the answer.
func TestReleasedBeforeTheResult(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(halted, 0)
	archive := b.backUp(vm.UUID, online())
	a := b.agent(nil)
	for range 4 { // which end of the wait for a release is seen first is chance
		p := newPusher(t, a, vm.UUID, archive, kindOnline)
		p.spec.AsNew, p.spec.NewName, p.spec.Start = true, "another", true
		b.inject(xensim.Fault{Name: "call-slow", Method: "Async.VM.start", Times: 1, Delay: 500 * time.Second}) // 0.5 s here
		ended := make(chan error, 1)
		go func() { ended <- p.push(t.Context()) }()
		for len(b.pool.Faults()) > 0 {
			b.must(nil, sleep(t.Context(), time.Millisecond))
		}
		out := a.release(t, p.opening.GetKey())
		if !strings.Contains(fmt.Sprint(out.GetWarnings()), `made completely, as "another"`) {
			t.Errorf("%+v", out)
		}
		<-ended
		wantSame(t, "journal", b.before.PoolOtherConfig, b.dump().PoolOtherConfig)
	}
}

// A restore as new is cancelled when there is no way back. Where its controller is gone before the agent has cleaned up, the
// journal keeps what was made, for repair to tell of it; else the controller hears of it at once.
func TestCancelledWhenMade(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(halted, 0)
	archive := b.backUp(vm.UUID, online())
	a := b.agent(nil)
	for _, gone := range []bool{true, false} {
		p := newPusher(t, a, vm.UUID, archive, kindOnline)
		p.spec.AsNew, p.spec.NewName, p.opening.SessionId = true, "another", "session-dead"
		b.inject(xensim.Fault{Name: "call-slow", Method: "VM.remove_from_other_config", Times: 1, Delay: 2000 * time.Second}) // 2 s here
		stream, leave := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.push(stream) }()
		for len(b.pool.Faults()) > 0 {
			b.must(nil, sleep(t.Context(), time.Millisecond))
		}
		leave()
		<-ended
		ctx, die := context.WithTimeout(t.Context(), 20*time.Second)
		if gone {
			time.AfterFunc(200*time.Millisecond, die)
		}
		_, err := a.client.ReleaseTransfer(ctx, &agentv1.ReleaseTransferRequest{Key: p.opening.GetKey()})
		if (err != nil) != gone {
			t.Errorf("gone %t: release: %v", gone, err)
		}
		die()
		out := a.awaitDone(t, p.opening.GetKey())
		if !strings.Contains(fmt.Sprint(out.Warnings), `made completely, as "another"`) {
			t.Errorf("gone %t: %+v", gone, out)
		}
		actions, err := a.agent.sweeper.sweep(t.Context(), sweepOptions{DeadSessions: []string{"session-dead"}})
		b.must(nil, err)
		told := slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Done && strings.HasPrefix(s.Object, "another ") })
		if told != gone {
			t.Errorf("gone %t: %+v", gone, actions)
		}
		wantSame(t, "journal", b.before.PoolOtherConfig, b.dump().PoolOtherConfig)
	}
}

// A VM is restored while it is watched after a shutdown that was given up: the restore goes on from the watch. Where it fails, the
// VM is watched on.
func TestRestoreOfWatchedVM(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	b.scribble(vm)
	a := b.agent(func(c *Config) { c.Timing.Late = time.Hour })
	for range 2 {
		var out outcome
		b.untilAsked(vm.UUID, func() {
			p := newPusher(t, a, vm.UUID, archive, kindOnline)
			p.spec.ShutdownTimeout = durationpb.New(100 * time.Millisecond)
			if err := p.push(t.Context()); rpc.ReasonOf(err) != rpc.ShutdownTimeout {
				t.Fatalf("the guest ignores its shutdown: %v", err)
			}
			out = a.awaitDone(t, p.opening.GetKey())
		})
		if !strings.Contains(fmt.Sprint(out.Warnings), "is watched until") {
			t.Errorf("warnings %v", out.Warnings)
		}
		if _, watched := a.agent.watchedUntil(vm.UUID); !watched {
			t.Error("the VM is not watched")
		}
	}
	p := newPusher(t, a, vm.UUID, archive, kindOnline)
	if err := p.push(t.Context()); err != nil {
		t.Fatalf("the restore of a watched VM: %v", err)
	}
	if out := a.release(t, p.opening.GetKey()); !out.GetSucceeded() || !out.GetPowerRestored() || out.GetPowerAfter() != agentv1.PowerState_POWER_STATE_RUNNING {
		t.Errorf("outcome: %v", out)
	}
	wantSame(t, "the disks", digests(vm), digests(b.vmNow(vm.UUID)))
	b.wantUnmarked()
}
