package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

// historiesACore is how many histories run beside each other for each core: processes mostly wait for leases.
const historiesACore = 3

// campaign is a run of many histories, some at the same time.
type campaign struct {
	cfg    *settings
	total  *tally
	end    time.Time
	mu     sync.Mutex // of what follows, and of what is printed
	next   uint64     // how many were begun
	failed int
	err    error // of the harness; nothing more is begun then
}

// runHistories lives history after history until the time is up.
func runHistories(cfg *settings, total *tally) error {
	if cfg.parallel == 0 {
		cfg.parallel = historiesACore * runtime.NumCPU()
	}
	c := &campaign{cfg: cfg, total: total, end: time.Now().Add(cfg.duration)}
	var all sync.WaitGroup
	for range cfg.parallel {
		all.Go(func() {
			for seed, ok := c.begin(); ok; seed, ok = c.begin() {
				c.live(seed)
			}
		})
	}
	all.Wait()
	if c.err == nil && c.failed > 0 {
		return fmt.Errorf("%d histories failed: %w", c.failed, errViolations)
	}
	return c.err
}

// begin gives the seed of the next history, if there is to be one.
func (c *campaign) begin() (seed uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || stopped() || c.cfg.histories > 0 && c.next >= uint64(c.cfg.histories) || c.cfg.histories == 0 && !time.Now().Before(c.end) {
		return 0, false
	}
	seed = c.cfg.seed + c.next
	c.next++
	return seed, true
}

// live lives one history and tells what came of it.
func (c *campaign) live(seed uint64) {
	h, err := newHistory(c.cfg, seed)
	if err != nil {
		c.fail(err)
		return
	}
	began := time.Now()
	err = h.run()
	c.total.merge(h.counts)
	_ = h.out.Close() // it is read by people
	if err != nil {
		h.problems = append(h.problems, "the harness could not go on: "+err.Error())
	}
	took := time.Since(began).Round(time.Second)
	if len(h.problems) == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		fmt.Printf("history %d: good, %s, %d kills\n", seed, took, h.counts.kills())
		if err := os.RemoveAll(h.dir); err != nil && c.err == nil {
			c.err = err
		}
		return
	}
	c.total.add("violations", int64(len(h.problems)))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed++
	fmt.Printf("history %d: FAILED, %s\n", seed, took)
	for _, p := range h.problems {
		fmt.Println("    " + p)
	}
	fmt.Printf("  its folder is %s\n  to repeat: make reliability RELIABILITYFLAGS='--seed %d --histories 1 --rounds %d --storms %d --rollback=%t'\n",
		h.dir, seed, c.cfg.rounds, c.cfg.storms, c.cfg.rollback)
}

func (c *campaign) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}
