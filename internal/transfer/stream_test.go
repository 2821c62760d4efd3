package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
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
	attempts sync.Map // of attached streams
}

func newAgent(data []byte) *agent {
	return &agent{registry: transfer.NewRegistry[*held](0), data: data}
}

func (a *agent) open(o *agentv1.Opening) (*held, bool, error) {
	return a.registry.OpenAt(o.GetKey(), o.GetAttempt(), int64(o.GetOffset()), func() (*held, error) {
		h := &held{sender: transfer.NewSender(int64(o.GetWindow())), lease: transfer.NewLease(o.GetLease().AsDuration())}
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

func opening(attempt uint32, offset int64, window uint64) *agentv1.Opening {
	return &agentv1.Opening{Key: "k", Attempt: attempt, Offset: uint64(offset), Window: window, Lease: durationpb.New(time.Minute)}
}

// backup is one attempt of a controller.
func (l *loopback) backup(ctx context.Context, r *transfer.Receiver, attempt uint32, window uint64) (progressed bool, err error) {
	client, conn, err := l.dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	in, start, err := r.Attach(attempt)
	if err != nil {
		return false, err
	}
	defer in.Detach()
	stream, err := client.Backup(ctx)
	if err != nil {
		return false, err
	}
	if err := stream.Send(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Open{
		Open: &agentv1.BackupOpen{Opening: opening(attempt, start, window)}}}); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	acks := transfer.NewAcks()
	err = transfer.Run(ctx, in.Evicted(), func(context.Context) error { return receive(stream, r, in, acks) },
		func(ctx context.Context) error {
			return acks.Send(ctx, func(offset int64) error {
				return stream.Send(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Ack{Ack: &agentv1.Ack{Offset: uint64(offset)}}})
			})
		})
	end, _ := r.Totals()
	return end > start, err
}

// receive takes frames until the summary and the end of the stream.
func receive(stream grpc.ClientStream, r *transfer.Receiver, in *transfer.Intake, acks *transfer.Acks) error {
	var summary *agentv1.BackupSummary
	for {
		var ev transfer.BackupEvent
		err := stream.RecvMsg(&ev)
		switch {
		case errors.Is(err, io.EOF) && summary != nil:
			return r.Check(int64(summary.GetBytes()), summary.GetCrc32C())
		case errors.Is(err, io.EOF):
			return errors.New("the stream ended without a summary")
		case err != nil:
			return err
		case ev.Frame == nil:
			summary = ev.Msg.GetSummary()
			continue
		}
		offset, err := in.Write(ev.Frame)
		if err != nil {
			return err
		}
		acks.Put(offset)
	}
}

// restore is one attempt of a controller.
func (l *loopback) restore(ctx context.Context, s *transfer.Sender, attempt uint32) (progressed bool, err error) {
	client, conn, err := l.dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stream, err := client.Restore(ctx)
	if err != nil {
		return false, err
	}
	_, acked := s.Progress()
	if err := stream.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_Open{
		Open: &agentv1.RestoreOpen{Opening: opening(attempt, acked, 0)}}}); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	m, err := stream.Recv()
	if err != nil {
		return false, err
	}
	start := int64(m.GetOpened().GetOffset())
	att, err := s.Attach(attempt, start)
	if err != nil {
		return false, err
	}
	defer att.Detach()
	err = transfer.Run(ctx, att.Evicted(), func(context.Context) error {
		for {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			if m.GetResult() != nil {
				_, err = stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				return fmt.Errorf("after the result: %w", err)
			}
			if err := att.Ack(int64(m.GetAck().GetOffset())); err != nil {
				return err
			}
		}
	}, func(ctx context.Context) error {
		if err := transfer.Pump(ctx, att, func(f mem.BufferSlice) error { return stream.SendMsg(&transfer.RestoreEvent{Frame: f}) }); err != nil {
			return err
		}
		n, crc := s.Totals()
		return stream.Send(&agentv1.RestoreRequest{Kind: &agentv1.RestoreRequest_End{End: &agentv1.RestoreEnd{Bytes: uint64(n), Crc32C: crc}}})
	})
	_, acked = s.Progress()
	return acked > start, err
}

func testData(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>16 ^ i>>8 ^ i*31)
	}
	return b
}

func quick() transfer.Redial {
	return transfer.Redial{Lease: 20 * time.Second, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond}
}

const mib = 1 << 20

// cuts are bytes that connections live: within the handshake, after it, in a frame, in the next.
func cuts() []int64 { return []int64{1000, 6000, mib / 2, 3*mib + 77, 2 * mib, 5*mib - 1} }

func TestBackupOverABadNetwork(t *testing.T) {
	for _, window := range []uint64{1, 3 * mib, 0} {
		a := newAgent(testData(12*mib + 12345))
		l := newLoopback(t, a, cuts()...)
		var got bytes.Buffer
		r := transfer.NewReceiver(&got)
		err := quick().Run(t.Context(), func(ctx context.Context, attempt uint32) (bool, error) {
			return l.backup(ctx, r, attempt, window)
		}, rpc.Retryable)
		if err != nil {
			t.Fatalf("window %d: %v", window, err)
		}
		if !bytes.Equal(got.Bytes(), a.data) {
			t.Errorf("window %d: got %d bytes of %d", window, got.Len(), len(a.data))
		}
		if n := l.network.connections(); n != len(cuts())+1 {
			t.Errorf("window %d: %d connections, want %d", window, n, len(cuts())+1)
		}
		if resumed, ok := a.attempts.Load(uint32(len(cuts()))); !ok || resumed != true {
			t.Errorf("window %d: the last but one stream was not a resumed one", window)
		}
	}
}

func TestRestoreOverABadNetwork(t *testing.T) {
	a := newAgent(nil)
	l := newLoopback(t, a, cuts()...)
	data := testData(12*mib + 12345)
	s := transfer.NewSender(3 * mib)
	go func() {
		if _, err := s.Write(data); err != nil {
			t.Errorf("write: %v", err)
		}
		s.Finish()
	}()
	err := quick().Run(t.Context(), func(ctx context.Context, attempt uint32) (bool, error) { return l.restore(ctx, s, attempt) }, rpc.Retryable)
	if err != nil {
		t.Fatal(err)
	}
	h, ok := a.registry.Lookup("k")
	if !ok || !bytes.Equal(h.body.Bytes(), data) {
		t.Errorf("the agent does not have what was sent")
	}
	if n := l.network.connections(); n != len(cuts())+1 {
		t.Errorf("%d connections, want %d", n, len(cuts())+1)
	}
}

func TestANewerStreamEvictsAnOlderOne(t *testing.T) {
	a := newAgent(testData(6 * mib))
	l := newLoopback(t, a)
	client, conn, err := l.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	old, err := client.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Send(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Open{
		Open: &agentv1.BackupOpen{Opening: opening(1, 0, 2*mib)}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Recv(); err != nil { // Opened; it acknowledges nothing, so the window fills
		t.Fatal(err)
	}
	var got bytes.Buffer
	r := transfer.NewReceiver(&got)
	if _, err := l.backup(t.Context(), r, 2, 2*mib); err != nil || !bytes.Equal(got.Bytes(), a.data) {
		t.Fatalf("the newer one got %d bytes, %v", got.Len(), err)
	}
	for err == nil {
		var ev transfer.BackupEvent
		err = old.RecvMsg(&ev)
		ev.Free()
	}
	if !errors.Is(err, transfer.ErrSuperseded) || rpc.Retryable(err) {
		t.Errorf("the older one ends with %v", err)
	}
	if _, err := l.backup(t.Context(), transfer.NewReceiver(io.Discard), 3, 2*mib); !errors.Is(err, transfer.ErrOffset) {
		t.Errorf("from the first byte again: %v", err)
	}
	if _, err := l.backup(t.Context(), r, 3, 2*mib); err != nil {
		t.Errorf("asked for the summary again: %v", err)
	}
}
