package controller

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// opening names one transfer and the work it belongs to.
type opening struct {
	Key, Nonce, Session, VM string
	Lease                   time.Duration
	Window                  int64
}

func (o opening) message(attempt uint32, offset int64) *agentv1.Opening {
	return &agentv1.Opening{Key: o.Key, Attempt: attempt, Offset: uint64(offset), Lease: durationpb.New(o.Lease),
		Window: uint64(o.Window), SessionId: o.Session, Nonce: o.Nonce, VmUuid: o.VM}
}

// backupSpec says what an agent is to do about a VM.
type backupSpec struct {
	Kind                 Kind
	Excluded             []string // VDIs
	ForceOff, WithMemory bool
	ShutdownLimit        time.Duration
	Compression          string
	Place                place
	FromSnapshot         bool
	WirePacked           bool // frames compressed on the wire, if the agent can
}

func (s backupSpec) message() *agentv1.BackupSpec {
	wire := ""
	if s.WirePacked {
		wire = transfer.WireZstd
	}
	return &agentv1.BackupSpec{WireCompression: wire, Kind: kindMessage(s.Kind), ExcludedVdiUuids: s.Excluded, ForceOff: s.ForceOff,
		WithMemory: s.WithMemory, ShutdownTimeout: durationpb.New(s.ShutdownLimit), Compression: s.Compression,
		Place: &agentv1.Place{HostUuids: s.Place.hosts, SrUuids: s.Place.srs}, FromSnapshot: s.FromSnapshot}
}

func kindMessage(k Kind) agentv1.BackupKind {
	if k == KindOffline {
		return agentv1.BackupKind_BACKUP_KIND_OFFLINE
	}
	return agentv1.BackupKind_BACKUP_KIND_ONLINE
}

// backupFacts describe what is in a backup's stream.
type backupFacts struct {
	VM           VM
	Excluded     []Disk
	SnapshotUUID string
	Disks        []string // UUIDs of the disks of the snapshot
	FromSnapshot bool
	Own          map[string]any // then: the VM's own record, see xva.OwnRecord
	Taken        time.Time
	Pool         Pool
	Host         Host
	Warnings     []string
}

// step is what an agent says it is doing.
type step struct {
	Phase, Message string
	Bytes          int64
	Task           float64 // XAPI's task progress, 0 to 1
}

// download is one backup transfer at the receiving end: what is told, and to whom.
type download struct {
	open     opening
	spec     backupSpec
	recv     *transfer.Receiver
	onFacts  func(backupFacts) error // once, before the first byte
	onStep   func(step)
	facts    *backupFacts // once known
	warnings []string     // of the summary
	pulse    pulse
	opened   bool               // the agent has taken the transfer up
	anew     bool               // and another life of it has done so since: what the former one did it has not told
	unpacker *transfer.Unpacker // made with the first packed frame
}

// errNoSummary is a stream that ended as if all were well, without saying so.
var errNoSummary = rpc.Errorf(rpc.Unreachable, "the stream ended without its summary")

// attach opens the transfer's stream with that attempt, or attaches to it again, and receives until all is there. The
// connection is its own, and nothing of it runs on after attach has returned.
func (d *download) attach(ctx context.Context, conn *agentConn, attempt uint32) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	moved := d.pulse.begin()
	defer func() { progressed = moved(conn.timing.BackoffMax) }()
	cc, err := conn.dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = cc.Close() }() // it fails only when it is closed already
	intake, offset, err := d.recv.AttachContext(ctx, attempt)
	if err != nil {
		return false, err
	}
	defer intake.Detach()
	var stream agentv1.AgentService_BackupClient
	err = openWithin(cancel, conn.timing.StallLimit, func() (err error) {
		if stream, err = agentv1.NewAgentServiceClient(cc).Backup(ctx); err != nil {
			return err
		}
		open := &agentv1.BackupOpen{Opening: d.open.message(attempt, offset), Spec: d.spec.message()}
		if err := stream.Send(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Open{Open: open}}); err != nil {
			return streamError(stream.RecvMsg(&transfer.BackupEvent{}), err)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	acks := transfer.NewAcks()
	sendAcks := func(ctx context.Context) error {
		return acks.Send(ctx, func(offset int64) error {
			return stream.Send(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Ack{Ack: &agentv1.Ack{Offset: uint64(offset)}}})
		})
	}
	receive := func(context.Context) error { return d.receive(stream, intake, offset, acks) }
	return false, runStream(ctx, cancel, intake.Evicted(), receive, sendAcks, d.pulse.watch(conn.timing.StallLimit))
}

// receive takes in what the agent says until the summary and the end of the stream.
func (d *download) receive(stream receiver, intake *transfer.Intake, offset int64, acks *transfer.Acks) error {
	for {
		var ev transfer.BackupEvent
		if err := stream.RecvMsg(&ev); err != nil {
			if errors.Is(err, io.EOF) {
				return errNoSummary
			}
			return err
		}
		done, err := d.handle(&ev, intake, offset, acks)
		if err != nil {
			return err
		}
		if done {
			return d.last(stream)
		}
	}
}

// receiver is the receiving side of a stream.
type receiver interface{ RecvMsg(any) error }

// streamError prefers what the agent said to the error of sending to it.
func streamError(said, sending error) error {
	if said != nil && !errors.Is(said, io.EOF) {
		return said
	}
	if errors.Is(sending, io.EOF) {
		return errNoSummary
	}
	return sending
}

// handle takes one message in; true after the summary.
func (d *download) handle(ev *transfer.BackupEvent, intake *transfer.Intake, offset int64, acks *transfer.Acks) (bool, error) {
	switch {
	case ev.Frame != nil:
		return false, d.take(ev.Frame, intake, acks)
	case ev.Packed != nil:
		frame, err := d.unpack(ev.Packed)
		ev.Free()
		if err != nil {
			return false, err
		}
		return false, d.take(frame, intake, acks)
	}
	switch m := ev.Msg.GetKind().(type) {
	case *agentv1.BackupResponse_Opened:
		if m.Opened.GetOffset() != uint64(offset) {
			return false, rpc.Errorf(rpc.Offset, "the agent goes on from byte %d instead of %d", m.Opened.GetOffset(), offset)
		}
		d.anew = d.anew || d.opened && !m.Opened.GetResumed()
		d.opened = true
	case *agentv1.BackupResponse_Facts:
		return false, d.describe(m.Facts)
	case *agentv1.BackupResponse_Progress:
		now := stepFrom(m.Progress)
		d.pulse.step(now)
		d.onStep(now)
	case *agentv1.BackupResponse_Summary:
		return true, d.summary(m.Summary)
	}
	return false, nil // a newer agent may say more
}

// take writes a frame, whose reference it takes over.
func (d *download) take(frame mem.BufferSlice, intake *transfer.Intake, acks *transfer.Acks) error {
	if d.facts == nil {
		frame.Free()
		return rpc.Errorf(rpc.Invalid, "the agent sent bytes before it said of what")
	}
	end, err := intake.Write(frame)
	if err != nil {
		return err
	}
	acks.Put(end)
	d.pulse.beat()
	return nil
}

// unpack returns what is in a packed frame, good until the next one. The packed frame stays the caller's.
func (d *download) unpack(packed mem.BufferSlice) (mem.BufferSlice, error) {
	if !d.spec.WirePacked {
		return nil, rpc.Errorf(rpc.Invalid, "the agent sent packed frames, which it was not asked for")
	}
	if d.unpacker == nil {
		d.unpacker = transfer.NewUnpacker()
	}
	frame, err := d.unpacker.Unpack(packed)
	if err != nil {
		return nil, rpc.Errorf(rpc.Invalid, "%w", err)
	}
	return frame, nil
}

// summary holds what the agent says that it sent against what has come. That the bytes are right is not all: XAPI must have
// called its export a success, or must not have been able to tell any more.
func (d *download) summary(m *agentv1.BackupSummary) error {
	d.warnings = texts(m.GetWarnings())
	switch m.GetTask() {
	case agentv1.TaskStatus_TASK_STATUS_SUCCESS:
	case agentv1.TaskStatus_TASK_STATUS_GONE:
		d.warnings = append(d.warnings, "XenServer's export task had vanished before it was read; the file itself is proven")
	case agentv1.TaskStatus_TASK_STATUS_UNSPECIFIED:
		fallthrough
	default: // a newer agent may know more ways to fail
		return rpc.Errorf(rpc.ExportFailed, "the agent does not say that XenServer's export succeeded (task status %d)", m.GetTask())
	}
	return d.recv.Check(position(m.GetBytes()), m.GetCrc32C())
}

// describe takes in what is in the stream. Every stream says it; that it says the same is what makes them one.
func (d *download) describe(m *agentv1.BackupFacts) error {
	facts, err := factsFrom(m)
	if err != nil {
		return err
	}
	if d.facts == nil {
		d.facts = &facts
		return d.onFacts(facts)
	}
	if facts.VM.UUID != d.facts.VM.UUID || facts.SnapshotUUID != d.facts.SnapshotUUID || !facts.Taken.Equal(d.facts.Taken) {
		return rpc.Errorf(rpc.SessionGone, "the agent has begun anew meanwhile")
	}
	return nil
}

// last waits for the end of the stream: the summary alone is not success.
func (d *download) last(stream receiver) error {
	var ev transfer.BackupEvent
	err := stream.RecvMsg(&ev)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	ev.Free()
	return rpc.Errorf(rpc.Invalid, "the agent sent more after its summary")
}

func stepFrom(p *agentv1.Progress) step {
	return step{Phase: phaseName(p.GetPhase()), Message: clipText(p.GetMessage()), Bytes: position(p.GetBytes()),
		Task: fraction(p.GetTaskProgress())}
}

// phaseDone is the name of the phase of a transfer whose outcome stands.
const phaseDone = "done"

// phaseName is how a phase is told to people and scripts.
func phaseName(p agentv1.Phase) string {
	switch p {
	case agentv1.Phase_PHASE_PREPARING:
		return "preparing"
	case agentv1.Phase_PHASE_STOPPING:
		return "shutting down"
	case agentv1.Phase_PHASE_SNAPSHOT:
		return "snapshot"
	case agentv1.Phase_PHASE_TRANSFER:
		return "transfer"
	case agentv1.Phase_PHASE_FINISHING:
		return "finishing"
	case agentv1.Phase_PHASE_SWAPPING:
		return "exchanging disks"
	case agentv1.Phase_PHASE_STARTING:
		return "starting"
	case agentv1.Phase_PHASE_CLEANING:
		return "cleaning up"
	case agentv1.Phase_PHASE_DONE:
		return phaseDone
	case agentv1.Phase_PHASE_UNSPECIFIED:
	}
	return "working"
}

func factsFrom(m *agentv1.BackupFacts) (backupFacts, error) {
	pool := poolFrom(&agentv1.CheckResponse{Pool: m.GetPool(), Hosts: []*agentv1.Host{m.GetHost()}})
	vm, ok := vmFrom(m.GetVm(), &pool)
	if !ok || !m.GetTaken().IsValid() {
		return backupFacts{}, rpc.Errorf(rpc.Invalid, "the agent describes a VM without UUID or time")
	}
	f := backupFacts{VM: vm, SnapshotUUID: canonicalUUID(m.GetSnapshotUuid()), FromSnapshot: m.GetFromSnapshot(),
		Taken: m.GetTaken().AsTime(), Pool: pool, Warnings: texts(m.GetWarnings())}
	f.Disks = canonicalUUIDs(m.GetSnapshotDiskUuids())
	if own := m.GetOwnRecord(); len(own) > 0 {
		if err := json.Unmarshal(own, &f.Own); err != nil {
			return backupFacts{}, rpc.Errorf(rpc.Invalid, "the agent's record of the VM: %w", err)
		}
	}
	if len(pool.Hosts) > 0 {
		f.Host = pool.Hosts[0]
	}
	for _, d := range m.GetExcluded() {
		f.Excluded = append(f.Excluded, DiskFrom(d))
	}
	return f, nil
}
