package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// briefly is an offline backup for which the VM is down only while its snapshot is taken.
func briefly() *agentv1.BackupSpec {
	return &agentv1.BackupSpec{Kind: agentv1.BackupKind_BACKUP_KIND_OFFLINE, FromSnapshot: true}
}

// settle gives a VM settings that a snapshot loses.
func (b *bench) settle(uuid string) {
	b.t.Helper()
	x := b.client()
	vm, err := x.VMByUUID(b.t.Context(), uuid)
	b.must(nil, err)
	for field, v := range map[string]any{"order": int64(3), "start_delay": int64(7), "shutdown_delay": int64(9)} {
		b.must(nil, x.SetVMField(b.t.Context(), vm.Ref, field, v))
	}
	b.must(nil, x.AddToVMMap(b.t.Context(), vm.Ref, "other_config", "folder", "/a<b>&c"))
}

// settings are those of a VM that an offline backup brings back.
func (b *bench) settings(uuid string) map[string]any {
	b.t.Helper()
	vm, err := b.client().VMByUUID(b.t.Context(), uuid)
	b.must(nil, err)
	out := map[string]any{}
	for _, field := range []string{"name_label", "name_description", "order", "start_delay", "shutdown_delay", "tags", "platform",
		"memory_static_max", "VCPUs_max", "is_a_template", "is_a_snapshot"} {
		out[field] = fmt.Sprint(vm.Fields[field])
	}
	return out
}

// TestOfflineSnapshot holds that the VM runs again while its snapshot is exported, and that the file restores the VM itself:
// in place, absent and as a new one.
func TestOfflineSnapshot(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, ProductVersion: "8.2.1"})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	b.settle(vm.UUID)
	want := b.settings(vm.UUID)
	b.before = b.dump()
	p := newPuller(t, a, vm.UUID, briefly())
	during := ""
	p.onFrame = func() error {
		if during == "" {
			during = b.vmNow(vm.UUID).PowerState
		}
		return nil
	}
	if err := p.pull(); err != nil {
		t.Fatalf("backup: %v", err)
	}
	if during != running {
		t.Errorf("during the export the VM is %s", during)
	}
	p.wantArchive(vm.Disks)
	var own map[string]any
	if err := json.Unmarshal(p.facts.GetOwnRecord(), &own); err != nil {
		t.Fatal(err)
	}
	if !p.facts.GetFromSnapshot() || p.facts.GetSnapshotUuid() == "" || own["name_label"] != vm.Name || own["order"] != "3" || own["uuid"] != vm.UUID {
		t.Errorf("facts: from_snapshot %v, record %v", p.facts.GetFromSnapshot(), own)
	}
	if !slices.Contains(p.phases, agentv1.Phase_PHASE_STOPPING) || !slices.Contains(p.phases, agentv1.Phase_PHASE_STARTING) {
		t.Errorf("phases: %v", p.phases)
	}
	out := a.release(t, p.opening.GetKey())
	wantGood(t, out)
	if d := out.GetDowntime().AsDuration(); d <= 0 || d > time.Minute {
		t.Errorf("the VM was down for %s", d)
	}
	b.wantClean()
	good := digests(b.vmNow(vm.UUID))

	restore := func(uuid string, change func(*agentv1.RestoreSpec)) *agentv1.RestoreResult {
		t.Helper()
		back := newPusher(t, a, uuid, p.data.Bytes(), agentv1.BackupKind_BACKUP_KIND_OFFLINE)
		back.spec.OwnRecord, back.spec.VmName, back.spec.Settings = p.facts.GetOwnRecord(), vm.Name, p.facts.GetVm().GetSettings()
		change(back.spec)
		if err := back.push(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantGood(t, a.release(t, back.opening.GetKey()))
		if len(back.result.GetNotRestored()) > 0 {
			t.Errorf("not restored: %q", back.result.GetNotRestored())
		}
		if diff := cmp.Diff(good, digests(b.vmNow(back.result.GetVmUuid()))); diff != "" {
			t.Errorf("disks (-backed up +restored):\n%s", diff)
		}
		return back.result
	}
	x := b.client()
	rec, err := x.VMByUUID(t.Context(), vm.UUID)
	b.must(nil, err)
	b.must(nil, x.SetVMField(t.Context(), rec.Ref, "order", int64(0)))
	b.must(nil, x.SetVMField(t.Context(), rec.Ref, "name_label", "renamed"))
	b.scribble(b.vmNow(vm.UUID))
	if res := restore(vm.UUID, func(*agentv1.RestoreSpec) {}); !res.GetInPlace() || res.GetPowerState() != agentv1.PowerState_POWER_STATE_RUNNING {
		t.Errorf("in place: %v", res)
	}
	if diff := cmp.Diff(want, b.settings(vm.UUID)); diff != "" {
		t.Errorf("settings in place (-backed up +restored):\n%s", diff)
	}
	if res := restore(vm.UUID, func(s *agentv1.RestoreSpec) { s.AsNew, s.NewName = true, "copy" }); res.GetVmName() != "copy" || res.GetVmUuid() == vm.UUID {
		t.Errorf("as new: %v", res)
	} else if got := b.settings(res.GetVmUuid()); got["order"] != "3" {
		t.Errorf("settings as new: %v", got)
	}
	b.must(nil, x.HardShutdown(t.Context(), rec.Ref))
	b.deleteVM(x, b.vmNow(vm.UUID))
	if res := restore(vm.UUID, func(*agentv1.RestoreSpec) {}); res.GetVmUuid() != vm.UUID || res.GetVmName() != vm.Name {
		t.Errorf("absent: %v", res)
	}
	if diff := cmp.Diff(want, b.settings(vm.UUID)); diff != "" {
		t.Errorf("settings of the VM made anew (-backed up +restored):\n%s", diff)
	}
}

// TestOfflineSnapshotOfHalted holds that a VM that is off is exported itself: there is no downtime to be saved.
func TestOfflineSnapshotOfHalted(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2})
	a := b.agent(nil)
	vm := b.vm(halted, 0)
	p := newPuller(t, a, vm.UUID, briefly())
	if err := p.pull(); err != nil {
		t.Fatal(err)
	}
	out := a.release(t, p.opening.GetKey())
	wantGood(t, out)
	if p.facts.GetFromSnapshot() || len(p.facts.GetOwnRecord()) > 0 || out.GetDowntime() != nil {
		t.Errorf("facts %v, downtime %v", p.facts, out.GetDowntime())
	}
	b.wantClean()
}

// TestOfflineSnapshotMatrix lets trouble come at every changing call of such a backup: afterwards, repaired by another agent
// or the same, the VM runs, nothing of ours is left, and a second repair finds nothing to do. The agent dies at every call;
// of other trouble `make test` takes a sample.
func TestOfflineSnapshotMatrix(t *testing.T) {
	for i, what := range troubles {
		if what.rolled > 0 {
			continue // the journal's own tests have that
		}
		t.Run(what.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
			vm := b.vm(running, 0)
			for n := 1; ; n++ {
				if n > matrixCalls {
					t.Fatal("it makes calls for ever")
				}
				if *matrixStep > 1 && !what.dies && (n+i)%5 > 0 {
					continue
				}
				if fell := brieflyWith(t, b, vm.UUID, n, what); fell == "" {
					if n < 10 {
						t.Errorf("there were %d changing calls alone", n-1)
					}
					return
				}
			}
		})
	}
}

// brieflyWith backs the VM up with trouble at the n-th changing call, repairs, and returns that call's name.
func brieflyWith(t *testing.T, b *bench, uuid string, n int, what trouble) string {
	cfg := b.config("mortal", 0)
	cfg.Timing.Claim, cfg.Timing.Shutdown = 300*time.Millisecond, 5*time.Second
	direct := cfg.XAPI.URL
	cross, address := newCrossing(b, direct, n, what)
	cfg.XAPI.URL = address
	if what.dies {
		cfg.Timing.Stop = time.Millisecond
		cfg.Timing.XAPI.Outage, cfg.Timing.XAPI.Cancel = 10*time.Millisecond, 10*time.Millisecond
	}
	a := b.start(cfg)
	p := newPuller(t, a, uuid, briefly())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	over := make(chan error, 1)
	go func() { over <- p.pull() }()
	select {
	case err := <-over:
		if j, ok := a.agent.jobs.Lookup(p.opening.GetKey()); ok {
			if err == nil {
				j.release()
			}
			select {
			case <-j.done:
			case <-cross.dead:
			case <-time.After(time.Minute):
				t.Fatal("the backup never ends")
			}
		}
	case <-cross.dead:
	case <-ctx.Done():
	}
	b.pool.Clear("")
	fell := cross.fell()
	a.stop()
	cfg = b.config([]string{"mortal", "other"}[n%2], 0)
	cfg.Timing.Claim, cfg.Timing.XAPI.Cancel = 300*time.Millisecond, 300*time.Millisecond
	a = b.start(cfg)
	defer a.stop()
	repaired := sweepOptions{AtStart: true, DeadSessions: []string{p.opening.GetSessionId()},
		Intents: []sweepIntent{{VM: uuid, Nonce: p.opening.GetNonce(), Session: p.opening.GetSessionId(), Before: running}}}
	awaitSwept(t, a, repaired)
	if again, err := a.agent.sweeper.sweep(t.Context(), sweepOptions{AtStart: true, DeadSessions: repaired.DeadSessions}); err != nil || len(again) > 0 {
		t.Errorf("%s at call %d (%s): repaired again: %+v, %v", what.name, n, fell, again, err)
	}
	if state := b.vmNow(uuid).PowerState; state != running {
		t.Errorf("%s at call %d (%s): the VM is %s", what.name, n, fell, state)
	}
	b.wantClean()
	if t.Failed() {
		t.Fatalf("%s at call %d, %s", what.name, n, fell)
	}
	return fell
}

// awaitSwept repairs until nothing waits.
func awaitSwept(t *testing.T, a *runningAgent, o sweepOptions) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		did, err := a.agent.sweeper.sweep(t.Context(), o)
		if err != nil && !slices.Contains([]error{context.Canceled}, err) && time.Now().After(deadline) {
			t.Fatalf("repair: %v", err)
		}
		if err == nil && !slices.ContainsFunc(did, func(s sweepAction) bool { return s.Waiting != "" }) {
			return
		}
		if slices.ContainsFunc(did, func(s sweepAction) bool { return s.Lost }) {
			o.Intents = nil
		}
		if time.Now().After(deadline) {
			t.Fatalf("it waits for ever: %+v", did)
		}
		if err := sleep(t.Context(), 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}
