package controller

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xva"
)

// target is a file that a restore session restores, and where to.
type target struct {
	RestoreItem
	slot   int // in the report
	pool   *Pool
	vm     *VM      // as it is now; nil when it does not exist
	agents []string // in order of preference
	sr     string   // UUID, or empty
	host   string   // UUID of the host that is to be its affinity, or empty

	wish          wish
	srs, networks map[string]string // UUIDs by what is in the file
	ova           *xva.OVA          // read from the file's beginning; nil where that is damaged
	rawOVA        []byte
	preview       *restorePreview // nil where no agent could say
	starts        bool            // by the session, in its order
	order         int
	delay         time.Duration // after its order was started
	warnings      []string
}

func (t *target) ref() *VMRef { return &VMRef{UUID: t.UUID, Name: t.Name, Pool: t.pool.Name} }

// vmRestore is the restore of one VM in a session.
type vmRestore struct {
	*restore
	item   *target
	nonce  string
	proven VerifyResult // of the file: what it was when nothing of it had been sent
	report *xva.Report
	before string // the VM's power state, when it is there
	seat   *seat
	tries  int       // that were begun
	sent   int64     // of the producer alone
	told   time.Time // likewise
}

// uses is what the VM takes up while the agent works on it: the host where it runs and the one that takes its disks in.
func (v *vmRestore) uses(agent string) place {
	t := v.item
	out := place{pool: t.pool.UUID}
	switch own := v.hosts[agent]; {
	case t.vm != nil:
		out.hosts = t.vm.seats(own)
	case own != "":
		out.hosts = []string{own}
	}
	m := t.Manifest()
	switch {
	case t.preview != nil:
		for _, d := range t.preview.Disks {
			out.srs = appendNew(out.srs, d.ToSR)
		}
	case t.sr != "":
		out.srs = []string{t.sr}
	case t.vm != nil:
		for _, d := range t.vm.Disks {
			out.srs = appendNew(out.srs, d.SR)
		}
	case m != nil:
		for _, d := range m.VM.Disks {
			out.srs = appendNew(out.srs, d.SRUUID)
		}
	}
	return out
}

// run restores the VM and leaves its result in the report.
func (v *vmRestore) run(ctx context.Context, seat *seat) {
	began, disks := time.Now(), v.item.vm.diskUUIDs()
	v.nonce, v.seat = newNonce(), seat
	v.emit(Event{Type: EventVMStart, VM: v.item.ref(), Agent: v.item.agents[0], TotalEst: v.item.entry.Size})
	arrival, err := v.item.entry.Arrival()
	v.change(func(r *VMResult) { r.Status, r.Arrival, r.StartDue = StatusRunning, arrival.ID, v.item.starts })
	if err == nil {
		err = v.prove(ctx, arrival.ID)
	}
	if err == nil {
		p := persistence{runner: &v.runner, slot: v.item.slot, vm: v.item.ref(), agents: func() []string { return v.item.agents },
			announced: v.item.agents[0], seat: seat, place: v.uses, find: v.find, once: v.once, worth: restoreAgain}
		if err = p.run(ctx); err != nil {
			v.tellDisks(ctx, disks)
		}
	}
	v.change(func(r *VMResult) {
		r.Seconds = time.Since(began).Seconds()
		if err == nil {
			r.Status = StatusGood
			return
		}
		v.failed(ctx, r, err)
		switch r.Reason {
		case ReasonIntegrity:
			r.Advice = "the file is damaged: restore an older one (--at), and let Data Protector restore this one again"
			if v.req.Spec != "" {
				r.Advice = adviceOverwrite
			}
		case ReasonSRFull:
			r.Advice = "free room on the SR, name another by --sr, or give up the safety by --delete-first"
		}
	})
	v.starter.done(v.item, err == nil)
	v.end(v.item.ref(), v.item.slot)
}

func (v *vmRestore) change(f func(*VMResult)) { v.result(v.item.slot, f) }

// prove verifies the file, or takes what was verified while another one was sent: nothing of a damaged one ever goes to a host.
func (v *vmRestore) prove(ctx context.Context, arrival string) error {
	v.phase(v.item.ref(), "verifying the file", "")
	proof := v.prover.of(ctx, v.item, arrival)
	verified := proof.result
	if err := verified.Err(); err != nil {
		return err
	}
	v.report, v.proven = proof.report, verified
	v.change(func(r *VMResult) { r.Digest, r.DigestAlgorithm = verified.Digest, verified.DigestAlgorithm })
	return nil
}

// once restores the VM by the agent: from the intent to the agent's cleanup.
func (v *vmRestore) once(ctx context.Context, agent string) (parting, error) {
	conn, inPlace := v.c.agent(agent), v.item.vm != nil && !v.req.AsNew
	open := opening{Key: uuid.NewString(), Nonce: v.nonce, Session: v.s.id, VM: v.item.UUID,
		Lease: v.c.cfg.Timing.Lease, Window: v.c.cfg.Timing.Window}
	var former []string
	if inPlace {
		v.before, former = v.item.vm.Power, v.item.vm.diskUUIDs()
	}
	intent := Intent{Session: v.s.id, Key: open.Key, Nonce: open.Nonce, VMUUID: v.item.UUID, VMName: v.item.Name, PoolUUID: v.item.pool.UUID,
		Agent: agent, Action: ActionRestore, PowerBefore: v.before, Time: v.c.o.Now().UTC(),
		StopsVM: inPlace && v.before == PowerRunning, DeletesFirst: inPlace && v.req.DeleteFirst, Former: former}
	if err := v.s.intend(intent); err != nil {
		return nil, err // nothing was begun
	}
	v.sent = 0
	v.tries++
	up := &upload{open: open, spec: v.spec(), pack: v.c.cfg.WireCompression == WireZstd, ova: v.report.RawOVA, onPlan: v.plan, onStep: v.steps(v.item.ref())}
	err := v.redial(v.item.ref(), open.Lease).Run(ctx, func(ctx context.Context, attempt uint32) (bool, error) {
		return up.attach(ctx, conn, attempt)
	}, rpc.Retryable)
	up.stop(transfer.ErrAborted)
	if err == nil {
		v.restored(up.result)
	}
	v.phase(v.item.ref(), "cleaning up", "")
	left := v.part(ctx, conn, intent, up.pulse.reached() && !v.abandoned(v.seat, v.item.agents, agent, err))
	return func() { v.depart(v.item.slot, conn, intent, left) }, err
}

// spec says what the agent is to do with the file.
func (v *vmRestore) spec() restoreSpec {
	s := v.item.spec(&v.req, v.c.cfg.Timing.ShutdownLimit)
	// An attempt whose agent died may have left the VM off, without the disks that it had deleted first.
	s.Start = s.Start || v.tries > 1 && v.req.DeleteFirst && v.before == PowerRunning
	return s
}

// spec says what an agent is to do with the file.
func (t *target) spec(req *RestoreRequest, limit time.Duration) restoreSpec {
	s := restoreSpec{Kind: t.Kind, VMName: t.Name, NewName: t.wish.name, AsNew: req.AsNew, Recreate: req.Recreate,
		Start: t.wish.start && !t.starts, SR: t.sr, SRs: t.srs, Host: t.host, Networks: t.networks, KeepOld: req.KeepOldDisks,
		DeleteFirst: req.DeleteFirst, ForceOff: req.ForceOff, DiscardMemory: req.DiscardMemory, ShutdownLimit: limit,
		LowerVersion: req.LowerVersion}
	if t.ofSnapshot && t.vm != nil && !req.AsNew { // what a snapshot loses stays as the VM has it
		s.VMName, s.Settings = t.vm.Name, t.vm.Settings
	}
	if m := t.Manifest(); m != nil && m.Snapshot.UUID != "" {
		s.Settings = m.VM.Settings // its ova.xml describes the snapshot, which has lost them
		if own, err := json.Marshal(m.VM.Record); err == nil && len(m.VM.Record) > 0 {
			s.Own = own
		}
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
		for _, w := range p.Warnings {
			r.Warnings = appendNew(r.Warnings, w)
		}
		for _, d := range p.Untouched {
			r.Notes = appendNew(r.Notes, fmt.Sprintf("disk %s %q is not in the file and stays as it is", d.UserDevice, d.Name))
		}
	})
	return sizes, func(w io.Writer) error { return v.produce(p, w) }, nil
}

// produce writes the archives one after the other, checking every block of the file once more as it passes.
func (v *vmRestore) produce(p restorePlan, w io.Writer) error {
	counted := &countingWriter{w: w, count: func(n int64) { v.progress(n) }}
	for _, part := range p.Parts {
		if err := v.producePart(part, xva.RewriteOptions{SHA1: p.SHA1}, counted); err != nil {
			return err
		}
	}
	return nil
}

func (v *vmRestore) producePart(part planPart, o xva.RewriteOptions, w io.Writer) error {
	f, err := v.item.entry.Open()
	if err != nil {
		return fmt.Errorf("open %s: %w", v.item.entry.Base(), err)
	}
	defer f.Close()
	digest, err := staging.NewDigest(v.proven.DigestAlgorithm)
	if err != nil {
		return err
	}
	r := io.TeeReader(f, digest)
	err = xva.Rewrite(w, r, v.report, part.OVA, part.Disks, o)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what no part wants belongs to the file all the same
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", v.item.entry.Base(), err)
	}
	if got := hex.EncodeToString(digest.Sum(nil)); got != v.proven.Digest {
		return &IntegrityError{Failure{What: fmt.Sprintf("file %s was changed while it was restored: %s was %s and is %s",
			v.item.entry.Base(), v.proven.DigestAlgorithm, v.proven.Digest, got)}}
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
