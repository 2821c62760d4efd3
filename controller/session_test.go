package controller

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stateOnly returns a controller that has a state folder and a clock, and nothing else.
func stateOnly(t *testing.T) *Controller {
	t.Helper()
	cfg := DefaultConfig()
	cfg.State, cfg.Staging = filepath.Join(t.TempDir(), "state"), t.TempDir()
	now := time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)
	return &Controller{cfg: cfg, o: Options{Version: "v1", DPSession: "2026/11/22-3", Now: func() time.Time { return now }}}
}

func mustSession(t *testing.T, c *Controller, r Report) *session {
	t.Helper()
	s, err := c.newSession(r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustReport(t *testing.T, c *Controller, id string) *Report {
	t.Helper()
	r, err := c.Session(id)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSessionLife(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, Folder: "f",
		VMs: []VMResult{{UUID: testUUID(1), Name: "a", Status: StatusPending}, {UUID: testUUID(2), Name: "b", Status: StatusPending}}})
	if !strings.HasPrefix(s.id, "20261122T203000Z-") || !sessionID.MatchString(s.id) {
		t.Errorf("id %s", s.id)
	}
	if r := mustReport(t, c, s.id); r.State != StateRunning || r.DPSession != "2026/11/22-3" || len(r.VMs) != 2 {
		t.Errorf("at the start: %+v", r)
	}
	intent := Intent{Key: "k", Nonce: "n", VMUUID: testUUID(1), Action: ActionBackup, Agent: "xs1", PowerBefore: PowerRunning}
	if err := s.intend(intent); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Intent{intent}, mustReport(t, c, s.id).Unfinished()); diff != "" {
		t.Errorf("intents on disk (-want +got):\n%s", diff)
	}
	if err := s.vm("", testUUID(1), func(vm *VMResult) { vm.Status, vm.Bytes = StatusGood, 7 }); err != nil {
		t.Fatal(err)
	}
	if err := s.settle("k"); err != nil {
		t.Fatal(err)
	}
	r, err := s.finish(c.o.Now().Add(time.Minute), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.State != StateDone || r.Code != CodeSome || len(r.Unfinished()) != 0 || r.VMs[1].Status != StatusFailed {
		t.Errorf("at the end: %+v", r)
	}
	if want := "RESULT PARTIAL code=3 good=1/2 session=" + s.id; r.Result != want {
		t.Errorf("result %q, want %q", r.Result, want)
	}
	if diff := cmp.Diff(r, mustReport(t, c, s.id), cmp.AllowUnexported(AgentStatus{})); diff != "" {
		t.Errorf("returned and read (-returned +read):\n%s", diff)
	}
	entries, err := os.ReadDir(c.sessionsDir())
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
	if info, err := os.Stat(s.path(reportExt)); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// Two sessions that begin in the same second sort as they began.
func TestIDsSortByTime(t *testing.T) {
	at := time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)
	last := ""
	for range 2000 {
		id := newID(at)
		if !sessionID.MatchString(id) {
			t.Fatalf("%s is no ID", id)
		}
		if id <= last {
			t.Fatalf("%s does not sort after %s", id, last)
		}
		last, at = id, at.Add(time.Millisecond)
	}
}

func TestSessionCancelled(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{VMs: []VMResult{{UUID: testUUID(1), Status: StatusRunning}}})
	if s.cancelRequested() {
		t.Error("cancel requested at the start")
	}
	if err := c.requestCancel(s.id); err != nil {
		t.Fatal(err)
	}
	if !s.cancelRequested() {
		t.Error("the request is not seen")
	}
	s.note(func(r *Report) { r.Cancelled = true })
	r, err := s.finish(c.o.Now(), nil)
	if err != nil || r.Code != CodeCancelled || r.VMs[0].Status != StatusCancelled {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := os.Lstat(s.path(cancelExt)); err == nil {
		t.Error("the request is still there")
	}
}

// TestSessionDied holds that a report that says running while nobody holds its lock reads as interrupted, and that repair
// can take it over, once.
func TestSessionDied(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{VMs: []VMResult{{UUID: testUUID(1), Status: StatusRunning}, {UUID: testUUID(2), Status: StatusGood}}})
	if err := s.intend(Intent{Key: "k"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.takeOver(s.id, 0); !is[*LockedError](err) {
		t.Errorf("take-over of a living session: %v, want a LockedError", err)
	}
	if err := s.lock.Unlock(); err != nil { // what the system does when a process dies
		t.Fatal(err)
	}
	half := filepath.Join(s.dir, "."+s.id+reportExt+".HALFWRITTEN.tmp")
	writeFile(t, half, []byte("{"))
	if r := mustReport(t, c, s.id); r.State != StateInterrupted || r.Code != CodeSome {
		t.Errorf("state %s with code %d, want interrupted with the code of its VMs", r.State, r.Code)
	}
	dead, err := c.takeOver(s.id, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.takeOver(s.id, 0); !is[*LockedError](err) {
		t.Errorf("second take-over: %v, want a LockedError", err)
	}
	if err := dead.settle("k"); err != nil {
		t.Fatal(err)
	}
	if err := dead.retire(c.o.Now()); err != nil {
		t.Fatal(err)
	}
	if isThere(half) {
		t.Error("half a report is still there")
	}
	r := mustReport(t, c, s.id)
	if r.State != StateInterrupted || r.Code != CodeSome || r.VMs[0].Status != StatusFailed || len(r.Unfinished()) != 0 || r.Ended.IsZero() {
		t.Errorf("after repair: %+v", r)
	}
	again, err := c.takeOver(s.id, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.retire(c.o.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
}

// TestAmendWaits holds that who looks at a session, or changes its report too, makes nobody's change of it fail.
func TestAmendWaits(t *testing.T) {
	for name, hold := range map[string]func(c *Controller, id string) (func() error, error){
		"another looks": func(c *Controller, id string) (func() error, error) {
			s, err := c.session(id)
			if err != nil {
				return nil, err
			}
			_, err = s.lock.TryRLock()
			return s.lock.Unlock, err
		},
		"another changes it": func(c *Controller, id string) (func() error, error) {
			s, err := c.takeOver(id, 0)
			if err != nil {
				return nil, err
			}
			return s.unlock, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			s := mustSession(t, c, Report{})
			if _, err := s.finish(c.o.Now(), nil); err != nil {
				t.Fatal(err)
			}
			release, err := hold(c, s.id)
			if err != nil {
				t.Fatal(err)
			}
			released := make(chan error, 1)
			time.AfterFunc(lookPatience/5, func() { released <- release() })
			if _, err := c.amend(s.id, func(r *Report) { r.Notes = []string{"n"} }); err != nil {
				t.Error(err)
			}
			if err := <-released; err != nil {
				t.Error(err)
			}
			if isThere(s.path(lockExt)) {
				t.Error("a lock file is left")
			}
			if r := mustReport(t, c, s.id); len(r.Notes) != 1 {
				t.Errorf("notes %q", r.Notes)
			}
		})
	}
}

// TestSessionDiedBeforeStarts holds that VMs which a session restored, and died before it started them in their order, are told
// of when the session is looked at and when it is repaired.
func TestSessionDiedBeforeStarts(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{Action: ActionRestore, VMs: []VMResult{
		{UUID: testUUID(1), Name: "web", Status: StatusGood, StartDue: true}, {UUID: testUUID(2), Name: "db", Status: StatusGood},
		{UUID: testUUID(3), Name: "app", Status: StatusRunning, StartDue: true}, {UUID: testUUID(4), Name: "new", Status: StatusGood, StartDue: true, NewUUID: testUUID(5)}}})
	if err := s.lock.Unlock(); err != nil { // what the system does when a process dies
		t.Fatal(err)
	}
	told := func() {
		t.Helper()
		for i, vm := range mustReport(t, c, s.id).VMs {
			if want := i == 0 || i == 3; want != (len(vm.Warnings) == 1 && strings.Contains(vm.Warnings[0], "restored and not started")) {
				t.Errorf("%s: %q", vm.Name, vm.Warnings)
			}
		}
	}
	told()
	for _, dry := range []bool{true, false} {
		rep, err := c.Repair(t.Context(), dry)
		if err != nil {
			t.Fatal(err)
		}
		if len(rep.Notes) != 1 || !strings.Contains(rep.Notes[0], "web ("+testUUID(1)+"), new ("+testUUID(5)+")") {
			t.Errorf("dry %t: notes %q", dry, rep.Notes)
		}
	}
	told()
	if rep, err := c.Repair(t.Context(), false); err != nil || len(rep.Notes) != 0 {
		t.Errorf("a second repair: %+v, %v", rep, err)
	}
}

// TestSessionDiedBeforeItsPlan holds that a session that died before it knew any VM is not called good.
func TestSessionDiedBeforeItsPlan(t *testing.T) {
	for name, died := range map[string]Report{
		"nothing known":           {},
		"an agent did not answer": {Agents: []AgentStatus{{Name: "xs1"}}},
		"all left out":            {VMs: []VMResult{{UUID: testUUID(1), Status: StatusSkipped}}},
		"with a warning":          {Warnings: []string{"w"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := stateOnly(t)
			s := mustSession(t, c, died)
			if err := s.lock.Unlock(); err != nil { // what the system does when a process dies
				t.Fatal(err)
			}
			dead, err := c.takeOver(s.id, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := dead.retire(c.o.Now()); err != nil {
				t.Fatal(err)
			}
			r := mustReport(t, c, s.id)
			if want := "RESULT FAILED code=1 good=0/0 session=" + s.id; r.State != StateInterrupted || r.Code != CodeNone || r.Result != want {
				t.Errorf("%s with code %d and %q, want interrupted with %q", r.State, r.Code, r.Result, want)
			}
		})
	}
}

// TestLookersDoNotSeeEachOther holds that a dead session reads as interrupted however many look at the same time.
func TestLookersDoNotSeeEachOther(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{})
	if err := s.lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 20 {
				if r, err := c.Session(s.id); err != nil || r.State != StateInterrupted {
					t.Errorf("got %+v, %v", r, err)
				}
			}
		})
	}
	wait.Wait()
}

func TestSessionsOneDamaged(t *testing.T) {
	c := stateOnly(t)
	if all, err := c.Sessions(); err != nil || len(all) != 0 {
		t.Errorf("no folder yet: %v, %v", all, err)
	}
	first := mustSession(t, c, Report{Action: ActionBackup, VMs: []VMResult{{UUID: testUUID(1), Status: StatusGood}}})
	if _, err := first.finish(c.o.Now(), nil); err != nil {
		t.Fatal(err)
	}
	for id, text := range map[string]string{
		"20261122T203001Z-000001": "{",
		"20261122T203001Z-000002": `{"v":1,"id":"20261122T203001Z-000001"}`,
		"20261122T203001Z-000003": `{"v":9,"id":"20261122T203001Z-000003"}`,
		"not-a-session":           "{}",
	} {
		if err := os.WriteFile(filepath.Join(c.sessionsDir(), id+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := c.Sessions()
	if err != nil || len(all) != 4 {
		t.Fatalf("got %d sessions, %v", len(all), err)
	}
	if all[0].Error != "" || all[0].Counts.Good != 1 || all[0].Code != CodeOK {
		t.Errorf("the good one: %+v", all[0])
	}
	for i, want := range []string{"damaged", "damaged", "version 9"} {
		if !strings.Contains(all[i+1].Error, want) {
			t.Errorf("session %d: error %q, want %q in it", i+1, all[i+1].Error, want)
		}
	}
}

func TestSessionIDIsNoPath(t *testing.T) {
	c := stateOnly(t)
	mustSession(t, c, Report{})
	for _, id := range []string{"", ".", "../x", "20261122T203000Z-ab12cd/../../x", "20261122T203000Z-AB12CD", "20261122T203000Z-ab12cd"} {
		if _, err := c.Session(id); !is[*UsageError](err) {
			t.Errorf("Session(%q): %v, want a UsageError", id, err)
		}
		if err := c.requestCancel(id); !is[*UsageError](err) {
			t.Errorf("requestCancel(%q): %v, want a UsageError", id, err)
		}
	}
}

// TestSessionUpdatesAtTheSameTime holds that every update that returned is in the file.
func TestSessionUpdatesAtTheSameTime(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{})
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			for k := range 5 {
				key := testUUID(100*i + k)
				if err := s.intend(Intent{Key: key}); err != nil {
					t.Error(err)
				}
				r, err := s.load()
				if err != nil {
					t.Error(err)
					return
				}
				found := false
				for _, in := range r.Intents {
					found = found || in.Key == key
				}
				if !found {
					t.Errorf("intent %s is not on disk", key)
				}
			}
		})
	}
	wait.Wait()
	if _, err := s.finish(c.o.Now(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestSessionStateFolderNotWritable(t *testing.T) {
	c := stateOnly(t)
	if err := os.WriteFile(c.cfg.State, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.newSession(Report{}); !is[*PreflightError](err) {
		t.Errorf("got %v, want a PreflightError", err)
	}
}

// TestReportShape pins the names that scripts read.
func TestReportShape(t *testing.T) {
	r := Report{V: 1, ID: "i", Action: ActionBackup, Mode: Online, State: StateDone, VMs: []VMResult{{UUID: "u", Name: "n", Status: StatusGood}}}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"v":1,"id":"i","action":"backup","mode":"online","state":"done","started":"0001-01-01T00:00:00Z","version":"","folder":"",` +
		`"vms":[{"uuid":"u","name":"n","status":"good"}],"code":0}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
	if errors.Is(json.Unmarshal(data, &r), nil) && r.ID != "i" {
		t.Error("does not read back")
	}
}

// TestTook holds that how long a session took does not go by the wall clock, which may be set meanwhile, where it was counted.
func TestTook(t *testing.T) {
	c := stateOnly(t)
	s := mustSession(t, c, Report{Action: ActionBackup})
	begin := time.Now()
	r, err := s.finish(c.o.Now().Add(50*time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	if took := r.Took(); took <= 0 || took > time.Since(begin)+time.Second || mustReport(t, c, r.ID).Took() != took {
		t.Errorf("a clock that was set forward: %s, kept as %s", took, mustReport(t, c, r.ID).Took())
	}
	for name, tt := range map[string]struct {
		seconds float64
		ended   time.Time
		want    time.Duration
	}{
		"runs":        {},
		"counted":     {2.5, testTime.Add(-time.Hour), 2500 * time.Millisecond},
		"not counted": {0, testTime.Add(time.Minute), time.Minute},
		"set back":    {0, testTime.Add(-time.Hour), -time.Hour},
	} {
		if got := lasted(tt.seconds, testTime, tt.ended); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}
