package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
)

// TestFileGoneBeforeTheEnd: somebody deletes the first VM's file while the session is at the second one. What the session ends
// with is what is staged.
func TestFileGoneBeforeTheEnd(t *testing.T) {
	t.Parallel()
	c := newCell(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	c.cfg.Limits.Total = 1
	first := c.atSecond(func(file string) {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	})
	ctl := c.controller()
	r, err := ctl.Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeSome, r, err)
	for _, vm := range r.VMs {
		gone := vm.UUID == *first
		if gone != (vm.Status == controller.StatusFailed) || gone && (vm.Reason != controller.ReasonStaging || vm.File != "" || vm.Advice == "") {
			t.Errorf("%s: %s %s %q file %q", vm.Name, vm.Status, vm.Reason, vm.Error, vm.File)
		}
	}
	if files := c.staged(); len(files) != 1 {
		t.Errorf("files %q", files)
	}
	if h, err := ctl.Session(r.ID); err != nil || h.Code != controller.CodeSome || h.Result != r.Result {
		t.Errorf("on disk %+v, %v", h, err)
	}
	c.clean()
}

// TestFileGoneBeforePostExec: a file disappears between pre-exec and the post-exec that says that all are saved. Nobody knows
// whether that one is, so its VM is not good, however often post-exec runs; what post-exec itself deletes counts for nothing.
func TestFileGoneBeforePostExec(t *testing.T) {
	t.Parallel()
	c := newCell(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, ok, dp := context.Background(), 0, controller.DP{Spec: "NIGHTLY", Session: "2026/11/30-1"}
	ctl, err := controller.New(c.cfg, controller.Options{Observer: c.events, Version: "test", DPSpec: dp.Spec, DPSession: dp.Session})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ctl.Close(); err != nil {
			t.Error(err)
		}
	})
	r, err := ctl.PreExec(ctx, dp, controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeOK, r, err)
	if err := os.Remove(filepath.Join(r.Folder, r.VMs[0].File)); err != nil {
		t.Fatal(err)
	}
	dp.SMExit = &ok
	for range 2 {
		res, err := ctl.PostExec(ctx, dp)
		if err != nil || res.Code != controller.CodeSome || !res.Saved {
			t.Errorf("post-exec: code %d, saved %v, %v", res.Code, res.Saved, err)
		}
		if r := res.Report; r.VMs[0].Status != controller.StatusFailed || r.VMs[1].Status != controller.StatusGood ||
			r.Code != controller.CodeSome || r.Result != controller.ResultLine(r, controller.CodeSome) {
			t.Errorf("post-exec: %s, %s, %q", r.VMs[0].Status, r.VMs[1].Status, r.Result)
		}
		if files := c.staged(); len(files) != 0 {
			t.Errorf("not deleted: %q", files)
		}
	}
	c.clean()
}

// atSecond calls f once for each staged file, when the session is done with its first VM and at the next one. It returns where
// the UUID of that first one is then.
func (c *cell) atSecond(f func(file string)) (first *string) {
	first = new(string)
	done := false
	c.events.watch = func(e controller.Event) {
		switch {
		case e.Type == controller.EventVMEnd && *first == "":
			*first = e.VM.UUID
		case e.Phase == "transfer" && *first != "" && e.VM.UUID != *first && !done:
			done = true
			for _, file := range c.staged() {
				f(file)
			}
		}
	}
	return first
}
