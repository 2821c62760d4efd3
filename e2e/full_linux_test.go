package e2e

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
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
