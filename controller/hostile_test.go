package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// raw is a message as it stands on the wire: what no proper agent would encode.
type raw []byte

// rawCodec sends raw as it is, and all else as every agent does.
type rawCodec struct{ encoding.CodecV2 }

func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.(raw); ok {
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// answers are what an agent says, by the call. It has a certificate of this authority, and says what it likes.
type answers map[string]func(grpc.ServerStream) error

// hostileVM is the VM that the hostile agents have, in pool 1.
const hostileVM = 201

// honest are the answers of an agent that means well: it has one VM, and each lie of a test is held against what it says.
func honest(t *testing.T) answers {
	t.Helper()
	vm := &agentv1.VM{Uuid: testUUID(hostileVM), Name: "web", PowerState: agentv1.PowerState_POWER_STATE_RUNNING,
		ResidentHostUuid: testUUID(11), Disks: []*agentv1.Disk{{Userdevice: "0", VdiUuid: testUUID(72), Name: "root",
			VirtualSize: 1<<20 + 4096, SrUuid: testUUID(901)}}}
	return answers{
		"GetHost":         say(toldHost("xs1")),
		"Check":           say(toldPool(1, 11, 11)),
		"ListVMs":         say(&agentv1.ListVMsResponse{Vms: []*agentv1.VM{vm}}),
		"Backup":          honestBackup(t).serve,
		"LookupTransfer":  say(&agentv1.LookupTransferResponse{}),
		"ReleaseTransfer": say(&agentv1.ReleaseTransferResponse{Found: true, Outcome: cleanOutcome()}),
		"Sweep":           say(&agentv1.SweepResponse{}),
	}
}

func cleanOutcome() *agentv1.Outcome {
	running := agentv1.PowerState_POWER_STATE_RUNNING
	return &agentv1.Outcome{Succeeded: true, PowerBefore: running, PowerAfter: running, PowerRestored: true}
}

// say answers a call with messages, whatever was asked.
func say(messages ...any) func(grpc.ServerStream) error {
	return func(st grpc.ServerStream) error {
		for _, m := range messages {
			if err := st.SendMsg(m); err != nil {
				return err
			}
		}
		return nil
	}
}

// sayFor says the same again and again, until nobody listens.
func sayFor(every time.Duration, m any) func(grpc.ServerStream) error {
	return func(st grpc.ServerStream) error {
		for {
			if err := st.SendMsg(m); err != nil {
				return err
			}
			select {
			case <-st.Context().Done():
				return st.Context().Err()
			case <-time.After(every):
			}
		}
	}
}

// silence never answers.
func silence(st grpc.ServerStream) error {
	<-st.Context().Done()
	return st.Context().Err()
}

// serveHostile starts such an agent on loopback, with mutual TLS, and returns its address.
func (p *pki) serveHostile(a answers) string {
	p.t.Helper()
	source, err := certs.NewSource(p.issue(certs.Identity{Role: certs.Agent, Name: "xs1"}))
	if err != nil {
		p.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(source.ServerConfig(certs.PeerPolicy{Role: certs.Controller}))),
		grpc.ForceServerCodecV2(rawCodec{rpc.Codec()}),
		grpc.UnknownServiceHandler(func(_ any, st grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(st)
			if answer := a[method[strings.LastIndexByte(method, '/')+1:]]; answer != nil {
				return answer(st)
			}
			return status.Error(codes.Unimplemented, "unknown method") // as an older agent
		}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	p.t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return listener.Addr().String()
}

// hostileSite is a controller whose only agent is hostile.
type hostileSite struct {
	*Controller
	t      *testing.T
	mu     sync.Mutex
	events []Event
}

func newHostileSite(t *testing.T, a answers, change func(*Timing)) *hostileSite {
	t.Helper()
	p := newPKI(t)
	cfg := p.config(AgentConfig{Name: "xs1", Address: p.serveHostile(a)})
	cfg.Timing.Retries, cfg.Timing.BackoffMin, cfg.Timing.BackoffMax = 0, 100*time.Millisecond, 200*time.Millisecond
	cfg.Timing.Lease, cfg.Timing.ReleaseTimeout, cfg.Timing.CallTimeout = time.Second, 2*time.Second, 20*time.Second
	cfg.Timing.StallLimit, cfg.Timing.VMLimit = 30*time.Second, time.Minute
	cfg.Timing.XAPIOutage, cfg.Timing.BusyWait, cfg.Timing.ClaimWait = 500*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
	cfg.Limits.Stagger = 0
	if change != nil {
		change(&cfg.Timing)
	}
	s := &hostileSite{t: t}
	s.Controller = mustController(t, cfg, Options{Observer: s, Version: "v1"})
	return s
}

// Observe implements Observer.
func (s *hostileSite) Observe(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// backup runs a session and holds it to what is true of every one, whatever the agent did.
func (s *hostileSite) backup(mode Mode) (*Report, int) {
	s.t.Helper()
	r, err := s.Backup(s.t.Context(), Request{Mode: mode})
	return r, s.ended(r, err)
}

func (s *hostileSite) ended(r *Report, err error) int {
	s.t.Helper()
	code := ExitCode(r, err)
	if r == nil {
		s.t.Fatalf("no report: %v", err)
	}
	onDisk := mustReport(s.t, s.Controller, r.ID)
	if onDisk.State != StateDone || onDisk.Code != code {
		s.t.Errorf("session is %s with code %d on disk, it ended with %d", onDisk.State, onDisk.Code, code)
	}
	for _, vm := range onDisk.VMs {
		if vm.Status == StatusRunning || vm.Status == StatusPending {
			s.t.Errorf("VM %s is still %s", vm.UUID, vm.Status)
		}
	}
	bounded(s.t, "report", onDisk)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.events) > 2*maxSteps {
		s.t.Errorf("%d events", len(s.events))
	}
	for i := range s.events {
		bounded(s.t, "event", s.events[i])
	}
	s.nothingStrange(code == CodeOK || code == CodeWarnings)
	return code
}

// bounded holds what an agent has brought into a document to a size, and to valid text.
func bounded(t *testing.T, what string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 4<<20 || !utf8.Valid(data) {
		t.Errorf("%s of %d bytes, valid %v: %.300s", what, len(data), utf8.Valid(data), data)
	}
}

// nothingStrange looks for files that no session makes, in the folders and beside them. Of one that failed there are none.
func (s *hostileSite) nothingStrange(staged bool) {
	s.t.Helper()
	root := filepath.Dir(s.cfg.Staging)
	for _, dir := range []string{root, s.cfg.Staging} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			s.t.Fatal(err)
		}
		for _, e := range entries {
			known := dir == root && (e.Name() == "staging" || e.Name() == "restore" || e.Name() == "state") || e.Name() == ".dpxen"
			ours := dir == s.cfg.Staging && staged && strings.HasPrefix(e.Name(), "web."+testUUID(hostileVM))
			if !known && !ours {
				s.t.Errorf("there is a file %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.cfg.Staging, ".dpxen", "partial")); err == nil && len(left) > 0 {
		s.t.Errorf("unfinished files are left: %v", left)
	}
}

// scripted is a backup stream as an agent sends it. Its zero fields are not sent.
type scripted struct {
	opened  *agentv1.Opened
	facts   *agentv1.BackupFacts
	data    []byte
	frame   int   // bytes in a frame
	packed  []any // frames that are sent as they are, in place of data
	summary *agentv1.BackupSummary
	after   []any                         // sent at the end
	instead func(grpc.ServerStream) error // of all of that, after the opening
	before  func(grpc.ServerStream) error // before the bytes
}

// honestBackup is the backup of the VM as it should be.
func honestBackup(t *testing.T) *scripted {
	t.Helper()
	data := testXVA(t, testUUID(300), "web")
	return &scripted{opened: &agentv1.Opened{}, data: data, frame: 100_000,
		facts: &agentv1.BackupFacts{
			Vm: &agentv1.VM{Uuid: testUUID(hostileVM), Name: "web", PowerState: agentv1.PowerState_POWER_STATE_RUNNING,
				Disks: []*agentv1.Disk{{Userdevice: "0", VdiUuid: testUUID(72), Name: "root", VirtualSize: 1<<20 + 4096}}},
			SnapshotUuid: testUUID(300), Taken: timestamppb.Now(), Pool: &agentv1.Pool{Uuid: testUUID(1), Name: "pool"},
			Host: &agentv1.Host{Uuid: testUUID(11), Name: "host-11"}},
		summary: &agentv1.BackupSummary{Bytes: uint64(len(data)), Crc32C: checksum(data),
			Task: agentv1.TaskStatus_TASK_STATUS_SUCCESS}}
}

func frameOf(data []byte) *agentv1.BackupResponse {
	return &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Frame{Frame: &agentv1.Frame{Data: data}}}
}

func factsOfVM(f *agentv1.BackupFacts) *agentv1.BackupResponse {
	return &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Facts{Facts: f}}
}

func summaryOf(m *agentv1.BackupSummary) *agentv1.BackupResponse {
	return &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Summary{Summary: m}}
}

func progressOf(m *agentv1.Progress) *agentv1.BackupResponse {
	return &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Progress{Progress: m}}
}

// serve plays it.
func (s *scripted) serve(st grpc.ServerStream) error {
	if err := st.RecvMsg(&agentv1.BackupRequest{}); err != nil {
		return err
	}
	if s.instead != nil {
		return s.instead(st)
	}
	return s.play(st)
}

// play is serve after the opening.
func (s *scripted) play(st grpc.ServerStream) error {
	var head []any
	if s.opened != nil {
		head = append(head, &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Opened{Opened: s.opened}})
	}
	if s.facts != nil {
		head = append(head, factsOfVM(s.facts))
	}
	if err := say(head...)(st); err != nil {
		return err
	}
	if s.before != nil {
		if err := s.before(st); err != nil {
			return err
		}
	}
	if err := say(s.packed...)(st); err != nil {
		return err
	}
	for rest := bytes.NewReader(s.data); rest.Len() > 0; {
		if err := st.SendMsg(frameOf(take(rest, s.frame))); err != nil {
			return err
		}
	}
	if s.summary != nil {
		if err := st.SendMsg(summaryOf(s.summary)); err != nil {
			return err
		}
	}
	return say(s.after...)(st)
}

func checksum(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

func take(r *bytes.Reader, n int) []byte {
	b := make([]byte, min(n, r.Len()))
	_, _ = r.Read(b)
	return b
}

// ends runs f and fails where it does not end by itself.
func ends(t *testing.T, limit time.Duration, f func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatalf("it has not ended after %s", limit)
	}
}
