package controller

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// documentPiece is how much of an ova.xml one message carries, in bytes.
const documentPiece = 1 << 20

// maxPlanned bounds the ova.xml documents of an agent's plan, in bytes.
const maxPlanned = 256 << 20

// restoreSpec says what an agent is to do with a file.
type restoreSpec struct {
	Kind                    Kind
	VMName, NewName         string
	AsNew, Recreate, Start  bool
	SR                      string // UUID
	Networks                map[string]string
	KeepOld, DeleteFirst    bool
	ForceOff, DiscardMemory bool
	ShutdownLimit           time.Duration
	Settings                map[string]string
	SRs                     map[string]string // UUIDs of the pool's, by name or UUID of the file's
	Host                    string            // UUID
	LowerVersion            bool
	Own                     []byte // the VM's own record, JSON
}

func (s restoreSpec) message(ovaBytes int) *agentv1.RestoreSpec {
	return &agentv1.RestoreSpec{Kind: kindMessage(s.Kind), VmName: s.VMName, AsNew: s.AsNew, NewName: s.NewName,
		Recreate: s.Recreate, Start: s.Start, SrUuid: s.SR, Networks: s.Networks, KeepOldDisks: s.KeepOld,
		DeleteFirst: s.DeleteFirst, ForceOff: s.ForceOff, DiscardMemory: s.DiscardMemory,
		ShutdownTimeout: durationpb.New(s.ShutdownLimit), OvaBytes: uint64(ovaBytes), Settings: s.Settings,
		Srs: s.SRs, HostUuid: s.Host, LowerVersion: s.LowerVersion, OwnRecord: s.Own}
}

// upload is one restore transfer at the sending end. It survives cuts: attach is called again and again.
type upload struct {
	open opening
	spec restoreSpec
	pack bool   // frames are compressed on the wire, where the agent takes it
	ova  []byte // the file's ova.xml
	// onPlan is called once: it returns the length of every archive, and what writes them one after the other.
	onPlan func(restorePlan) (sizes []int64, produce func(io.Writer) error, err error)
	onStep func(step)

	sender  *transfer.Sender
	planned [sha256.Size]byte // of the plan that sender was made for
	sizes   []int64
	result  *restoreEnd
	making  sync.WaitGroup // the producer
	pulse   pulse
}

// stop ends the producer.
func (u *upload) stop(err error) {
	if u.sender != nil {
		u.sender.Abort(err)
		u.making.Wait()
	}
}

// attach opens the transfer's stream with that attempt, or attaches to it again, sends what is wanted and waits for the
// result. The connection is its own, and nothing of it runs on after attach has returned.
func (u *upload) attach(ctx context.Context, conn *agentConn, attempt uint32) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	moved := u.pulse.begin()
	defer func() { progressed = moved(conn.timing.BackoffMax) }()
	cc, err := conn.dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = cc.Close() }() // it fails only when it is closed already
	var stream agentv1.AgentService_RestoreClient
	err = openWithin(cancel, conn.timing.StallLimit, func() (err error) {
		if stream, err = agentv1.NewAgentServiceClient(cc).Restore(ctx); err != nil {
			return err
		}
		if err := u.sendOpening(stream, attempt); err != nil {
			_, said := stream.Recv()
			return streamError(said, err)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	a := &uploading{upload: u, stream: stream, attempt: attempt, ready: make(chan struct{})}
	err = runStream(ctx, cancel, nil, a.receive, a.send, u.pulse.watch(conn.timing.StallLimit))
	if a.attachment != nil {
		a.attachment.Detach()
	}
	return false, err
}

// acked is how much of the logical stream the agent has acknowledged, in bytes.
func (u *upload) acked() int64 {
	if u.sender == nil {
		return 0
	}
	_, acked := u.sender.Progress()
	return acked
}

func (u *upload) sendOpening(stream agentv1.AgentService_RestoreClient, attempt uint32) error {
	open := &agentv1.RestoreOpen{Opening: u.open.message(attempt, u.acked()), Spec: u.spec.message(len(u.ova))}
	if err := stream.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_Open{Open: open}}); err != nil {
		return err
	}
	for rest := u.ova; ; {
		n := min(len(rest), documentPiece)
		doc := &agentv1.Document{Data: rest[:n], Last: n == len(rest)}
		if err := stream.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_Ova{Ova: doc}}); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
	}
}

// uploading is one attached stream of an upload.
type uploading struct {
	*upload
	stream     agentv1.AgentService_RestoreClient
	attempt    uint32
	attachment *transfer.Attachment
	ready      chan struct{} // closed when attachment stands
	offset     int64
	plan       *agentv1.RestorePlan
	docs       []byte
	want       uint64
	packer     *transfer.Packer // nil = frames go as they are; stands before ready
}

// receive takes in what the agent says until the result and the end of the stream.
func (a *uploading) receive(context.Context) error {
	for {
		m, err := a.stream.Recv()
		if errors.Is(err, io.EOF) {
			return errNoSummary
		}
		if err != nil {
			return err
		}
		done, err := a.handle(m)
		if err != nil {
			return err
		}
		if !done {
			continue
		}
		if _, err := a.stream.Recv(); !errors.Is(err, io.EOF) {
			if err == nil {
				err = rpc.Errorf(rpc.Invalid, "the agent sent more after its result")
			}
			return err
		}
		return nil
	}
}

func (a *uploading) handle(m *agentv1.RestoreResponse) (done bool, err error) {
	switch k := m.GetKind().(type) {
	case *agentv1.RestoreResponse_Opened:
		a.offset = position(k.Opened.GetOffset())
		if a.pack && k.Opened.GetWireCompression() == transfer.WireZstd && a.packer == nil {
			a.packer = transfer.NewPacker()
		}
	case *agentv1.RestoreResponse_Plan:
		return false, a.take(k.Plan)
	case *agentv1.RestoreResponse_Ova:
		return false, a.document(k.Ova)
	case *agentv1.RestoreResponse_Ack:
		if a.attachment == nil {
			return false, rpc.Errorf(rpc.Invalid, "the agent acknowledged bytes before it planned")
		}
		before := a.acked()
		if err := a.attachment.Ack(position(k.Ack.GetOffset())); err != nil {
			return false, err
		}
		if a.acked() > before {
			a.pulse.beat()
		}
	case *agentv1.RestoreResponse_Progress:
		now := stepFrom(k.Progress)
		a.pulse.step(now)
		a.onStep(now)
	case *agentv1.RestoreResponse_Result:
		return true, a.end(k.Result)
	}
	return false, nil // a newer agent may say more
}

// send sends the lengths, the bytes from where the agent stands, and the totals.
func (a *uploading) send(ctx context.Context) error {
	select {
	case <-a.ready:
	case <-ctx.Done():
		return nil
	}
	sizes := &agentv1.RestoreSizes{}
	for _, n := range a.sizes {
		sizes.Bytes = append(sizes.Bytes, uint64(n))
	}
	if err := a.stream.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_Sizes{Sizes: sizes}}); err != nil {
		return quiet(err)
	}
	for {
		frame, err := a.attachment.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		err = a.sendFrame(frame)
		frame.Free()
		if err != nil {
			return quiet(err)
		}
	}
	n, crc := a.sender.Totals()
	end := &agentv1.RestoreEnd{Bytes: uint64(n), Crc32C: crc}
	if err := a.stream.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_End{End: end}}); err != nil {
		return quiet(err)
	}
	return a.stream.CloseSend()
}

// sendFrame sends a frame, packed where the agent takes that and it gets shorter.
func (a *uploading) sendFrame(frame mem.BufferSlice) error {
	if a.packer != nil {
		packed, err := a.packer.Pack(frame)
		if err != nil {
			return err
		}
		if packed != nil {
			return a.stream.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_Packed{Packed: &agentv1.PackedFrame{Zstd: packed}}})
		}
	}
	return a.stream.SendMsg(&transfer.RestoreEvent{Frame: frame})
}

// quiet drops the EOF that a broken stream gives its sender: what broke it comes from receiving.
func quiet(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
