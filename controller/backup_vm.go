package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xva"
)

// vmBackup is the backup of one VM in a session.
type vmBackup struct {
	*backup
	vm    *PlannedVM
	slot  int // in the report
	nonce string
	seat  *seat
	down  downtimes
}

// uses is what the VM takes up while the agent works on it.
func (v *vmBackup) uses(agent string) place {
	p := place{pool: v.vm.PoolUUID, hosts: v.vm.vm.seats(v.hosts[agent]),
		snapshots: v.req.Mode.Kind() == KindOnline || len(v.vm.Excluded) > 0 || v.req.OfflineSnapshot}
	for _, d := range v.vm.Disks {
		p.srs = appendNew(p.srs, d.SR)
	}
	return p
}

// run backs the VM up, with retries, and leaves its result in the report.
func (v *vmBackup) run(ctx context.Context, seat *seat) {
	v.seat = seat
	began := time.Now()
	v.nonce = newNonce()
	v.emit(Event{Type: EventVMStart, VM: v.vm.Ref(), Agent: v.vm.Agent, TotalEst: v.vm.Bytes})
	v.change(func(r *VMResult) { r.Status = StatusRunning })
	// The nonce stays the same, so that a snapshot that an agent made before it was started anew is found again.
	p := persistence{runner: &v.runner, slot: v.slot, vm: v.vm.Ref(), agents: func() []string { return v.vm.Agents },
		announced: v.vm.Agent, seat: seat, place: v.uses, find: v.find, once: v.once, worth: worthRetry}
	err := p.run(ctx)
	v.change(func(r *VMResult) {
		r.Seconds = time.Since(began).Seconds()
		if err == nil {
			r.Status = StatusGood
			return
		}
		v.failed(ctx, r, err)
	})
	v.end(v.vm.Ref(), v.slot)
}

// worthRetry tells whether the same VM may succeed when it is begun anew, of errors without a class of trouble.
func worthRetry(err error) bool {
	if xva.IsBad(err) || errors.Is(err, staging.ErrMismatch) || errors.Is(err, staging.ErrExists) {
		return true // of a file that exists, the next one is of a later second
	}
	switch rpc.ReasonOf(err) {
	case rpc.SessionGone, rpc.Offset, rpc.Chunk, rpc.ExportFailed, rpc.Archive, rpc.Superseded:
		return true
	}
	return false
}

// once backs the VM up by the agent: from the intent to the committed file and the agent's cleanup.
func (v *vmBackup) once(ctx context.Context, agent string) (parting, error) {
	conn := v.c.agent(agent)
	room, release, err := v.waiting.reserve(ctx, v.dir, v.vm.Bytes, func() {
		v.phase(v.vm.Ref(), "waiting", "for room in the staging folder that other VMs hold")
	})
	if err != nil {
		return nil, fmt.Errorf("reserve %s in the staging folder: %w", size(v.vm.Bytes), err)
	}
	defer release()
	open := opening{Key: uuid.NewString(), Nonce: v.nonce, Session: v.s.id, VM: v.vm.UUID,
		Lease: v.c.cfg.Timing.Lease, Window: v.c.cfg.Timing.Window}
	intent := Intent{Session: v.s.id, Key: open.Key, Nonce: open.Nonce, VMUUID: v.vm.UUID, VMName: v.vm.Name, PoolUUID: v.vm.PoolUUID,
		Agent: agent, Action: ActionBackup, PowerBefore: v.vm.Power, Time: v.c.o.Now().UTC(),
		StopsVM: v.req.Mode.Kind() == KindOffline && v.vm.Power == PowerRunning}
	if err := v.s.intend(intent); err != nil {
		return nil, err // nothing was begun
	}
	if err := failpoint.Hit("controller/backup/intended"); err != nil {
		return nil, err
	}
	f := &incoming{vmBackup: v, agent: agent, key: open.Key, room: room, began: v.c.o.Now().UTC()}
	f.verifier = xva.NewVerifier(xva.ReaderOptions{RequireExactEnd: true, Past: f})
	defer f.discard()
	reached, err := f.receive(ctx, conn, open)
	stored := f.store(ctx, err)
	if f.known {
		intent.PowerBefore, intent.Disks = f.facts.VM.Power, f.facts.Disks
		intent.StopsVM = v.req.Mode.Kind() == KindOffline && intent.PowerBefore == PowerRunning
	}
	failpoint.Pass("controller/backup/before-release")
	v.phase(v.vm.Ref(), "cleaning up", "")
	left := v.part(ctx, conn, intent, reached && !v.abandoned(v.seat, v.vm.Agents, agent, err))
	err = stored()
	left.unseen(intent, f.known || f.again)
	if intent.StopsVM {
		v.down.add(left, reached)
	}
	left.Downtime = v.down.total()
	failpoint.Pass("controller/backup/released")
	return func() { v.depart(v.slot, conn, intent, left) }, err
}

func (v *vmBackup) change(f func(*VMResult)) { v.result(v.slot, f) }

// newNonce returns 32 hexadecimal digits.
func newNonce() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// incoming is the file of one attempt on its way into the staging folder.
type incoming struct {
	*vmBackup
	agent    string
	key      string // of the transfer
	room     *staging.Reservation
	began    time.Time
	verifier *xva.Verifier
	partial  *staging.Partial
	facts    backupFacts
	known    bool // the facts
	again    bool // a stream was opened after one that the agent had answered
	report   *xva.Report
	recv     *transfer.Receiver
	warnings []string
	told     time.Time
}

// Write takes bytes of the stream that lie in one piece.
func (f *incoming) Write(p []byte) (int, error) { return f.WritePieces([][]byte{p}) }

// WritePieces takes bytes of the stream: to the disk, and on another processor through the verifier.
func (f *incoming) WritePieces(pieces [][]byte) (int, error) {
	var (
		checking sync.WaitGroup
		damage   error
	)
	checking.Go(func() {
		for _, p := range pieces {
			if _, damage = f.verifier.Write(p); damage != nil {
				return
			}
		}
	})
	n, err := f.partial.WritePieces(pieces)
	checking.Wait()
	if err != nil {
		return 0, stagingFailure(err)
	}
	if damage != nil {
		return 0, fmt.Errorf("the export is damaged: %w", damage)
	}
	f.moved(int64(n))
	if now := time.Now(); now.Sub(f.told) >= time.Second {
		f.told = now
		f.emit(Event{Type: EventVMProgress, VM: f.vm.Ref(), Phase: "transfer", Bytes: f.partial.Bytes(), TotalEst: f.vm.Bytes})
	}
	return n, nil
}

// ReadAt gives the verifier what has passed once more.
func (f *incoming) ReadAt(p []byte, off int64) (int, error) { return f.partial.ReadAt(p, off) }

// receive takes the whole stream in, through cuts; reached says whether the agent ever answered.
func (f *incoming) receive(ctx context.Context, conn *agentConn, open opening) (reached bool, err error) {
	f.recv = transfer.NewReceiver(f)
	d := &download{open: open, recv: f.recv, onFacts: f.start,
		spec: backupSpec{Kind: f.req.Mode.Kind(), ForceOff: f.req.ForceOff, WithMemory: f.req.WithMemory,
			ShutdownLimit: f.c.cfg.Timing.ShutdownLimit, Compression: f.req.Compression, Place: f.uses(f.agent),
			FromSnapshot: f.req.OfflineSnapshot, WirePacked: f.c.cfg.WireCompression == WireZstd},
		onStep: f.steps(f.vm.Ref())}
	for _, disk := range f.vm.Excluded {
		d.spec.Excluded = append(d.spec.Excluded, disk.VDI)
	}
	err = f.redial(f.vm.Ref(), open.Lease).Run(ctx, func(ctx context.Context, attempt uint32) (bool, error) {
		f.again = f.again || d.pulse.reached()
		return d.attach(ctx, conn, attempt)
	}, rpc.Retryable)
	f.warnings = append(f.warnings, d.warnings...)
	f.down.unknown = f.down.unknown || d.anew // for how long the former life of the agent kept it down
	if err != nil {
		return d.pulse.reached(), err
	}
	if !f.known {
		return true, rpc.Errorf(rpc.Invalid, "the agent ended without saying of what")
	}
	f.report, err = f.verifier.Close()
	switch {
	case xva.IsBad(err):
		return true, fmt.Errorf("the export is damaged: %w", err)
	case err != nil: // a part of it could not be read again
		return true, &folderError{reason: ReasonStaging, err: fmt.Errorf("the staging folder cannot be read: %w", err)}
	}
	return true, f.compare()
}

// start makes the partial file once it is known what comes.
func (f *incoming) start(facts backupFacts) error {
	if err := f.expected(&facts); err != nil {
		return err
	}
	at, why := stamp(facts.Taken, f.c.o.Now())
	if facts.Taken = at; why != "" {
		f.warnings = append(f.warnings, why)
	}
	name, err := staging.NewName(facts.VM.Name, facts.VM.UUID, f.req.Mode.Kind(), facts.Taken)
	if err != nil {
		return err
	}
	f.facts, f.known = facts, true
	if len(facts.Disks) > 0 {
		if err := f.s.taken(f.key, facts.Disks); err != nil {
			return err
		}
	}
	f.warnings = append(f.warnings, facts.Warnings...)
	if doubt := f.newest.doubt(name); doubt != "" {
		f.warnings = append(f.warnings, doubt)
	}
	if len(facts.VM.Disks) == 0 && len(facts.Excluded) == 0 {
		f.warnings = append(f.warnings, "the VM has no disks: the file holds its settings alone")
	}
	if facts.VM.Power != PowerUnknown {
		f.change(func(r *VMResult) { r.PowerBefore = facts.VM.Power })
	}
	if f.req.OfflineSnapshot && !facts.FromSnapshot && facts.VM.Power == PowerRunning {
		f.warnings = append(f.warnings, "agent "+f.agent+" is too old for --offline-snapshot: the VM is down until it is exported")
	}
	partial, err := f.dir.Create(name, f.room)
	if err != nil {
		return fmt.Errorf("create %s: %w", name.XVA(), stagingFailure(err))
	}
	f.partial = partial
	return nil
}

// expected tells whether the agent describes what it was asked for: what is put into the folder under the VM's name is of
// that VM and of its pool, and lacks no disk that nobody wanted left out.
func (f *incoming) expected(facts *backupFacts) error {
	switch {
	case facts.VM.UUID != f.vm.UUID:
		return rpc.Errorf(rpc.Invalid, "the agent sends VM %s instead of %s", facts.VM.UUID, f.vm.UUID)
	case facts.Pool.UUID != f.vm.PoolUUID:
		return rpc.Errorf(rpc.Invalid, "the agent sends a VM of pool %q instead of %s", facts.Pool.UUID, f.vm.PoolUUID)
	case f.req.Mode.Kind() == KindOnline && facts.SnapshotUUID == "":
		return rpc.Errorf(rpc.Invalid, "the agent does not say of which snapshot the export is")
	}
	for _, d := range facts.Excluded {
		if !slices.ContainsFunc(f.vm.Excluded, func(asked PlannedDisk) bool { return asked.VDI == d.VDI }) {
			return rpc.Errorf(rpc.Invalid, "the agent leaves out disk %s %q, which it was not asked to", d.UserDevice, d.Name)
		}
	}
	return nil
}

// discard frees what an attempt that was not committed holds. It may be repeated.
func (f *incoming) discard() {
	f.verifier.Abort()
	if f.partial != nil {
		if err := f.partial.Abort(); err != nil {
			f.warn("remove the unfinished file: %v", err)
		}
	}
}
