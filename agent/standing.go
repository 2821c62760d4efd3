package agent

import (
	"context"
	"strings"
	"sync"
)

// The writer reads its nonce again before every change (DESIGN section 3). So that no change is forgotten it is not left to
// those who make them: the claim travels in the context, and the connection to XAPI asks here.

// claimSlot holds the claim that a context's changes are made under, once there is one.
type claimSlot struct {
	mu sync.Mutex
	c  *claim
}

func (s *claimSlot) set(c *claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c = c
}

func (s *claimSlot) get() *claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c
}

type slotKey struct{}

// on returns a context whose changes are made under the slot's claim.
func (s *claimSlot) on(ctx context.Context) context.Context {
	return context.WithValue(ctx, slotKey{}, s)
}

// on returns a context whose changes are made under the claim.
func (c *claim) on(ctx context.Context) context.Context { return (&claimSlot{c: c}).on(ctx) }

// standing returns an error unless the claim that ctx's changes are made under stands. Changes of the journal itself are the
// claim's own business.
func standing(ctx context.Context, method string) error {
	slot, ok := ctx.Value(slotKey{}).(*claimSlot)
	if !ok || strings.HasPrefix(method, "pool.") {
		return nil
	}
	c := slot.get()
	if c == nil || c.ended() {
		return nil
	}
	_, err := c.check(ctx)
	return err
}
