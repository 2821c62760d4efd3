package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
)

// backoff spaces repeated calls: Min at first, doubling up to Max.
type backoff struct {
	Min, Max time.Duration
}

// do calls f until it succeeds, fails with an error that again refuses, or ctx
// ends; then it returns f's last error, with the context's cause where that
// ended it.
func (b backoff) do(ctx context.Context, again func(error) bool, f func(context.Context) error) error {
	for wait := b.Min; ; wait = min(2*wait, b.Max) {
		err := f(ctx)
		if err == nil || !again(err) {
			return err
		}
		if sleepErr := sleep(ctx, wait); sleepErr != nil {
			return fmt.Errorf("%w (%w)", err, sleepErr)
		}
	}
}

// sleep waits for d, or returns the cause of the context's end.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// passing tells whether XAPI's failure is of the kind that goes away, for calls
// that can be repeated: XAPI is unreachable or forgets its sessions, a host
// boots, the object is busy, its disk still plugged into the control domain, or
// the call's task lost in a restart.
func passing(err error) bool {
	for _, e := range []error{xapi.ErrUnreachable, xapi.ErrSession, xapi.ErrHostDown, xapi.ErrBusy, xapi.ErrInUse, xapi.ErrTaskGone, xapi.ErrTaskPending} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// gone tells whether the object does not exist.
func gone(err error) bool { return errors.Is(err, xapi.ErrNotFound) }

// noVerdict tells whether a call failed without XAPI having said what became of
// it: it may have been done all the same.
func noVerdict(err error) bool {
	for _, e := range []error{xapi.ErrUnreachable, xapi.ErrProtocol, xapi.ErrTaskGone, xapi.ErrTaskPending, xapi.ErrNotFound} {
		if errors.Is(err, e) {
			return true
		}
	}
	return xapi.Unanswered(err)
}
