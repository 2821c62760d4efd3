package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
)

// taskGoneFraction of the stall limit is how long a read may wait once the task is gone.
const taskGoneFraction = 30

// export streams the source into the ring and returns the summary once XAPI's
// task has said success, or has vanished after a stream that ended by itself.
func (b *backup) export(ctx context.Context, j *job, src source) (summary, error) {
	j.setPhase(phaseTransfer, "")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := b.dropEarlier(ctx, j); err != nil {
		j.log.Warn("what an earlier attempt exported was not looked for", "err", err)
	}
	ex, err := b.agent.xapi.Export(ctx, xapi.ExportRequest{VM: src.vm, Compression: b.spec.Compression,
		PreservePowerState: src.preserve, Label: exportLabel(j.Nonce)})
	if err != nil {
		return summary{}, fmt.Errorf("export the VM: %w", err)
	}
	defer func() {
		if err := ex.Close(); err != nil {
			j.log.Warn("the export was not ended in good order", "err", err)
		}
	}()
	// ctx cuts the read; the ring, which may be full, has to hear of its end too.
	stop := context.AfterFunc(ctx, func() { b.sender.Abort(wireError(context.Cause(ctx), rpc.ExportFailed, j.VM)) })
	defer stop()
	b.agent.work.Go(func() { b.observe(ctx, j, ex, cancel) })
	m := &meter{r: pace(ctx, ex, b.agent.pacer), passed: b.agent.metrics.bytes.WithLabelValues("backup"), idle: b.agent.metrics.windowFull,
		observe: b.observed}
	if _, err := b.sender.ReadFrom(m); err != nil {
		return summary{}, b.whyCut(ctx, ex, err)
	}
	j.setPhase(phaseFinishing, "")
	status, err := ex.Wait(ctx)
	if ctx.Err() != nil {
		return summary{}, context.Cause(ctx)
	}
	if err != nil {
		return summary{}, fmt.Errorf("the export's task: %w", err)
	}
	out := summary{Warnings: b.warnings}
	out.Bytes, out.CRC32C = b.sender.Totals()
	if status == xapi.TaskGone {
		out.TaskGone = true
	}
	return out, nil
}

// exportLabel is the name of an export's task.
func exportLabel(nonce string) string { return "dpxen backup " + nonce }

// dropEarlier drops the exports of an earlier attempt, whose agent died.
func (b *backup) dropEarlier(ctx context.Context, j *job) error {
	refs, err := b.agent.xapi.TasksByName(ctx, exportLabel(j.Nonce))
	for _, ref := range refs {
		err = errors.Join(err, b.agent.xapi.DropTask(ctx, ref))
	}
	return err
}

// observed keeps the counts that stalls are told by.
func (b *backup) observed(n int, reading bool) {
	if reading {
		now := time.Now() // with its monotonic part: the machine's clock may be set meanwhile
		b.reading.Store(&now)
		return
	}
	b.reading.Store(nil)
	b.passed.Add(int64(n))
}

// whyCut finds the reason of a stream that broke: our own end of it, else what
// the task says, else what the connection said.
func (b *backup) whyCut(ctx context.Context, ex *xapi.Export, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, min(b.agent.cfg.Timing.Settle, 30*time.Second))
	defer cancel()
	if _, taskErr := ex.Wait(ctx); taskErr != nil && ctx.Err() == nil {
		return rpc.Errorf(rpc.ExportFailed, "the export broke off after %d bytes: %w", b.bytes(), errors.Join(taskErr, err))
	}
	return rpc.Errorf(rpc.ExportFailed, "the export broke off after %d bytes: %w", b.bytes(), err)
}

// observe asks for the task's progress and ends an export that stalls.
func (b *backup) observe(ctx context.Context, j *job, ex *xapi.Export, end context.CancelCauseFunc) {
	t := b.agent.cfg.Timing
	s := stall{limit: t.Stall, moved: time.Now()}
	for sleep(ctx, t.Progress) == nil {
		progress, err := ex.TaskProgress(ctx)
		if err == nil {
			j.setTask(progress)
		}
		now := time.Now()
		s.look(now, b.passed.Load(), progress, !j.lease.Attached())
		if gone(err) && s.hungSince(now, b.reading.Load()) > t.Stall/taskGoneFraction {
			end(rpc.Errorf(rpc.ExportFailed, "the export's task is gone and no more bytes come"))
		}
		if now.Sub(s.moved) > s.limit {
			end(rpc.Errorf(rpc.ExportFailed, "the export stalled: neither bytes nor task progress for %s", t.Stall))
		}
	}
}

// stall remembers when something moved last.
type stall struct {
	limit    time.Duration
	moved    time.Time
	bytes    int64
	progress float64
}

// look compares with the last look. Nothing moves while nobody is attached to
// take it; that is the lease's business.
func (s *stall) look(now time.Time, bytes int64, progress float64, detached bool) {
	if detached || bytes != s.bytes || progress > s.progress {
		s.moved, s.bytes, s.progress = now, bytes, max(progress, s.progress)
	}
}

// hungSince is how long the current read has waited; began is nil when none is
// under way.
func (s *stall) hungSince(now time.Time, began *time.Time) time.Duration {
	if began == nil {
		return 0
	}
	return now.Sub(*began)
}
