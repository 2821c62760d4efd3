package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
)

// slow is a pool whose transfers last.
func slow(n int) xensim.Config {
	sim := one(n, 24<<20)
	sim.Bandwidth = 8 << 20
	return sim
}

// TestCancel cancels sessions in mid-transfer, by signal and by request.
func TestCancel(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"signal", "request"} {
		for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
			t.Run(how+" "+string(mode), func(t *testing.T) {
				t.Parallel()
				c := newCell(t, slow(3))
				c.cfg.Limits.Total = 1
				before := c.state()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				ctl, other := c.controller(), c.controller()
				reached := c.reached()
				asked := make(chan struct{})
				go func() {
					defer close(asked)
					<-reached
					if how == "signal" {
						cancel()
						return
					}
					sessions, err := other.Sessions()
					if err != nil || len(sessions) != 1 {
						t.Errorf("sessions %v: %v", sessions, err)
						cancel()
						return
					}
					final, err := other.Cancel(context.Background(), sessions[0].ID)
					if err != nil || final.State != controller.StateDone || final.Code != controller.CodeCancelled {
						t.Errorf("cancel told %+v: %v", final, err)
					}
				}()
				r, err := ctl.Backup(ctx, controller.Request{Mode: mode})
				<-asked
				c.want(controller.CodeCancelled, r, err)
				for _, vm := range r.VMs {
					if vm.Status != controller.StatusCancelled || vm.PowerNotRestored {
						t.Errorf("VM %s: %s %s, power %s>%s", vm.Name, vm.Status, vm.Error, vm.PowerBefore, vm.PowerAfter)
					}
				}
				if open := r.Unfinished(); len(open) > 0 {
					t.Errorf("open intents: %+v", open)
				}
				if diff := cmp.Diff(powers(before), powers(c.state())); diff != "" {
					t.Errorf("power states (-before +after):\n%s", diff)
				}
				c.nothingStaged()
				c.clean()
			})
		}
	}
}

// TestAgentLost loses the way to an agent in mid-transfer. The result says that nothing is known, and repair puts it right.
func TestAgentLost(t *testing.T) {
	t.Parallel()
	c := newCell(t, slow(1))
	c.cfg.Timing.Lease, c.cfg.Timing.ReleaseTimeout, c.cfg.Timing.Retries = time.Second, time.Second, 0
	before := c.state()
	p := c.through(0)
	reached := c.reached()
	go func() {
		<-reached
		p.refuse(true)
	}()
	ctl := c.controller()
	r, err := ctl.Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
	c.want(controller.CodePower, r, err)
	if vm := r.VMs[0]; vm.Reason != "UNREACHABLE" || vm.PowerAfter != controller.PowerUnknown || len(vm.Warnings) == 0 || len(r.Unfinished()) != 1 {
		t.Errorf("VM %+v, open %+v", vm, r.Unfinished())
	}
	c.nothingStaged()
	if rep, err := ctl.Repair(context.Background(), false); err != nil || rep.Code == controller.CodeOK {
		t.Errorf("repair without a way to the agent: %+v, %v", rep, err)
	}
	p.refuse(false)
	c.repaired(ctl, r.ID, before)
	if got, err := ctl.Session(r.ID); err != nil || got.State != controller.StateDone || got.VMs[0].PowerAfter != controller.PowerRunning {
		t.Errorf("after repair: %+v, %v", got, err)
	}
}

// repaired runs repair until nothing is open, and compares.
func (c *cell) repaired(ctl *controller.Controller, id string, before xensim.State) {
	c.t.Helper()
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		rep, err := ctl.Repair(context.Background(), false)
		if err == nil && rep.Code == controller.CodeOK {
			break
		}
		if time.Now().After(end) {
			c.t.Fatalf("repair: %+v, %v", rep, err)
		}
	}
	got, err := ctl.Session(id)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, vm := range got.VMs {
		if vm.PowerNotRestored || vm.Status == controller.StatusRunning || vm.Status == controller.StatusPending {
			c.t.Errorf("VM %s: %s, power %s>%s, not restored: %t", vm.Name, vm.Status, vm.PowerBefore, vm.PowerAfter, vm.PowerNotRestored)
		}
	}
	if open := got.Unfinished(); len(open) > 0 {
		c.t.Errorf("open intents: %+v", open)
	}
	if diff := cmp.Diff(powers(before), powers(c.state())); diff != "" {
		c.t.Errorf("power states (-before +after):\n%s", diff)
	}
	c.clean()
}

// TestSessionDies takes a session's state as it is in mid-transfer for that of one that was killed: its network is cut, and
// nobody holds the lock of the copy. Repair ends it.
func TestSessionDies(t *testing.T) {
	t.Parallel()
	c := newCell(t, slow(1))
	before := c.state()
	direct := *c.cfg
	direct.Agents = append([]controller.AgentConfig(nil), c.cfg.Agents...)
	direct.State, direct.Staging = filepath.Join(c.dir, "state2"), c.cfg.Staging
	c.cfg.Timing.Lease, c.cfg.Timing.ReleaseTimeout, c.cfg.Timing.Retries = time.Second, time.Second, 0
	p := c.through(0)
	dead := c.controller()
	c.cfg = &direct
	ctl := c.controller()
	reached := c.reached()
	copied := make(chan string)
	go func() {
		<-reached
		copied <- c.copyState(dead.Config().State, direct.State)
		p.refuse(true)
	}()
	over := make(chan struct{})
	go func() {
		defer close(over)
		if r, err := dead.Backup(context.Background(), controller.Request{Mode: controller.AllOffline}); controller.ExitCode(r, err) == 0 {
			t.Error("the session that was cut off is good")
		}
	}()
	id := <-copied
	if r, err := ctl.Session(id); err != nil || r.State != controller.StateInterrupted {
		t.Errorf("a dead session reads %+v, %v", r, err)
	}
	c.repaired(ctl, id, before)
	<-over
	r, err := ctl.Session(id)
	if err != nil || r.State != controller.StateInterrupted || r.VMs[0].Status != controller.StatusFailed || r.Ended.IsZero() {
		t.Errorf("after repair: %+v, %v", r, err)
	}
	again, err := ctl.Repair(context.Background(), false)
	if err != nil || again.Code != controller.CodeOK || len(again.Sessions) != 0 {
		t.Errorf("repair once more: %+v, %v", again, err)
	}
	c.nothingStaged()
}

// copyState copies the sessions' reports and returns the ID of the only one.
func (c *cell) copyState(from, to string) string {
	if err := os.MkdirAll(filepath.Join(to, "sessions"), 0o700); err != nil {
		c.t.Error(err)
	}
	files, err := filepath.Glob(filepath.Join(from, "sessions", "*.json"))
	if err != nil || len(files) != 1 {
		c.t.Errorf("sessions %q: %v", files, err)
	}
	files = append(files, filepath.Join(from, "folders.json"))
	for i, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			c.t.Error(err)
		}
		dir := to
		if i == 0 {
			dir = filepath.Join(to, "sessions")
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), data, 0o600); err != nil {
			c.t.Error(err)
		}
	}
	id := filepath.Base(files[0])
	return id[:len(id)-len(".json")]
}

// TestFileChangedWhileRestoring changes a byte of a file between its proof and its sending: the VM is as it was.
func TestFileChangedWhileRestoring(t *testing.T) {
	t.Parallel()
	c := newCell(t, one(1, 16<<20))
	r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeOK, r, err)
	before := c.state()
	c.events.watch = func(e controller.Event) {
		if e.Type == controller.EventVMPhase && (e.Phase == "preparing" || e.Phase == "transfer") {
			f, err := os.OpenFile(c.staged()[0], os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := f.WriteAt([]byte{0xa5, 0x5a}, r.VMs[0].Bytes-3<<20); err != nil {
				t.Error(err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	r, err = c.controller().Restore(context.Background(), controller.RestoreRequest{Mode: controller.AllOnline, From: c.cfg.Staging})
	c.want(controller.CodeIntegrity, r, err)
	after := c.state()
	if diff := cmp.Diff(disks(before), disks(after)); diff != "" {
		t.Errorf("disks (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(powers(before), powers(after)); diff != "" {
		t.Errorf("power states (-before +after):\n%s", diff)
	}
	c.clean()
}

// TestReleaseLost loses the agent when it is to be released: the backup is good, what is left is said, and repair removes it.
func TestReleaseLost(t *testing.T) {
	t.Parallel()
	for mode, code := range map[controller.Mode]int{controller.AllOnline: controller.CodeWarnings, controller.AllOffline: controller.CodePower} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			c := newCell(t, one(1, 4<<20))
			c.cfg.Timing.Lease, c.cfg.Timing.ReleaseTimeout, c.cfg.Timing.Retries = time.Second, time.Second, 0
			before := c.state()
			p := c.through(0)
			c.events.watch = func(e controller.Event) {
				if e.Type == controller.EventVMPhase && e.Phase == "cleaning up" { // right before the release
					p.refuse(true)
				}
			}
			ctl := c.controller()
			r, err := ctl.Backup(context.Background(), controller.Request{Mode: mode})
			c.want(code, r, err)
			if vm := r.VMs[0]; vm.Status != controller.StatusGood || len(vm.Warnings) == 0 || len(r.Unfinished()) != 1 || len(c.staged()) != 1 {
				t.Errorf("VM %+v, open %+v, files %q", vm, r.Unfinished(), c.staged())
			}
			p.refuse(false)
			c.repaired(ctl, r.ID, before)
		})
	}
}

// TestOtherAgent loses the way to an agent in mid-transfer for good: another one of the pool takes over.
func TestOtherAgent(t *testing.T) {
	t.Parallel()
	sim := slow(1)
	sim.Hosts = 2
	c := newCell(t, sim)
	// An agent that is gone is asked last for a lease's time, in which the other one has to answer, as it has to its release.
	c.cfg.Timing.Lease, c.cfg.Timing.ReleaseTimeout = 4*time.Second, 5*time.Second
	before := c.state()
	ways := map[string]*proxy{"xs1": c.through(0), "xs2": c.through(1)}
	var first string
	c.events.watch = func(e controller.Event) {
		switch {
		case e.Type == controller.EventVMStart:
			first = e.Agent
		case e.Type == controller.EventVMProgress && first != "":
			ways[first].refuse(true)
		}
	}
	ctl := c.controller()
	r, err := ctl.Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
	// The one that took over has cleaned up what the other had left, so there is nothing to warn of.
	c.want(controller.CodeOK, r, err)
	if vm := r.VMs[0]; vm.Agent == first || vm.PowerNotRestored || len(r.Unfinished()) != 0 || len(vm.Attempts) != 1 || vm.Attempts[0].Agent != first {
		t.Errorf("VM %+v after %s was lost, open %+v", vm, first, r.Unfinished())
	}
	if diff := cmp.Diff(powers(before), powers(c.state())); diff != "" {
		t.Errorf("power states (-before +after):\n%s", diff)
	}
	c.clean()
	ways[first].refuse(false)
	c.repaired(ctl, r.ID, before)
}

// TestCancelRestore cancels a restore while its disks arrive: the VM is as it was.
func TestCancelRestore(t *testing.T) {
	t.Parallel()
	c := newCell(t, slow(1))
	ctl := c.controller()
	r, err := ctl.Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeOK, r, err)
	before := c.state()
	reached := c.reached()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-reached
		cancel()
	}()
	r, err = ctl.Restore(ctx, controller.RestoreRequest{Mode: controller.AllOnline, From: c.cfg.Staging})
	c.want(controller.CodeCancelled, r, err)
	if vm := r.VMs[0]; vm.Status != controller.StatusCancelled || vm.PowerNotRestored || len(r.Unfinished()) > 0 {
		t.Errorf("VM %+v, open %+v", vm, r.Unfinished())
	}
	after := c.state()
	if diff := cmp.Diff(disks(before), disks(after)); diff != "" {
		t.Errorf("disks (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(powers(before), powers(after)); diff != "" {
		t.Errorf("power states (-before +after):\n%s", diff)
	}
	c.clean()
}
