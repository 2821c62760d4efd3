//go:build e2e

package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/controller"
)

// TestReadBack lets another program change one bit of a file while it comes in. The stream was good, the file is not: it is
// thrown away, and the VM is backed up again.
func TestReadBack(t *testing.T) {
	t.Parallel()
	for _, readBack := range []bool{true, false} {
		c := unwatched(t)
		c.cfg.ReadBack = readBack
		before := c.state()
		c.events.watch = at("", func() { flipPartial(t, c.cfg.Staging) })
		r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
		if !readBack {
			c.want(controller.CodeOK, r, err)
			for _, f := range c.staged() {
				if v := controller.VerifyFile(context.Background(), f); v.Err() == nil {
					t.Error("nobody flipped a bit")
				}
			}
			continue
		}
		c.sane(before, r, err, nil)
		if n := retries(r); n != 1 {
			t.Errorf("begun anew %d times:\n%s", n, c.events)
		}
		if text := c.events.String(); !strings.Contains(text, "another program wrote to the file") {
			t.Errorf("the reason is not told:\n%s", text)
		}
	}
}

// flipPartial changes one bit of the file that is being written.
func flipPartial(t *testing.T, folder string) {
	partials, err := filepath.Glob(filepath.Join(folder, ".dpxen", "partial", "*.xva"))
	if err != nil || len(partials) != 1 {
		t.Errorf("files that are being written: %v, %v", partials, err)
		return
	}
	flip(t, partials[0])
}
