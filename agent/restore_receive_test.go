package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/mem"

	"github.com/dpxen/dpxen/internal/rpc"
)

// A restore whose claim is lost while a stream brings bytes: the stream is told so at once, before the job has failed, and so
// is the next one. What is said is fit for the wire, where an error without a reason is INTERNAL.
func TestRestoreTellsWhatEndedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for want, why := range map[rpc.Reason]error{
			rpc.Claimed:     fmt.Errorf("VM a: %w", errClaimLost),
			rpc.SessionGone: errStopping,
			rpc.Cancelled:   context.Canceled,
		} {
			r := newRestore(nil, restoreSpec{})
			ctx, end := context.WithCancelCause(t.Context())
			stop := r.endPipe(ctx, &job{opening: opening{VM: "a"}})
			intake, _, err := r.recv.Attach(1)
			if err != nil {
				t.Fatal(err)
			}
			written := make(chan error)
			go func() {
				_, err := intake.Write(mem.BufferSlice{mem.SliceBuffer("bytes that nobody reads")})
				written <- err
			}()
			synctest.Wait()
			end(why)
			if err := <-written; rpc.ReasonOf(err) != want || !errors.Is(err, why) {
				t.Errorf("the stream: got %v (%s), want %s", err, rpc.ReasonOf(err), want)
			}
			if _, _, err := r.recv.Attach(2); rpc.ReasonOf(err) != want {
				t.Errorf("the next stream: got %v (%s), want %s", err, rpc.ReasonOf(err), want)
			}
			stop()
		}
	})
}
