package agent

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// Backup opens or re-attaches a backup. One goroutine receives, those that send
// take turns, and the handler returns when the stream is done, evicted or cut;
// the job goes on without it.
func (s *service) Backup(st agentv1.AgentService_BackupServer) error {
	first, err := st.Recv()
	if err != nil {
		return err
	}
	o, err := openingOf(st.Context(), first.GetOpen().GetOpening())
	if err != nil {
		return err
	}
	spec, err := backupSpecOf(first.GetOpen().GetSpec())
	if err != nil {
		return err
	}
	j, resumed, err := s.agent.openJob(o, "backup",
		func(j *job) bool { return j.proc.(*backup).spec.same(spec) },
		func() procedure { return newBackup(s.agent, o, spec) })
	if err != nil {
		return wireError(err, rpc.Internal, o.VM)
	}
	b := j.proc.(*backup)
	att, err := b.sender.Attach(o.Attempt, o.Offset)
	if err != nil {
		return err
	}
	defer att.Detach()
	hold, err := j.attach(o.Attempt)
	if err != nil {
		return err
	}
	defer hold.detach()
	return s.serveBackup(st, j, b, att, hold, &agentv1.Opened{Offset: uint64(o.Offset), Resumed: resumed})
}

func (s *service) serveBackup(st agentv1.AgentService_BackupServer, j *job, b *backup, att *transfer.Attachment,
	hold *stream, opened *agentv1.Opened) error {
	out := newOutlet(st.SendMsg)
	defer out.closed.Store(true)
	if err := out.put(st.Context(), backupMessage(&agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Opened{Opened: opened}})); err != nil {
		return err
	}
	return transfer.Run(st.Context(), hold.evicted,
		func(ctx context.Context) error { return sendBackup(ctx, out, b, att) },
		func(context.Context) error { return receiveAcks(st, att) },
		func(ctx context.Context) error {
			s.reportProgress(ctx, j, func(p *agentv1.Progress) error {
				return out.put(ctx, backupMessage(&agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Progress{Progress: p}}))
			})
			return nil
		})
}

// receiveAcks takes acknowledgements until the caller half-closes, which ends
// nothing, or the stream breaks.
func receiveAcks(st agentv1.AgentService_BackupServer, att *transfer.Attachment) error {
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		ack := m.GetAck()
		if ack == nil {
			return rpc.Errorf(rpc.Invalid, "only acknowledgements may follow the opening")
		}
		if err := att.Ack(int64(ack.GetOffset())); err != nil {
			return err
		}
	}
}

// sendBackup sends the facts once they stand, the frames, and the summary.
func sendBackup(ctx context.Context, out *outlet, b *backup, att *transfer.Attachment) error {
	select {
	case <-b.ready:
	case <-b.over:
		return b.sender.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := out.put(ctx, backupMessage(&agentv1.BackupResponse{
		Kind: &agentv1.BackupResponse_Facts{Facts: factsToWire(&b.facts)}})); err != nil {
		return err
	}
	var packer *transfer.Packer
	if b.spec.WirePacked {
		packer = transfer.NewPacker()
	}
	for {
		frame, err := att.Next(ctx)
		if failed := b.sender.Err(); failed != nil {
			frame.Free()
			return failed // looked at first: what broke the export may have been an EOF as well
		}
		if errors.Is(err, io.EOF) {
			return out.last(ctx, backupMessage(&agentv1.BackupResponse{
				Kind: &agentv1.BackupResponse_Summary{Summary: summaryToWire(&b.summary)}}))
		}
		if err != nil {
			return err
		}
		err = sendFrame(ctx, out, packer, frame)
		frame.Free()
		if err != nil {
			return err
		}
	}
}

// sendFrame sends a frame, packed where packer is there and it gets shorter.
func sendFrame(ctx context.Context, out *outlet, packer *transfer.Packer, frame mem.BufferSlice) error {
	if packer != nil {
		packed, err := packer.Pack(frame)
		if err != nil {
			return err
		}
		if packed != nil {
			return out.put(ctx, backupMessage(&agentv1.BackupResponse{
				Kind: &agentv1.BackupResponse_Packed{Packed: &agentv1.PackedFrame{Zstd: packed}}}))
		}
	}
	return out.put(ctx, &transfer.BackupEvent{Frame: frame})
}

func backupMessage(m *agentv1.BackupResponse) *transfer.BackupEvent {
	return &transfer.BackupEvent{Msg: m}
}

// maxPlace bounds the hosts and SRs that one VM is counted for.
const maxPlace = 4096

// maxExcluded bounds the disks of one VM that can be left out.
const maxExcluded = 1024

func backupSpecOf(m *agentv1.BackupSpec) (backupSpec, error) {
	timeout, err := durationOf("shutdown_timeout", m.GetShutdownTimeout())
	if err != nil {
		return backupSpec{}, err
	}
	spec := backupSpec{Excluded: slices.Sorted(slices.Values(m.GetExcludedVdiUuids())), ForceOff: m.GetForceOff(),
		WithMemory: m.GetWithMemory(), ShutdownTimeout: timeout, Compression: m.GetCompression(),
		FromSnapshot: m.GetFromSnapshot(), WirePacked: m.GetWireCompression() == transfer.WireZstd}
	spec.Place = place{Hosts: m.GetPlace().GetHostUuids(), SRs: m.GetPlace().GetSrUuids()}
	if n := len(spec.Place.Hosts) + len(spec.Place.SRs); n > maxPlace {
		return backupSpec{}, rpc.Errorf(rpc.Invalid, "a place of %d hosts and SRs", n)
	}
	switch m.GetKind() {
	case agentv1.BackupKind_BACKUP_KIND_ONLINE:
	case agentv1.BackupKind_BACKUP_KIND_OFFLINE:
		spec.Offline = true
	default:
		return backupSpec{}, rpc.Errorf(rpc.Invalid, "backup neither online nor offline")
	}
	if !slices.Contains([]string{"", "gzip", "zstd"}, spec.Compression) {
		return backupSpec{}, rpc.Errorf(rpc.Invalid, "compression %q is neither gzip nor zstd", spec.Compression)
	}
	if len(spec.Excluded) > maxExcluded {
		return backupSpec{}, rpc.Errorf(rpc.Invalid, "%d disks to leave out", len(spec.Excluded))
	}
	if spec.FromSnapshot && !spec.Offline {
		return backupSpec{}, rpc.Errorf(rpc.Invalid, "an online backup is of a snapshot anyway")
	}
	return spec, nil
}

func factsToWire(f *facts) *agentv1.BackupFacts {
	return &agentv1.BackupFacts{Vm: vmToWire(&f.VM), Excluded: disksToWire(f.Excluded), SnapshotUuid: f.SnapshotUUID,
		Taken: timestamppb.New(f.Taken), Pool: poolToWire(f.Pool), Host: hostToWire(f.Host), FromSnapshot: f.FromSnapshot,
		Warnings: f.Warnings, OwnRecord: f.Own, SnapshotDiskUuids: f.Disks}
}

func summaryToWire(v *summary) *agentv1.BackupSummary {
	task := agentv1.TaskStatus_TASK_STATUS_SUCCESS
	if v.TaskGone {
		task = agentv1.TaskStatus_TASK_STATUS_GONE
	}
	return &agentv1.BackupSummary{Bytes: uint64(v.Bytes), Crc32C: v.CRC32C, Task: task, Warnings: v.Warnings}
}
