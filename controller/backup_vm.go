package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xva"
)

// vmBackup is the backup of one VM in a session.
type vmBackup struct {
	*backup
	vm    *PlannedVM
	nonce string
}

// run backs the VM up, with retries, and leaves its result in the report.
func (v *vmBackup) run(ctx context.Context) {
	began := time.Now()
	v.nonce = newNonce()
	v.emit(Event{Type: EventVMStart, VM: v.vm.Ref(), Agent: v.vm.Agent, TotalEst: v.vm.Bytes})
	v.change(func(r *VMResult) { r.Status = StatusRunning })
	err := v.attempts(ctx)
	v.change(func(r *VMResult) {
		r.Seconds = time.Since(began).Seconds()
		if err == nil {
			r.Status = StatusGood
			return
		}
		v.failed(ctx, r, err)
	})
	v.end(v.vm.Ref(), v.vm.PoolUUID)
}

// failed puts an error into a VM's result.
func (r *runner) failed(ctx context.Context, vm *VMResult, err error) {
	vm.Status, vm.Error, vm.Reason = StatusFailed, err.Error(), string(rpc.ReasonOf(err))
	switch {
	case ctx.Err() != nil:
		vm.Status, vm.Reason, vm.Error = StatusCancelled, ReasonCancelled, "cancelled"
	case xva.IsBad(err), is[*IntegrityError](err), errors.Is(err, staging.ErrMismatch), errors.Is(err, staging.ErrContradiction):
		vm.Reason = ReasonIntegrity
	case errors.Is(err, staging.ErrNoRoom):
		vm.Reason = ReasonNoRoom
	}
	vm.Advice = adviceFor(vm.Reason)
}

// adviceFor says what to do about a failed VM.
func adviceFor(reason string) string {
	switch reason {
	case ReasonNoRoom:
		return "free room in the staging folder and run it again"
	case ReasonSRFull:
		return "free room on the SR, or use an offline mode"
	case ReasonIntegrity:
		return "run it again; if it happens again, suspect the host's storage or network"
	case string(rpc.ShutdownTimeout), string(rpc.LacksFeature):
		return "shut the guest down by hand, use an online mode, or allow --force-off"
	case string(rpc.Unreachable), string(rpc.XAPIUnreachable):
		return "see dpxen hosts; dpxen repair cleans up what is left"
	case string(rpc.Claimed):
		return "wait for the other session, or see dpxen repair"
	case string(rpc.HostAuth), string(rpc.Auth):
		return "see dpxen hosts"
	}
	return ""
}

// attempts tries until the VM is good, hopeless, or the retries are used up. The nonce stays the same, so that a snapshot
// that an agent made before it was started anew is found again.
func (v *vmBackup) attempts(ctx context.Context) error {
	wait := v.c.cfg.Timing.BackoffMin
	for try := 0; ; try++ {
		err := v.once(ctx)
		if err == nil || ctx.Err() != nil || try >= v.c.cfg.Timing.Retries || !worthRetry(err) {
			return err
		}
		v.emit(Event{Type: EventError, VM: v.vm.Ref(), Message: fmt.Sprintf("attempt %d failed and is made again: %s", try+1, err)})
		v.change(func(r *VMResult) { r.Retries++ })
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait = min(2*wait, v.c.cfg.Timing.BackoffMax)
	}
}

// worthRetry tells whether the same VM may succeed when it is begun anew.
func worthRetry(err error) bool {
	if xva.IsBad(err) || errors.Is(err, staging.ErrMismatch) {
		return true
	}
	switch rpc.ReasonOf(err) {
	case rpc.SessionGone, rpc.Offset, rpc.Chunk, rpc.ExportFailed, rpc.XAPIUnreachable, rpc.VMBusy, rpc.Busy, rpc.Unreachable,
		rpc.Archive, rpc.Superseded, rpc.Claimed:
		return true
	}
	return false
}

// once backs the VM up: from the intent to the committed file and the agent's cleanup.
func (v *vmBackup) once(ctx context.Context) error {
	conn := v.c.agent(v.vm.Agent)
	room, err := v.dir.Reserve(v.vm.Bytes)
	if err != nil {
		return fmt.Errorf("reserve %s in the staging folder: %w", size(v.vm.Bytes), err)
	}
	defer room.Release()
	open := opening{Key: uuid.NewString(), Nonce: v.nonce, Session: v.s.id, VM: v.vm.UUID,
		Lease: v.c.cfg.Timing.Lease, Window: v.c.cfg.Timing.Window}
	err = v.s.intend(Intent{Key: open.Key, Nonce: open.Nonce, VMUUID: v.vm.UUID, VMName: v.vm.Name, PoolUUID: v.vm.PoolUUID,
		Agent: v.vm.Agent, Action: ActionBackup, PowerBefore: v.vm.Power, Time: v.c.o.Now().UTC()})
	if err != nil {
		return err // nothing was begun
	}
	f := &incoming{vmBackup: v, room: room, began: v.c.o.Now().UTC(), verifier: xva.NewVerifier(xva.ReaderOptions{RequireExactEnd: true})}
	defer f.discard()
	err = f.receive(ctx, conn, open)
	if err == nil {
		err = f.commit(ctx)
	}
	if ended := v.release(ctx, conn, open, err == nil); err == nil && ended != nil {
		return ended
	}
	return err
}

// release lets the agent clean up and notes what that came to. The error is one that makes a committed file no good: there
// is none today, since a file that was committed is proven whatever the host does afterwards.
func (v *vmBackup) release(ctx context.Context, conn *agentConn, open opening, good bool) error {
	v.phase(v.vm.Ref(), "cleaning up", "")
	v.releaseVM(ctx, conn, open, VMRef{UUID: v.vm.UUID, Name: v.vm.Name, Pool: v.vm.Pool}, v.vm.PoolUUID, v.vm.Power, good)
	return nil
}

// releaseVM ends a transfer and puts into the VM's result how the agent left the VM. It goes on when ctx is over: a session
// that was cancelled must know the truth as well.
func (r *runner) releaseVM(ctx context.Context, conn *agentConn, open opening, vm VMRef, pool, before string, good bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.c.cfg.Timing.ReleaseTimeout)
	defer cancel()
	end, err := conn.release(ctx, open.Key)
	if err == nil && !end.Known {
		end, err = r.confirm(ctx, conn, open, vm.UUID, before)
	}
	r.result(pool, vm.UUID, func(res *VMResult) {
		if err != nil {
			res.Warnings = append(res.Warnings, fmt.Sprintf("what agent %s left is not known: %s; run dpxen repair", conn.name, err))
			res.PowerAfter = PowerUnknown
			res.PowerNotRestored = open.stopsVM
			return
		}
		if end.Before != "" && end.Before != PowerUnknown {
			res.PowerBefore = end.Before
		}
		res.PowerAfter, res.PowerNotRestored = end.After, !end.PowerRestored
		for _, left := range end.Leftovers {
			res.Warnings = append(res.Warnings, "left on the host: "+left+"; dpxen repair removes it")
		}
		for _, w := range end.Warnings {
			if !good || !end.PowerRestored || len(end.Leftovers) > 0 || !contains(res.Warnings, w) {
				res.Warnings = appendNew(res.Warnings, w)
			}
		}
	})
	if err == nil && len(end.Leftovers) == 0 && end.PowerRestored {
		if err := r.s.settle(open.Key); err != nil {
			r.s.note(func(rep *Report) { rep.Warnings = append(rep.Warnings, err.Error()) })
		}
	}
}

func contains(list []string, s string) bool {
	for _, has := range list {
		if has == s {
			return true
		}
	}
	return false
}

func (v *vmBackup) change(f func(*VMResult)) { v.result(v.vm.PoolUUID, v.vm.UUID, f) }

// newNonce returns 32 hexadecimal digits.
func newNonce() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // it never fails, and crashes the program instead
	return hex.EncodeToString(b[:])
}

// incoming is the file of one attempt on its way into the staging folder.
type incoming struct {
	*vmBackup
	room     *staging.Reservation
	began    time.Time
	verifier *xva.Verifier
	partial  *staging.Partial
	facts    backupFacts
	report   *xva.Report
	recv     *transfer.Receiver
	warnings []string
	told     time.Time
}

// Write takes the bytes of the stream: to the disk, and through the verifier.
func (f *incoming) Write(p []byte) (int, error) {
	if _, err := f.partial.Write(p); err != nil {
		return 0, stagingFailure(err)
	}
	if _, err := f.verifier.Write(p); err != nil {
		return 0, fmt.Errorf("the export is damaged: %w", err)
	}
	f.moved(int64(len(p)))
	if now := time.Now(); now.Sub(f.told) >= time.Second {
		f.told = now
		f.emit(Event{Type: EventVMProgress, VM: f.vm.Ref(), Phase: "transfer", Bytes: f.partial.Bytes(), TotalEst: f.vm.Bytes})
	}
	return len(p), nil
}

// receive takes the whole stream in, through cuts.
func (f *incoming) receive(ctx context.Context, conn *agentConn, open opening) error {
	f.recv = transfer.NewReceiver(f)
	d := &download{open: open, recv: f.recv, onFacts: f.start,
		spec: backupSpec{Kind: f.req.Mode.Kind(), ForceOff: f.req.ForceOff, WithMemory: f.req.WithMemory,
			ShutdownLimit: f.c.cfg.Timing.ShutdownLimit, Compression: f.req.Compression},
		onStep: f.steps(f.vm.Ref())}
	for _, disk := range f.vm.Excluded {
		d.spec.Excluded = append(d.spec.Excluded, disk.VDI)
	}
	redial := transfer.Redial{Lease: open.Lease, MinBackoff: f.c.cfg.Timing.BackoffMin, MaxBackoff: f.c.cfg.Timing.BackoffMax,
		Notify: func(attempt uint32, err error, wait time.Duration) {
			f.emit(Event{Type: EventError, VM: f.vm.Ref(), Message: fmt.Sprintf("connection %d broke and is made again in %s: %s", attempt, wait.Round(time.Millisecond), err)})
		}}
	err := redial.Run(ctx, func(ctx context.Context, attempt uint32) (bool, error) { return d.attach(ctx, conn, attempt) }, rpc.Retryable)
	f.warnings = append(f.warnings, d.warnings...)
	if err != nil {
		return err
	}
	if !d.known {
		return rpc.Errorf(rpc.Invalid, "the agent ended without saying of what")
	}
	f.report, err = f.verifier.Close()
	if err != nil {
		return fmt.Errorf("the export is damaged: %w", err)
	}
	return f.compare()
}

// start makes the partial file once it is known what comes.
func (f *incoming) start(facts backupFacts) error {
	if facts.VM.UUID != f.vm.UUID {
		return rpc.Errorf(rpc.Invalid, "the agent sends VM %s instead of %s", facts.VM.UUID, f.vm.UUID)
	}
	name, err := staging.NewName(facts.VM.Name, facts.VM.UUID, f.req.Mode.Kind(), facts.Taken)
	if err != nil {
		return err
	}
	f.facts = facts
	f.warnings = append(f.warnings, facts.Warnings...)
	f.partial, err = f.dir.Create(name, f.room)
	if err != nil {
		return fmt.Errorf("create %s: %w", name.XVA(), err)
	}
	return nil
}

// discard frees what an attempt that was not committed holds.
func (f *incoming) discard() {
	f.verifier.Abort()
	if f.partial != nil {
		if err := f.partial.Abort(); err != nil {
			f.s.note(func(r *Report) { r.Warnings = append(r.Warnings, fmt.Sprintf("remove the unfinished file: %v", err)) })
		}
	}
}
