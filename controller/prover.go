package controller

import (
	"context"
	"slices"
	"sync"

	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// prover verifies the files of a restore session before anything of them is sent: each when its VM's turn comes, or before that,
// beside the sending of another one's. One file at most is verified ahead of its turn.
type prover struct {
	verify func(context.Context, staging.Entry) (VerifyResult, *xva.Report)

	mu    sync.Mutex
	queue []*target // not begun, in the order in which they are likely to be wanted
	made  map[*target]*proof
	ahead *target // its file was begun ahead of its turn, which has not come yet
	work  sync.WaitGroup
}

// proof is what verifying a file has come to.
type proof struct {
	done    chan struct{}
	arrival string // of the file that was verified; see staging.Arrival
	result  VerifyResult
	report  *xva.Report // nil unless it is good
}

func newProver(likely []*target) *prover {
	return &prover{verify: verifyEntry, queue: likely, made: map[*target]*proof{}}
}

// of returns the proof of the target's file, which has that arrival now: one that was made ahead only if the file is still
// the same. From here on the next file may be verified.
func (p *prover) of(ctx context.Context, t *target, arrival string) *proof {
	p.mu.Lock()
	made := p.made[t]
	p.queue = slices.DeleteFunc(p.queue, func(o *target) bool { return o == t })
	if p.ahead == t {
		p.ahead = nil
	}
	p.mu.Unlock()
	if made != nil {
		<-made.done // its maker ends with ctx too
	}
	if made == nil || arrival == "" || made.arrival != arrival {
		made = &proof{done: make(chan struct{}), arrival: arrival}
		made.result, made.report = p.verify(ctx, t.entry)
		close(made.done)
	}
	p.next(ctx)
	return made
}

// next begins with the next file, unless one is ahead already.
func (p *prover) next(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ahead != nil || len(p.queue) == 0 || ctx.Err() != nil {
		return
	}
	t := p.queue[0]
	made := &proof{done: make(chan struct{})}
	p.queue, p.ahead, p.made[t] = p.queue[1:], t, made
	p.work.Go(func() {
		defer close(made.done)
		arrival, err := t.entry.Arrival()
		if err != nil {
			return // its turn will tell
		}
		made.arrival = arrival.ID
		made.result, made.report = p.verify(ctx, t.entry)
	})
}

// end waits for what was begun; ctx is to have ended, or all turns to have come.
func (p *prover) end() { p.work.Wait() }
