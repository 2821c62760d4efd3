package e2e

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
)

// TestWireCompression backs up and restores with frames packed on the wire, through cuts: files and disks are those of plain
// frames, and far fewer bytes pass where the content is worth it.
func TestWireCompression(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		content string
		most    float64 // of a file's bytes that may pass
	}{{"ext4", 0.7}, {"random", 1.35}} { // with cuts, which cost a window each at most
		t.Run(tc.content, func(t *testing.T) {
			t.Parallel()
			config := one(1, 24<<20)
			config.Content = tc.content
			c := newCell(t, config)
			c.cfg.Timing.Window = 2 << 20
			c.cfg.WireCompression = controller.WireZstd
			before := c.state()
			p := c.through(0)
			c.events.watch = p.arm([]int64{20 << 10, 400 << 10, 900 << 10}, false)
			r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
			c.want(controller.CodeOK, r, err)
			size := r.VMs[0].Bytes
			down, _, left := p.totals()
			if left > 0 || float64(down) > tc.most*float64(size) {
				t.Errorf("backup: %d bytes passed for a file of %d; %d cuts did not happen", down, size, left)
			}
			if v, err := controller.VerifyFolder(context.Background(), c.cfg.Staging, 1, nil); err != nil || len(v) != 1 || v[0].Err() != nil {
				t.Fatalf("verified: %+v, %v", v, err)
			}
			c.scribble()
			p = c.through(0)
			c.events.watch = p.arm([]int64{20 << 10, 400 << 10, 900 << 10}, true)
			r, err = c.controller().Restore(context.Background(), controller.RestoreRequest{Mode: controller.AllOnline, From: c.cfg.Staging})
			c.want(controller.CodeOK, r, err)
			if diff := cmp.Diff(disks(before), disks(c.state())); diff != "" {
				t.Errorf("disks (-before +after):\n%s", diff)
			}
			if _, up, left := p.totals(); left > 0 || float64(up) > tc.most*float64(size) {
				t.Errorf("restore: %d bytes passed for a file of %d; %d cuts did not happen", up, size, left)
			}
			c.clean()
		})
	}
}
