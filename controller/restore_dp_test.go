package controller

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/staging"
)

// dpFolder is a restore folder, with what Data Protector and others do to it.
type dpFolder struct {
	t    *testing.T
	c    *Controller
	dir  string
	tick int
}

func newDPFolder(t *testing.T) *dpFolder {
	t.Helper()
	f := &dpFolder{t: t, c: stateOnly(t), dir: t.TempDir()}
	f.c.cfg.Restore = f.dir
	return f
}

// bring restores a backup of VM n, of that DP session, into the folder, later than all before. It returns the export's path.
func (f *dpFolder) bring(n int, mode Mode, session string) string {
	f.t.Helper()
	time.Sleep(15 * time.Millisecond) // the clock of a file system is coarse
	f.tick++
	var hour int
	if _, err := fmt.Sscanf(session, "2026/11/22-%d", &hour); err != nil {
		f.t.Fatal(err)
	}
	from := f.t.TempDir()
	path := stagedBackup{n: n, name: fmt.Sprintf("vm%d", n), mode: mode, at: testTime.Add(time.Duration(hour) * time.Minute),
		session: session, spec: "NIGHTLY", pool: poolA}.stage(f.t, from)
	for _, ext := range []string{".xva", ".json"} {
		stem := strings.TrimSuffix(path, ".xva")
		writeFile(f.t, filepath.Join(f.dir, filepath.Base(stem)+ext), readFile(f.t, stem+ext))
	}
	return filepath.Join(f.dir, filepath.Base(path))
}

// files runs a choice of files for Data Protector and says what it came to: the items, then why the others are not.
func (f *dpFolder) files(req RestoreRequest) (string, []SkippedFile, error) {
	f.t.Helper()
	if req.Spec == "" {
		req.Spec = "NIGHTLY"
	}
	lock, err := f.c.lockArrivals(context.Background(), f.dir, "s", func(string) {})
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() {
		if err := lock.unlock(); err != nil {
			f.t.Error(err)
		}
	}()
	set, err := f.c.restoreFiles(req, lock)
	if err != nil {
		return "", nil, err
	}
	return items(set), set.Skipped, err
}

// restored leaves the report of a session that restored VM n from the file.
func (f *dpFolder) restored(n int, path string, change func(*VMResult)) {
	f.t.Helper()
	at, err := staging.Inspect(path).Arrival()
	if err != nil {
		f.t.Fatal(err)
	}
	vm := VMResult{UUID: testUUID(n), File: filepath.Base(path), Arrival: at.ID, Status: StatusGood, InPlace: true}
	if change != nil {
		change(&vm)
	}
	s := mustSession(f.t, f.c, Report{Action: ActionRestore, Mode: AllOnline, VMs: []VMResult{vm}})
	if _, err := s.finish(f.c.o.Now(), nil); err != nil {
		f.t.Fatal(err)
	}
}

func TestRestoreForDataProtector(t *testing.T) {
	online := RestoreRequest{Mode: AllOnline}
	again := RestoreRequest{Mode: AllOnline, Again: true}
	for name, tt := range map[string]struct {
		run  func(f *dpFolder)
		req  RestoreRequest
		want string
		says string // of a skipped file, or the error
		err  bool
	}{
		"what was brought":      {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-1"); f.bring(2, Online, "2026/11/22-1") }, req: online, want: "1@2031 2@2031"},
		"no selector is needed": {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-1") }, req: RestoreRequest{Mode: Online}, want: "1@2031"},
		"what is selected need not be there": {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-1") },
			req: RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"vm1", "vm2"}}}, want: "1@2031"},
		"nothing of the selection": {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-1") },
			req: RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"vm2"}}}, err: true, says: "matches no VM"},
		"an earlier restore's, only listed": {run: func(f *dpFolder) {
			f.bring(1, Online, "2026/11/22-1")
			f.list()
			f.bring(2, Online, "2026/11/22-1")
		}, req: online, want: "2@2031", says: "was here before this restore"},
		"listed first, then restored": {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-1"); f.list() }, req: online, want: "1@2031"},
		"a stale newer one":           {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-9"); f.bring(1, Online, "2026/11/22-1") }, req: online, want: "1@2031", says: "of session 2026/11/22-9 and lay here before"},
		"a stale newer one, by session": {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-9"); f.bring(1, Online, "2026/11/22-1") },
			req: RestoreRequest{Mode: AllOnline, DPSession: "2026/11/22-9"}, want: "1@2039"},
		"sessions that came together": {run: func(f *dpFolder) {
			f.bring(1, Online, "2026/11/22-1")
			f.bring(1, Online, "2026/11/22-2")
			f.bring(2, Online, "2026/11/22-1")
		}, req: online, want: "1@2032 2@2031"},
		"offline ones are another matter": {run: func(f *dpFolder) { f.bring(1, Offline, "2026/11/22-1"); f.bring(1, Online, "2026/11/22-2") },
			req: RestoreRequest{Mode: AllOffline}, want: "1@2031"},
		"another specification's": {run: func(f *dpFolder) { f.bring(1, Online, "2026/11/22-1") }, req: RestoreRequest{Mode: AllOnline, Spec: "DB"},
			err: true, says: `of specification "NIGHTLY"`},
		"restored already": {run: func(f *dpFolder) { f.restored(1, f.bring(1, Online, "2026/11/22-1"), nil) }, req: online, says: "its VM was restored from it by session"},
		"restored by this name alone": {run: func(f *dpFolder) {
			f.restored(1, f.bring(1, Online, "2026/11/22-1"), nil)
		}, req: RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"vm1"}}}, says: "not again"},
		"restored already, again": {run: func(f *dpFolder) { f.restored(1, f.bring(1, Online, "2026/11/22-1"), nil) }, req: again, want: "1@2031"},
		"an older one is not taken for it": {run: func(f *dpFolder) {
			f.bring(1, Online, "2026/11/22-1")
			f.restored(1, f.bring(1, Online, "2026/11/22-2"), nil)
		}, req: online, says: "not again"},
		"another object's after it": {run: func(f *dpFolder) {
			path := f.bring(1, Online, "2026/11/22-1")
			f.list()
			f.restored(1, path, nil)
			f.bring(2, Online, "2026/11/22-1")
		}, req: online, want: "2@2031", says: "has not written it again since"},
		"brought again": {run: func(f *dpFolder) {
			f.restored(1, f.bring(1, Online, "2026/11/22-1"), nil)
			f.list()
			f.bring(1, Online, "2026/11/22-1")
		}, req: online, want: "1@2031"},
		"a failed one is tried again": {run: func(f *dpFolder) {
			f.restored(1, f.bring(1, Online, "2026/11/22-1"), func(vm *VMResult) { vm.Status = StatusFailed })
			f.list()
		}, req: online, want: "1@2031"},
		"made anew beside it, before": {run: func(f *dpFolder) {
			f.restored(1, f.bring(1, Online, "2026/11/22-1"), func(vm *VMResult) { vm.InPlace, vm.NewUUID = false, testUUID(99) })
		}, req: online, want: "1@2031"},
		"made anew beside it, not twice": {run: func(f *dpFolder) {
			f.restored(1, f.bring(1, Online, "2026/11/22-1"), func(vm *VMResult) { vm.InPlace, vm.NewUUID = false, testUUID(99) })
		}, req: RestoreRequest{Mode: AllOnline, AsNew: true}, says: "not again"},
		"half a file": {run: func(f *dpFolder) {
			f.bring(2, Online, "2026/11/22-1")
			f.check(os.Truncate(f.bring(1, Online, "2026/11/22-1"), 5000))
		}, req: online, want: "1@2031! 2@2031"},
		"a file without its manifest": {run: func(f *dpFolder) {
			f.bring(2, Online, "2026/11/22-1")
			f.check(os.Remove(strings.TrimSuffix(f.bring(1, Online, "2026/11/22-1"), ".xva") + ".json"))
		}, req: online, want: "1@2031! 2@2031"},
		"an old half file": {run: func(f *dpFolder) {
			f.check(os.Truncate(f.bring(1, Online, "2026/11/22-1"), 5000))
			f.list()
			f.bring(2, Online, "2026/11/22-1")
		}, req: online, want: "2@2031", says: "was here before"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newDPFolder(t)
			tt.run(f)
			got, skipped, err := f.files(tt.req)
			if (err != nil) != tt.err || tt.err && !is[*UsageError](err) {
				t.Fatalf("error %v, want one: %v", err, tt.err)
			}
			if got != tt.want {
				t.Errorf("items %q, want %q; %+v", got, tt.want, skipped)
			}
			if all := fmt.Sprint(skipped, err); !strings.Contains(all, tt.says) {
				t.Errorf("%q is not in %s", tt.says, all)
			}
			if again, _, _ := f.files(tt.req); again != got {
				t.Errorf("a second look finds %q, the first %q", again, got)
			}
		})
	}
}

func (f *dpFolder) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// list is a run without a mode.
func (f *dpFolder) list() {
	f.t.Helper()
	if _, err := f.c.ListRestore(context.Background(), RestoreRequest{Spec: "NIGHTLY"}, nil); err != nil && !is[*UsageError](err) {
		f.t.Fatal(err)
	}
}

func TestListRestore(t *testing.T) {
	f := newDPFolder(t)
	if _, err := f.c.ListRestore(context.Background(), RestoreRequest{Spec: "NIGHTLY"}, nil); !is[*UsageError](err) {
		t.Errorf("an empty folder: %v", err)
	}
	flip(t, f.bring(1, Online, "2026/11/22-1"), 3000)
	f.bring(2, Offline, "2026/11/22-1")
	f.check(os.Remove(strings.TrimSuffix(f.bring(3, Offline, "2026/11/22-1"), ".xva") + ".json"))
	f.restored(4, f.bring(4, Online, "2026/11/22-1"), nil)
	var told []string
	list, err := f.c.ListRestore(context.Background(), RestoreRequest{Spec: "NIGHTLY"}, func(l ListedFile) {
		told = append(told, fmt.Sprint(l.Name, " ok:", l.OK(), " refused:", l.Refused != ""))
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"vm1 ok:false refused:false", "vm3 ok:false refused:true", "vm2 ok:true refused:false"}, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if len(list.Skipped) != 1 || list.Done != 1 || !strings.Contains(list.Skipped[0].Reason, "restored from it") {
		t.Errorf("skipped %+v, done %d", list.Skipped, list.Done)
	}
}

// Two commands at the same time: the second waits for the first, within bounds, and can be cancelled.
func TestLockArrivals(t *testing.T) {
	f := newDPFolder(t)
	f.c.cfg.Timing.LockWait = 200 * time.Millisecond
	first, err := f.c.lockArrivals(context.Background(), f.dir, "20261122T203000Z-abcdef", func(string) { t.Error("it had to wait") })
	if err != nil {
		t.Fatal(err)
	}
	told := ""
	_, err = f.c.lockArrivals(context.Background(), f.dir, "other", func(holder string) { told = holder })
	if !is[*LockedError](err) || !strings.Contains(err.Error(), "20261122T203000Z-abcdef") || !strings.Contains(told, "20261122T203000Z-abcdef") {
		t.Errorf("got %v, told %q", err, told)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := f.c.lockArrivals(ctx, f.dir, "other", func(string) { cancel() }); ExitCode(nil, err) != CodeCancelled {
		t.Errorf("cancelled: %v", err)
	}
	f.c.cfg.Timing.LockWait = time.Minute
	second, err := f.c.lockArrivals(context.Background(), f.dir, "other", func(string) { f.check(first.unlock()) })
	if err != nil {
		t.Fatal(err)
	}
	f.check(second.unlock())
}

// A list of arrivals that cannot be read restores nothing.
func TestArrivalsDamaged(t *testing.T) {
	f := newDPFolder(t)
	f.bring(1, Online, "2026/11/22-1")
	f.list()
	files, err := filepath.Glob(filepath.Join(f.c.cfg.State, arrivalsDir, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	writeFile(t, files[0], []byte(`{"v":2}`))
	if _, _, err := f.files(RestoreRequest{Mode: AllOnline}); !is[*PreflightError](err) || !strings.Contains(err.Error(), files[0]) {
		t.Errorf("got %v", err)
	}
}
