package xapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// TaskStatus is how a task ended that did not fail.
type TaskStatus int

// The ends of a task that are no failure.
const (
	TaskSuccess TaskStatus = iota + 1 // XAPI says success
	TaskGone                          // XAPI knows it no more: its outcome is unknown
)

// String names the status.
func (s TaskStatus) String() string {
	switch s {
	case TaskSuccess:
		return "success"
	case TaskGone:
		return "gone"
	}
	return "unknown"
}

// pause waits, or gives the reason why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// grace gives a context that ends d after ctx does: for what must be known although ctx has ended.
func grace(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if pause(out, d) == nil {
			cancel()
		}
	})
	return out, func() { stop(); cancel() }
}

// CallAsync makes a long call as Async.METHOD and waits for its task; label names the work in errors. The result is
// the text of a reference or string; of other results the XML-RPC text. When ctx ends the task is cancelled and
// given Timeouts.Cancel to end: if it succeeded after all that is success, else the error is ctx's and what became
// of the task: ErrCancelled, ErrTaskPending, ErrTaskGone or its failure. A host that knows no Async.METHOD gets the
// plain call.
func (c *Client) CallAsync(ctx context.Context, label, method string, args ...any) (string, error) {
	result, err := c.async(ctx, method, args)
	if err != nil {
		return "", fmt.Errorf("%s: %s: %w", label, method, err)
	}
	return result, nil
}

func (c *Client) async(ctx context.Context, method string, args []any) (string, error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	// If ctx ends while the call is under way the task's name is still wanted, so that it can be cancelled.
	sctx, stop := grace(ctx, c.t.Cancel)
	v, err := c.call(sctx, terms{limit: c.t.Call}, "Async."+method, args)
	stop()
	if errors.Is(err, ErrUnsupported) {
		v, err = c.call(ctx, terms{}, method, args)
		return v.String(), err
	}
	if err != nil {
		return "", err
	}
	task, err := v.Ref()
	if err == nil && task.Null() {
		err = malformed("no task")
	}
	if err != nil {
		return "", err
	}
	t, err := c.finish(ctx, task)
	if err != nil {
		return "", err
	}
	return resultText(t.Result), nil
}

// finish waits for a task, cancels it when ctx ends, and destroys it when it is final.
func (c *Client) finish(ctx context.Context, ref Ref) (Task, error) {
	t, err := c.poll(ctx, ref, 0)
	if err != nil && ctx.Err() != nil {
		if t, err = c.cancel(ctx, ref); err == nil && t.Status != statusSuccess {
			err = context.Cause(ctx)
			if out := outcome(t); out != nil {
				err = fmt.Errorf("%w: %w", err, out)
			}
			c.destroyTask(ctx, ref)
			return t, err
		}
		if err != nil {
			return t, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
	if err != nil {
		return t, err
	}
	c.destroyTask(ctx, ref)
	return t, outcome(t)
}

// cancel cancels a task and gives it some time to become final.
func (c *Client) cancel(ctx context.Context, ref Ref) (Task, error) {
	return c.cancelFor(ctx, ref, c.t.Cancel)
}

func (c *Client) cancelFor(ctx context.Context, ref Ref, d time.Duration) (Task, error) {
	cctx, stop := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer stop()
	_, err := c.Call(cctx, "task.cancel", ref)
	if err != nil && !isAnswer(err) {
		return Task{}, fmt.Errorf("%w: %w", ErrTaskPending, err)
	}
	t, err := c.poll(cctx, ref, 0)
	if err != nil && cctx.Err() != nil {
		return t, ErrTaskPending
	}
	return t, err
}

// isAnswer reports whether XAPI answered with a failure.
func isAnswer(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// destroyTask removes a final task; XAPI does so itself after an hour.
func (c *Client) destroyTask(ctx context.Context, ref Ref) {
	dctx, stop := context.WithTimeout(context.WithoutCancel(ctx), c.t.Cancel)
	defer stop()
	_, err := c.Call(dctx, "task.destroy", ref)
	_ = err // nothing depends on it
}

// removeTask removes a task that is pending though nobody works on it: one that no host has heard of, or whose host has sent us on
// to another one. It never ends by itself, and XAPI only marks what is destroyed while it is pending, so it is ended first. Hosts
// before XenServer 7.2 cannot: there it stays until XAPI drops it, after a day.
func (c *Client) removeTask(ctx context.Context, ref Ref) {
	dctx, stop := context.WithTimeout(context.WithoutCancel(ctx), c.t.Cancel)
	defer stop()
	_, err := c.Call(dctx, "task.set_status", ref, statusCancelled)
	_ = err // nothing depends on it
	c.destroyTask(ctx, ref)
}

// createTask makes a task of ours for a stream. Where ctx ends meanwhile, the answer is still waited for a little, so that the
// task is not left without anybody who knows it: it would stay pending, as no host has heard of it.
func (c *Client) createTask(ctx context.Context, label string) (Ref, error) {
	within, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(refusalWait, cancel) })()
	v, err := c.Call(within, "task.create", label, c.cfg.Originator)
	if err == nil && ctx.Err() != nil {
		if ref, err := v.Ref(); err == nil && !ref.Null() {
			c.removeTask(ctx, ref)
		}
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", err
	}
	ref, err := v.Ref()
	if err == nil && ref.Null() {
		err = malformed("no task")
	}
	return ref, err
}

// Status words of tasks; others are taken as pending.
const (
	statusSuccess   = "success"
	statusFailure   = "failure"
	statusCancelled = "cancelled"
)

// poll looks at a task until it is final. It bears that XAPI is away for Timeouts.Outage. stall is how long there may
// be no progress; 0 = for ever. When ctx ends the task is as it was last seen.
func (c *Client) poll(ctx context.Context, ref Ref, stall time.Duration) (Task, error) {
	var away time.Time
	var last Task
	progress, moved := -1.0, time.Now()
	for wait := c.t.TaskPollMin; ; wait = min(2*wait, c.t.TaskPollMax) {
		t, err := c.Task(ctx, ref)
		switch {
		case err == nil:
			away, last = time.Time{}, t
			if t.final() {
				return t, nil
			}
			if t.Progress != progress {
				progress, moved = t.Progress, time.Now()
			}
			if stall > 0 && time.Since(moved) > stall {
				return t, fmt.Errorf("task is %s at %.0f %% for %s: %w", t.Status, 100*progress, stall, ErrStalled)
			}
		case hasCode(err, "HANDLE_INVALID"):
			return Task{}, ErrTaskGone
		case ctx.Err() != nil:
			return last, context.Cause(ctx)
		case (errors.Is(err, ErrUnreachable) || errors.Is(err, ErrBusy) || errors.Is(err, ErrHostDown) || errors.Is(err, ErrSession)) && !errors.Is(err, ErrCertificate):
			if away.IsZero() {
				away = time.Now()
			}
			if time.Since(away) > c.t.Outage {
				return Task{}, err
			}
		default:
			return Task{}, err
		}
		if err := pause(ctx, wait); err != nil {
			return last, err
		}
	}
}

// TaskByUUID finds a task; ErrNotFound when XAPI has forgotten it.
func (c *Client) TaskByUUID(ctx context.Context, uuid string) (Task, error) {
	return recordByUUID(ctx, c, "task", uuid, decodeTask)
}

// TasksByName finds tasks by their exact name.
func (c *Client) TasksByName(ctx context.Context, label string) ([]Ref, error) {
	v, err := c.Call(ctx, "task.get_by_name_label", label)
	if err != nil {
		return nil, err
	}
	return v.Refs()
}

// DropTask cancels a task and has XAPI remove it: at once where it is final or has never begun, else when it ends. It does not
// wait; nothing but an XAPI that cannot be asked is an error.
func (c *Client) DropTask(ctx context.Context, task Ref) error {
	if _, err := c.Call(ctx, "task.cancel", task); err != nil && !isAnswer(err) {
		return err
	}
	t, err := c.Task(ctx, task)
	if err != nil {
		return unlessGone(err, task)
	}
	if !t.final() && t.Progress == 0 {
		if _, err := c.Call(ctx, "task.set_status", task, statusCancelled); err != nil && !isAnswer(err) {
			return err // see removeTask
		}
	}
	_, err = c.Call(ctx, "task.destroy", task)
	if isAnswer(err) {
		return nil // it is gone, or marked already
	}
	return err
}

// EndTask cancels a task, waits for Timeouts.Cancel until it is final, however it ended, and removes it. ErrTaskPending
// says that it is not final yet, ErrTaskGone that XAPI has forgotten it.
func (c *Client) EndTask(ctx context.Context, task Ref) error {
	if _, err := c.cancel(ctx, task); err != nil {
		return err
	}
	c.destroyTask(ctx, task)
	return nil
}

// DestroyTask removes a final task; XAPI does so itself after some time, so that a failure is none.
func (c *Client) DestroyTask(ctx context.Context, task Ref) { c.destroyTask(ctx, task) }

// Final reports whether the task has ended: successfully, with a failure or cancelled.
func (t Task) Final() bool { return t.final() }

func (t Task) final() bool {
	return t.Status == statusSuccess || t.Status == statusFailure || t.Status == statusCancelled
}

// outcome gives the failure of a final task.
func outcome(t Task) error {
	switch {
	case t.Status == statusSuccess:
		return nil
	case len(t.ErrorInfo) > 0 && t.ErrorInfo[0] != "":
		return &Error{Code: t.ErrorInfo[0], Params: t.ErrorInfo[1:]}
	case t.Status == statusCancelled:
		return &Error{Code: "TASK_CANCELLED", Params: []string{string(t.Ref)}}
	}
	return &Error{Code: "INTERNAL_ERROR", Params: []string{"the task failed without saying why"}}
}

// resultText gives the text of a task's result when it is a single word or string, else the result itself.
func resultText(result string) string {
	text := strings.TrimSpace(result)
	if !strings.HasPrefix(text, "<") {
		return text
	}
	v, err := decodeFragment(text)
	if err != nil {
		return text
	}
	if s, err := v.Text(); err == nil {
		return s
	}
	return text
}
