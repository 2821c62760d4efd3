package transfer_test

import (
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// endless is a disk that never ends, at no cost.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// halves is such a disk whose data compresses to about a half.
type halves []byte

func newHalves() halves {
	b := make([]byte, transfer.FrameSize)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		if i%2048 < 1024 {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

func (h halves) Read(p []byte) (int, error) { return copy(p, h), nil }

// feeder answers Backup with as much as is asked for, by events or by generated messages.
type feeder struct {
	agentv1.UnimplementedAgentServiceServer
	events bool
	packer *transfer.Packer // nil = frames go as they are
	from   io.Reader
	bytes  int64
}

func (f *feeder) send(stream grpc.ServerStream, frame mem.BufferSlice) error {
	if f.packer == nil {
		return stream.SendMsg(&transfer.BackupEvent{Frame: frame})
	}
	packed, err := f.packer.Pack(frame)
	if err != nil {
		return err
	}
	return stream.SendMsg(&transfer.BackupEvent{Msg: &agentv1.BackupResponse{
		Kind: &agentv1.BackupResponse_Packed{Packed: &agentv1.PackedFrame{Zstd: packed}}}})
}

func (f *feeder) Backup(stream grpc.BidiStreamingServer[agentv1.BackupRequest, agentv1.BackupResponse]) error {
	if !f.events {
		data := make([]byte, transfer.FrameSize)
		for sent := int64(0); sent < f.bytes; sent += transfer.FrameSize {
			err := stream.Send(&agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Frame{Frame: &agentv1.Frame{Data: data}}})
			if err != nil {
				return err
			}
		}
		return nil
	}
	s := transfer.NewSender(0)
	att, err := s.Attach(1, 0)
	if err != nil {
		return err
	}
	go func() {
		if _, err := s.ReadFrom(io.LimitReader(f.from, f.bytes)); err == nil {
			s.Finish()
		}
	}()
	defer s.Abort(nil)
	return transfer.Run(stream.Context(), att.Evicted(), func(ctx context.Context) error {
		return transfer.Pump(ctx, att, func(b mem.BufferSlice) error { return f.send(stream, b) })
	}, func(context.Context) error {
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

// BenchmarkBackup measures one stream over mutual TLS on loopback with both ends in this process: the whole transfer, the
// same with frames packed on the wire, the stock codec with generated messages, and TLS without gRPC as the bound of what can be had.
func BenchmarkBackup(b *testing.B) {
	b.Run("transfer", func(b *testing.B) { benchmarkTransfer(b, &feeder{events: true, from: endless{}}) })
	b.Run("packed", func(b *testing.B) {
		benchmarkTransfer(b, &feeder{events: true, from: newHalves(), packer: transfer.NewPacker()})
	})
	b.Run("generated", func(b *testing.B) {
		stream := open(b, &feeder{bytes: int64(b.N) * transfer.FrameSize})
		b.SetBytes(transfer.FrameSize)
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			if _, err := stream.Recv(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tls", benchmarkTLS)
}

// benchmarkTransfer receives b.N frames as the controller does.
func benchmarkTransfer(b *testing.B, f *feeder) {
	f.bytes = int64(b.N) * transfer.FrameSize
	stream := open(b, f)
	r := transfer.NewReceiver(io.Discard)
	in, _, err := r.Attach(1)
	if err != nil {
		b.Fatal(err)
	}
	acks, unpacker := transfer.NewAcks(), transfer.NewUnpacker()
	b.SetBytes(transfer.FrameSize)
	b.ReportAllocs()
	b.ResetTimer()
	began := cpuTime(b)
	err = transfer.Run(b.Context(), in.Evicted(), func(context.Context) error {
		for {
			var ev transfer.BackupEvent
			if err := stream.RecvMsg(&ev); err != nil {
				return err
			}
			frame := ev.Frame
			if ev.Packed != nil {
				if frame, err = unpacker.Unpack(ev.Packed); err != nil {
					return err
				}
				ev.Free()
			}
			offset, err := in.Write(frame)
			if err != nil {
				return err
			}
			acks.Put(offset)
		}
	}, func(ctx context.Context) error {
		return acks.Send(ctx, func(offset int64) error {
			return stream.Send(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Ack{Ack: &agentv1.Ack{Offset: uint64(offset)}}})
		})
	})
	reportCPU(b, began)
	if n, _ := r.Totals(); n != f.bytes {
		b.Fatalf("received %d bytes: %v", n, err)
	}
}

func open(b *testing.B, f *feeder) grpc.BidiStreamingClient[agentv1.BackupRequest, agentv1.BackupResponse] {
	b.Helper()
	l := newLoopback(b, f)
	l.network.address = l.network.to // no detour
	client, conn, err := l.dial()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	stream, err := client.Backup(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return stream
}

func benchmarkTLS(b *testing.B) {
	lb := newLoopback(b, agentv1.UnimplementedAgentServiceServer{})
	l, err := tls.Listen("tcp", "127.0.0.1:0", lb.server)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		data := make([]byte, transfer.FrameSize)
		for range b.N {
			if _, err := conn.Write(data); err != nil {
				return
			}
		}
	}()
	config := lb.client.Clone()
	config.ServerName = "xs1"
	raw, err := (&net.Dialer{}).DialContext(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	conn := tls.Client(raw, config)
	defer conn.Close()
	data := make([]byte, transfer.FrameSize)
	b.SetBytes(transfer.FrameSize)
	b.ResetTimer()
	began := cpuTime(b)
	defer func() { reportCPU(b, began) }()
	for range b.N {
		if _, err := io.ReadFull(conn, data); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is what this process has used of all processors so far, user and kernel.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportCPU tells the processor time of both ends for each GB.
func reportCPU(b *testing.B, began time.Duration) {
	b.Helper()
	b.ReportMetric((cpuTime(b)-began).Seconds()/(float64(b.N)*transfer.FrameSize/1e9), "cpu-s/GB")
}
