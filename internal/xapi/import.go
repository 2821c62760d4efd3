package xapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// ImportRequest says what is imported, and where to.
type ImportRequest struct {
	Body    io.Reader // the archive; its Read must end when the caller wants Import to end
	Length  int64     // of the archive in bytes, exactly
	SR      Ref       // for all disks; NullRef = the pool's default
	Restore bool      // keep UUIDs and MACs; never force
	Label   string    // of the task
	// TaskCreated is called before a byte is sent, so that the caller can write down what will happen. Its error ends
	// the import. It may be nil.
	TaskCreated func(task Ref, uuid string) error
}

// Import sends an archive to /import and gives the references of the VMs it made, which may be none where XAPI does
// not tell. The task decides about success, whatever the connection says. When ctx ends, or Body fails, the task is
// cancelled and, for Timeouts.Cancel, its end waited for, so that the host's cleanup is over; ErrTaskPending says that
// it is not, ErrTaskGone that the outcome is unknown. The last bytes are sent only when Body has given io.EOF: an
// archive whose reader finds a fault at its very end does not become a VM.
func (c *Client) Import(ctx context.Context, r ImportRequest) ([]Ref, error) {
	refs, err := c.importInto(ctx, r)
	c.tell(ctx, "import", []any{r.SR}, err)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return refs, nil
}

func (c *Client) importInto(ctx context.Context, r ImportRequest) ([]Ref, error) {
	if r.Length <= 0 || r.Body == nil {
		return nil, fmt.Errorf("%w: an archive of %d bytes", ErrConfig, r.Length)
	}
	task, err := c.createTask(ctx, r.Label)
	if err != nil {
		return nil, err
	}
	if r.TaskCreated != nil {
		t, err := c.Task(ctx, task)
		if err == nil {
			err = r.TaskCreated(task, t.UUID)
		}
		if err != nil {
			c.removeTask(ctx, task) // no host has heard of it yet
			return nil, err
		}
	}
	u := &upload{c: c, r: r, task: task}
	at, err := u.probe(ctx)
	if err != nil {
		c.removeTask(ctx, task)
		return nil, err
	}
	t, err := u.run(ctx, at)
	if err != nil {
		return nil, err
	}
	return importedRefs(t.Result), nil
}

// upload is one import under way.
type upload struct {
	c    *Client
	r    ImportRequest
	task Ref
}

func (u *upload) query(session string, task bool) query {
	q := query{"session_id", session}
	if task {
		q = append(q, "task_id", string(u.task))
	}
	if !u.r.SR.Null() {
		q = append(q, "sr_id", string(u.r.SR))
	}
	if u.r.Restore && task {
		q = append(q, "restore", "true")
	}
	return q
}

// probe finds the host that sees the SR, by a PUT with an empty body and no task: an answer that sends elsewhere cannot
// be followed once the archive is under way. A host that is the right one starts an import of nothing, and fails it in
// its own way; so only what XAPI clearly refuses ends the import here.
func (u *upload) probe(ctx context.Context) (endpoint, error) {
	c, at := u.c, u.c.base
	for range maxHops {
		s, err := c.open(ctx)
		if err != nil {
			return endpoint{}, err
		}
		location, err := u.ask(ctx, at, s)
		switch {
		case err != nil:
			return endpoint{}, scrub(err, s.ref)
		case location == "":
			return at, nil
		}
		if at, err = c.redirected(ctx, at, location); err != nil {
			return endpoint{}, scrub(err, s.ref)
		}
	}
	return endpoint{}, fmt.Errorf("%w: redirected from host to host", ErrProtocol)
}

// ask sends one probe. It gives where the host sends to, "" when the host takes the import itself.
func (u *upload) ask(ctx context.Context, at endpoint, s *session) (location string, err error) {
	w, err := u.c.request(ctx, at, http.MethodPut, "/import", u.query(s.ref, false), 0)
	if err != nil {
		return "", err
	}
	defer w.close()
	if err := w.answer(http.MethodPut); err != nil {
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return "", fmt.Errorf("%s: %w", at, err)
		}
		return "", nil // dropped for its empty body: the import itself will tell
	}
	switch status := w.resp.StatusCode; {
	case isRedirect(status):
		if location = w.resp.Header.Get("Location"); location == "" {
			return "", fmt.Errorf("%s: %w: redirected to nowhere", at, ErrProtocol)
		}
		return location, nil
	case status == http.StatusOK:
		return "", nil
	default:
		page := statusError(status, readPage(w.resp.Body))
		if errors.Is(page, ErrAuth) || isAnswer(page) && !emptyArchive(page) {
			return "", fmt.Errorf("%s: %w", at, page)
		}
		return "", nil
	}
}

// emptyArchive reports whether a host only complains of the probe's empty body.
func emptyArchive(err error) bool {
	var e *Error
	return errors.As(err, &e) && (strings.HasPrefix(e.Code, "IMPORT_ERROR") || e.Code == "INTERNAL_ERROR" || e.Code == "CLIENT_ERROR")
}

// run sends the archive and gives the task's outcome.
func (u *upload) run(ctx context.Context, at endpoint) (Task, error) {
	c := u.c
	s, err := c.open(ctx)
	if err != nil {
		c.removeTask(ctx, u.task)
		return Task{}, err
	}
	w, err := c.request(ctx, at, http.MethodPut, "/import", u.query(s.ref, true), u.r.Length)
	if err != nil {
		c.abandon(ctx, u.task, err)
		return Task{}, scrub(err, s.ref)
	}
	defer w.close()
	w.readIdle.Store(0)
	w.writeIdle.Store(int64(c.t.StreamIdle))
	answered := make(chan error, 1)
	go func() { answered <- drain(w) }()
	sent := send(w, u.r.Body, u.r.Length)
	var body *bodyError
	if errors.As(sent, &body) {
		w.close()
		return Task{}, u.undo(ctx, body.err)
	}
	if sent == nil {
		// A host that has ended the connection has finished with the import, or was restarted before it began: then
		// nobody is left who could end the task.
		ended, stop := context.WithCancelCause(ctx)
		defer stop(nil)
		go func() {
			page := <-answered
			if pause(ended, c.t.Outage) == nil {
				stop(fmt.Errorf("%s ended the connection, but the task does not end: %w", at, errors.Join(ErrStalled, page)))
			}
		}()
		return u.wait(ended, w, c.t.StreamIdle, nil)
	}
	if ctx.Err() != nil {
		return u.wait(ctx, w, 0, nil)
	}
	// Cut while sending: by a host that has all it wants, or has refused or failed, or by the network.
	w.lastReads(min(refusalWait, c.t.Cancel))
	if page := <-answered; page != nil {
		err := scrub(fmt.Errorf("%s: %w", at, c.reason(ctx, u.task, page)), s.ref)
		c.abandon(ctx, u.task, err)
		return Task{}, err
	}
	cut, stop := context.WithTimeoutCause(ctx, c.t.Outage, sent)
	defer stop()
	return u.wait(cut, w, 0, sent)
}

// wait waits for the task's end, which decides. When ctx ends first the task is cancelled: if it succeeded after all
// that is success.
func (u *upload) wait(ctx context.Context, w *wire, stall time.Duration, cut error) (Task, error) {
	t, err := u.c.poll(ctx, u.task, stall)
	if errors.Is(err, ErrStalled) || err != nil && ctx.Err() != nil {
		w.close()
		why := err
		if t, err = u.c.cancel(ctx, u.task); err != nil {
			return t, fmt.Errorf("%w; then the task: %w", why, err)
		}
		if out := outcome(t); out != nil && !errors.Is(out, ErrCancelled) {
			why = fmt.Errorf("%w; the task: %w", why, out)
		}
		u.c.destroyTask(ctx, u.task)
		if t.Status == statusSuccess {
			return t, nil
		}
		return t, why
	}
	if err != nil {
		return t, errors.Join(cut, err)
	}
	u.c.destroyTask(ctx, u.task)
	return t, cutThere(outcome(t))
}

// cutThere tells a connection that broke at the host's end, of which this end need not know, from what is wrong with an archive:
// the task then fails with the host's own error of its socket.
func cutThere(err error) error {
	var e *Error
	if !errors.As(err, &e) || !strings.HasPrefix(e.Code, "IMPORT_ERROR") && e.Code != "INTERNAL_ERROR" {
		return err
	}
	for _, lost := range []string{"ECONNRESET", "EPIPE", "ETIMEDOUT", "ECONNABORTED"} {
		if strings.Contains(strings.Join(e.Params, " "), "Unix."+lost) {
			return fmt.Errorf("%w from its end: %w", ErrUnreachable, err)
		}
	}
	return err
}

// undo cancels the import because of why, and waits for the end of the host's cleanup.
func (u *upload) undo(ctx context.Context, why error) error {
	t, err := u.c.cancel(ctx, u.task)
	if err != nil {
		return fmt.Errorf("%w; then the task: %w", why, err)
	}
	u.c.destroyTask(ctx, u.task)
	if t.Status == statusSuccess {
		return fmt.Errorf("%w; XAPI has imported it all the same: %s", why, clip(t.Result))
	}
	return why
}

// reference is how references look in a result.
var reference = regexp.MustCompile(`OpaqueRef:[0-9A-Za-z-]+`)

// importedRefs reads the references out of an import's result: an array of them in XML-RPC. Whatever else it holds is
// let pass.
func importedRefs(result string) []Ref {
	if v, err := decodeFragment(strings.TrimSpace(result)); err == nil {
		if refs, err := v.Refs(); err == nil {
			return slices.DeleteFunc(refs, Ref.Null)
		}
		if ref, err := v.Ref(); err == nil && !ref.Null() {
			return []Ref{ref}
		}
		return nil
	}
	var out []Ref
	for _, m := range reference.FindAllString(result, -1) {
		if ref := Ref(m); !ref.Null() {
			out = append(out, ref)
		}
	}
	return out
}
