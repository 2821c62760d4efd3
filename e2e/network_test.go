//go:build e2e

package e2e

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/agent"
	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
)

// stages are moments of a session, by the events that tell of them. An agent tells of a phase only where it is still in it when it
// comes to that: then the next one is the moment.
var stages = []struct {
	name                string
	ofBackup, ofRestore string // phases, the first that is told of counts; empty = once bytes have moved
}{
	{"opened", "preparing, shutting down, snapshot, transfer", "preparing, transfer"},
	{"in the stream", "", ""},
	{"before the summary", "finishing, writing to disk", "exchanging disks, starting, cleaning up"},
	{"before the release", "cleaning up", "cleaning up"},
}

// at returns an observer that calls f once when that stage of a session has come.
func at(phase string, f func()) func(controller.Event) {
	var once sync.Once
	return func(e controller.Event) {
		moved := e.Type == controller.EventVMProgress && e.Phase == "transfer" && e.Bytes > 0
		here := e.Type == controller.EventVMPhase && slices.Contains(strings.Split(phase, ", "), e.Phase)
		if phase == "" && moved || phase != "" && here {
			once.Do(f)
		}
	}
}

// unwatched is a cell whose pool takes a second or two for a VM.
func unwatched(t *testing.T, adjust ...func(*agent.Config)) *cell {
	t.Helper()
	sim := one(1, 16<<20)
	sim.Bandwidth = 12 << 20
	c := newCell(t, sim, adjust...)
	c.cfg.Timing.Window = windowOfTests
	c.cfg.Timing.Lease, c.cfg.Timing.ReleaseTimeout = time.Minute, 2*time.Minute
	return c
}

// sane holds that a session was good, however often it was begun anew, and that all is as it should be.
func (c *cell) sane(before xensim.State, r *controller.Report, err error, restored map[string]string) {
	c.t.Helper()
	if code := controller.ExitCode(r, err); code != controller.CodeOK && code != controller.CodeWarnings {
		c.want(controller.CodeOK, r, err)
	}
	after := c.state()
	if diff := cmp.Diff(powers(before), powers(after)); diff != "" {
		c.t.Errorf("power states (-before +after):\n%s", diff)
	}
	if restored != nil {
		if diff := cmp.Diff(restored, disks(after)); diff != "" {
			c.t.Errorf("disks (-before +after):\n%s", diff)
		}
	}
	for _, f := range c.staged() {
		if v := controller.VerifyFile(context.Background(), f); v.Err() != nil {
			c.t.Errorf("%s: %v", f, v.Err())
		}
	}
	if open := r.Unfinished(); len(open) > 0 && controller.ExitCode(r, err) == controller.CodeOK {
		c.t.Errorf("OK with open intents: %+v", open)
	}
	c.clean()
}

// troubled fails the test where its trouble came to nothing.
func (c *cell) troubled(p *proxy) {
	c.t.Helper()
	if !p.troubled() {
		c.t.Errorf("no connection had trouble:\n%s", c.events)
	}
}

// TestNetwork lets each kind of trouble come to the network between controller and agent at each stage of a backup and of a
// restore. A transfer goes on where it was: it is not begun anew.
func TestNetwork(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"cut", "reset", "late", "near gone", "far gone", "blackhole"} {
		for _, stage := range stages {
			t.Run(kind+", backup, "+stage.name, func(t *testing.T) {
				t.Parallel()
				c := unwatched(t)
				before := c.state()
				p := c.through(0)
				c.events.watch = at(stage.ofBackup, func() { p.trouble(kind) })
				r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
				c.sane(before, r, err, nil)
				c.troubled(p)
				if n := retries(r); n != 0 {
					t.Errorf("begun anew %d times:\n%s", n, c.events)
				}
			})
			t.Run(kind+", restore, "+stage.name, func(t *testing.T) {
				t.Parallel()
				c := unwatched(t)
				before := c.state()
				r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
				c.want(controller.CodeOK, r, err)
				c.scribble()
				p := c.through(0)
				c.events.watch = at(stage.ofRestore, func() { p.trouble(kind) })
				r, err = c.controller().Restore(context.Background(), controller.RestoreRequest{Mode: controller.AllOnline, From: c.cfg.Staging})
				c.sane(before, r, err, disks(before))
				c.troubled(p)
				if n := retries(r); n != 0 {
					t.Errorf("begun anew %d times:\n%s", n, c.events)
				}
			})
		}
	}
}

// TestNetworkOfXAPI does the same between agent and XAPI. A VM whose stream has gone is begun anew, from its snapshot.
func TestNetworkOfXAPI(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"cut", "reset", "late", "near gone", "far gone", "blackhole"} {
		for _, stage := range stages {
			for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
				t.Run(kind+", backup "+string(mode)+", "+stage.name, func(t *testing.T) {
					t.Parallel()
					c, p := behindProxy(t)
					before := c.state()
					c.events.watch = at(stage.ofBackup, func() { p.trouble(kind) })
					r, err := c.controller().Backup(context.Background(), controller.Request{Mode: mode})
					c.sane(before, r, err, nil)
					c.troubled(p)
				})
			}
			t.Run(kind+", restore, "+stage.name, func(t *testing.T) {
				t.Parallel()
				c, p := behindProxy(t)
				before := c.state()
				r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
				c.want(controller.CodeOK, r, err)
				c.scribble()
				c.events.watch = at(stage.ofRestore, func() { p.trouble(kind) })
				r, err = c.controller().Restore(context.Background(), controller.RestoreRequest{Mode: controller.AllOnline, From: c.cfg.Staging})
				c.sane(before, r, err, disks(before))
				c.troubled(p)
			})
		}
	}
}

// behindProxy is a cell whose agent reaches XAPI through a proxy, and waits seconds for it where it is minutes in earnest.
func behindProxy(t *testing.T) (*cell, *proxy) {
	t.Helper()
	var p *proxy
	c := unwatched(t, func(cfg *agent.Config) {
		u, err := url.Parse(cfg.XAPI.URL)
		if err != nil {
			t.Fatal(err)
		}
		p = newProxy(t, u.Host)
		u.Host = p.addr()
		cfg.XAPI.URL = u.String()
		cfg.Timing.Stall = 3 * time.Second
		cfg.Timing.XAPI.Call, cfg.Timing.XAPI.ExportHeaders, cfg.Timing.XAPI.Cancel = 2*time.Second, 3*time.Second, 2*time.Second
	})
	return c, p
}
