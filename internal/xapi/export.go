package xapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// ExportRequest says what is exported, and how.
type ExportRequest struct {
	VM                 Ref
	Compression        string // "" or "none", "gzip", "zstd"
	PreservePowerState bool   // take the memory image of a suspended VM along
	Label              string // of the task
	Host               string // address of the pool's host to ask first; "" = the configured one
}

// Export is the stream of one VM's export. Read and Close may not overlap each other; the other methods may be called
// at any time.
type Export struct {
	c    *Client
	ctx  context.Context // of the stream
	task Ref
	w    *wire

	begun    bool
	pending  []byte // read ahead
	progress float64

	mu      sync.Mutex
	settled bool // the task's end is known
	status  TaskStatus
	err     error
}

// Export asks for the export of a VM and returns when the stream begins. A refusal is XAPI's failure: VM_BAD_POWER_STATE,
// OTHER_OPERATION_IN_PROGRESS … When ctx ends the stream is cut; it governs the stream, not the opening alone. The
// caller reads to io.EOF, calls Wait, and Close in every case.
func (c *Client) Export(ctx context.Context, r ExportRequest) (*Export, error) {
	compression := "false"
	switch r.Compression {
	case "", "none":
	case "gzip", "zstd":
		compression = r.Compression
	default:
		return nil, fmt.Errorf("export %s: compression %q: %w", r.VM, r.Compression, ErrConfig)
	}
	task, err := c.createTask(ctx, r.Label)
	if err != nil {
		return nil, fmt.Errorf("export %s: %w", r.VM, err)
	}
	w, err := c.openExport(ctx, r, compression, task)
	if err != nil {
		c.abandon(ctx, task, err)
		return nil, fmt.Errorf("export %s: %w", r.VM, err)
	}
	w.readIdle.Store(int64(c.t.StreamIdle))
	return &Export{c: c, ctx: ctx, task: task, w: w, progress: -1}, nil
}

// openExport finds the host that exports the VM.
func (c *Client) openExport(ctx context.Context, r ExportRequest, compression string, task Ref) (*wire, error) {
	at, err := c.firstHost(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	for range maxHops {
		s, err := c.open(ctx)
		if err != nil {
			return nil, err
		}
		q := query{"ref", string(r.VM), "use_compression", compression, "session_id", s.ref, "task_id", string(task)}
		if r.PreservePowerState {
			q = append(q, "preserve_power_state", "true")
		}
		w, err := c.request(ctx, at, http.MethodGet, "/export", q, -1)
		if err != nil {
			return nil, scrub(err, s.ref)
		}
		w.readIdle.Store(int64(c.t.ExportHeaders))
		if err := w.answer(http.MethodGet); err != nil {
			w.close()
			return nil, scrub(fmt.Errorf("%s: %w", at, err), s.ref)
		}
		switch status := w.resp.StatusCode; {
		case status == http.StatusOK:
			return w, nil
		case isRedirect(status):
			location := w.resp.Header.Get("Location")
			w.close()
			if at, err = c.redirected(ctx, at, location); err != nil {
				return nil, scrub(err, s.ref)
			}
		default:
			return nil, scrub(fmt.Errorf("%s: %w", at, c.refusal(ctx, w, task)), s.ref)
		}
	}
	return nil, fmt.Errorf("%w: redirected from host to host", ErrProtocol)
}

// refusalWait is how long a task may take to fail after the answer that refused its stream.
const refusalWait = 3 * time.Second

// refusal gives the reason why a stream was refused, and closes the wire.
func (c *Client) refusal(ctx context.Context, w *wire, task Ref) error {
	w.readIdle.Store(int64(c.t.Call))
	page := statusError(w.resp.StatusCode, readPage(w.resp.Body))
	w.close()
	return c.reason(ctx, task, page)
}

// reason gives the failure of a refused stream's task, which is the whole truth, or else what the page said. A task
// that is still pending is waited for only where the page says nothing.
func (c *Client) reason(ctx context.Context, task Ref, page error) error {
	tctx, stop := context.WithTimeout(ctx, min(refusalWait, c.t.Cancel))
	defer stop()
	look := c.Task
	if !isAnswer(page) {
		look = func(ctx context.Context, ref Ref) (Task, error) { return c.poll(ctx, ref, 0) }
	}
	if t, err := look(tctx, task); err == nil && t.final() {
		if err := outcome(t); err != nil {
			return err
		}
	}
	return page
}

// abandon cancels and removes the task of a stream that did not begin because of why. Perhaps no host works on it, so not much
// time is given to it. One that is at work after all is removed when it ends.
func (c *Client) abandon(ctx context.Context, task Ref, why error) {
	if errors.Is(why, errDial) {
		c.removeTask(ctx, task)
		return
	}
	switch t, err := c.cancelFor(ctx, task, min(refusalWait, c.t.Cancel)); {
	case errors.Is(err, ErrTaskGone):
	case errors.Is(err, ErrTaskPending) && t.UUID != "" && t.Progress == 0:
		c.removeTask(ctx, task)
	default:
		c.destroyTask(ctx, task)
	}
}

// Task is the export's task.
func (e *Export) Task() Ref { return e.task }

// embedded is how an answer begins that a host wrote into the stream when the export failed after its 200.
const embedded = "HTTP/1."

// Read implements io.Reader. io.EOF says only that the stream ended, not that the export succeeded: see Wait. A stream
// that consists of an error page gives that page's failure. Without a byte for Timeouts.StreamIdle and without
// progress of the task the error is ErrStalled.
func (e *Export) Read(p []byte) (int, error) {
	if !e.begun {
		e.begun = true
		if err := e.begin(); err != nil {
			return 0, err
		}
	}
	if len(e.pending) > 0 {
		n := copy(p, e.pending)
		e.pending = e.pending[n:]
		return n, nil
	}
	for {
		n, err := e.w.resp.Body.Read(p)
		if n > 0 || err == nil {
			return n, nil
		}
		if errors.Is(err, io.EOF) && e.ctx.Err() == nil {
			return 0, io.EOF
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && e.ctx.Err() == nil {
			if err := e.moving(); err != nil {
				return 0, err
			}
			continue
		}
		return 0, e.w.fault(err)
	}
}

// begin reads the first bytes and refuses an error page.
func (e *Export) begin() error {
	buf := make([]byte, len(embedded))
	n := 0
	for n < len(buf) {
		m, err := e.w.resp.Body.Read(buf[n:])
		n += m
		if err != nil && errors.Is(err, os.ErrDeadlineExceeded) && e.ctx.Err() == nil {
			if err := e.moving(); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return e.w.fault(err)
		}
	}
	e.pending = buf[:n]
	if string(e.pending) != embedded {
		return nil
	}
	e.pending = nil
	e.w.readIdle.Store(int64(e.c.t.Call))
	return fmt.Errorf("the stream is an error page: %w", statusError(http.StatusInternalServerError, embedded+readPage(e.w.resp.Body)))
}

// moving checks that the task went on while no byte came: compressed exports of empty disks are silent for long.
func (e *Export) moving() error {
	ctx, stop := context.WithTimeout(e.ctx, e.c.t.Call)
	defer stop()
	t, err := e.c.Task(ctx, e.task)
	if err != nil {
		return fmt.Errorf("no byte for %s, and the task: %w", e.c.t.StreamIdle, err)
	}
	if t.final() || t.Progress == e.progress {
		return fmt.Errorf("task is %s at %.0f %%, no byte for %s: %w", t.Status, 100*t.Progress, e.c.t.StreamIdle, ErrStalled)
	}
	e.progress = t.Progress
	return nil
}

// TaskProgress asks XAPI how far the export is, from 0 to 1. ErrNotFound says that the task is gone.
func (e *Export) TaskProgress(ctx context.Context) (float64, error) {
	t, err := e.c.Task(ctx, e.task)
	return t.Progress, err
}

// Wait waits until the task is final and gives its outcome: success, or gone with the outcome unknown. Failure and
// cancellation are errors, as is a task without progress for Timeouts.StreamIdle. After it the task is removed.
func (e *Export) Wait(ctx context.Context) (TaskStatus, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.settled {
		return e.status, e.err
	}
	t, err := e.c.poll(ctx, e.task, e.c.t.StreamIdle)
	switch {
	case errors.Is(err, ErrTaskGone):
		e.settled, e.status = true, TaskGone
	case err != nil:
		return 0, fmt.Errorf("wait for the export's task: %w", err)
	default:
		e.c.destroyTask(ctx, e.task)
		e.settled = true
		if e.err = outcome(t); e.err == nil {
			e.status = TaskSuccess
		} else {
			e.err = fmt.Errorf("export: %w", e.err)
		}
	}
	return e.status, e.err
}

// Close ends the stream. If the task's end is not known by then it is cancelled and given Timeouts.Cancel to end: until
// then XAPI holds the VM. That it did not end is ErrTaskPending.
func (e *Export) Close() error {
	e.w.close()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.settled {
		return nil
	}
	e.settled = true
	_, err := e.c.cancel(e.ctx, e.task)
	if errors.Is(err, ErrTaskGone) {
		err = nil
	}
	if e.err = errors.New("export was closed before its end"); err != nil {
		return fmt.Errorf("end the export: %w", err)
	}
	e.c.destroyTask(e.ctx, e.task)
	return nil
}
