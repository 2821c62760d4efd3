package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
)

// TestFileDamagedBeforeTheEnd: somebody writes to the first VM's file while the session is at the second one, or sets its times
// alone. What the session ends with is what is staged, and proven.
func TestFileDamagedBeforeTheEnd(t *testing.T) {
	t.Parallel()
	for _, hurt := range []bool{true, false} {
		c := newCell(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
		c.cfg.Limits.Total = 1
		first := c.atSecond(func(file string) {
			if hurt {
				flip(t, file)
			}
			later := time.Now().Add(time.Hour)
			if err := os.Chtimes(file, later, later); err != nil {
				t.Error(err)
			}
		})
		r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
		if !hurt {
			c.want(controller.CodeOK, r, err)
			continue
		}
		c.want(controller.CodeSome, r, err)
		for _, vm := range r.VMs {
			bad := vm.UUID == *first
			if bad != (vm.Status == controller.StatusFailed) || bad && (vm.Reason != controller.ReasonStaging || !strings.Contains(vm.Error, "damaged")) {
				t.Errorf("%s: %s %s %q file %q", vm.Name, vm.Status, vm.Reason, vm.Error, vm.File)
			}
		}
		c.clean()
	}
}

// TestFileDamagedBeforePostExec: the same between pre-exec and the post-exec that says that all are saved.
func TestFileDamagedBeforePostExec(t *testing.T) {
	t.Parallel()
	c := newCell(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	ctx, ok, dp := context.Background(), 0, controller.DP{Spec: "NIGHTLY", Session: "2026/11/30-1"}
	ctl := c.controller()
	r, err := ctl.PreExec(ctx, dp, controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeOK, r, err)
	time.Sleep(20 * time.Millisecond) // more than the clock of a file system has steps
	flip(t, filepath.Join(r.Folder, r.VMs[0].File))
	dp.SMExit = &ok
	res, err := ctl.PostExec(ctx, dp)
	if err != nil || res.Code != controller.CodeSome || !res.Saved {
		t.Errorf("post-exec: code %d, saved %v, %v", res.Code, res.Saved, err)
	}
	if r := res.Report; r.VMs[0].Status != controller.StatusFailed || r.VMs[1].Status != controller.StatusGood ||
		!strings.Contains(r.VMs[0].Error, "damaged when post-exec came") {
		t.Errorf("post-exec: %s %q, %s, %q", r.VMs[0].Status, r.VMs[0].Error, r.VMs[1].Status, r.Result)
	}
	c.clean()
}

// flip turns one bit in the middle of a file over, in place: it may be one that is being written.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Error(err)
		return
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], info.Size()/2); err != nil {
		t.Error(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], info.Size()/2); err != nil {
		t.Error(err)
	}
}
