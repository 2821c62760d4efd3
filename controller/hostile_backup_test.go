package controller

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// terminal is what would move a terminal's cursor, ring its bell, change its title, or make lines of its own.
const terminal = "a\x1b[2J\x1b]0;gone\x07\r\nRESULT OK code=0\u009b31m\u202e\x00"

// TestHonestAgent is what the lies of the other tests are held against: the same agent, meaning well.
func TestHonestAgent(t *testing.T) {
	s := newHostileSite(t, honest(t), nil)
	r, code := s.backup(AllOnline)
	if code != CodeOK || r.Counts().Good != 1 || r.VMs[0].Digest == "" {
		t.Errorf("code %d: %+v", code, r.VMs)
	}
}

// TestLyingBackups: whatever an agent sends as a VM's backup that is not one, it is not called good, and leaves no file.
func TestLyingBackups(t *testing.T) {
	text := strings.Repeat(terminal, 60_000)
	many := slices.Repeat([]string{"a"}, 500_000)
	for name, tt := range map[string]struct {
		lie  func(*scripted)
		says string // in the VM's error; a stream that is worth another try begins again, where this agent goes on from 0
	}{
		"no facts":                  {func(s *scripted) { s.facts = nil }, "before it said of what"},
		"no bytes":                  {func(s *scripted) { s.data = nil }, "differs"},
		"no summary":                {func(s *scripted) { s.summary = nil }, "goes on from byte 0"},
		"nothing at all":            {func(s *scripted) { s.instead = say() }, "without its summary"},
		"summary alone":             {func(s *scripted) { s.instead = say(summaryOf(s.summary)) }, "differs"},
		"summary of nothing":        {func(s *scripted) { s.instead = say(summaryOf(&agentv1.BackupSummary{Task: 1})) }, "without saying of what"},
		"fewer bytes":               {func(s *scripted) { s.data = s.data[:len(s.data)-512] }, "goes on from byte 0"},
		"fewer bytes, true totals":  {func(s *scripted) { s.cut(len(s.data) - 512) }, "damaged"},
		"other digest":              {func(s *scripted) { s.summary.Crc32C++ }, "goes on from byte 0"},
		"length beyond all numbers": {func(s *scripted) { s.summary.Bytes = math.MaxUint64 }, "goes on from byte 0"},
		"a bit wrong, true totals":  {func(s *scripted) { s.data[700_000] ^= 1; s.cut(len(s.data)) }, "damaged"},
		"task not said":             {func(s *scripted) { s.summary.Task = 0 }, "does not say that XenServer's export succeeded"},
		"task of a later version":   {func(s *scripted) { s.summary.Task = 77 }, "does not say that XenServer's export succeeded"},
		"bytes after the summary":   {func(s *scripted) { s.after = []any{frameOf([]byte("x"))} }, "more after its summary"},
		"two summaries":             {func(s *scripted) { s.after = []any{summaryOf(s.summary)} }, "more after its summary"},
		"an error after it":         {func(s *scripted) { s.after = []any{raw{0xff, 0xff}} }, ""},
		"goes on from elsewhere":    {func(s *scripted) { s.opened.Offset = 1 << 40 }, "goes on from byte"},
		"goes back":                 {func(s *scripted) { s.opened.Offset = math.MaxUint64 }, "goes on from byte"},
		"the beginning twice":       {func(s *scripted) { s.data = append(slices.Clone(s.data[:500_000]), s.data...) }, ""},
		"frame too large":           {func(s *scripted) { s.frame = rpc.MaxFrame + 1; s.data = make([]byte, 3<<20) }, "frame"},
		"message too large":         {func(s *scripted) { s.frame = 3 << 20; s.data = make([]byte, 3<<20) }, "larger than max"},
		"garbage":                   {func(s *scripted) { s.instead = say(raw(strings.Repeat("\xff\x00garbage", 1000))) }, ""},
		"a gigabyte of empty disks": {func(s *scripted) { s.instead = say(raw(emptyElements(3, 2))) }, "too many others"},
		"other VM":                  {func(s *scripted) { s.facts.Vm.Uuid = testUUID(9) }, "instead of " + testUUID(hostileVM)},
		"UUID that is a path":       {func(s *scripted) { s.facts.Vm.Uuid = "../../../../../../etc/cron.d/aaaaaaa" }, "without UUID"},
		"UUID with a NUL":           {func(s *scripted) { s.facts.Vm.Uuid = testUUID(hostileVM)[:35] + "\x00" }, "without UUID"},
		"no VM":                     {func(s *scripted) { s.facts.Vm = nil }, "without UUID"},
		"other pool":                {func(s *scripted) { s.facts.Pool.Uuid = testUUID(2) }, "a VM of pool"},
		"no pool":                   {func(s *scripted) { s.facts.Pool = nil }, "a VM of pool"},
		"no snapshot":               {func(s *scripted) { s.facts.SnapshotUuid = "" }, "of which snapshot"},
		"no time":                   {func(s *scripted) { s.facts.Taken = nil }, "without UUID or time"},
		"time that is none":         {func(s *scripted) { s.facts.Taken = &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: -5} }, "without UUID or time"},
		"disk of another size":      {func(s *scripted) { s.facts.Vm.Disks[0].VirtualSize = 1 << 62 }, "bytes in the export"},
		"disk that is not there":    {func(s *scripted) { s.facts.Vm.Disks[0].Userdevice = "../0" }, "lacks disk"},
		"disk left out unasked": {func(s *scripted) {
			s.facts.Excluded = []*agentv1.Disk{{Userdevice: "1", VdiUuid: testUUID(73), Name: "data"}}
		}, "not asked to"},
		"another VM's name, of a megabyte":    {func(s *scripted) { s.facts.Vm.Name = text[:1<<20]; s.facts.Vm.Uuid = testUUID(8) }, "instead of"},
		"half a million warnings, no summary": {func(s *scripted) { s.facts.Warnings = many; s.summary = nil }, "goes on from byte 0"},
	} {
		t.Run(name, func(t *testing.T) {
			script := honestBackup(t)
			tt.lie(script)
			a := honest(t)
			a["Backup"] = script.serve
			s := newHostileSite(t, a, nil)
			ends(t, time.Minute, func() {
				r, code := s.backup(AllOnline)
				vm := r.VMs[0]
				if code == CodeOK || code == CodeWarnings || vm.Status != StatusFailed || !strings.Contains(vm.Error, tt.says) {
					t.Errorf("code %d, %s: %.300q, want something with %q", code, vm.Status, vm.Error, tt.says)
				}
			})
		})
	}
}

// cut leaves n bytes, with totals that are true of them.
func (s *scripted) cut(n int) {
	s.data = s.data[:n]
	s.summary.Bytes, s.summary.Crc32C = uint64(n), checksum(s.data)
}

// emptyElements is a message of almost 2 MiB: in field outer, a message whose field inner is empty messages.
func emptyElements(outer, inner byte) []byte {
	content := []byte(strings.Repeat(string([]byte{inner<<3 | 2, 0}), 1_000_000))
	return append(protowire.AppendVarint([]byte{outer<<3 | 2}, uint64(len(content))), content...)
}

// TestOddBackups: what is strange and no lie is staged, and costs no more than other backups do.
func TestOddBackups(t *testing.T) {
	text := strings.Repeat(terminal, 15_000)
	distinct := make([]string, 100_000)
	for i := range distinct {
		distinct[i] = string(rune('a'+i%26)) + strings.Repeat("é", i%7) + testUUID(i % 9000)[28:]
	}
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	for name, odd := range map[string]func(*scripted){
		"warnings without end":   func(s *scripted) { s.facts.Warnings = distinct },
		"warnings of a megabyte": func(s *scripted) { s.facts.Warnings, s.summary.Warnings = []string{text}, []string{text, text[1:]} },
		"a time far ahead":       func(s *scripted) { s.facts.Taken = timestamppb.New(far) },
		"a time long ago":        func(s *scripted) { s.facts.Taken = timestamppb.New(time.Unix(0, 0)) },
		"progress of every kind": func(s *scripted) {
			s.before = say(progressOf(&agentv1.Progress{Phase: 77, Bytes: math.MaxUint64, TaskProgress: math.NaN(), Message: text}),
				progressOf(&agentv1.Progress{TaskProgress: math.Inf(-1)}), progressOf(nil), &agentv1.BackupResponse{})
		},
		"a flood of progress": func(s *scripted) {
			s.before = func(st grpc.ServerStream) error {
				for i := range 20_000 {
					if err := st.SendMsg(progressOf(&agentv1.Progress{Phase: agentv1.Phase(i % 11), Bytes: uint64(i), Message: distinct[i]})); err != nil {
						return err
					}
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			script := honestBackup(t)
			odd(script)
			a := honest(t)
			a["Backup"] = script.serve
			s := newHostileSite(t, a, nil)
			ends(t, time.Minute, func() {
				r, code := s.backup(AllOnline)
				if r.Counts().Good != 1 {
					t.Fatalf("code %d: %+v", code, r.VMs)
				}
				year, now := r.VMs[0].File[len("web.")+36+len(".online."):][:4], time.Now().UTC()
				if year != now.Format("2006") && year != now.Add(-time.Hour).Format("2006") {
					t.Errorf("file %s", r.VMs[0].File)
				}
				if v := VerifyFile(t.Context(), s.cfg.Staging+"/"+r.VMs[0].File); !v.OK {
					t.Errorf("the file cannot be restored: %v", v.Err())
				}
			})
		})
	}
}

// TestEndlessBackups: an agent that never ends is ended, whatever it sends meanwhile.
func TestEndlessBackups(t *testing.T) {
	drip := func(s *scripted) {
		s.before = func(st grpc.ServerStream) error {
			if _, told := st.Context().Deadline(); told { // then it may end the stream before the controller does, and nobody says why
				t.Error("the agent was told of the limit")
			}
			for i := range s.data {
				if err := st.SendMsg(frameOf(s.data[i : i+1])); err != nil {
					return err
				}
				time.Sleep(50 * time.Millisecond)
			}
			return nil
		}
	}
	later := status.New(codes.ResourceExhausted, "later")
	later, err := later.WithDetails(&errdetails.ErrorInfo{Domain: rpc.ErrorDomain, Reason: string(rpc.Busy)},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(math.MaxInt64)})
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for name, tt := range map[string]struct {
		lie    func(*scripted)
		change func(*Timing)
		says   string
	}{
		"silence":                   {func(s *scripted) { s.instead = silence }, stallSoon, "stalled"},
		"silence after the facts":   {func(s *scripted) { s.before = silence }, stallSoon, "stalled"},
		"silence after the summary": {func(s *scripted) { s.serveThen(silence) }, stallSoon, "stalled"},
		"the same progress": {func(s *scripted) {
			s.before = sayFor(10*time.Millisecond, progressOf(&agentv1.Progress{TaskProgress: math.NaN()}))
		}, stallSoon, "stalled"},
		"a byte now and then":     {drip, limitSoon, "vm_limit"},
		"comes back in 292 years": {func(s *scripted) { s.instead = func(grpc.ServerStream) error { return later.Err() } }, nil, "no progress"},
		"breaks after every progress": {func(s *scripted) {
			s.instead = func(st grpc.ServerStream) error {
				n++
				_ = st.SendMsg(progressOf(&agentv1.Progress{Bytes: n}))
				return status.Error(codes.Unavailable, strings.Repeat(terminal, 500))
			}
		}, limitSoon, "vm_limit"},
		"progress for ever": {func(s *scripted) {
			s.before = func(st grpc.ServerStream) error {
				for i := uint64(0); ; i++ {
					if err := st.SendMsg(progressOf(&agentv1.Progress{Bytes: i, Message: testUUID(int(i % 9000))})); err != nil {
						return err
					}
					time.Sleep(time.Millisecond)
				}
			}
		}, limitSoon, "vm_limit"},
	} {
		t.Run(name, func(t *testing.T) {
			script := honestBackup(t)
			tt.lie(script)
			a := honest(t)
			a["Backup"] = script.serve
			s := newHostileSite(t, a, tt.change)
			ends(t, time.Minute, func() {
				r, code := s.backup(AllOnline)
				if vm := r.VMs[0]; code != CodeNone || vm.Status != StatusFailed || !strings.Contains(vm.Error, tt.says) {
					t.Errorf("code %d, %s: %.300q, want %q", code, vm.Status, vm.Error, tt.says)
				}
			})
		})
	}
}

func stallSoon(t *Timing) { t.StallLimit = time.Second }

func limitSoon(t *Timing) { t.VMLimit = 3 * time.Second }

// serveThen goes on with more after the summary.
func (s *scripted) serveThen(more func(grpc.ServerStream) error) {
	whole := *s
	s.instead = func(st grpc.ServerStream) error {
		if err := whole.play(st); err != nil {
			return err
		}
		return more(st)
	}
}

// TestLyingEndings: how the VM was left is what it is, not what the agent calls it.
func TestLyingEndings(t *testing.T) {
	halted := agentv1.PowerState_POWER_STATE_HALTED
	off := cleanOutcome()
	off.PowerAfter = halted
	leftovers := cleanOutcome()
	leftovers.Leftovers, leftovers.Warnings = slices.Repeat([]string{terminal}, 200_000), slices.Repeat([]string{terminal}, 100)
	for name, tt := range map[string]struct {
		release func(grpc.ServerStream) error
		offline bool
		code    int
	}{
		"off and called restored": {say(&agentv1.ReleaseTransferResponse{Found: true, Outcome: off}), true, CodePower},
		"an empty outcome":        {say(&agentv1.ReleaseTransferResponse{Found: true, Outcome: &agentv1.Outcome{}}), false, CodePower},
		"for ever at it":          {say(&agentv1.ReleaseTransferResponse{Found: true}), false, CodeWarnings},
		"for ever at it, offline": {say(&agentv1.ReleaseTransferResponse{Found: true}), true, CodePower},
		"silence":                 {silence, false, CodeWarnings},
		"things without end":      {say(&agentv1.ReleaseTransferResponse{Found: true, Outcome: leftovers}), false, CodeWarnings},
		"a state of its own":      {say(&agentv1.ReleaseTransferResponse{Found: true, Outcome: &agentv1.Outcome{PowerAfter: 99, PowerRestored: true}}), false, CodeOK},
	} {
		t.Run(name, func(t *testing.T) {
			a, script := honest(t), honestBackup(t)
			a["ReleaseTransfer"] = tt.release
			mode := AllOnline
			if tt.offline {
				mode, script.facts.SnapshotUuid = AllOffline, testUUID(300)
			}
			a["Backup"] = script.serve
			s := newHostileSite(t, a, nil)
			ends(t, time.Minute, func() {
				r, err := s.Backup(t.Context(), Request{Mode: mode})
				if code := ExitCode(r, err); code != tt.code {
					t.Errorf("code %d, want %d: %+v %v", code, tt.code, r.VMs, err)
				}
				bounded(t, "report", r)
			})
		})
	}
}
