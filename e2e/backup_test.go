package e2e

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
)

// TestBackupModes backs the demo's VMs up in both kinds and proves the files.
func TestBackupModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
		t.Run(string(mode), func(t *testing.T) {
			c := newCell(t, xensim.Config{Scenario: "demo"})
			before := c.state()
			r, err := c.controller().Backup(context.Background(), controller.Request{Mode: mode})
			c.want(controller.CodeOK, r, err)
			after := c.state()
			if diff := cmp.Diff(powers(before), powers(after)); diff != "" {
				t.Errorf("power states (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(disks(before), disks(after)); diff != "" {
				t.Errorf("disks (-before +after):\n%s", diff)
			}
			if got := r.Counts(); got.Good != len(before.VMs) {
				t.Errorf("%d good of %d VMs", got.Good, len(before.VMs))
			}
			c.clean()
		})
	}
}
