package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
)

// opening is a validated Opening.
type opening struct {
	Key, Session, Nonce, VM string
	Peer                    string // the controller's name, from its certificate
	Attempt                 uint32
	Offset                  int64         // bytes of the logical stream that the receiver has
	Lease                   time.Duration // 0: the default
	Window                  int64         // bytes; 0: the default
}

// phase is what a job is doing.
type phase int

// The phases, in the order in which they come.
const (
	phasePreparing phase = iota + 1
	phaseStopping
	phaseSnapshot
	phaseTransfer
	phaseFinishing
	phaseSwapping
	phaseStarting
	phaseCleaning
	phaseDone
)

// progress is what is known of a job at one moment.
type progress struct {
	Phase   phase
	Message string
	Bytes   int64   // of the logical stream that passed
	Task    float64 // XAPI's task progress, 0 to 1
}

// outcome is what a job came to, after its cleanup.
type outcome struct {
	Succeeded     bool
	Before, After string // VM.power_state; empty where it is not known
	PowerRestored bool
	Leftovers     []string // what could not be removed, by what and UUID
	Warnings      []string
	Downtime      time.Duration // of the VM for this work; 0: none, or not known
	Err           error         // why it did not succeed
}

// procedure is what a job does: a backup or a restore. Its methods are called
// once each, one after the other, by the job's own goroutine.
type procedure interface {
	// run does the work. It returns once nothing is left but to clean up; ctx ends with the cause when the lease runs
	// out, the transfer is released early, the claim is lost or the agent stops. A procedure whose last word to the
	// controller has to be heard before it cleans up calls complete and then awaitRelease.
	run(ctx context.Context, j *job) error
	// cleanup brings the VM back to its former power state, removes what is ours and gives the claim back, whatever
	// run came to: cause is its error or nil. ctx is not cancelled with the job's but has a bound of its own. What
	// cannot be done stays in the journal for the sweep and is in the outcome.
	cleanup(ctx context.Context, j *job, cause error) outcome
	// bytes tells how much of the logical stream has passed. It may be called at any time.
	bytes() int64
	// fail ends the flow of bytes with err, for the streams that are attached and for those to come. It is called
	// once, after run when that failed, and again at the end of the job with transfer.ErrGone to free buffers.
	fail(err error)
}

// job is one transfer's work. It lives on the agent's context, not on that of
// a stream, and ends by itself when its lease does.
type job struct {
	opening
	agent *Agent
	kind  string // "backup" or "restore"
	proc  procedure
	log   hclog.Logger
	lease *transfer.Lease
	claim claimSlot // once claimFor has succeeded

	ctx    context.Context
	cancel context.CancelCauseFunc
	// released is closed by the first release, ended when run is over, done when the outcome stands.
	released, ended, done chan struct{}

	mu        sync.Mutex
	state     progress
	changed   chan struct{} // closed and replaced when state, failure or outcome change
	completed bool          // run has nothing more to do than to wait for the release
	failure   error         // run's error
	outcome   outcome
	attempt   uint32
	evict     chan struct{} // closed when a newer stream attaches
	deaf      bool          // whoever asked last for the release went before there was an outcome to be told
}

// newJob returns a job that start sets going.
func newJob(a *Agent, o opening, kind string, p procedure) *job {
	j := &job{opening: o, agent: a, kind: kind, proc: p,
		log:      a.log.Named(kind).With("vm", o.VM, "session", o.Session, "key", o.Key),
		lease:    transfer.NewLease(leaseOf(o.Lease, a.cfg.Timing.Lease)),
		released: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{}),
		state: progress{Phase: phasePreparing}, changed: make(chan struct{})}
	by := actor{Controller: o.Peer, Session: o.Session, VM: o.VM}
	j.ctx, j.cancel = context.WithCancelCause(j.claim.on(by.on(a.ctx)))
	return j
}

func leaseOf(asked, usual time.Duration) time.Duration {
	if asked <= 0 {
		return usual
	}
	return asked
}

// start sets the job going, once.
func (j *job) start() {
	j.agent.work.Go(func() {
		select {
		case <-j.lease.Expired():
			j.cancel(errLeaseOver)
		case <-j.ended:
		}
	})
	j.agent.work.Go(j.main)
}

// main runs the procedure and its cleanup.
func (j *job) main() {
	began := time.Now()
	j.log.Info("transfer started", "peer", j.Peer, "attempt", j.Attempt)
	err := j.guard(func() error { return j.proc.run(j.ctx, j) })
	if err != nil {
		err = wireError(j.orLost(err), j.otherwise(), j.VM)
		j.update(func() { j.failure = err })
		j.proc.fail(err)
	}
	close(j.ended)
	passed := j.proc.bytes()
	j.setPhase(phaseCleaning, "")

	ctx, cancel := j.agent.cleanupContext(j.ctx)
	defer cancel()
	out := outcome{Err: err}
	if panicked := j.guard(func() error { out = j.proc.cleanup(ctx, j, err); return nil }); panicked != nil {
		out = outcome{Err: panicked, Leftovers: []string{"whatever the journal says of VM " + j.VM}}
	}
	j.lease.Stop()
	j.cancel(transfer.ErrGone)
	j.proc.fail(transfer.ErrGone)
	j.agent.jobEnded(j)
	j.agent.metrics.finished(j.kind, out, time.Since(began))
	j.log.Info("transfer finished", "succeeded", out.Succeeded, "bytes", passed, "dur", time.Since(began).Round(time.Millisecond).String(),
		"power_before", out.Before, "power_after", out.After, "leftovers", len(out.Leftovers), "err", out.Err)
	j.update(func() { j.outcome, j.state.Phase, j.state.Message = out, phaseDone, "" })
	close(j.done)
}

func (j *job) otherwise() rpc.Reason {
	if j.kind == "restore" {
		return rpc.ImportFailed
	}
	return rpc.ExportFailed
}

// guard turns a panic into an error, so that one VM's trouble takes neither its
// own cleanup nor the other transfers along.
func (j *job) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			j.log.Error("panic in a transfer", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = rpc.Errorf(rpc.Internal, "the agent failed inside; its log has more: %v", p)
		}
	}()
	return f()
}

// update changes the job's state under its lock and tells those who watch.
func (j *job) update(f func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f()
	close(j.changed)
	j.changed = make(chan struct{})
}

// setPhase says what the job is doing; message is a sentence for the operator or empty.
func (j *job) setPhase(p phase, message string) {
	j.log.Debug("phase", "phase", int(p), "message", message)
	j.update(func() { j.state.Phase, j.state.Message = p, message })
}

// setTask stores the progress of XAPI's task, 0 to 1.
func (j *job) setTask(f float64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state.Task = f
}

// progress returns what the job is doing, and a channel that is closed at the next change of phase.
func (j *job) progress() (progress, <-chan struct{}) {
	bytes := j.proc.bytes()
	j.mu.Lock()
	defer j.mu.Unlock()
	p := j.state
	p.Bytes = bytes
	return p, j.changed
}

// failed returns run's error; nil while it runs or when it did not fail.
func (j *job) failed() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure
}

// complete says that the work is done but for its cleanup: a release from now
// on is no cancellation.
func (j *job) complete() { j.update(func() { j.completed = true }) }

// awaitRelease waits until the transfer is released; an end of ctx is the error.
func (j *job) awaitRelease(ctx context.Context) error {
	select {
	case <-j.released:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// release ends the transfer: one that is complete cleans up, one that is not is
// cancelled. It does not wait; done is closed at the end. It may be repeated.
func (j *job) release() {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case <-j.released:
		return
	default:
		close(j.released)
	}
	if !j.completed {
		j.cancel(errReleased)
	}
}

// heard tells whether the controller has asked for the end and is there to hear of it.
func (j *job) heard() bool {
	select {
	case <-j.released:
	default:
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.deaf
}

// hearing notes whether somebody waits for what the transfer comes to.
func (j *job) hearing(waits bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.deaf = !waits
}

// stream is one attached gRPC stream's hold on the job.
type stream struct {
	j       *job
	once    sync.Once
	evicted <-chan struct{} // closed when a newer stream attached
}

// attach holds the lease for a stream and evicts the stream before. attempt
// must be higher than all before, otherwise the error is ErrSuperseded; ErrGone
// says that the job is over.
func (j *job) attach(attempt uint32) (*stream, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if attempt <= j.attempt {
		return nil, fmt.Errorf("attach attempt %d after %d: %w", attempt, j.attempt, transfer.ErrSuperseded)
	}
	if !j.lease.Attach() {
		if j.failure != nil {
			return nil, j.failure
		}
		return nil, fmt.Errorf("attach attempt %d: %w", attempt, transfer.ErrGone)
	}
	if j.evict != nil {
		close(j.evict)
		j.agent.metrics.reattached("evicted")
	} else if j.attempt > 0 {
		j.agent.metrics.reattached("detached")
	}
	j.attempt, j.evict = attempt, make(chan struct{})
	return &stream{j: j, evicted: j.evict}, nil
}

// detach lets the lease run unless another stream is attached. It may be repeated.
func (s *stream) detach() {
	s.once.Do(func() {
		s.j.mu.Lock()
		if s.j.evict == s.evicted {
			s.j.evict = nil
		}
		s.j.mu.Unlock()
		s.j.lease.Detach()
	})
}

// claimVM claims the job's VM, see claimFor.
func (j *job) claimVM(ctx context.Context) (*claim, error) { return j.claimFor(ctx, j.VM) }

// claimFor claims a VM, by UUID or by the nonce of one that does not exist yet,
// and renews the claim until the job is done; when it is lost the job is
// cancelled. Work of others on the VM that died is swept first. The caller
// releases or abandons the claim in its cleanup.
func (j *job) claimFor(ctx context.Context, subject string) (*claim, error) {
	who := owner{Session: j.Session, Key: j.Key, Nonce: j.Nonce, Controller: j.Peer}
	takes := subject == j.VM // whatever is done with it brings the VM back, as the watch would have
	if takes {
		c, err := j.agent.preemptWatch(ctx, subject, who)
		if err != nil {
			return nil, err
		}
		if c != nil {
			return j.under(c), nil
		}
	}
	for range 3 {
		c, err := j.agent.journal.claim(ctx, subject, who)
		var stale *errStale
		if errors.As(err, &stale) {
			j.log.Info("unfinished work found", "nonce", stale.Nonce)
			if sweepErr := j.agent.sweeper.sweepVM(ctx, stale.VM); sweepErr != nil {
				return nil, rpc.Errorf(rpc.Claimed, "%w", sweepErr)
			}
			continue
		}
		var claimed *errClaimed
		if errors.As(err, &claimed) && claimed.Watched != "" && takes {
			c, err = j.agent.takeWatch(ctx, subject, claimed.Watched, who)
		}
		if err != nil {
			return nil, j.agent.heldHere(j, subject, err)
		}
		return j.under(c), nil
	}
	return nil, &errStale{VM: subject, Nonce: j.Nonce}
}

// under makes c the claim of the job.
func (j *job) under(c *claim) *claim {
	j.claim.set(c)
	j.agent.work.Go(func() { j.keepClaim(c) })
	return c
}

// keepClaim renews c until the job is done.
func (j *job) keepClaim(c *claim) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(j.ctx))
	defer cancel()
	j.agent.work.Go(func() {
		select {
		case <-j.done:
			cancel()
		case <-ctx.Done():
		}
	})
	c.keep(ctx, j.cancel)
}
