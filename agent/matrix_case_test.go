package agent

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// matrixCase is one restore with trouble at one call.
type matrixCase struct {
	*matrix
	t         *testing.T
	what      trouble
	before    xensim.VMState // the VM just before; zero where it does not exist
	succeeded bool
	p         *pusher
	cross     *crossing
	settled   bool // the controller passes its intent no more
}

// try lets trouble come at the n-th changing call and returns that call's name, "" when the restore has fewer.
func (m *matrix) try(n int, what trouble, restarted bool) string {
	m.kind.change(m)
	b := m.b
	b.before = b.dump()
	c := &matrixCase{matrix: m, t: b.t, what: what}
	for _, vm := range b.before.VMs {
		if vm.UUID == m.uuid {
			c.before = vm
		}
	}
	cfg := b.config("mortal", 0)
	cfg.Timing.Claim, cfg.Timing.Shutdown = 300*time.Millisecond, 5*time.Second
	if what.late { // by the end of its claim whatever an agent asked for has reached XAPI
		cfg.Timing.Claim = 3 * time.Second
	}
	direct := cfg.XAPI.URL
	cross, address := newCrossing(b, direct, n, what)
	cfg.XAPI.URL, c.cross = address, cross
	if what.dies {
		cfg.Timing.Stop = time.Millisecond
		cfg.Timing.XAPI.Outage, cfg.Timing.XAPI.Cancel = 10*time.Millisecond, 10*time.Millisecond
	}
	a := b.start(cfg)
	c.run(a, cross)
	b.pool.Clear("")
	c.awaitXAPI()
	fell := cross.fell()
	if fell != "" {
		c.t.Logf("at %s; succeeded %v", fell, c.succeeded)
	}
	c.wantNoMixedStart()
	if what.dies || restarted {
		a.stop()
	}
	cfg.XAPI.URL = direct
	cfg.Timing.Stop = 10 * time.Second
	cfg.Timing.XAPI.Outage, cfg.Timing.XAPI.Cancel = 5*time.Second, 300*time.Millisecond
	if restarted && what.rolled == 0 && !what.late {
		cfg.Timing.Sweep = 30 * time.Millisecond
		a = b.start(cfg)
		a.awaitWatches(c.t, b)
		c.awaitMarks()
		c.wantNothingToDo(a)
	} else {
		name := "other"
		if restarted && what.late {
			name = cfg.Name
		}
		cfg = b.config(name, 0)
		cfg.Timing.Claim, cfg.Timing.XAPI.Cancel = 300*time.Millisecond, 300*time.Millisecond
		a = b.start(cfg)
		c.repair(a)
	}
	c.verify(a)
	a.stop()
	return fell
}

// awaitXAPI waits until XAPI takes new connections again.
func (c *matrixCase) awaitXAPI() {
	once := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := once.Get(c.b.info.Hosts[0].HTTP)
		if err == nil {
			resp.Body.Close()
			return
		}
		if sleep(c.t.Context(), 5*time.Millisecond) != nil {
			c.t.Fatal(err)
		}
	}
}

// run runs the restore to its end or its agent's.
func (c *matrixCase) run(a *runningAgent, cross *crossing) {
	c.p = newPusher(c.t, a, c.uuid, c.archive, c.kind.backup.GetKind())
	if c.kind.spec != nil {
		c.kind.spec(c.p.spec)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	go func() {
		select {
		case <-cross.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := c.p.push(ctx)
	j, ok := a.agent.jobs.Lookup(c.p.opening.GetKey())
	if !ok {
		if err == nil {
			c.t.Fatal("the restore is not known")
		}
		return
	}
	if err == nil {
		j.release()
	}
	select {
	case <-j.done:
		out, _ := j.result()
		c.succeeded = out.Succeeded
		if !out.Succeeded || len(out.Warnings) > 0 {
			c.t.Logf("outcome: %+v, push: %v", out, err)
		}
		if out.Succeeded && err != nil {
			c.t.Errorf("the restore succeeded, but its controller heard %v", err)
		}
	case <-cross.dead:
	case <-time.After(time.Minute):
		c.t.Fatal("the restore never ends")
	}
}

// now returns the VM as it is; false where there is none.
func (c *matrixCase) now(s xensim.State) (xensim.VMState, bool) {
	for _, vm := range s.VMs {
		if vm.UUID == c.uuid {
			return vm, true
		}
	}
	return xensim.VMState{}, false
}

// wantNoMixedStart checks that a VM on neither its old nor its restored disks cannot be started.
func (c *matrixCase) wantNoMixedStart() {
	c.t.Helper()
	vm, ok := c.now(c.b.dump())
	if !c.kind.inPlace || !ok || vm.PowerState == running {
		return
	}
	got := digests(vm)
	if cmp.Equal(got, digests(c.before)) || cmp.Equal(got, c.good) || len(got) == 0 && c.p.spec.GetDeleteFirst() {
		return // one that has given its old disks up, and did not get the others, has no two sets of them
	}
	if err := c.x.Start(context.Background(), xapi.Ref(vm.Ref)); !errors.Is(err, xapi.ErrBlocked) {
		c.t.Errorf("the VM is between two sets of disks, and its start gives %v", err)
	}
}

// sweepAll is what a controller's repair asks for; with the intent of its own state.
func (c *matrixCase) sweepAll(dry bool) sweepOptions {
	in := sweepIntent{VM: c.uuid, Nonce: c.p.opening.GetNonce(), Session: c.p.opening.GetSessionId()}
	if c.kind.inPlace && c.before.PowerState == running && !c.p.spec.GetDeleteFirst() {
		in.Before = running
	}
	o := sweepOptions{DryRun: dry, AtStart: true, DeadSessions: []string{in.Session}}
	if !c.settled {
		o.Intents = []sweepIntent{in}
	}
	return o
}

// repair repairs as a controller would, by an agent of another name. What a dry run has told must be what is done.
func (c *matrixCase) repair(a *runningAgent) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		dry, err := a.agent.sweeper.sweep(c.t.Context(), c.sweepAll(true))
		if err != nil {
			c.t.Fatalf("dry run: %v", err)
		}
		did, err := a.agent.sweeper.sweep(c.t.Context(), c.sweepAll(false))
		if err != nil {
			c.t.Fatalf("repair: %v", err)
		}
		for _, action := range did {
			c.t.Logf("repair: %+v", action)
			c.settled = c.settled || action.Lost
		}
		if c.comesLate() {
			continue
		}
		waits := func(s sweepAction) bool { return s.Waiting != "" }
		waiting := slices.ContainsFunc(did, waits)
		if !waiting && !slices.ContainsFunc(dry, waits) {
			if diff := cmp.Diff(told(dry), told(did)); diff != "" {
				c.t.Errorf("the dry run told (-), the repair did (+):\n%s", diff)
			}
		}
		if !waiting {
			break
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("it waits for ever: %+v", did)
		}
		if err := sleep(c.t.Context(), 10*time.Millisecond); err != nil {
			c.t.Fatal(err)
		}
	}
	c.wantNothingToDo(a)
}

// told is what of actions an operator reads.
func told(actions []sweepAction) []string {
	var out []string
	for _, a := range actions {
		s := a.Action + " " + a.Object
		if a.Err != nil {
			s += ": " + a.Err.Error()
		}
		out = append(out, s)
	}
	return out
}

// awaitMarks waits until the agent has removed its marks of finished work.
func (c *matrixCase) awaitMarks() {
	c.t.Helper()
	for len(parseLedger(c.b.dump().PoolOtherConfig).overs) > 0 {
		if sleep(c.t.Context(), 5*time.Millisecond) != nil {
			c.t.Fatal("a mark of finished work stays")
		}
	}
}

func (c *matrixCase) wantNothingToDo(a *runningAgent) {
	c.t.Helper()
	for _, dry := range []bool{true, false} {
		again, err := a.agent.sweeper.sweep(c.t.Context(), c.sweepAll(dry))
		if err != nil || len(again) > 0 {
			c.t.Errorf("repaired again (dry run %v): got %+v, %v", dry, again, err)
		}
	}
}

// verify checks that the pool is in order.
func (c *matrixCase) verify(a *runningAgent) {
	b, s := c.b, c.b.dump()
	if c.kind.inPlace {
		c.verifyInPlace(a, s)
	} else {
		c.verifyAnew(s)
	}
	if diff := cmp.Diff(c.others(b.before), c.others(s)); diff != "" {
		c.t.Errorf("other VMs (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(b.before.PoolOtherConfig, s.PoolOtherConfig); diff != "" {
		c.t.Errorf("pool.other_config (-before +after):\n%s", diff)
	}
	for _, list := range [][]xensim.VMState{s.Snapshots, s.Carriers} {
		for _, vm := range list {
			c.t.Errorf("%q is left", vm.Name)
		}
	}
	c.verifyOrphans(s)
	b.wantUnmarkedBut(c.uuid, c.blocked)
	if err := b.pool.CheckInvariants(); err != nil {
		c.t.Errorf("the simulator's database: %v", err)
	}
}

// verifyOrphans allows disks that were kept because that was asked for.
func (c *matrixCase) verifyOrphans(s xensim.State) {
	for _, vdi := range s.Orphans {
		// A crash of XAPI's may have undone the renaming, once there was nothing more to do.
		wasOurs := slices.ContainsFunc(c.before.Disks, func(d xensim.DiskState) bool { return d.VDI.UUID == vdi.UUID })
		if c.p.spec.GetKeepOldDisks() && (strings.Contains(vdi.Name, "(replaced in dpxen session") || c.what.rolled > 0 && wasOurs) {
			c.discard(vdi.UUID)
			continue
		}
		if !slices.ContainsFunc(c.b.before.Orphans, func(v xensim.VDIState) bool { return v.UUID == vdi.UUID }) {
			c.t.Errorf("disk %s (%q) is left", vdi.UUID, vdi.Name)
		}
	}
}

func (c *matrixCase) discard(uuid string) {
	vdi, err := c.x.VDIByUUID(context.Background(), uuid)
	c.ok(nil, err)
	c.ok(nil, c.x.DestroyVDI(context.Background(), vdi.Ref))
}

func (c *matrixCase) verifyInPlace(a *runningAgent, s xensim.State) {
	vm, ok := c.now(s)
	if !ok {
		c.t.Fatal("the VM is gone")
	}
	old := digests(c.before)
	got := digests(vm)
	onNew := cmp.Equal(got, c.good)
	lost := c.p.spec.GetDeleteFirst() && !onNew && !cmp.Equal(got, old)
	switch {
	case lost:
		for at, sum := range got {
			if sum != old[at] && sum != c.good[at] {
				c.t.Errorf("position %s holds %s, which is neither", at, sum)
			}
		}
		c.restoreAgain(a)
		vm, _ = c.now(c.b.dump())
	case !onNew && !cmp.Equal(got, old):
		c.t.Errorf("the VM is on neither its old nor its restored disks:\n%v\n%v\n%v", got, old, c.good)
	case c.succeeded && !onNew && c.what.rolled == 0:
		c.t.Error("the restore succeeded, but the VM is on its old disks")
	}
	want := []string{c.before.PowerState}
	if c.before.PowerState == suspended {
		want = append(want, halted)
	}
	if !slices.Contains(want, vm.PowerState) {
		c.t.Errorf("the VM is %s, was %s", vm.PowerState, c.before.PowerState)
	}
	if !cmp.Equal(vm.VIFs, c.before.VIFs) && !cmp.Equal(vm.VIFs, c.vifs) {
		c.t.Errorf("the VM's interfaces are %v, were %v, in the file %v", vm.VIFs, c.before.VIFs, c.vifs)
	}
	if vm.PowerState == halted {
		if err := c.x.Start(context.Background(), xapi.Ref(vm.Ref)); err != nil {
			c.t.Errorf("the VM does not start: %v", err)
		}
		c.powered(halted)
	}
}

// restoreAgain restores a VM whose disks were deleted first, as asked.
func (c *matrixCase) restoreAgain(a *runningAgent) {
	back := newPusher(c.t, a, c.uuid, c.archive, c.kind.backup.GetKind())
	back.spec.Start = true
	if err := back.push(c.t.Context()); err != nil {
		c.t.Fatalf("restore again: %v", err)
	}
	wantGood(c.t, a.release(c.t, back.opening.GetKey()))
	wantSame(c.t, "disks", c.good, digests(c.b.vmNow(c.uuid)))
}

func (c *matrixCase) verifyAnew(s xensim.State) {
	var made []xensim.VMState
	for _, vm := range s.VMs {
		if !slices.ContainsFunc(c.b.before.VMs, func(v xensim.VMState) bool { return v.UUID == vm.UUID }) {
			made = append(made, vm)
		}
	}
	switch {
	case len(made) > 1:
		c.t.Errorf("%d VMs were made", len(made))
	case len(made) == 0 && c.succeeded && c.what.rolled == 0:
		c.t.Error("the restore succeeded, but there is no VM")
	case len(made) == 1:
		wantSame(c.t, "disks", c.good, digests(made[0]))
		if !cmp.Equal(made[0].VIFs, c.vifs) && !c.p.spec.GetAsNew() || len(made[0].VIFs) != len(c.vifs) {
			c.t.Errorf("interfaces: %v, in the file %v", made[0].VIFs, c.vifs)
		}
		if key, ok := made[0].Config["import_task"]; ok && c.succeeded {
			c.t.Errorf("the VM names its import's task %s", key)
		}
	}
}

// others are the VMs that the restore is not about, without what XAPI changes by itself.
func (c *matrixCase) others(s xensim.State) map[string]xensim.VMState {
	out := map[string]xensim.VMState{}
	for _, vm := range s.VMs {
		if _, known := c.known(vm.UUID); vm.UUID != c.uuid && known {
			vm.Current = nil
			out[vm.UUID] = vm
		}
	}
	return out
}

func (c *matrixCase) known(uuid string) (xensim.VMState, bool) {
	i := slices.IndexFunc(c.b.before.VMs, func(v xensim.VMState) bool { return v.UUID == uuid })
	if i < 0 {
		return xensim.VMState{}, false
	}
	return c.b.before.VMs[i], true
}
