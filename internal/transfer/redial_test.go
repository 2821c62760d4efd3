package transfer

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

var errCut = errors.New("cut")

func always(error) bool { return true }

func TestRedialCountsAttemptsAndBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits []time.Duration
		d := Redial{Lease: time.Hour, MinBackoff: time.Second, MaxBackoff: 4 * time.Second,
			Notify: func(_ uint32, err error, wait time.Duration) {
				if !errors.Is(err, errCut) {
					t.Errorf("notified of %v", err)
				}
				waits = append(waits, wait)
			}}
		var attempts []uint32
		err := d.Run(t.Context(), func(_ context.Context, attempt uint32) (bool, error) {
			attempts = append(attempts, attempt)
			if attempt == 7 {
				return true, nil
			}
			return attempt == 5, errCut
		}, always)
		if err != nil || len(attempts) != 7 {
			t.Fatalf("attempts %v: %v", attempts, err)
		}
		// Attempt 5 made progress: the back-off begins anew.
		for i, full := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 4 * time.Second, time.Second, 2 * time.Second} {
			if attempts[i] != uint32(i+1) || waits[i] > full || waits[i] < full/2-1 {
				t.Errorf("attempt %d waited %s, want up to %s", attempts[i], waits[i], full)
			}
		}
	})
}

func TestRedialIsBoundedByTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := Redial{Lease: time.Minute}
		start := time.Now()
		var progress time.Time
		err := d.Run(t.Context(), func(_ context.Context, attempt uint32) (bool, error) {
			time.Sleep(10 * time.Second)
			if attempt == 3 {
				progress = time.Now()
			}
			return attempt == 3, errCut
		}, always)
		if !errors.Is(err, errCut) {
			t.Errorf("got %v", err)
		}
		if since := time.Since(progress); since > time.Minute+10*time.Second || since < 40*time.Second || time.Since(start) < 70*time.Second {
			t.Errorf("gave up %s after the last progress", since)
		}
	})
}

func TestRedialStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fatal := errors.New("fatal")
		n := 0
		err := Redial{}.Run(t.Context(), func(context.Context, uint32) (bool, error) {
			n++
			return true, fatal
		}, func(err error) bool { return !errors.Is(err, fatal) })
		if !errors.Is(err, fatal) || n != 1 {
			t.Errorf("not retryable: %d attempts, %v", n, err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		err = Redial{MinBackoff: time.Minute}.Run(ctx, func(context.Context, uint32) (bool, error) { return false, errCut }, always)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errCut) || time.Since(start) != 3*time.Second {
			t.Errorf("context over while waiting: after %s %v", time.Since(start), err)
		}

		ctx, cancel = context.WithCancel(t.Context())
		err = Redial{}.Run(ctx, func(ctx context.Context, _ uint32) (bool, error) {
			cancel()
			return true, ctx.Err()
		}, always)
		if !errors.Is(err, context.Canceled) || err.Error() != context.Canceled.Error() {
			t.Errorf("context over in an attempt: %v", err)
		}
	})
}

type delayed struct{ error }

func (delayed) RetryDelay() time.Duration { return 30 * time.Second }

func TestRedialWaitsAsLongAsTheOtherSideAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := Redial{}.Run(t.Context(), func(_ context.Context, attempt uint32) (bool, error) {
			if attempt == 2 {
				return true, nil
			}
			return false, delayed{errCut}
		}, always)
		if err != nil || time.Since(start) != 30*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// TestRedialWaitsNoLongerThanTheLease: however long the other side asks to be left alone.
func TestRedialWaitsNoLongerThanTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := Redial{Lease: time.Minute}.Run(t.Context(), func(context.Context, uint32) (bool, error) {
			return true, centuries{errCut}
		}, always)
		if !errors.Is(err, errCut) || time.Since(start) > time.Minute {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

type centuries struct{ error }

func (centuries) RetryDelay() time.Duration { return math.MaxInt64 }

func (d centuries) Unwrap() error { return d.error }

func TestRedialGivesAPathUpThatAlwaysBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		err := Redial{MinBackoff: time.Millisecond}.Run(t.Context(), func(context.Context, uint32) (bool, error) {
			n++
			return true, errCut
		}, always)
		if !errors.Is(err, errCut) || n != maxAttempts {
			t.Errorf("%d attempts: %v", n, err)
		}
	})
}
