package agent

import (
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// An attempt ends right after it has taken up what another left whose agent died: it undoes that, though it has done nothing
// itself, before the journal forgets it.
func TestAttemptThatEndsAtOnceUndoesTheOneBefore(t *testing.T) {
	for name, tc := range map[string]struct{ offline, read bool }{
		"snapshot":            {},
		"snapshot, read":      {read: true},
		"shut down":           {offline: true},
		"shut down, and read": {offline: true, read: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
			ctx, work := t.Context(), someWork("a")
			vm := b.vm(running, 0)
			old, err := New(b.config("xs1", 0), nil)
			b.must(nil, err)
			c, err := old.journal.claim(ctx, vm.UUID, work)
			b.must(nil, err)
			record, err := old.xapi.VMByUUID(ctx, vm.UUID)
			b.must(nil, err)
			if tc.offline {
				b.must(nil, c.note(ctx, stepPower, notePower(record, running, time.Minute)))
				b.must(nil, old.xapi.HardShutdown(ctx, record.Ref))
			} else {
				note := snapshotNote{Name: snapshotPrefix + work.Nonce}
				b.must(nil, c.note(ctx, stepSnapshot, note))
				_, _, err := old.xapi.Snapshot(ctx, record.Ref, note.Name, nil)
				b.must(nil, err)
			}

			next, err := New(b.config("xs1", 0), nil)
			b.must(nil, err)
			o := opening{VM: vm.UUID, Session: work.Session, Key: "key-of-next", Nonce: work.Nonce}
			bk := newBackup(next, o, backupSpec{Offline: tc.offline})
			j := newJob(next, o, "backup", bk)
			if tc.read {
				b.must(nil, bk.prepare(j.ctx, j))
			} else { // as far as prepare comes when its second look at the VM fails
				bk.vm, err = bk.readVM(ctx, vm.UUID)
				b.must(nil, err)
				bk.before = bk.vm.PowerState
				bk.claim, err = j.claimVM(ctx)
				b.must(nil, err)
			}
			out := bk.cleanup(ctx, j, errReleased)
			if len(out.Leftovers) > 0 || !out.PowerRestored || tc.offline && (out.Before != running || out.After != running) {
				t.Errorf("outcome %+v", out)
			}
			b.wantClean()
		})
	}
}
