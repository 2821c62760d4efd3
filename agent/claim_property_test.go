package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dpxen/dpxen/internal/xapi"
)

// schedule lets several parties use one pool, one call at a time, in an order that the test draws.
type schedule struct {
	pool  *fakePool
	want  chan int // a party wants to make a call, or has ended (its number, negative)
	grant []chan bool
}

// party is one party's way to the pool.
type party struct {
	*schedule
	n int
}

// turn waits for the party's turn; true says that the answer of this call gets lost.
func (p party) turn() bool {
	p.want <- p.n + 1
	return <-p.grant[p.n]
}

func (p party) PoolOtherConfig(ctx context.Context) (map[string]string, error) {
	p.turn()
	return p.pool.PoolOtherConfig(ctx)
}

func (p party) ServerTime(ctx context.Context) (time.Time, error) { return p.pool.ServerTime(ctx) }

func (p party) AddToPoolOtherConfig(ctx context.Context, key, value string) error {
	lost := p.turn()
	err := p.pool.AddToPoolOtherConfig(ctx, key, value)
	if lost && err == nil {
		return xapi.ErrUnreachable
	}
	return err
}

func (p party) RemoveFromPoolOtherConfig(ctx context.Context, key string) error {
	lost := p.turn()
	err := p.pool.RemoveFromPoolOtherConfig(ctx, key)
	if lost && err == nil {
		return xapi.ErrUnreachable
	}
	return err
}

// run runs the parties to their ends. Each gets turns as t draws.
func (s *schedule) run(t *rapid.T, parties []func(store)) {
	s.want = make(chan int)
	for range parties {
		s.grant = append(s.grant, make(chan bool))
	}
	for i, f := range parties {
		go func() {
			f(party{s, i})
			s.want <- -i - 1
		}()
	}
	waiting, running := map[int]bool{}, len(parties)
	for running > 0 {
		for len(waiting) < running {
			if n := <-s.want; n < 0 {
				running--
			} else {
				waiting[n-1] = true
			}
		}
		if running == 0 {
			return
		}
		var ready []int
		for i := range parties {
			if waiting[i] {
				ready = append(ready, i)
			}
		}
		i := rapid.SampledFrom(ready).Draw(t, "next")
		delete(waiting, i)
		s.grant[i] <- rapid.IntRange(0, 19).Draw(t, "lost") == 0
	}
}

// Whoever claims, renews and takes over at the same time, whatever answers get lost, and whatever somebody else has written
// under our prefix: one at most goes on, and when it is done nothing is left of it.
func TestOneWinner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := newFakePool()
		pool.idempotent = rapid.Bool().Draw(t, "idempotent")
		if rapid.Bool().Draw(t, "strange key") {
			pool.config["dpxen:"+testVM+":claim"] = "somebody's"
		}
		ctx := context.Background()
		var held []*claim // by number of party; nil where it lost
		var parties []func(store)
		add := func(f func(s store) (*claim, error)) {
			i := len(parties)
			held = append(held, nil)
			parties = append(parties, func(s store) {
				c, err := f(s)
				var claimed *errClaimed
				var stale *errStale
				if err == nil {
					held[i] = c
				} else if !errors.As(err, &claimed) && !errors.As(err, &stale) && !errors.Is(err, errClaimLost) &&
					!errors.Is(err, xapi.ErrDuplicateKey) && !errors.Is(err, xapi.ErrUnreachable) {
					t.Errorf("party %d: %v", i, err)
				}
			})
		}
		owner := rapid.Bool().Draw(t, "owner")
		if owner {
			c, err := newJournal(pool, "owner", journalTiming()).claim(ctx, testVM, someWork("old"))
			if err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "expired") {
				pool.pass(testTTL + time.Second)
			}
			if rapid.Bool().Draw(t, "owner lives") {
				add(func(s store) (*claim, error) { c.j.store = s; return c, c.renew(ctx) })
			}
		}
		for i := range rapid.IntRange(2, 5).Draw(t, "others") {
			name := fmt.Sprintf("xs%d", i)
			renewals := rapid.IntRange(0, 2).Draw(t, "renewals")
			take := owner && rapid.IntRange(0, 3).Draw(t, "takes") > 0
			add(func(s store) (*claim, error) {
				j := newJournal(s, name, journalTiming())
				var won *claim
				var err error
				if take {
					won, err = j.takeOver(ctx, testVM, someWork("old").Nonce, false)
				} else {
					won, err = j.claim(ctx, testVM, someWork(name))
				}
				for range renewals {
					if err == nil {
						err = won.renew(ctx)
					}
				}
				return won, err
			})
		}
		s := &schedule{pool: pool}
		s.run(t, parties)
		var winners []*claim
		for _, c := range held {
			if c == nil {
				continue
			}
			c.j.store = pool
			if _, err := c.check(ctx); err == nil {
				winners = append(winners, c)
			}
		}
		if len(winners) > 1 {
			t.Fatalf("%d go on: %v", len(winners), pool.config)
		}
		for _, c := range winners {
			if err := c.release(ctx); err != nil {
				t.Fatalf("release: %v", err)
			}
		}
	})
}
