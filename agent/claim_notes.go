package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// The notes of a claim's work: what it intends, in the journal before it is done.

// note writes an intent to the journal before it is acted on; data is
// marshalled to JSON and may be longer than one value. Noting a step again
// replaces nothing but adds a second entry, so after a restart look with noted.
func (c *claim) note(ctx context.Context, step string, data any) error {
	l, err := c.check(ctx)
	if err != nil {
		return err
	}
	text, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode journal entry %s: %w", step, err)
	}
	if err := failpoint.Hit("agent/journal/before-" + strings.TrimRight(step, "0123456789")); err != nil {
		return err
	}
	c.mu.Lock()
	expires := c.expires
	c.mu.Unlock()
	vs, err := values(c.record(expires), string(text))
	if err != nil {
		return fmt.Errorf("journal entry %s: %w", step, err)
	}
	for _, v := range vs {
		key := l.free(keyPrefix + c.vm + ":" + step)
		if err := c.add(ctx, key, v); err != nil {
			return err
		}
		l.raw[key] = v
	}
	if err := failpoint.Hit("agent/journal/after-" + strings.TrimRight(step, "0123456789")); err != nil {
		return err
	}
	return nil
}

// noted reads a step's data back into v (a pointer, or nil); false when it is
// not noted, or not completely, for this work.
func (c *claim) noted(ctx context.Context, step string, v any) (bool, error) {
	l, err := c.check(ctx)
	if err != nil {
		return false, err
	}
	for _, e := range l.steps(c.vm, c.work.Nonce) {
		if e.Step == step && e.Complete {
			if v == nil {
				return true, nil
			}
			return true, e.decode(v)
		}
	}
	return false, nil
}

// noteAgain notes that a shutdown is asked for while an earlier call for one may be on its way. The last entry alone stays: from
// its term on nobody asks.
func (c *claim) noteAgain(ctx context.Context) error {
	l, err := c.check(ctx)
	if err != nil {
		return err
	}
	if err := c.note(ctx, stepAgain, struct{}{}); err != nil {
		return err
	}
	for _, e := range l.steps(c.vm, c.work.Nonce) {
		if e.Step == stepAgain {
			if err := c.j.remove(ctx, e.Keys...); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop removes a step's entry: what it intended is done with.
func (c *claim) drop(ctx context.Context, step string) error {
	l, err := c.check(ctx)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("agent/journal/before-drop"); err != nil {
		return err
	}
	for _, e := range l.steps(c.vm, c.work.Nonce) {
		if e.Step == step {
			if err := c.j.remove(ctx, e.Keys...); err != nil {
				return err
			}
		}
	}
	return nil
}
