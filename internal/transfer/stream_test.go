package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

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
