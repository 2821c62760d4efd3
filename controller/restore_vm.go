package controller

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xva"
)

// target is a file that a restore session restores, and where to.
type target struct {
	RestoreItem
	pool  *Pool
	vm    *VM // as it is now; nil when it does not exist
	agent string
	sr    string // UUID, or empty
}

func (t *target) ref() *VMRef { return &VMRef{UUID: t.UUID, Name: t.Name, Pool: t.pool.Name} }

// vmRestore is the restore of one VM in a session.
type vmRestore struct {
	*restore
	item   *target
	nonce  string
	report *xva.Report
	before string    // the VM's power state, when it is there
	sent   int64     // of the producer alone
	told   time.Time // likewise
}

// run restores the VM and leaves its result in the report.
func (v *vmRestore) run(ctx context.Context) {
	began := time.Now()
	v.nonce = newNonce()
	v.emit(Event{Type: EventVMStart, VM: v.item.ref(), Agent: v.item.agent, TotalEst: v.item.entry.Size})
	v.change(func(r *VMResult) { r.Status = StatusRunning })
	err := v.attempts(ctx)
	v.change(func(r *VMResult) {
		r.Seconds = time.Since(began).Seconds()
		if err == nil {
			r.Status = StatusGood
			return
		}
		v.failed(ctx, r, err)
		if r.Reason == ReasonIntegrity {
			r.Advice = "the file is damaged: restore an older one (--at), and let Data Protector restore this one again"
		}
	})
	v.end(v.item.ref(), v.item.pool.UUID)
}

func (v *vmRestore) change(f func(*VMResult)) { v.result(v.item.pool.UUID, v.item.UUID, f) }

// attempts proves the file first: nothing of a damaged one ever goes to a host.
func (v *vmRestore) attempts(ctx context.Context) error {
	v.phase(v.item.ref(), "verifying the file", "")
	verified, report := verifyEntry(ctx, v.item.entry)
	if err := verified.Err(); err != nil {
		return err
	}
	v.report = report
	v.change(func(r *VMResult) { r.Digest = verified.Digest })
	wait := v.c.cfg.Timing.BackoffMin
	for try := 0; ; try++ {
		err := v.once(ctx)
		if err == nil || ctx.Err() != nil || try >= v.c.cfg.Timing.Retries || !restoreAgain(err) {
			return err
		}
		v.emit(Event{Type: EventError, VM: v.item.ref(), Message: fmt.Sprintf("attempt %d failed and is made again: %s", try+1, err)})
		v.change(func(r *VMResult) { r.Retries++ })
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait = min(2*wait, v.c.cfg.Timing.BackoffMax)
	}
}

// restoreAgain tells whether a restore that failed, and was undone, may succeed when it is begun anew.
func restoreAgain(err error) bool {
	switch rpc.ReasonOf(err) {
	case rpc.SessionGone, rpc.Offset, rpc.Chunk, rpc.XAPIUnreachable, rpc.VMBusy, rpc.Busy, rpc.Unreachable, rpc.Superseded, rpc.Claimed:
		return true
	}
	return false
}

// once restores the VM: from the intent to the agent's cleanup.
func (v *vmRestore) once(ctx context.Context) error {
	conn := v.c.agent(v.item.agent)
	open := opening{Key: uuid.NewString(), Nonce: v.nonce, Session: v.s.id, VM: v.item.UUID,
		Lease: v.c.cfg.Timing.Lease, Window: v.c.cfg.Timing.Window, stopsVM: v.item.vm != nil && !v.req.AsNew}
	if v.item.vm != nil && !v.req.AsNew {
		v.before = v.item.vm.Power
	}
	err := v.s.intend(Intent{Key: open.Key, Nonce: open.Nonce, VMUUID: v.item.UUID, VMName: v.item.Name, PoolUUID: v.item.pool.UUID,
		Agent: v.item.agent, Action: ActionRestore, PowerBefore: v.before, Time: v.c.o.Now().UTC()})
	if err != nil {
		return err // nothing was begun
	}
	up := &upload{open: open, spec: v.spec(), ova: v.report.RawOVA, onPlan: v.plan, onStep: v.steps(v.item.ref())}
	redial := transfer.Redial{Lease: open.Lease, MinBackoff: v.c.cfg.Timing.BackoffMin, MaxBackoff: v.c.cfg.Timing.BackoffMax,
		Notify: func(attempt uint32, err error, wait time.Duration) {
			v.emit(Event{Type: EventError, VM: v.item.ref(), Message: fmt.Sprintf("connection %d broke and is made again in %s: %s", attempt, wait.Round(time.Millisecond), err)})
		}}
	err = redial.Run(ctx, func(ctx context.Context, attempt uint32) (bool, error) { return up.attach(ctx, conn, attempt) }, rpc.Retryable)
	up.stop(transfer.ErrAborted)
	if err == nil {
		v.restored(up.result)
	}
	v.phase(v.item.ref(), "cleaning up", "")
	v.releaseVM(ctx, conn, open, *v.item.ref(), v.item.pool.UUID, v.before, err == nil)
	return err
}

// spec says what the agent is to do with the file.
func (v *vmRestore) spec() restoreSpec {
	s := restoreSpec{Kind: v.item.Kind, VMName: v.item.Name, NewName: v.req.NewName, AsNew: v.req.AsNew,
		Recreate: v.req.Recreate, Start: v.req.Start, SR: v.item.sr, Networks: v.req.Networks, KeepOld: v.req.KeepOldDisks,
		DeleteFirst: v.req.DeleteFirst, ForceOff: v.req.ForceOff, DiscardMemory: v.req.DiscardMemory,
		ShutdownLimit: v.c.cfg.Timing.ShutdownLimit}
	if m := v.item.Manifest(); m != nil && m.Snapshot.UUID != "" {
		s.Settings = m.VM.Settings // its ova.xml describes the snapshot, which has lost them
	}
	return s
}

// plan answers the agent's plan: how long every archive will be, and how to write them.
func (v *vmRestore) plan(p restorePlan) ([]int64, func(io.Writer) error, error) {
	var sizes []int64
	for _, part := range p.Parts {
		sizes = append(sizes, xva.RewriteLength(v.report, part.OVA, part.Disks))
	}
	v.change(func(r *VMResult) {
		r.InPlace = p.InPlace
		for _, d := range p.Untouched {
			r.Notes = append(r.Notes, fmt.Sprintf("disk %s %q is not in the file and stays as it is", d.UserDevice, d.Name))
		}
	})
	return sizes, func(w io.Writer) error { return v.produce(p, w) }, nil
}

// produce writes the archives one after the other, checking every block of the file once more as it passes.
func (v *vmRestore) produce(p restorePlan, w io.Writer) error {
	counted := &countingWriter{w: w, count: func(n int64) { v.progress(n) }}
	for _, part := range p.Parts {
		if err := v.producePart(part, counted); err != nil {
			return err
		}
	}
	return nil
}

func (v *vmRestore) producePart(part planPart, w io.Writer) error {
	f, err := v.item.entry.Open()
	if err != nil {
		return fmt.Errorf("open %s: %w", v.item.entry.Base(), err)
	}
	defer f.Close()
	if err := xva.Rewrite(w, f, v.report, part.OVA, part.Disks); err != nil {
		return fmt.Errorf("read %s: %w", v.item.entry.Base(), err)
	}
	return nil
}

// restored puts the agent's result into the report.
func (v *vmRestore) restored(end *restoreEnd) {
	v.change(func(r *VMResult) {
		r.File, r.Bytes, r.InPlace = v.item.entry.Base(), v.item.entry.Size, end.InPlace
		r.PowerAfter = end.Power
		if !end.InPlace {
			r.NewUUID = end.VMUUID
		}
		for _, w := range end.Warnings {
			r.Warnings = appendNew(r.Warnings, w)
		}
		for _, what := range end.NotRestored {
			r.Notes = appendNew(r.Notes, "not restored: "+what)
		}
		for _, d := range end.Kept {
			r.Notes = appendNew(r.Notes, "the replaced disk was kept: "+d.VDI)
		}
	})
}

// progress tells of bytes sent, at most once a second.
func (v *vmRestore) progress(n int64) {
	v.moved(n)
	v.sent += n
	if now := time.Now(); now.Sub(v.told) >= time.Second {
		v.told = now
		v.emit(Event{Type: EventVMProgress, VM: v.item.ref(), Phase: "transfer", Bytes: v.sent, TotalEst: v.item.entry.Size})
	}
}

// countingWriter tells of what passes.
type countingWriter struct {
	w     io.Writer
	count func(int64)
}

// Write passes p on.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.count(int64(n))
	return n, err
}
