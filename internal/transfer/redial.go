package transfer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// The back-off between attempts, unless set.
const (
	DefaultMinBackoff = 200 * time.Millisecond
	DefaultMaxBackoff = 10 * time.Second
)

// maxAttempts bounds the streams of one transfer: a path that breaks so often, or a peer that does, is none.
const maxAttempts = 10_000

// Redial attaches a transfer's streams one after the other until one succeeds. The zero value has the defaults.
type Redial struct {
	// Lease is how long to go on without progress; DefaultLease when it is not positive.
	Lease time.Duration
	// MinBackoff is the first wait; it doubles with every attempt without progress up to MaxBackoff. Up to half of a
	// wait is left off at random.
	MinBackoff, MaxBackoff time.Duration
	// Notify, when set, is called before every wait with the attempt that failed, its error and the wait.
	Notify func(attempt uint32, err error, wait time.Duration)
}

// Run calls attach with attempt 1, 2, … until it returns no error. progressed says that the attempt moved the transfer
// on. Run returns attach's error when retryable says no, when the lease is over since the last progress, or when ctx
// ends (then ctx's error matches too). An error whose chain has a method RetryDelay sets the least wait.
func (d Redial) Run(ctx context.Context, attach func(ctx context.Context, attempt uint32) (progressed bool, err error),
	retryable func(error) bool) error {
	d = d.withDefaults()
	last, backoff := time.Now(), d.MinBackoff
	for attempt := uint32(1); ; attempt++ {
		progressed, err := attach(ctx, attempt)
		if err == nil {
			return nil
		}
		if ctxErr := ctx.Err(); ctxErr != nil {
			return joinContext(ctxErr, err)
		}
		if !retryable(err) {
			return err
		}
		if attempt >= maxAttempts {
			return fmt.Errorf("given up after %d attempts: %w", attempt, err)
		}
		if progressed {
			last, backoff = time.Now(), d.MinBackoff
		}
		wait := max(backoff-rand.N(backoff/2+1), retryDelay(err))
		if wait > d.Lease-time.Since(last) { // so written, the longest of waits does not overflow
			return fmt.Errorf("no progress for %s after %d attempts: %w", time.Since(last).Round(time.Millisecond), attempt, err)
		}
		if d.Notify != nil {
			d.Notify(attempt, err, wait)
		}
		if ctxErr := sleep(ctx, wait); ctxErr != nil {
			return joinContext(ctxErr, err)
		}
		backoff = min(2*backoff, d.MaxBackoff)
	}
}

func (d Redial) withDefaults() Redial {
	if d.Lease <= 0 {
		d.Lease = DefaultLease
	}
	if d.MinBackoff <= 0 {
		d.MinBackoff = DefaultMinBackoff
	}
	if d.MaxBackoff <= 0 {
		d.MaxBackoff = DefaultMaxBackoff
	}
	d.MaxBackoff = max(d.MaxBackoff, d.MinBackoff)
	return d
}

func joinContext(ctxErr, err error) error {
	if errors.Is(err, ctxErr) {
		return err
	}
	return fmt.Errorf("%w: %w", ctxErr, err)
}

func retryDelay(err error) time.Duration {
	var d interface{ RetryDelay() time.Duration }
	if errors.As(err, &d) {
		return d.RetryDelay()
	}
	return 0
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
