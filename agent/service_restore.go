package agent

import (
	"context"
	"errors"
	"io"
	"reflect"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// documentPiece is how much of a document one message carries, in bytes.
const documentPiece = 1 << 20

// Restore opens or re-attaches a restore. One goroutine receives, those that send take turns, and the handler returns
// when the stream is done, evicted or cut; the job goes on without it.
func (s *service) Restore(st agentv1.AgentService_RestoreServer) error {
	o, spec, err := receiveOpening(st)
	if err != nil {
		return err
	}
	j, resumed, err := s.agent.openJob(o, "restore",
		func(j *job) bool { return j.proc.(*restore).spec.same(spec) },
		func() procedure { return newRestore(s.agent, spec) })
	if err != nil {
		return wireError(err, rpc.Internal, o.VM)
	}
	hold, err := j.attach(o.Attempt)
	if err != nil {
		return err
	}
	defer hold.detach()
	r := j.proc.(*restore)
	intake, offset, err := r.recv.AttachContext(st.Context(), o.Attempt)
	if err != nil {
		return err
	}
	defer intake.Detach()
	return s.serveRestore(st, j, r, intake, hold, &agentv1.Opened{Offset: uint64(offset), Resumed: resumed,
		WireCompression: transfer.WireZstd})
}

// receiveOpening receives the opening and the file's ova.xml behind it.
func receiveOpening(st agentv1.AgentService_RestoreServer) (o opening, spec restoreSpec, err error) {
	first, err := st.Recv()
	if err != nil {
		return o, spec, err
	}
	if o, err = openingOf(st.Context(), first.GetOpen().GetOpening()); err != nil {
		return o, spec, err
	}
	m := first.GetOpen().GetSpec()
	if spec, err = restoreSpecOf(m); err != nil {
		return o, spec, err
	}
	receive := func() (*agentv1.Document, error) {
		m, err := st.Recv()
		return m.GetOva(), err
	}
	return o, spec, receiveOVA(receive, m, &spec)
}

// receiveDocument receives the pieces of a document of the announced length.
func receiveDocument(receive func() (*agentv1.Document, error), length uint64) ([]byte, error) {
	if length == 0 || length > xva.MaxOVA {
		return nil, rpc.Errorf(rpc.Invalid, "an ova.xml of %d bytes", length)
	}
	var raw []byte
	for {
		doc, err := receive()
		if err != nil {
			return nil, err
		}
		if doc == nil || uint64(len(raw)+len(doc.GetData())) > length {
			return nil, rpc.Errorf(rpc.Invalid, "the opening must be followed by an ova.xml of the announced length")
		}
		raw = append(raw, doc.GetData()...)
		if !doc.GetLast() {
			continue
		}
		if uint64(len(raw)) != length {
			return nil, rpc.Errorf(rpc.Invalid, "the ova.xml has %d bytes instead of %d", len(raw), length)
		}
		return raw, nil
	}
}

func restoreSpecOf(m *agentv1.RestoreSpec) (restoreSpec, error) {
	limit, err := durationOf("shutdown_timeout", m.GetShutdownTimeout())
	if err != nil {
		return restoreSpec{}, err
	}
	spec := restoreSpec{Name: m.GetVmName(), AsNew: m.GetAsNew(), NewName: m.GetNewName(), Recreate: m.GetRecreate(),
		Start: m.GetStart(), SRUUID: m.GetSrUuid(), Networks: m.GetNetworks(), KeepOld: m.GetKeepOldDisks(),
		DeleteFirst: m.GetDeleteFirst(), ForceOff: m.GetForceOff(), DiscardMemory: m.GetDiscardMemory(),
		ShutdownLimit: limit, Settings: m.GetSettings(), SRs: m.GetSrs(), HostUUID: m.GetHostUuid(), LowerVersion: m.GetLowerVersion()}
	if spec.HostUUID != "" && !validUUID(spec.HostUUID) {
		return restoreSpec{}, rpc.Errorf(rpc.Invalid, "host %q is no UUID", spec.HostUUID)
	}
	switch m.GetKind() {
	case agentv1.BackupKind_BACKUP_KIND_ONLINE:
		spec.Online = true
	case agentv1.BackupKind_BACKUP_KIND_OFFLINE:
	default:
		return restoreSpec{}, rpc.Errorf(rpc.Invalid, "restore of a backup neither online nor offline")
	}
	if spec.KeepOld && spec.DeleteFirst {
		return restoreSpec{}, rpc.Errorf(rpc.Invalid, "old disks cannot be kept and deleted first")
	}
	return spec, nil
}

// same tells whether two specs ask for the same.
func (s restoreSpec) same(o restoreSpec) bool {
	s.OVA, o.OVA = nil, nil // compared by their sums
	return reflect.DeepEqual(s, o)
}

func (s *service) serveRestore(st agentv1.AgentService_RestoreServer, j *job, r *restore, intake *transfer.Intake,
	hold *stream, opened *agentv1.Opened) error {
	out := newOutlet(st.SendMsg)
	defer out.closed.Store(true)
	if err := out.put(st.Context(), &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Opened{Opened: opened}}); err != nil {
		return err
	}
	acks := transfer.NewAcks()
	err := transfer.Run(st.Context(), hold.evicted,
		func(ctx context.Context) error { return sendRestore(ctx, out, j, r) },
		func(context.Context) error { return receiveRestore(st, r, intake, acks) },
		func(ctx context.Context) error {
			return acks.Send(ctx, func(offset int64) error {
				return out.put(ctx, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ack{Ack: &agentv1.Ack{Offset: uint64(offset)}}})
			})
		},
		func(ctx context.Context) error {
			s.reportProgress(ctx, j, func(p *agentv1.Progress) error {
				return out.put(ctx, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Progress{Progress: p}})
			})
			return nil
		})
	if errors.Is(err, transfer.ErrSuperseded) || st.Context().Err() != nil {
		return err
	}
	return restoreFailure(j, err)
}

// restoreFailure prefers why the job failed to what that did to the stream.
func restoreFailure(j *job, err error) error {
	if err == nil {
		return nil
	}
	if failed := j.failed(); failed != nil {
		return failed
	}
	return err
}

// receiveRestore takes in lengths, frames and totals until the caller half-closes, which ends nothing, or the stream
// breaks.
func receiveRestore(st agentv1.AgentService_RestoreServer, r *restore, intake *transfer.Intake, acks *transfer.Acks) error {
	unpacker := transfer.NewUnpacker()
	for {
		var ev transfer.RestoreEvent
		err := st.RecvMsg(&ev)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		frame := ev.Frame
		if ev.Packed != nil {
			frame, err = unpacker.Unpack(ev.Packed)
			ev.Free()
			if err != nil {
				return rpc.Errorf(rpc.Invalid, "%w", err)
			}
		}
		if frame != nil {
			offset, err := intake.Write(frame)
			if err != nil {
				return err
			}
			acks.Put(offset)
			continue
		}
		switch k := ev.Msg.GetKind().(type) {
		case *agentv1.RestoreRequest_Sizes:
			sizes := make([]int64, 0, len(k.Sizes.GetBytes()))
			for _, n := range k.Sizes.GetBytes() {
				sizes = append(sizes, int64(n))
			}
			err = r.setSizes(sizes)
		case *agentv1.RestoreRequest_End:
			err = r.setTotals(streamTotals{bytes: int64(k.End.GetBytes()), crc32c: k.End.GetCrc32C()})
		default:
			err = rpc.Errorf(rpc.Invalid, "only lengths, bytes and totals may follow the opening")
		}
		if err != nil {
			return err
		}
	}
}

// sendRestore sends the plan once it stands, and the result.
func sendRestore(ctx context.Context, out *outlet, j *job, r *restore) error {
	select {
	case <-r.planned:
	case <-j.ended:
		return j.failed()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := out.put(ctx, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Plan{Plan: planToWire(r)}}); err != nil {
		return err
	}
	if err := sendDocuments(ctx, out, r.docs); err != nil {
		return err
	}
	select {
	case <-r.results:
	case <-j.ended:
		if err := j.failed(); err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	r.told.Store(true) // before it is sent: whoever gets it may have it released at once
	err := out.last(ctx, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Result{Result: resultToWire(r.result)}})
	if err != nil {
		r.told.Store(false)
	}
	return err
}

func sendDocuments(ctx context.Context, out *outlet, docs [][]byte) error {
	for i, doc := range docs {
		for len(doc) > 0 {
			n := min(len(doc), documentPiece)
			m := &agentv1.Document{Data: doc[:n], Last: i == len(docs)-1 && n == len(doc)}
			if err := out.put(ctx, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ova{Ova: m}}); err != nil {
				return err
			}
			doc = doc[n:]
		}
	}
	return nil
}

// checksumSHA1 is RestorePlan.checksum for hosts that know nothing else.
const checksumSHA1 = "sha1"

func planToWire(r *restore) *agentv1.RestorePlan {
	m := &agentv1.RestorePlan{InPlace: r.plan.Goal == goalInPlace, Warnings: r.plan.Warnings}
	if r.plan.SHA1 {
		m.Checksum = checksumSHA1
	}
	for i, part := range r.plan.Parts {
		p := &agentv1.RestorePart{SrUuid: part.SR.UUID, SrName: part.SR.Name}
		if r.docs != nil { // there are none where only the plan was asked for
			p.OvaBytes = uint64(len(r.docs[i]))
		}
		for _, d := range part.Disks {
			p.Disks = append(p.Disks, d.Dir)
		}
		m.Parts = append(m.Parts, p)
	}
	planDetails(m, r)
	for _, vbd := range r.plan.Untouched {
		vdi := r.view.vdis[vbd.VDI]
		m.Untouched = append(m.Untouched, &agentv1.Disk{Userdevice: vbd.UserDevice, Device: vbd.Device, VdiUuid: vdi.UUID,
			Name: vdi.Name, VirtualSize: vdi.VirtualSize, SrUuid: r.view.srs[vdi.SR].UUID, SrName: r.view.srs[vdi.SR].Name})
	}
	return m
}

func resultToWire(res *restoreResult) *agentv1.RestoreResult {
	m := &agentv1.RestoreResult{VmUuid: res.VM.UUID, VmName: res.VM.Name, InPlace: res.InPlace,
		PowerState: powerToWire(res.VM.PowerState), NotRestored: res.NotRestored, Warnings: res.Warnings}
	for _, uuid := range res.Kept {
		m.KeptDisks = append(m.KeptDisks, &agentv1.Disk{VdiUuid: uuid})
	}
	return m
}
