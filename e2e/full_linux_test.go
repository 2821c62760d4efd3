package e2e

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xensim"
)

// TestWriteFails lets no file grow over 12 MiB, as a full disk does in mid-transfer: the small VM is good, of the other one
// nothing is left.
func TestWriteFails(t *testing.T) {
	c := newCell(t, xensim.Config{Scenario: "demo"})
	before := c.state()
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	small := limit
	small.Cur = 12 << 20
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.Offline,
		Selection: controller.Selection{VM: []string{"db-01", "archive"}}})
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); rerr != nil {
		t.Fatal(rerr)
	}
	c.want(controller.CodeSome, r, err)
	for _, vm := range r.VMs {
		if good := vm.Name == "archive"; good != (vm.Status == controller.StatusGood) || vm.PowerNotRestored || !good && vm.Error == "" {
			t.Errorf("VM %s: %s %s %q", vm.Name, vm.Status, vm.Reason, vm.Error)
		}
	}
	if files := c.staged(); len(files) != 1 {
		t.Errorf("files %q", files)
	}
	partial, err := os.ReadDir(filepath.Join(c.cfg.Staging, ".dpxen", "partial"))
	if err != nil || len(partial) != 0 {
		t.Errorf("unfinished files %v: %v", partial, err)
	}
	if diff := cmp.Diff(powers(before), powers(c.state())); diff != "" {
		t.Errorf("power states (-before +after):\n%s", diff)
	}
	c.clean()
}

// TestStateFull lets no file grow any more at the end of a session, as a full disk does: the last words are true, what is on
// disk reads as interrupted, and repair makes it final.
func TestStateFull(t *testing.T) {
	c := newCell(t, one(1, 4<<20))
	before := c.state()
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	set := func(most uint64) {
		l := limit
		l.Cur = most
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Error(err)
		}
	}
	c.events.watch = func(e controller.Event) {
		if e.Phase == "staged" {
			set(1)
		}
	}
	ctl := c.controller()
	r, err := ctl.Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
	set(limit.Cur)
	c.want(controller.CodeSome, r, err)
	if vm := r.VMs[0]; vm.Status != controller.StatusGood || vm.PowerNotRestored || vm.PowerAfter != controller.PowerRunning {
		t.Errorf("VM: %s, power %s>%s", vm.Status, vm.PowerBefore, vm.PowerAfter)
	}
	if r.Result != controller.ResultLine(r, controller.CodeSome) || r.Error == "" || r.Advice == "" {
		t.Errorf("result %q, error %q, advice %q", r.Result, r.Error, r.Advice)
	}
	if !errors.Is(err, staging.ErrNoRoom) {
		t.Errorf("a full disk is told as %v", err)
	}
	if on, err := ctl.Session(r.ID); err != nil || on.State != controller.StateInterrupted {
		t.Errorf("on disk: %+v, %v", on, err)
	}
	c.repaired(ctl, r.ID, before)
	if on, err := ctl.Session(r.ID); err != nil || on.VMs[0].Status != controller.StatusGood || on.Ended.IsZero() {
		t.Errorf("after repair: %+v, %v", on, err)
	}
	files := c.staged()
	if len(files) != 1 {
		t.Fatalf("files %q", files)
	}
	if v := controller.VerifyFile(context.Background(), files[0]); v.Err() != nil {
		t.Error(v.Err())
	}
}
