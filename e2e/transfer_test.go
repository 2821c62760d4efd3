package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
)

// one is a pool of one host with n VMs of size bytes.
func one(n int, size int64) xensim.Config {
	return xensim.Config{Hosts: 1, VMs: n, DiskSize: size}
}

// staged are the complete files in the staging folder.
func (c *cell) staged() []string {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.cfg.Staging, "*.xva"))
	if err != nil {
		c.t.Fatal(err)
	}
	return files
}

// nothingStaged fails the test where a file of whatever kind is left in the staging folder.
func (c *cell) nothingStaged() {
	c.t.Helper()
	for _, pattern := range []string{"*", ".dpxen/partial/*"} {
		files, err := filepath.Glob(filepath.Join(c.cfg.Staging, pattern))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, f := range files {
			if filepath.Base(f) != ".dpxen" {
				c.t.Errorf("left in the staging folder: %s", f)
			}
		}
	}
}

// fileDisks are digests of what a file holds of each disk, by position.
func fileDisks(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := xva.NewReader(f, xva.ReaderOptions{RequireExactEnd: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := r.OVA().Disks()
	if err != nil {
		t.Fatal(err)
	}
	position := map[string]string{}
	for _, d := range all {
		position[d.Dir] = d.UserDevice
	}
	sums := map[string]hash.Hash{}
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		h := sums[position[b.Dir]]
		if h == nil {
			h = sha256.New()
			sums[position[b.Dir]] = h
		}
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(b.Offset)))
		h.Write(b.Data)
	}
	out := map[string]string{}
	for at, h := range sums {
		out[at] = hex.EncodeToString(h.Sum(nil))
	}
	return out
}

// retries counts the attempts beyond the first.
func retries(r *controller.Report) int {
	n := 0
	for _, vm := range r.VMs {
		n += vm.Retries
	}
	return n
}

const windowOfTests = 4 << 20

// TestCutBackup cuts all connections again and again. The file is that of an uncut backup, and a cut costs no more than the
// window.
func TestCutBackup(t *testing.T) {
	for _, tc := range []struct {
		name string
		up   bool
		cuts []int64
	}{
		{"to the controller", false, []int64{1 << 10, 20 << 10, 1<<20 + 17, 6 << 20, 6<<20 + 60<<10, 15 << 20}},
		{"to the agent", true, []int64{1 << 10, 4 << 10, 9 << 10, 13 << 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCell(t, one(1, 16<<20))
			c.cfg.Timing.Window = windowOfTests
			r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
			c.want(controller.CodeOK, r, err)
			uncut := c.staged()[0]
			want, info := fileDisks(t, uncut), r.VMs[0].Bytes
			if err := os.RemoveAll(c.cfg.Staging); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(c.cfg.State); err != nil {
				t.Fatal(err)
			}
			p := c.through(0)
			c.events.watch = p.arm(tc.cuts, tc.up)
			r, err = c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
			c.want(controller.CodeOK, r, err)
			if diff := cmp.Diff(want, fileDisks(t, c.staged()[0])); diff != "" {
				t.Errorf("disks (-uncut +cut):\n%s", diff)
			}
			down, up, left := p.totals()
			if n := retries(r); n != 0 {
				t.Errorf("begun anew %d times", n)
			}
			if done := int64(len(tc.cuts) - left); done < 3 {
				t.Errorf("only %d cuts happened, %d bytes passed to the agent", done, up)
			} else if most := info + done*(windowOfTests+1<<20); down > most {
				t.Errorf("%d bytes for a file of %d and %d cuts, at most %d", down, info, done, most)
			}
			c.clean()
		})
	}
}

// TestCutRestore cuts a restore.
func TestCutRestore(t *testing.T) {
	t.Parallel()
	c := newCell(t, one(1, 16<<20))
	c.cfg.Timing.Window = windowOfTests
	before := c.state()
	r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeOK, r, err)
	c.scribble()
	p := c.through(0)
	c.events.watch = p.arm([]int64{1 << 10, 20 << 10, 1<<20 + 5, 5 << 20, 12 << 20}, true)
	r, err = c.controller().Restore(context.Background(), controller.RestoreRequest{Mode: controller.AllOnline, From: c.cfg.Staging})
	c.want(controller.CodeOK, r, err)
	if diff := cmp.Diff(disks(before), disks(c.state())); diff != "" {
		t.Errorf("disks (-before +after):\n%s", diff)
	}
	_, up, left := p.totals()
	if most := r.VMs[0].Bytes + 5*(windowOfTests+1<<20); up > most || left > 0 {
		t.Errorf("%d bytes for a file of %d, at most %d; %d cuts did not happen", up, r.VMs[0].Bytes, most, left)
	}
	c.clean()
}

// TestBlackhole lets a connection fall silent without breaking: keepalive finds out.
func TestBlackhole(t *testing.T) {
	t.Parallel()
	c := newCell(t, one(1, 16<<20))
	p := c.through(0)
	p.hole = 5 << 20
	r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeOK, r, err)
	if !p.holed {
		t.Error("nothing was swallowed")
	}
	c.clean()
}

// TestAgentReplaced stops an agent in mid-transfer and starts another of its name: the VM is begun anew there.
func TestAgentReplaced(t *testing.T) {
	t.Parallel()
	for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			sim := one(1, 24<<20)
			sim.Bandwidth = 12 << 20
			c := newCell(t, sim)
			before := c.state()
			p := c.through(0)
			reached := c.reached()
			replaced := make(chan struct{})
			go func() {
				defer close(replaced)
				<-reached
				c.stops[0]()
				c.startAgent("xs1", 0)
				p.move(c.agents[len(c.agents)-1].Address)
			}()
			r, err := c.controller().Backup(context.Background(), controller.Request{Mode: mode})
			<-replaced
			c.want(controller.CodeOK, r, err)
			if retries(r) == 0 {
				t.Errorf("not begun anew:\n%s", c.events)
			}
			if diff := cmp.Diff(powers(before), powers(c.state())); diff != "" {
				t.Errorf("power states (-before +after):\n%s", diff)
			}
			c.clean()
		})
	}
}

// reached returns what is closed when bytes have arrived.
func (c *cell) reached() <-chan struct{} {
	seen := make(chan struct{})
	var once sync.Once
	c.events.watch = func(e controller.Event) {
		if e.Type == controller.EventVMProgress && e.Bytes > 0 && e.Phase == "transfer" {
			once.Do(func() { close(seen) })
		}
	}
	return seen
}

// TestDamagedExports has exports go wrong once, which a second attempt makes good, or every time.
func TestDamagedExports(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		fault  xensim.Fault
		code   int
		reason []string
	}{
		{xensim.Fault{Name: "export-corrupt", After: 2<<20 + 999}, controller.CodeIntegrity, []string{"INTEGRITY"}},
		{xensim.Fault{Name: "export-cut", After: 3 << 20}, controller.CodeNone, []string{"EXPORT_FAILED"}},
		{xensim.Fault{Name: "export-embedded-500", After: 3 << 20}, controller.CodeNone, []string{"EXPORT_FAILED", "INTEGRITY"}},
		{xensim.Fault{Name: "export-task-fails"}, controller.CodeNone, []string{"EXPORT_FAILED"}},
		{xensim.Fault{Name: "export-refused"}, controller.CodeNone, []string{"EXPORT_FAILED"}},
		{xensim.Fault{Name: "export-no-end"}, controller.CodeIntegrity, []string{"INTEGRITY"}},
	} {
		t.Run(tc.fault.Name, func(t *testing.T) {
			t.Parallel()
			c := newCell(t, one(1, 6<<20))
			before := c.state()
			if err := c.pool.Inject(tc.fault); err != nil {
				t.Fatal(err)
			}
			r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
			got := controller.ExitCode(r, err)
			vm := r.VMs[0]
			if known := strings.Contains(strings.Join(tc.reason, " "), vm.Reason); vm.Status != controller.StatusFailed || !known || vm.Reason == "" {
				t.Errorf("%s %s %q", vm.Status, vm.Reason, vm.Error)
			}
			if got != tc.code && vm.Reason != "INTEGRITY" || vm.Reason == "INTEGRITY" && got != controller.CodeIntegrity {
				t.Errorf("code %d, want %d", got, tc.code)
			}
			if vm.Retries != c.cfg.Timing.Retries || vm.Error == "" || vm.PowerNotRestored {
				t.Errorf("%d retries, error %q, power %s>%s", vm.Retries, vm.Error, vm.PowerBefore, vm.PowerAfter)
			}
			c.nothingStaged()
			c.clean()
			c.pool.Clear("")
			once := tc.fault
			once.Times = 1
			if err := c.pool.Inject(once); err != nil {
				t.Fatal(err)
			}
			r, err = c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
			c.want(controller.CodeOK, r, err)
			if retries(r) != 1 || len(c.staged()) != 1 {
				t.Errorf("%d retries, files %q", retries(r), c.staged())
			}
			if diff := cmp.Diff(powers(before), powers(c.state())); diff != "" {
				t.Errorf("power states (-before +after):\n%s", diff)
			}
			c.clean()
		})
	}
}
