package controller

import (
	"time"

	"golang.org/x/time/rate"
)

// minBandwidth is the least that limits.bandwidth may be, in bytes a second: a frame is not to take longer than a second.
const minBandwidth = 1 << 20

// pacer holds what all transfers move together to a rate; nil does not.
type pacer struct{ l *rate.Limiter }

func newPacer(bandwidth int64) *pacer {
	if bandwidth <= 0 {
		return nil
	}
	return &pacer{rate.NewLimiter(rate.Limit(bandwidth), minBandwidth)}
}

// pass waits until n bytes may have passed. What a transfer has moved is not taken back when its session ends, so this is bound
// to no context; it waits for a second at most for every transfer that runs.
func (p *pacer) pass(n int64) {
	if p == nil {
		return
	}
	for n > 0 {
		part := min(n, minBandwidth)
		time.Sleep(p.l.ReserveN(time.Now(), int(part)).Delay())
		n -= part
	}
}
