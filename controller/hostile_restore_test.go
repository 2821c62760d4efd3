package controller

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// restoring is a restore stream as an agent answers it; its fields change what a proper one would send.
type restoring struct {
	opened    *agentv1.Opened
	plan      *agentv1.RestorePlan
	doc       []byte // of the plan; nil = the file's
	planTwice bool
	early     bool // the result comes before the bytes
	before    func(grpc.ServerStream) error
	ack       func(at uint64) uint64
	result    *agentv1.RestoreResult
	after     []any
	deaf      bool // it takes nothing in
}

func properRestore() *restoring {
	return &restoring{opened: &agentv1.Opened{}, plan: &agentv1.RestorePlan{InPlace: true, Parts: []*agentv1.RestorePart{{
		SrUuid: testUUID(901), SrName: "lvm", Disks: []string{"Ref:2"}}}},
		ack:    func(at uint64) uint64 { return at },
		result: &agentv1.RestoreResult{VmUuid: testUUID(hostileVM), VmName: "web", InPlace: true, PowerState: agentv1.PowerState_POWER_STATE_RUNNING}}
}

func (r *restoring) serve(st grpc.ServerStream) error {
	if r.deaf {
		return silence(st)
	}
	m := &agentv1.RestoreRequest{}
	var ova []byte
	for !m.GetOva().GetLast() {
		m = &agentv1.RestoreRequest{}
		if err := st.RecvMsg(m); err != nil {
			return err
		}
		ova = append(ova, m.GetOva().GetData()...)
	}
	if err := r.sendPlan(st, ova); err != nil {
		return err
	}
	if r.before != nil {
		if err := r.before(st); err != nil {
			return err
		}
	}
	if !r.early {
		if err := r.receive(st); err != nil {
			return err
		}
	}
	return say(append([]any{&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Result{Result: r.result}}}, r.after...)...)(st)
}

func (r *restoring) sendPlan(st grpc.ServerStream, ova []byte) error {
	if r.doc != nil {
		ova = r.doc
	}
	if r.opened != nil {
		if err := st.SendMsg(&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Opened{Opened: r.opened}}); err != nil {
			return err
		}
	}
	if r.plan == nil {
		return nil
	}
	if len(r.plan.Parts) == 1 && r.plan.Parts[0].OvaBytes == 0 {
		r.plan.Parts[0].OvaBytes = uint64(len(ova))
	}
	plan := &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Plan{Plan: r.plan}}
	send := []any{plan, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ova{Ova: &agentv1.Document{Data: ova, Last: true}}}}
	if r.planTwice {
		send = append([]any{plan}, send...)
	}
	return say(send...)(st)
}

func (r *restoring) receive(st grpc.ServerStream) error {
	var at uint64
	for {
		m := &agentv1.RestoreRequest{}
		if err := st.RecvMsg(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if at += uint64(len(m.GetFrame().GetData())); m.GetFrame() == nil {
			continue
		}
		if err := st.SendMsg(&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ack{Ack: &agentv1.Ack{Offset: r.ack(at)}}}); err != nil {
			return err
		}
	}
}

// restoreWith runs a restore session of the VM's file.
func restoreWith(t *testing.T, script *restoring, change func(*Timing), req RestoreRequest) (*Report, int) {
	t.Helper()
	a := honest(t)
	a["Restore"] = script.serve
	s := newHostileSite(t, a, change)
	stagedBackup{n: hostileVM, name: "web", mode: AllOnline, pool: 1}.stage(t, s.cfg.Restore)
	if err := os.RemoveAll(s.cfg.Restore + "/.dpxen"); err != nil {
		t.Fatal(err)
	}
	req.Mode = AllOnline
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := s.Restore(ctx, req)
	return r, s.ended(r, err)
}

func TestProperRestore(t *testing.T) {
	r, code := restoreWith(t, properRestore(), nil, RestoreRequest{})
	if code != CodeOK || r.Counts().Good != 1 {
		t.Errorf("code %d: %+v", code, r.VMs)
	}
}

// TestLyingRestores: a VM is called restored only where the agent got all of the file, and says that it is that VM.
func TestLyingRestores(t *testing.T) {
	part := func(n uint64) *agentv1.RestorePart {
		return &agentv1.RestorePart{OvaBytes: n, Disks: []string{"Ref:2"}}
	}
	parts := func(all ...*agentv1.RestorePart) func(*restoring) {
		return func(r *restoring) { r.plan.Parts = all }
	}
	for name, tt := range map[string]struct {
		lie  func(*restoring)
		says string
	}{
		"nothing was planned":        {func(r *restoring) { r.plan, r.early = nil, true }, "before all of the file was sent"},
		"restored before the bytes":  {func(r *restoring) { r.early = true }, "before all of the file was sent"},
		"no parts":                   {parts(), "plans 0 parts"},
		"a document of nothing":      {func(r *restoring) { r.plan.Parts = []*agentv1.RestorePart{part(0), part(9)} }, "a document of 0 bytes"},
		"lengths that run over":      {parts(part(math.MaxUint64-9), part(20)), "plans a document of"},
		"lengths that run over to 0": {parts(part(1<<63), part(1<<63)), "plans a document of"},
		"a document of gigabytes":    {parts(part(1 << 40)), "plans a document of"},
		"longer than the file's":     {func(r *restoring) { r.doc = make([]byte, 1<<21) }, ""},
		"a thousand parts":           {parts(slices.Repeat([]*agentv1.RestorePart{part(1)}, 1000)...), "1000 parts"},
		"a million parts":            {func(r *restoring) { r.plan = nil; r.before = say(raw(emptyElements(2, 1))) }, "too many others"},
		"plans twice":                {func(r *restoring) { r.planTwice = true }, "twice"},
		"documents without a plan": {func(r *restoring) {
			r.plan = nil
			r.before = say(&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ova{Ova: &agentv1.Document{Last: true}}})
		}, "other documents"},
		"an ova.xml that is none":        {func(r *restoring) { r.doc = []byte(strings.Repeat("<value>", 5000)) }, "ova.xml"},
		"disks that are not there":       {func(r *restoring) { r.plan.Parts[0].Disks = []string{"../../etc/passwd"} }, "ova.xml"},
		"a disk a hundred times":         {func(r *restoring) { r.plan.Parts[0].Disks = slices.Repeat([]string{"Ref:2"}, 100) }, "ova.xml"},
		"goes on from elsewhere":         {func(r *restoring) { r.opened.Offset = 1 << 40 }, "attach at byte"},
		"goes on from below 0":           {func(r *restoring) { r.opened.Offset = math.MaxUint64 }, "attach at byte"},
		"acknowledges what was not sent": {func(r *restoring) { r.ack = func(uint64) uint64 { return 1 << 40 } }, "acknowledged up to byte"},
		"acknowledges beyond numbers":    {func(r *restoring) { r.ack = func(uint64) uint64 { return math.MaxUint64 } }, "acknowledged up to byte"},
		"acknowledges before the plan": {func(r *restoring) {
			r.plan, r.before = nil, say(&agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ack{Ack: &agentv1.Ack{}}})
		}, "before it planned"},
		"another VM":            {func(r *restoring) { r.result.VmUuid = testUUID(8) }, "has restored VM " + testUUID(8)},
		"no VM":                 {func(r *restoring) { r.result = nil }, "does not say which VM"},
		"a VM that is a path":   {func(r *restoring) { r.result.VmUuid = "../../../../../../etc/cron.d/aaaaaaa" }, "does not say which VM"},
		"more after the result": {func(r *restoring) { r.after = []any{&agentv1.RestoreResponse{}} }, "more after its result"},
		"garbage after it":      {func(r *restoring) { r.after = []any{raw{0xff}} }, ""},
		"a frame":               {func(r *restoring) { r.plan = nil; r.before = say(frameOf([]byte("x"))); r.early = true }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			script := properRestore()
			tt.lie(script)
			ends(t, time.Minute, func() {
				r, code := restoreWith(t, script, nil, RestoreRequest{})
				vm := r.VMs[0]
				if code == CodeOK || code == CodeWarnings || vm.Status != StatusFailed || !strings.Contains(vm.Error, tt.says) {
					t.Errorf("code %d, %s: %.300q, want something with %q", code, vm.Status, vm.Error, tt.says)
				}
			})
		})
	}
	t.Run("the VM itself instead of a new one", func(t *testing.T) {
		r, code := restoreWith(t, properRestore(), nil, RestoreRequest{AsNew: true})
		if code == CodeOK || !strings.Contains(r.VMs[0].Error, "another one beside it") {
			t.Errorf("code %d: %+v", code, r.VMs)
		}
	})
}

// TestEndlessRestores: an agent that takes the stream and never comes to an end is ended.
func TestEndlessRestores(t *testing.T) {
	for name, lie := range map[string]func(*restoring){
		"deaf from the beginning": func(r *restoring) { r.deaf = true },
		"no plan":                 func(r *restoring) { r.plan, r.before = nil, silence },
		"no acknowledgements":     func(r *restoring) { r.before = silence },
		"the same one again": func(r *restoring) {
			r.before = sayFor(10*time.Millisecond, &agentv1.RestoreResponse{Kind: &agentv1.RestoreResponse_Ack{Ack: &agentv1.Ack{}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			script := properRestore()
			lie(script)
			ends(t, time.Minute, func() {
				r, code := restoreWith(t, script, stallSoon, RestoreRequest{})
				if code != CodeNone || !strings.Contains(r.VMs[0].Error, "stalled") || r.VMs[0].Reason != string(rpc.Deadline) {
					t.Errorf("code %d: %+v", code, r.VMs)
				}
			})
		})
	}
}
