package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// Steps of a restore in the journal.
const (
	stepRestore = "restore" // what carries the nonce is ours, and its disks may be on their way
	stepImport  = "import"  // import0, import1, …: the tasks of the imports
	stepSwap    = "swap"    // the plan of the exchange; from here on the VM may be between two sets of disks
	stepDelete  = "delete"  // with delete first: the old disks are being deleted, and nobody goes back to them
	stepArrived = "arrived" // with delete first: the disks that came instead
	stepVIFs    = "vifs"    // interfaces that are replaced: for a moment they are missing
	stepSwapped = "swapped" // the exchange is complete: from here on it goes forward
	stepMade    = "made"    // as new: the VM is whole, and once its mark is off it stays, whoever hears of it
)

// restoreNote is the journal's restore entry.
type restoreNote struct {
	Goal restoreGoal `json:"g"`
}

// importNote names the task of an import, by UUID, and where it goes.
type importNote struct {
	Task string `json:"t"`
	SR   string `json:"sr"`
}

// madeNote names the VM that a restore has made as new.
type madeNote struct {
	UUID string `json:"u"`
}

// arrivedNote completes the swap entry of a restore that deletes first.
type arrivedNote struct {
	Steps []swapStep `json:"p"`
}

// restoreSpec says what to restore and how.
type restoreSpec struct {
	Online          bool   // the file is of an online backup
	Name            string // the VM's name in the manifest
	AsNew, Recreate bool
	NewName         string
	Start           bool
	SRUUID          string
	SRs             map[string]string
	HostUUID        string // the VM's affinity, where given
	Networks        map[string]string
	LowerVersion    bool
	KeepOld         bool
	DeleteFirst     bool
	ForceOff        bool
	DiscardMemory   bool
	ShutdownLimit   time.Duration     // 0: the default
	Settings        map[string]string // the manifest's, where ova.xml describes a snapshot
	OVA             *xva.OVA          // the file's
	sum             [32]byte          // of its bytes
}

// restoreResult is what a restore came to.
type restoreResult struct {
	VM          xapi.VM
	InPlace     bool
	NotRestored []string
	Kept        []string // UUIDs of replaced disks that were kept
	Warnings    []string
}

// restore is the procedure of one restore.
type restore struct {
	a    *Agent
	spec restoreSpec

	recv    *transfer.Receiver
	pipe    *relay
	planned chan struct{} // closed when plan and documents stand
	sized   chan struct{} // closed when sizes stand
	over    chan struct{} // closed when the sender has said its totals
	results chan struct{} // closed when result stands
	told    atomic.Bool   // a controller was there to be told of it

	mu     sync.Mutex // guards what is below until its channel is closed
	plan   *restorePlan
	docs   [][]byte // the parts' ova.xml
	sizes  []int64
	totals *streamTotals
	result *restoreResult

	// Of the job's goroutine alone.
	claim   *claim
	goal    restoreGoal
	vm      xapi.VM // in place: as it was before it was touched
	view    *poolView
	before  string // its power state then
	stopped bool   // it was, or may have been, stopped by us
	down    downtime
	watched bool // a shutdown was given up: the guest may still power off
	// unanswered: a call that shuts the VM down got no answer, and may still come.
	unanswered bool
	swap       *exchangeState
	doubt      bool // with delete first: an old disk is deleted, or may yet be by a call that XAPI did not answer
	lost       bool // with delete first: positions have neither their old nor their restored disk
	arrived    map[string]xapi.VDI
	imports    []string // UUIDs of the tasks of imports that were begun
	proven     bool     // all disks have arrived, and are what was sent
	made       xapi.VM  // absent and as new: the VM that was made
	broken     bool     // what an earlier attempt left could not be put right: the journal keeps it all
}

// streamTotals are the sender's word on the logical stream.
type streamTotals struct {
	bytes  int64
	crc32c uint32
}

func newRestore(a *Agent, spec restoreSpec) *restore {
	pipe := newRelay()
	return &restore{a: a, spec: spec, recv: transfer.NewReceiver(pipe), pipe: pipe,
		planned: make(chan struct{}), sized: make(chan struct{}), over: make(chan struct{}), results: make(chan struct{})}
}

// bytes is procedure's.
func (r *restore) bytes() int64 {
	n, _ := r.recv.Totals()
	return n
}

// fail is procedure's: writers to the pipe get err from now on.
func (r *restore) fail(err error) { r.pipe.CloseWithError(err) }

// run is procedure's.
func (r *restore) run(ctx context.Context, j *job) error {
	if err := r.prepare(ctx, j); err != nil {
		return err
	}
	if err := r.await(ctx, r.sized); err != nil {
		return err
	}
	if r.spec.DeleteFirst && r.goal == goalInPlace {
		if err := r.stopAndBlock(ctx, j, r.stepsWithout()); err != nil {
			return err
		}
		if err := r.clearPositions(ctx, j); err != nil {
			return err
		}
	}
	if err := r.receive(ctx, j); err != nil {
		return err
	}
	result, err := r.complete(ctx, j)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.result = result
	r.mu.Unlock()
	j.complete() // first: whoever gets the result may release it at once
	close(r.results)
	failpoint.Pass("agent/restore/complete")
	return j.awaitRelease(ctx)
}

// prepare claims, reads and plans, and changes nothing but the journal.
func (r *restore) prepare(ctx context.Context, j *job) error {
	var err error
	subject := j.VM
	if r.spec.AsNew {
		subject = j.Nonce // nothing that exists is touched: the claim is on the new VM
		if err := r.a.notMade(ctx, subject); err != nil {
			return err
		}
	}
	if r.claim, err = j.claimFor(ctx, subject); err != nil {
		return err
	}
	if err := r.finishEarlier(ctx, j, subject); err != nil {
		r.broken = true
		return err
	}
	if err := r.choose(ctx, j.VM); err != nil {
		return err
	}
	// An attempt before this one may have died on this very host.
	if _, err := r.a.discard(ctx, j.Nonce, r.exchanged()); err != nil {
		return err
	}
	if r.view, err = readPoolView(ctx, r.a.xapi); err != nil {
		return err
	}
	plan, err := r.draw()
	if err != nil {
		return err
	}
	docs, err := r.documents(j, plan)
	if err != nil {
		return err
	}
	if err := r.claim.note(ctx, stepRestore, restoreNote{Goal: r.goal}); err != nil {
		return err
	}
	r.mu.Lock()
	r.plan, r.docs = plan, docs
	r.mu.Unlock()
	close(r.planned)
	return nil
}

// finishEarlier finishes or undoes what the journal says of an attempt before this one, whose agent died: the controller
// has come back with the same nonce before a sweep did. Everything is begun anew after it.
func (r *restore) finishEarlier(ctx context.Context, j *job, subject string) error {
	l, err := r.claim.check(ctx)
	if err != nil {
		return err
	}
	earlier := l.steps(subject, j.Nonce)
	if len(earlier) == 0 {
		return nil
	}
	now, err := r.a.journal.now(ctx)
	if err != nil {
		return err
	}
	// Once begun it is not left half way because a controller goes away.
	ctx, cancel := r.a.cleanupContext(ctx)
	defer cancel()
	s := &sweeping{a: r.a, claim: r.claim, now: now,
		work: work{vm: subject, nonce: j.Nonce, session: j.Session, agent: r.a.cfg.Name, steps: earlier}}
	if err := s.readVM(ctx); err != nil {
		return fmt.Errorf("look for the VM: %w", err)
	}
	s.steps(ctx)
	var errs []error
	for _, action := range s.actions {
		j.log.Info("earlier attempt", "action", action.Action, "object", action.Object, "why", action.Waiting, "err", action.Err)
		if action.Err != nil && !action.Lost {
			errs = append(errs, action.Err)
		}
	}
	if s.failed {
		return rpc.Errorf(rpc.VMBusy, "an earlier attempt could not be cleaned up yet: %w", errors.Join(errs...))
	}
	r.watched = !s.watch.IsZero()
	keep := func(string) bool { return false }
	if r.watched { // the guest may still power off because of us: the note stays
		r.vm = s.vm // to be watched on, whatever comes of the restore
		// What shut it down may not have reached XAPI when its agent died, and may yet.
		r.unanswered = r.claim.inherited() || s.work.has(stepAgain)
		keep, r.stopped = aboutPower, true
	}
	return r.dropSteps(ctx, earlier, keep)
}

// dropSteps removes steps from the journal but for those to keep: the plan of an exchange first, since without it the others
// mean nothing.
func (r *restore) dropSteps(ctx context.Context, steps []entry, keep func(step string) bool) error {
	names := []string{stepSwap}
	for _, e := range steps {
		if !keep(e.Step) {
			names = append(names, e.Step)
		}
	}
	for _, name := range names {
		if err := r.a.retry().do(ctx, passing, func(ctx context.Context) error { return r.claim.drop(ctx, name) }); err != nil {
			return err
		}
	}
	return nil
}

// choose finds out what the restore is about, and refuses what the VM's state forbids.
func (r *restore) choose(ctx context.Context, uuid string) error {
	if r.spec.AsNew {
		r.goal = goalAsNew
		return nil
	}
	vm, err := r.a.xapi.VMByUUID(ctx, uuid)
	switch {
	case gone(err):
		if r.spec.Online && !r.spec.Recreate {
			return rpc.Errorf(rpc.VMAbsent,
				"the VM does not exist, and an online backup holds its disks: make it anew with --recreate, or use --as-new")
		}
		r.goal = goalAbsent
		return nil
	case err != nil:
		return fmt.Errorf("look for the VM: %w", err)
	case vm.IsTemplate || vm.IsSnapshot || vm.IsControlDomain:
		return rpc.Errorf(rpc.Conflict, "%s is a template, a snapshot or a control domain, and not a VM to restore", vm.Name)
	}
	r.goal, r.vm, r.before = goalInPlace, vm, vm.PowerState
	if r.watched {
		r.before = running
	}
	if text, ok := vm.BlockedOperations["start"]; ok && !isOurBlock(text) && r.spec.Start {
		return rpc.Errorf(rpc.Conflict, "the VM could not be started: its start is blocked (%s)", text)
	}
	if vm.PowerState == running { // looked at again before it is stopped: the disks may take hours to arrive
		if err := r.a.startable(ctx, vm, r.spec.ForceOff); err != nil {
			return err
		}
	}
	switch {
	case vm.PowerState == halted || vm.PowerState == running:
	case vm.PowerState == suspended && r.spec.DiscardMemory:
	case vm.PowerState == suspended:
		return rpc.Errorf(rpc.PowerState, "the VM is suspended: resume it, or give its memory up with --discard-memory")
	default:
		return rpc.Errorf(rpc.PowerState, "the VM is %s: an in-place restore needs it running or halted", vm.PowerState)
	}
	return nil
}

// draw makes the plan over what was read.
func (r *restore) draw() (*restorePlan, error) {
	o := restoreOptions{Goal: r.goal, SRUUID: r.spec.SRUUID, SRs: r.spec.SRs, HostUUID: r.spec.HostUUID, Networks: r.spec.Networks,
		DeleteFirst: r.spec.DeleteFirst, Lower: r.spec.LowerVersion}
	if r.goal == goalInPlace {
		return planInPlace(r.view, r.vm, r.spec.OVA, o)
	}
	return planAnew(r.view, r.spec.OVA, o)
}

// documents writes the ova.xml of every part: what is sent to a host is never the file's own.
func (r *restore) documents(j *job, plan *restorePlan) ([][]byte, error) {
	var docs [][]byte
	for _, part := range plan.Parts {
		dirs := make([]string, 0, len(part.Disks))
		for _, d := range part.Disks {
			dirs = append(dirs, d.Dir)
		}
		doc, err := r.document(j, plan, part, dirs)
		if err != nil {
			return nil, rpc.Errorf(rpc.Archive, "write ova.xml for SR %q: %w", part.SR.Name, err)
		}
		docs = append(docs, doc)
	}
	return docs, nil
}

func (r *restore) document(j *job, plan *restorePlan, part restorePart, dirs []string) ([]byte, error) {
	if !part.Whole {
		return r.spec.OVA.Carrier(xva.CarrierSpec{Nonce: j.Nonce, Disks: dirs, SRUUID: part.SR.UUID})
	}
	s := xva.WholeSpec{UUID: j.VM, Name: r.spec.Name, Disks: dirs, ImportNonce: j.Nonce,
		NetworkMap: r.view.networkNames(inFile(r.spec.OVA, r.spec.Networks)), Version: plan.Lowered}
	if r.goal == goalAsNew {
		s.DropMACs = true
		if r.spec.NewName != "" {
			s.Name = r.spec.NewName
		}
	}
	return r.spec.OVA.Whole(s)
}

// await waits for a channel to be closed.
func (r *restore) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// complete puts the disks in their place once all of them have arrived.
func (r *restore) complete(ctx context.Context, j *job) (*restoreResult, error) {
	if r.goal == goalInPlace {
		return r.completeInPlace(ctx, j)
	}
	return r.completeAnew(ctx, j)
}
