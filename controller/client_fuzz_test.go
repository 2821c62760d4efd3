package controller

import (
	"errors"
	"io"
	"math"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// FuzzAgent takes what an agent may send, decoded as each of the messages that it sends, and streams of them, through all
// that the controller makes of it: nothing panics, and what comes out is within its bounds.
func FuzzAgent(f *testing.F) {
	vm := &agentv1.VM{Uuid: testUUID(1), Name: terminal, Disks: []*agentv1.Disk{{VirtualSize: -1, PhysicalBytes: 1 << 62}}}
	for _, m := range []proto.Message{
		&agentv1.ListVMsResponse{Vms: []*agentv1.VM{vm, vm}}, toldPool(1, 11, 11), &agentv1.BackupFacts{Vm: vm},
		&agentv1.SweepResponse{Actions: []*agentv1.SweepAction{{VmUuid: terminal}}},
	} {
		f.Add(mustMarshal(f, m))
	}
	f.Add(framed(f, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Opened{Opened: &agentv1.Opened{Offset: math.MaxUint64}}},
		&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Plan{Plan: &agentv1.RestorePlan{Parts: []*agentv1.RestorePart{{OvaBytes: math.MaxUint64}, {OvaBytes: 3}}}}},
		&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ova{Ova: &agentv1.Document{Data: []byte("xx"), Last: true}}},
		&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ack{Ack: &agentv1.Ack{Offset: 9}}},
		&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Result{}}))
	f.Add(framed(f, factsOfVM(&agentv1.BackupFacts{Vm: vm}), frameOf([]byte("bytes")), progressOf(&agentv1.Progress{TaskProgress: math.NaN()}),
		summaryOf(&agentv1.BackupSummary{Bytes: 5, Task: 9})))
	packed, err := transfer.NewPacker().Pack(mem.BufferSlice{mem.SliceBuffer(make([]byte, 5000))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(framed(f, factsOfVM(&agentv1.BackupFacts{Vm: vm}), packedOf(packed), packedOf(nil), packedOf([]byte("none"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzInventory(t, data)
		fuzzBackup(t, data)
		fuzzRestore(t, data)
	})
}

func mustMarshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return data
}

// framed puts messages behind each other, each with its length before it.
func framed(f *testing.F, messages ...proto.Message) []byte {
	f.Helper()
	var all []byte
	for _, m := range messages {
		all = protowire.AppendBytes(all, mustMarshal(f, m))
	}
	return all
}

// each calls do with every message of a stream until it fails.
func each(data []byte, do func([]byte) error) {
	for len(data) > 0 {
		m, n := protowire.ConsumeBytes(data)
		if n < 0 || do(m) != nil {
			return
		}
		data = data[n:]
	}
}

func fuzzInventory(t *testing.T, data []byte) {
	check := &agentv1.CheckResponse{}
	if proto.Unmarshal(data, check) == nil {
		p := poolFrom(check)
		if p.UUID != "" && canonicalUUID(p.UUID) != p.UUID || len(p.Name) > maxText {
			t.Errorf("pool %.200q %.200q", p.UUID, p.Name)
		}
		for i := range p.SRs {
			if free, known := p.SRs[i].Free(); known && free < 0 {
				t.Errorf("%d bytes free", free)
			}
		}
	}
	page := &agentv1.ListVMsResponse{}
	if proto.Unmarshal(data, page) == nil {
		for _, m := range page.GetVms() {
			fuzzVM(t, m)
		}
	}
	facts := &agentv1.BackupFacts{}
	if proto.Unmarshal(data, facts) == nil {
		if got, err := factsFrom(facts); err == nil && (got.VM.UUID == "" || len(got.Warnings) > maxTexts+1) {
			t.Errorf("facts of VM %q with %d warnings", got.VM.UUID, len(got.Warnings))
		}
	}
}

func fuzzVM(t *testing.T, m *agentv1.VM) {
	vm, ok := vmFrom(m, &Pool{UUID: testUUID(1)})
	if ok != (vm.UUID != "") || ok && canonicalUUID(vm.UUID) != vm.UUID || len(vm.Name) > maxText || len(vm.Tags) > maxTags {
		t.Errorf("VM %q of a name of %d bytes with %d tags", vm.UUID, len(vm.Name), len(vm.Tags))
	}
	for _, d := range vm.Disks {
		if d.Size < 0 || d.Physical < 0 {
			t.Errorf("disk of %d and %d bytes", d.Size, d.Physical)
		}
	}
	keep, out := DefaultConfig().diskRules().split(&vm)
	if n := estimate(keep); n < overhead || len(keep)+len(out) != len(vm.Disks) {
		t.Errorf("an estimate of %d bytes for %d and %d disks", n, len(keep), len(out))
	}
}

func fuzzBackup(t *testing.T, data []byte) {
	written := 0
	d := &download{spec: backupSpec{WirePacked: true},
		recv:    transfer.NewReceiver(writerFunc(func(p []byte) (int, error) { written += len(p); return len(p), nil })),
		onFacts: func(backupFacts) error { return nil }, onStep: func(s step) {
			if !(s.Task >= 0 && s.Task <= 1) || len(s.Message) > maxText {
				t.Errorf("progress %v, message of %d bytes", s.Task, len(s.Message))
			}
		}}
	intake, offset, err := d.recv.Attach(1)
	if err != nil {
		t.Fatal(err)
	}
	each(data, func(m []byte) error {
		var ev transfer.BackupEvent
		if err := rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(m)}, &ev); err != nil {
			return err
		}
		done, err := d.handle(&ev, intake, offset, transfer.NewAcks())
		if n, _ := d.recv.Totals(); done && err == nil && (n != int64(written) || ev.Msg.GetSummary().GetBytes() != uint64(n)) {
			t.Errorf("%d bytes are called good, %d were written", ev.Msg.GetSummary().GetBytes(), written)
		}
		if done {
			return io.EOF
		}
		return err
	})
}

func fuzzRestore(t *testing.T, data []byte) {
	u := &upload{open: opening{VM: testUUID(1), Window: 1 << 20}, ova: []byte("<value/>"), onStep: func(step) {},
		onPlan: func(p restorePlan) ([]int64, func(io.Writer) error, error) {
			for _, part := range p.Parts {
				xva.RewriteLength(&xva.Report{}, part.OVA, part.Disks)
			}
			return nil, func(w io.Writer) error { _, err := w.Write([]byte("data")); return err }, nil
		}}
	a := &uploading{upload: u, attempt: 1, ready: make(chan struct{})}
	each(data, func(m []byte) error {
		msg := &agentv1.RestoreResponse{}
		if err := proto.Unmarshal(m, msg); err != nil {
			return err
		}
		done, err := a.handle(msg)
		if done && err == nil {
			t.Error("called restored, and nothing was sent")
		}
		if done {
			return io.EOF
		}
		return err
	})
	u.stop(errors.New("over"))
}

// writerFunc is a function that writes.
type writerFunc func([]byte) (int, error)

// Write calls it.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
