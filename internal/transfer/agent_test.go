package transfer_test

import (
	"bytes"
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// held is a transfer as an agent holds it.
type held struct {
	sender   *transfer.Sender
	receiver *transfer.Receiver
	lease    *transfer.Lease
	body     bytes.Buffer
}

// agent is a small agent: Backup sends data, Restore keeps what it gets.
type agent struct {
	agentv1.UnimplementedAgentServiceServer
	registry *transfer.Registry[*held]
	data     []byte
	attempts sync.Map       // of attached streams
	pool     mem.BufferPool // of the rings; nil = their own
}

func newAgent(data []byte) *agent {
	return &agent{registry: transfer.NewRegistry[*held](0), data: data}
}

func (a *agent) newSender(window int64) *transfer.Sender {
	if a.pool == nil {
		return transfer.NewSender(window)
	}
	return transfer.NewSenderFrom(window, a.pool)
}

func (a *agent) open(o *agentv1.Opening) (*held, bool, error) {
	return a.registry.OpenAt(o.GetKey(), o.GetAttempt(), int64(o.GetOffset()), func() (*held, error) {
		h := &held{sender: a.newSender(int64(o.GetWindow())), lease: transfer.NewLease(o.GetLease().AsDuration())}
		h.receiver = transfer.NewReceiver(&h.body)
		go func() {
			if _, err := h.sender.ReadFrom(bytes.NewReader(a.data)); err != nil {
				h.sender.Abort(err)
			}
			h.sender.Finish()
		}()
		return h, nil
	})
}

func (a *agent) Backup(stream grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	o := first.GetOpen().GetOpening()
	h, resumed, err := a.open(o)
	if err != nil {
		return err
	}
	if !h.lease.Attach() {
		return transfer.ErrGone
	}
	defer h.lease.Detach()
	att, err := h.sender.Attach(o.GetAttempt(), int64(o.GetOffset()))
	if err != nil {
		return err
	}
	defer att.Detach()
	a.attempts.Store(o.GetAttempt(), resumed)
	send := transfer.Serialize(stream.SendMsg)
	bytes := func(ctx context.Context) error {
		opened := &agentv1.Opened{Offset: o.GetOffset(), Resumed: resumed}
		if err := stream.Send(&agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Opened{Opened: opened}}); err != nil {
			return err
		}
		if err := transfer.Pump(ctx, att, func(f mem.BufferSlice) error { return send(&transfer.BackupEvent{Frame: f}) }); err != nil {
			return err
		}
		n, crc := h.sender.Totals()
		return send(&agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Summary{
			Summary: &agentv1.BackupSummary{Bytes: uint64(n), Crc32C: crc}}})
	}
	return transfer.Run(stream.Context(), att.Evicted(), bytes, func(context.Context) error {
		for {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			if err := att.Ack(int64(m.GetAck().GetOffset())); err != nil {
				return err
			}
		}
	})
}

func (a *agent) Restore(stream grpc.BidiStreamingServer[agentv1.RestoreRequest, agentv1.RestoreResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	o := first.GetOpen().GetOpening()
	h, resumed, err := a.open(o)
	if err != nil {
		return err
	}
	if !h.lease.Attach() {
		return transfer.ErrGone
	}
	defer h.lease.Detach()
	in, offset, err := h.receiver.AttachContext(stream.Context(), o.GetAttempt())
	if err != nil {
		return err
	}
	defer in.Detach()
	a.attempts.Store(o.GetAttempt(), resumed)
	acks, opened := transfer.NewAcks(), &agentv1.Opened{Offset: uint64(offset), Resumed: resumed}
	answer := func(ctx context.Context) error {
		if err := stream.Send(&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Opened{Opened: opened}}); err != nil {
			return err
		}
		err := acks.Send(ctx, func(offset int64) error {
			return stream.Send(&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ack{Ack: &agentv1.Ack{Offset: uint64(offset)}}})
		})
		if err != nil {
			return err
		}
		return stream.Send(&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Result{Result: &agentv1.RestoreResult{VmName: "web-01"}}})
	}
	return transfer.Run(stream.Context(), in.Evicted(), answer, func(context.Context) error { return a.take(stream, h, in, acks) })
}

// take receives frames until the end.
func (a *agent) take(stream grpc.ServerStream, h *held, in *transfer.Intake, acks *transfer.Acks) error {
	for {
		var ev transfer.RestoreEvent
		if err := stream.RecvMsg(&ev); err != nil {
			return err
		}
		if end := ev.Msg.GetEnd(); end != nil {
			defer acks.Close()
			return h.receiver.Check(int64(end.GetBytes()), end.GetCrc32C())
		}
		offset, err := in.Write(ev.Frame)
		if err != nil {
			return err
		}
		acks.Put(offset)
	}
}
