package controller

import (
	"context"
	"sync"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
)

// runStream is transfer.Run for this side's end of a stream: it returns when all of them have returned, so that nothing of a
// stream that is over touches what the next one, or the cleanup, works with. end must end the stream.
func runStream(ctx context.Context, end func(), evicted <-chan struct{}, lead func(context.Context) error,
	others ...func(context.Context) error) error {
	var running sync.WaitGroup
	counted := func(f func(context.Context) error) func(context.Context) error {
		running.Add(1)
		return func(ctx context.Context) error {
			defer running.Done()
			return f(ctx)
		}
	}
	beside := make([]func(context.Context) error, 0, len(others))
	for _, f := range others {
		beside = append(beside, counted(f))
	}
	err := transfer.Run(ctx, evicted, counted(lead), beside...)
	end()
	running.Wait()
	return err
}

// openWithin opens a stream, which nothing watches before: one that the agent does not take within limit is ended.
func openWithin(end func(), limit time.Duration, open func() error) error {
	timer := time.AfterFunc(limit, end)
	err := open()
	if !timer.Stop() {
		return rpc.Errorf(rpc.Deadline, "stalled: the agent has not taken the stream's opening for %s", limit)
	}
	return err
}

// pulse tells whether a transfer moves, over all its streams: bytes arrive, or what the agent says of its work changes.
// The zero value is ready.
type pulse struct {
	mu    sync.Mutex
	beats uint64
	at    time.Time // of the last one, or of the beginning of the stream
	last  step
}

// beat says that bytes have moved.
func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats++
	p.at = time.Now()
}

// step takes in what the agent says; only a change is a move.
func (p *pulse) step(s step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s != p.last {
		p.last = s
		p.beats++
		p.at = time.Now()
	}
}

// begin begins a stream. The function that it returns says whether the stream has brought the transfer on: something moved,
// or it stood for as long as steady. A path that always breaks right after the opening does not.
func (p *pulse) begin() func(steady time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	began, beats := time.Now(), p.beats
	p.at = began
	return func(steady time.Duration) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.beats > beats || time.Since(began) >= steady
	}
}

// reached tells whether the agent has ever answered.
func (p *pulse) reached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beats > 0
}

// watch returns what runs beside a stream and fails when nothing has moved for limit.
func (p *pulse) watch(limit time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			p.mu.Lock()
			left := time.Until(p.at.Add(limit))
			p.mu.Unlock()
			if left <= 0 {
				return rpc.Errorf(rpc.Deadline, "stalled: no bytes and no progress for %s", limit)
			}
			t := time.NewTimer(left)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return nil
			}
		}
	}
}
