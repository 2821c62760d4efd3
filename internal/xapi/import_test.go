package xapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

const importResult = "<value><array><data><value>OpaqueRef:imported</value></data></array></value>"

// imports makes a host take imports: the early 200, then the body. take gets what of the body arrived, and ends the
// task. A probe's body is empty, and it brings no task.
func imports(h *fakeHost, read func(r io.Reader) ([]byte, error), take func(task string, got []byte, err error)) {
	h.onPut = func(c *fakeConn) {
		if c.req.ContentLength < 0 || len(c.req.TransferEncoding) > 0 {
			h.t.Errorf("import without Content-Length")
		}
		c.write(importHead(c.param("task_id")))
		if c.param("task_id") == "" {
			return
		}
		got, err := read(io.LimitReader(c.r, c.req.ContentLength))
		if err == nil && int64(len(got)) < c.req.ContentLength {
			err = io.ErrUnexpectedEOF
		}
		take(c.param("task_id"), got, err)
	}
}

// ends gives a take that lets the task succeed when all came.
func ends(h *fakeHost) func(string, []byte, error) {
	return func(task string, _ []byte, err error) {
		if err != nil {
			h.endTask(task, "failure", "", "IMPORT_ERROR_PREMATURE_EOF")
			return
		}
		h.endTask(task, "success", importResult)
	}
}

func TestImportEarlyAnswer(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", true)
	data := make([]byte, 8<<20+123)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	var sum [32]byte
	// The host answers at once and reads at leisure: a client that closes after the answer loses what is on its way.
	slow := func(r io.Reader) ([]byte, error) {
		time.Sleep(50 * time.Millisecond)
		return io.ReadAll(r)
	}
	imports(h, slow, func(task string, got []byte, err error) { sum = sha256.Sum256(got); ends(h)(task, got, err) })
	c := connect(t, h, nil)
	var named Ref
	refs, err := c.Import(t.Context(), ImportRequest{Body: iotest.HalfReader(bytes.NewReader(data)), Length: int64(len(data)), SR: "OpaqueRef:sr", Restore: true, Label: "l",
		TaskCreated: func(task Ref, uuid string) error {
			if len(h.heads) > 0 || uuid != "task-uuid" {
				t.Errorf("%d requests were sent before the task was made known, uuid %q", len(h.heads), uuid)
			}
			named = task
			return nil
		}})
	if err != nil || len(refs) != 1 || refs[0] != "OpaqueRef:imported" {
		t.Fatalf("%v, %v", refs, err)
	}
	if sum != sha256.Sum256(data) {
		t.Error("the host got other bytes")
	}
	if task := h.task(string(named)); task == nil || !task.destroyed {
		t.Errorf("task %+v", task)
	}
	probe, put := h.heads[0], h.heads[1]
	if strings.Contains(probe, "task_id") || strings.Contains(probe, "restore") || !strings.Contains(probe, "Content-Length: 0\r\n") {
		t.Errorf("probe: %s", probe)
	}
	for _, want := range []string{"PUT /import?", "session_id=OpaqueRef%3Asession-1", "task_id=" + strings.ReplaceAll(string(named), ":", "%3A"), "sr_id=OpaqueRef%3Asr",
		"restore=true", "Content-Length: " + strconv.Itoa(len(data)) + "\r\n"} {
		if !strings.Contains(put, want) {
			t.Errorf("request lacks %q: %s", want, put)
		}
	}
	if strings.Contains(put, "force") || strings.Contains(put, "Expect") || strings.Contains(put, "chunked") {
		t.Errorf("request: %s", put)
	}
}

func TestImportTaskIsTheTruth(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(h *fakeHost, task string)
		refs int
		want error
	}{
		"failure": {func(h *fakeHost, task string) {
			h.endTask(task, "failure", "", "SR_BACKEND_FAILURE_44", "", "no space", "")
		}, 0, ErrNoSpace},
		"cancelled": {func(h *fakeHost, task string) { h.endTask(task, "cancelled", "") }, 0, ErrCancelled},
		"gone":      {func(h *fakeHost, task string) { h.mu.Lock(); delete(h.tasks, task); h.mu.Unlock() }, 0, ErrTaskGone},
		"late": {func(h *fakeHost, task string) {
			time.AfterFunc(30*time.Millisecond, func() { h.endTask(task, "success", importResult) })
		}, 1, nil},
		"no result":  {func(h *fakeHost, task string) { h.endTask(task, "success", "") }, 0, nil},
		"odd result": {func(h *fakeHost, task string) { h.endTask(task, "success", "[OpaqueRef:a,OpaqueRef:b]") }, 2, nil},
		"never":      {func(*fakeHost, string) {}, 0, ErrStalled},
		"restarted":  {func(*fakeHost, string) {}, 0, ErrStalled}, // the host ends the connection, and nobody the task
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		imports(h, io.ReadAll, func(task string, _ []byte, _ error) { tc.end(h, task) })
		c := connect(t, h, func(cfg *Config) {
			switch name {
			case "never":
				cfg.Timeouts.StreamIdle = 200 * time.Millisecond
			case "restarted":
				cfg.Timeouts.StreamIdle, cfg.Timeouts.Outage = time.Hour, 50*time.Millisecond
			}
		})
		refs, err := c.Import(t.Context(), ImportRequest{Body: bytes.NewReader(archive), Length: int64(len(archive))})
		if len(refs) != tc.refs || !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, %v", name, refs, err)
		}
		if errors.Is(tc.want, ErrStalled) && h.called("task.cancel") != 1 {
			t.Error("a stuck import was not cancelled")
		}
	}
}

// partial reads some bytes only.
func partial(n int64) func(io.Reader) ([]byte, error) {
	return func(r io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(r, n)) }
}

// endless is a body that counts what is read of it.
type endless struct{ n atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	clear(p)
	e.n.Add(int64(len(p)))
	return len(p), nil
}

func TestImportCutWhileSending(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(h *fakeHost, task string)
		want error
	}{
		"host has all it wants": {func(h *fakeHost, task string) { h.endTask(task, "success", importResult) }, nil},
		"host failed":           {func(h *fakeHost, task string) { h.endTask(task, "failure", "", "SR_FULL", "1", "0") }, ErrNoSpace},
		"task never heard":      {func(*fakeHost, string) {}, ErrUnreachable},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		imports(h, partial(1<<20), func(task string, _ []byte, _ error) { tc.end(h, task) }) // then the connection is reset
		c := connect(t, h, nil)
		body := &endless{}
		refs, err := c.Import(t.Context(), ImportRequest{Body: body, Length: 1 << 40})
		if !errors.Is(err, tc.want) || (err == nil) != (len(refs) == 1) {
			t.Errorf("%s: %v, %v", name, refs, err)
		}
		if n := body.n.Load(); n > 1<<28 {
			t.Errorf("%s: %d bytes were read on", name, n)
		}
	}
}

func TestImportBodyFaults(t *testing.T) {
	bad := errors.New("block 7 is damaged")
	const size = 3 << 20
	whole := func() io.Reader { return io.LimitReader(zeros{}, size) }
	for name, tc := range map[string]struct {
		body io.Reader
		want error
	}{
		"fails":            {io.MultiReader(io.LimitReader(zeros{}, size/2), iotest.ErrReader(bad)), bad},
		"fails at the end": {io.MultiReader(whole(), iotest.ErrReader(bad)), bad},
		"too short":        {io.LimitReader(zeros{}, size-1), io.ErrUnexpectedEOF},
		"too long":         {io.LimitReader(zeros{}, size+1), errAny},
		"gives nothing":    {stuck{}, io.ErrNoProgress},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		arrived := make(chan int, 1)
		imports(h, io.ReadAll, func(task string, got []byte, err error) { arrived <- len(got); ends(h)(task, got, err) })
		c := connect(t, h, nil)
		_, err := c.Import(t.Context(), ImportRequest{Body: tc.body, Length: size})
		if !is(err, tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
		if n := <-arrived; n > size-heldBack {
			t.Errorf("%s: %d of %d bytes went to the host", name, n, size)
		}
		if h.task("OpaqueRef:task-1").status == "success" || h.called("task.cancel") != 1 {
			t.Errorf("%s: task %+v", name, h.task("OpaqueRef:task-1"))
		}
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestImportRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		probe, put string // raw answers; "" = the early 200
		want       error
	}{
		"at the probe":      {errorPage("400 Bad Request", "SR_OPERATION_NOT_SUPPORTED: [ OpaqueRef:sr ]"), "", errAny},
		"unauthorised":      {errorPage("401 Unauthorized", ""), "", ErrAuth},
		"later":             {"", errorPage("403 Forbidden", ""), ErrAuth},
		"later, with code":  {"", errorPage("500 Internal Error", "SR_FULL: [ 1; 2 ]"), ErrNoSpace},
		"redirect too late": {"", redirectTo("http://127.0.0.1:1/import"), ErrProtocol},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		h.onPut = func(c *fakeConn) {
			raw := tc.put
			if c.param("task_id") == "" {
				raw = tc.probe
			}
			if raw == "" {
				raw = importHead("t")
			}
			c.write(raw)
		}
		c := connect(t, h, func(cfg *Config) { cfg.Timeouts.Cancel = 50 * time.Millisecond })
		body := &endless{}
		_, err := c.Import(t.Context(), ImportRequest{Body: body, Length: 1 << 40})
		if !is(err, tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
		noSecrets(t, err)
		if tc.probe != "" && body.n.Load() > 0 {
			t.Errorf("%s: the body was read", name)
		}
		if !h.task("OpaqueRef:task-1").destroyed {
			t.Errorf("%s: task was left behind", name)
		}
	}
}

func TestImportProbeComplaint(t *testing.T) {
	for name, answer := range map[string]string{
		"failure": errorPage("500 Internal Error", "IMPORT_ERROR_PREMATURE_EOF: [  ]"), "plain page": errorPage("400 Bad Request", "no body"), "dropped": "",
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		imports(h, io.ReadAll, ends(h))
		take := h.onPut
		h.onPut = func(c *fakeConn) {
			if c.param("task_id") == "" {
				c.write(answer)
				return
			}
			take(c)
		}
		refs, err := connect(t, h, nil).Import(t.Context(), ImportRequest{Body: bytes.NewReader(archive), Length: int64(len(archive))})
		if err != nil || len(refs) != 1 {
			t.Errorf("a host that does not like the probe's empty archive, %s: %v", name, err)
		}
	}
}

func TestImportRedirect(t *testing.T) {
	a, b, stranger := newFakeHost(t, "127.0.0.1:0", true), newFakeHost(t, "127.0.0.1:0", true), newFakeHost(t, "127.0.0.1:0", true)
	a.hosts(a, b)
	to := b
	a.onPut = func(c *fakeConn) { c.write(redirectTo(to.url() + "/import?session_id=x")) }
	imports(b, io.ReadAll, func(task string, got []byte, err error) {
		if len(got) != len(archive) {
			t.Errorf("%d bytes", len(got))
		}
		ends(a)(task, got, err)
	})
	c := connect(t, a, func(cfg *Config) { cfg.Timeouts.Cancel = 50 * time.Millisecond }, b, stranger)
	if _, err := c.Import(t.Context(), ImportRequest{Body: bytes.NewReader(archive), Length: int64(len(archive))}); err != nil {
		t.Fatal(err)
	}
	if len(a.heads) != 1 || len(b.heads) != 2 {
		t.Errorf("%d requests to the first host, %d to the second", len(a.heads), len(b.heads))
	}
	to = stranger
	body := &endless{}
	if _, err := c.Import(t.Context(), ImportRequest{Body: body, Length: 1 << 20}); !errors.Is(err, ErrProtocol) || body.n.Load() > 0 || len(stranger.heads) > 0 {
		t.Errorf("redirected to a stranger: %v", err)
	}
}

func TestImportGivenUp(t *testing.T) {
	for name, afterAll := range map[string]string{"cancelled": "", "success after all": "success"} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		h.onPut = func(c *fakeConn) {
			c.write(importHead("t"))
			_, _ = io.Copy(io.Discard, c.r)
		}
		if afterAll != "" {
			standard := h.calls["task.cancel"]
			h.on("task.cancel", func(args []any) (any, error) {
				h.endTask(args[1].(string), afterAll, importResult)
				return standard(args)
			})
		}
		c := connect(t, h, nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		body := &endless{}
		go func() {
			for body.n.Load() < 1<<20 {
				runtime.Gosched()
			}
			cancel(why)
		}()
		refs, err := c.Import(ctx, ImportRequest{Body: body, Length: 1 << 40})
		if afterAll == "" && !errors.Is(err, why) || afterAll != "" && (err != nil || len(refs) != 1) {
			t.Errorf("%s: %v, %v", name, refs, err)
		}
		if task := h.task("OpaqueRef:task-1"); task.cancels != 1 || !task.destroyed {
			t.Errorf("%s: task %+v", name, task)
		}
		cancel(nil)
	}
}

func TestImportBadRequests(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	imports(h, io.ReadAll, ends(h))
	c := connect(t, h, nil)
	for name, r := range map[string]ImportRequest{"no body": {Length: 5}, "no length": {Body: strings.NewReader("x")}} {
		if _, err := c.Import(t.Context(), r); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	no := errors.New("journal is full")
	if _, err := c.Import(t.Context(), ImportRequest{Body: strings.NewReader("x"), Length: 1, TaskCreated: func(Ref, string) error { return no }}); !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
	if len(h.heads) > 0 || !h.task("OpaqueRef:task-1").destroyed {
		t.Error("an import that the caller stopped was begun")
	}
}

// TestImportBackpressure holds the host still: Import must not read on without bound.
func TestImportBackpressure(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	release := make(chan struct{})
	const size = 32 << 20
	imports(h, func(r io.Reader) ([]byte, error) {
		<-release
		return io.ReadAll(r)
	}, ends(h))
	c := connect(t, h, nil)
	body := &endless{}
	done := make(chan error, 1)
	go func() {
		_, err := c.Import(t.Context(), ImportRequest{Body: io.LimitReader(body, size), Length: size})
		done <- err
	}()
	last, same := int64(-1), 0
	for same < 10 {
		if n := body.n.Load(); n > 0 && n == last {
			same++
		} else {
			last, same = n, 0
		}
		time.Sleep(5 * time.Millisecond)
	}
	if last >= size {
		t.Errorf("%d bytes were read although the host takes none", last)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A connection that broke at the host's end alone is no fault of the archive's.
func TestImportCutThere(t *testing.T) {
	for _, tt := range []struct {
		err  *Error
		lost bool
	}{
		{&Error{Code: "IMPORT_ERROR", Params: []string{`INTERNAL_ERROR: [ Unix.Unix_error(Unix.ECONNRESET, "read", "") ]`}}, true},
		{&Error{Code: "INTERNAL_ERROR", Params: []string{`Unix.Unix_error(Unix.EPIPE, "write", "")`}}, true},
		{&Error{Code: "IMPORT_ERROR", Params: []string{`INTERNAL_ERROR: [ Unix.Unix_error(Unix.ENOSPC, "write", "") ]`}}, false},
		{&Error{Code: "IMPORT_ERROR_PREMATURE_EOF"}, false},
		{&Error{Code: "VDI_IO_ERROR", Params: []string{"Unix.ECONNRESET"}}, false},
	} {
		err := cutThere(tt.err)
		var is *Error
		if errors.Is(err, ErrUnreachable) != tt.lost || !errors.As(err, &is) || is != tt.err {
			t.Errorf("%v: got %v", tt.err, err)
		}
	}
	if cutThere(nil) != nil {
		t.Error("success became an error")
	}
}
