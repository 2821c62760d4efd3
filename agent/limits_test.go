package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimitsFromAFile(t *testing.T) {
	c, err := loadText(t, goodConfig+"limits: {memory: 256MiB, cpus: 2, nice: 10, bandwidth: 1048576}\n")
	if err != nil {
		t.Fatal(err)
	}
	want := LimitsConfig{Transfers: 16, Window: 64 << 20, Memory: 256 << 20, CPUs: 2, Nice: 10, Bandwidth: 1 << 20}
	if c.Limits != want {
		t.Errorf("got %+v, want %+v", c.Limits, want)
	}
	if got := c.Limits.String(); got != "16 transfers, 256 MiB of memory, 2 CPUs at a time, nice 10, 1.0 MiB a second" {
		t.Errorf("told as %q", got)
	}
	_, err = loadText(t, goodConfig+"limits:\n  memory: 1MiB\n  cpus: -1\n  nice: -5\n  bandwidth: 5 parsecs\n")
	for _, key := range []string{"limits.memory: must", "limits.cpus: must", "limits.nice: must", "limits.bandwidth: \"5 parsecs\" is no"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%q is missing in %v", key, err)
		}
	}
	if _, err := loadText(t, goodConfig+"limits: {bandwidth: 10, nice: 20}\n"); err == nil ||
		!strings.Contains(err.Error(), "64 KiB") || !strings.Contains(err.Error(), "limits.nice") {
		t.Errorf("got %v", err)
	}
}

// Two transfers together take as long as their bytes at the limit's rate, less what may pass at once.
func TestBandwidthIsOfAllTransfersTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := (&LimitsConfig{Bandwidth: 1 << 20}).limiter()
		began := time.Now()
		var work sync.WaitGroup
		for range 2 {
			work.Go(func() {
				n, err := io.Copy(io.Discard, pace(t.Context(), bytes.NewReader(make([]byte, 5<<20)), l))
				if n != 5<<20 || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		work.Wait()
		if took := time.Since(began); took < 9500*time.Millisecond || took > 10500*time.Millisecond {
			t.Errorf("10 MiB at 1 MiB/s took %s", took)
		}
	})
	if (&LimitsConfig{}).limiter() != nil {
		t.Error("a limit where none is set")
	}
}

func TestPacingEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("the transfer was cancelled")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		l := (&LimitsConfig{Bandwidth: minBandwidth}).limiter()
		if _, err := io.Copy(io.Discard, pace(ctx, bytes.NewReader(make([]byte, 5<<20)), l)); !errors.Is(err, why) {
			t.Errorf("got %v", err)
		}
	})
}
