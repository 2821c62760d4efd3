package controller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

func TestFailed(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, tt := range map[string]struct {
		ctx    context.Context
		err    error
		status Status
		reason string
	}{
		"own reason":                    {t.Context(), rpc.Errorf(rpc.SRFull, "full"), StatusFailed, "SR_FULL"},
		"own reason, cancelled later":   {ended, rpc.Errorf(rpc.SRFull, "full"), StatusFailed, "SR_FULL"},
		"damaged, cancelled later":      {ended, fmt.Errorf("x: %w", &xva.FormatError{Err: xva.ErrChecksum}), StatusFailed, ReasonIntegrity},
		"cancelled":                     {ended, fmt.Errorf("stream: %w", context.Canceled), StatusCancelled, ReasonCancelled},
		"the agent says cancelled":      {ended, rpc.Errorf(rpc.Cancelled, "released"), StatusCancelled, ReasonCancelled},
		"cancelled by somebody at XAPI": {t.Context(), rpc.Errorf(rpc.Cancelled, "task cancelled"), StatusFailed, "CANCELLED"},
		"no room":                       {t.Context(), fmt.Errorf("w: %w", staging.ErrNoRoom), StatusFailed, ReasonNoRoom},
		"no room, cancelled later":      {ended, fmt.Errorf("w: %w", staging.ErrNoRoom), StatusFailed, ReasonNoRoom},
		"name taken":                    {t.Context(), fmt.Errorf("c: %w", staging.ErrExists), StatusFailed, ReasonFileExists},
		"disk error, cancelled later":   {ended, stagingFailure(os.ErrPermission), StatusFailed, ReasonStaging},
		"staging full":                  {t.Context(), stagingFailure(staging.ErrNoRoom), StatusFailed, ReasonNoRoom},
		"cancelled while committing":    {ended, stagingFailure(context.Canceled), StatusCancelled, ReasonCancelled},
		"state full": {t.Context(), &folderError{reason: ReasonState, err: staging.ErrNoRoom}, StatusFailed,
			ReasonState},
	} {
		t.Run(name, func(t *testing.T) {
			var vm VMResult
			(&runner{}).failed(tt.ctx, &vm, tt.err)
			if vm.Status != tt.status || vm.Reason != tt.reason || vm.Error == "" {
				t.Errorf("%s %q %q", vm.Status, vm.Reason, vm.Error)
			}
			if strings.Contains("NO_ROOM FILE_EXISTS STAGING STATE", tt.reason) && tt.reason != "" && vm.Advice == "" {
				t.Error("no advice")
			}
		})
	}
}

// tries runs a persistence whose attempts end with the given errors, and tells what was done. ours says that the attempts
// leave unfinished work behind.
func tries(ctx context.Context, t *testing.T, agents []string, ours bool, errs ...error) (log string, vm VMResult, err error) {
	t.Helper()
	c := stateOnly(t)
	s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, VMs: []VMResult{{UUID: testUUID(1), Agent: agents[0]}}})
	r := &runner{c: c, s: s}
	var steps []string
	n := 0
	p := persistence{runner: r, vm: &VMRef{UUID: testUUID(1)}, agents: func() []string { return agents }, worth: worthRetry,
		once: func(_ context.Context, agent string) (parting, error) {
			if ours {
				s.note(func(rep *Report) {
					rep.Intents = append(rep.Intents, Intent{Key: fmt.Sprint(n), VMUUID: testUUID(1), Agent: agent})
				})
			}
			err := errs[min(n, len(errs)-1)]
			n++
			steps = append(steps, agent)
			return func() { steps = append(steps, fmt.Sprint("left", n)) }, err
		}}
	err = p.run(ctx)
	vm = s.snapshot().VMs[0]
	if _, ferr := s.finish(time.Now(), nil); ferr != nil {
		t.Error(ferr)
	}
	return strings.Join(steps, ">"), vm, err
}

// TestPersistenceEndsNowhere: the attempt that has begun something was the last one to begin anything. How it left the VM is
// told, though others followed that did not get so far.
func TestPersistenceEndsNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := stateOnly(t)
		s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOffline, VMs: []VMResult{{UUID: testUUID(1), Agent: "a"}}})
		lost, told, found := rpc.Errorf(rpc.Unreachable, "gone"), 0, 0
		p := persistence{runner: &runner{c: c, s: s}, vm: &VMRef{UUID: testUUID(1)}, agents: func() []string { return []string{"a"} },
			worth: worthRetry,
			find: func(context.Context) (string, error) {
				if found++; found > 1 {
					return "", lost
				}
				return "a", nil
			},
			once: func(context.Context, string) (parting, error) { return func() { told++ }, lost }}
		if err := p.run(t.Context()); err == nil || told != 1 || found < 2 {
			t.Errorf("told %d times after %d attempts: %v", told, found, err)
		}
		if _, err := s.finish(time.Now(), nil); err != nil {
			t.Error(err)
		}
	})
}

func TestPersistence(t *testing.T) {
	lost, gone := rpc.Errorf(rpc.Unreachable, "gone"), rpc.Errorf(rpc.SessionGone, "anew")
	final, claimed := rpc.Errorf(rpc.LacksFeature, "no tools"), rpc.Errorf(rpc.Claimed, "by xs1")
	refused, moved := rpc.Errorf(rpc.HostAuth, "password"), rpc.Errorf(rpc.Moved, "to xen2")
	for name, tt := range map[string]struct {
		agents  string
		ours    bool
		errs    []error
		want    string
		retries int
		good    bool
	}{
		"good at once":                  {"a", false, []error{nil}, "a>left1", 0, true},
		"hopeless":                      {"a", false, []error{final}, "a>left1", 0, false},
		"begun anew, told once":         {"a b", false, []error{gone, nil}, "a>a>left2", 1, true},
		"retries are used up":           {"a", false, []error{gone}, "a>a>a>left3", 2, false},
		"another agent takes over":      {"a b", false, []error{lost, nil}, "a>b>left2", 1, true},
		"and another one":               {"a b c", false, []error{lost, lost, nil}, "a>b>c>left3", 2, true},
		"its claim is waited for":       {"a b", true, []error{lost, claimed, claimed, claimed, claimed, nil}, "a>b>b>b>b>b>left6", 1, true},
		"a file of the same second":     {"a", false, []error{fmt.Errorf("c: %w", staging.ErrExists), nil}, "a>a>left2", 1, true},
		"damaged, and not again":        {"a", false, []error{&xva.FormatError{Err: xva.ErrTruncated}, nil}, "a>a>left2", 1, true},
		"not by another agent at once":  {"a b", false, []error{final}, "a>left1", 0, false},
		"one that cannot, one that can": {"a b", false, []error{refused, nil}, "a>b>left2", 1, true},
		"none can":                      {"a b", false, []error{refused}, "a>b>left2", 1, false},
		"followed":                      {"a", false, []error{moved, moved, moved, nil}, "a>a>a>a>left4", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, vm, err := tries(t.Context(), t, strings.Fields(tt.agents), tt.ours, tt.errs...)
				if log != tt.want || vm.Retries != tt.retries || (err == nil) != tt.good {
					t.Errorf("%q, %d retries: %v", log, vm.Retries, err)
				}
				if want := strings.Split(log, ">"); vm.Agent != want[len(want)-2] {
					t.Errorf("agent %q", vm.Agent)
				}
				told := 0
				for _, a := range vm.Attempts {
					told += a.Times
				}
				if told != strings.Count(log, ">")-1 {
					t.Errorf("of %q the report has %+v", log, vm.Attempts)
				}
			})
		})
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if log, _, err := tries(ended, t, []string{"a", "b"}, false, gone); log != "a>left1" || !errors.Is(err, gone) {
		t.Errorf("after a cancel: %q, %v", log, err)
	}
}

// TestPatience: what passes is waited for as long as the configuration says for its class, and no longer.
func TestPatience(t *testing.T) {
	timing := DefaultConfig().Timing
	for name, tt := range map[string]struct {
		reason rpc.Reason
		ours   bool
		limit  time.Duration
	}{
		"XAPI is away":           {rpc.XAPIUnreachable, false, timing.XAPIOutage},
		"no agent is there":      {rpc.Unreachable, false, timing.XAPIOutage},
		"a host boots":           {rpc.HostDown, false, timing.XAPIOutage},
		"the VM is busy":         {rpc.VMBusy, false, timing.BusyWait},
		"the agent is busy":      {rpc.Busy, false, timing.BusyWait},
		"a stranger's claim":     {rpc.Claimed, false, timing.ClaimWait},
		"moves without an end":   {rpc.Moved, false, 0},
		"breaks again and again": {rpc.ExportFailed, false, timing.BackoffMin * 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				trouble := rpc.Errorf(tt.reason, "not now")
				errs := append(slices.Repeat([]error{trouble}, 2), nil)
				if log, vm, err := tries(t.Context(), t, []string{"a"}, tt.ours, errs...); err != nil || len(vm.Attempts) != 1 || vm.Attempts[0].Times != 2 {
					t.Errorf("it passes: %q, %+v: %v", log, vm.Attempts, err)
				}
				began := time.Now()
				log, _, err := tries(t.Context(), t, []string{"a"}, tt.ours, trouble)
				if took := time.Since(began); !errors.Is(err, trouble) || took < tt.limit || took > tt.limit+timing.BackoffMax {
					t.Errorf("it stays: %q after %s: %v", log, took, err)
				}
			})
		})
	}
}

// stagingDir is an open staging folder.
func stagingDir(t *testing.T, path string) *staging.Dir {
	t.Helper()
	if err := staging.Init(path); err != nil {
		t.Fatal(err)
	}
	d, err := staging.Open(path, staging.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRoomQueue(t *testing.T) {
	d := stagingDir(t, t.TempDir())
	free, _, err := d.Room()
	if err != nil {
		t.Fatal(err)
	}
	most := free - free/4 // two of it do not fit; others may use the disk meanwhile
	var q roomQueue
	if _, _, err := q.reserve(t.Context(), d, 2*free, func() { t.Error("waits for nobody") }); !errors.Is(err, staging.ErrNoRoom) {
		t.Fatalf("more than there is: %v", err)
	}
	_, release, err := q.reserve(t.Context(), d, most, func() {})
	if err != nil {
		t.Fatal(err)
	}
	waits, got := make(chan struct{}), make(chan error)
	go func() {
		_, release, err := q.reserve(context.Background(), d, most, func() { close(waits) })
		if err == nil {
			release()
		}
		got <- err
	}()
	<-waits
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	ended, cancel := context.WithCancel(context.Background())
	if _, _, err := q.reserve(ended, d, most, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	release()
	release()
	if err := <-got; err != nil {
		t.Errorf("after room was given back: %v", err)
	}
	if q.holders != 0 {
		t.Errorf("%d holders", q.holders)
	}
}

func TestCleanStaging(t *testing.T) {
	path := t.TempDir()
	d := stagingDir(t, path)
	good := stagedBackup{n: 1, name: "good", mode: AllOnline}.stage(t, path)
	killed := stagedBackup{n: 2, name: "killed", mode: AllOnline}.stage(t, path)
	strange := stagedBackup{n: 3, name: "strange", mode: AllOnline}.stage(t, path)
	manifest := func(xvaPath string) string { return strings.TrimSuffix(xvaPath, ".xva") + ".json" }
	partial := filepath.Join(path, staging.MetaDir, "partial")
	if err := os.Rename(manifest(killed), filepath.Join(partial, base(manifest(killed)))); err != nil {
		t.Fatal(err)
	}
	remove(t, manifest(strange))
	writeFile(t, filepath.Join(partial, "half.xva"), []byte("half"))
	remarks, err := cleanStaging(d)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"file " + base(killed) + " was left by a session that was killed, and was removed",
		"file " + base(strange) + " has no manifest and is no backup: verify and adopt it, or delete it"}
	if diff := cmp.Diff(want, remarks); diff != "" {
		t.Errorf("remarks (-want +got):\n%s", diff)
	}
	if isThere(killed) || !isThere(strange) || !isThere(good) || !isThere(manifest(good)) {
		t.Error("removed the wrong ones")
	}
	if left, err := os.ReadDir(partial); err != nil || len(left) > 0 {
		t.Errorf("unfinished files %v, %v", left, err)
	}
}

func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulse
		moved := p.begin()
		if moved(time.Second) || p.reached() {
			t.Error("moved before anything happened")
		}
		p.step(step{Phase: "preparing"})
		if !moved(time.Second) || !p.reached() {
			t.Error("a new phase is no move")
		}
		moved = p.begin()
		p.step(step{Phase: "preparing"})
		if moved(time.Second) {
			t.Error("the same phase is a move")
		}
		time.Sleep(time.Second)
		if !moved(time.Second) {
			t.Error("a steady stream is no move")
		}
		p.begin()
		began, done := time.Now(), make(chan error)
		go func() { done <- p.watch(time.Minute)(t.Context()) }()
		time.Sleep(50 * time.Second)
		p.beat()
		if err := <-done; rpc.ReasonOf(err) != rpc.Deadline || time.Since(began) != 110*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		p.begin()
		go func() { done <- p.watch(time.Minute)(ctx) }()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("after the stream: %v", err)
		}
	})
}

// TestTellGone: an agent that was lost and not heard of since is told of at the end, also where every VM is good.
func TestTellGone(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{Action: ActionBackup})
	r := &runner{c: c, s: s}
	lost := rpc.Errorf(rpc.Unreachable, "connection refused")
	r.heard("xs1", lost)
	r.heard("xs2", lost)
	r.heard("xs3", nil)
	r.heard("xs2", rpc.Errorf(rpc.PowerState, "it is paused")) // it answers again
	r.tellGone()
	if notes := s.snapshot().Notes; len(notes) != 1 || !strings.Contains(notes[0], "agent xs1 was lost during the session (last tried at ") {
		t.Errorf("notes %q", notes)
	}
	if _, err := s.finish(c.o.Now(), nil); err != nil {
		t.Error(err)
	}
}
