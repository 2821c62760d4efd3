package xapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

var archive = bytes.Repeat([]byte("ova.xml and blocks "), 20000)

// exports makes a host answer /export with the archive and end the task so.
func exports(h *fakeHost, status string, info ...string) {
	h.onGet = func(c *fakeConn) {
		task := c.param("task_id")
		c.write(exportHead(task))
		_, _ = c.Write(archive)
		h.endTask(task, status, "", info...)
	}
}

func TestExport(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", true)
	exports(h, "success")
	c := connect(t, h, nil)
	e, err := c.Export(t.Context(), ExportRequest{VM: "OpaqueRef:vm", Compression: "zstd", PreservePowerState: true, Label: "dpxen export"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(e)
	if err != nil || !bytes.Equal(got, archive) {
		t.Errorf("%d bytes of %d, %v", len(got), len(archive), err)
	}
	for range 2 {
		if s, err := e.Wait(t.Context()); err != nil || s != TaskSuccess {
			t.Errorf("%v, %v", s, err)
		}
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if !h.task(string(e.Task())).destroyed || h.called("task.cancel") != 0 {
		t.Error("the task was left behind, or cancelled")
	}
	head := h.heads[0]
	for _, want := range []string{"GET /export?ref=OpaqueRef%3Avm&use_compression=zstd&session_id=OpaqueRef%3Asession-1&task_id=OpaqueRef%3Atask-1&preserve_power_state=true HTTP/1.1\r\n",
		"Host: " + h.address() + "\r\n", "Connection: close\r\n"} {
		if !strings.Contains(head, want) {
			t.Errorf("head lacks %q:\n%s", want, head)
		}
	}
	if _, err := c.Export(t.Context(), ExportRequest{VM: "v", Compression: "lzma"}); !errors.Is(err, ErrConfig) {
		t.Errorf("unknown compression: %v", err)
	}
}

func TestExportTaskIsTheTruth(t *testing.T) {
	for name, tc := range map[string]struct {
		end    func(h *fakeHost, task string)
		status TaskStatus
		want   error
	}{
		"failure":   {func(h *fakeHost, task string) { h.endTask(task, "failure", "", "VDI_IO_ERROR", "Device I/O error(s)") }, 0, errAny},
		"cancelled": {func(h *fakeHost, task string) { h.endTask(task, "cancelled", "") }, 0, ErrCancelled},
		"gone":      {func(h *fakeHost, task string) { h.mu.Lock(); delete(h.tasks, task); h.mu.Unlock() }, TaskGone, nil},
		"late": {func(h *fakeHost, task string) {
			time.AfterFunc(30*time.Millisecond, func() { h.endTask(task, "success", "") })
		}, TaskSuccess, nil},
		"never": {func(*fakeHost, string) {}, 0, ErrStalled},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		h.onGet = func(c *fakeConn) {
			c.write(exportHead(c.param("task_id")))
			_, _ = c.Write(archive)
			tc.end(h, c.param("task_id"))
		}
		c := connect(t, h, func(cfg *Config) {
			if name == "never" {
				cfg.Timeouts.StreamIdle = 200 * time.Millisecond
			}
		})
		e, err := c.Export(t.Context(), ExportRequest{VM: "vm"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, e); err != nil {
			t.Errorf("%s: a clean end of the body: %v", name, err)
		}
		s, err := e.Wait(t.Context())
		if s != tc.status || !is(err, tc.want) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
		if err := e.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
}

func TestExportRefused(t *testing.T) {
	const text = "VM_BAD_POWER_STATE: [ OpaqueRef:vm; halted, suspended; running ]"
	for name, tc := range map[string]struct {
		script func(h *fakeHost, c *fakeConn)
		want   error
	}{
		"task and page": {func(h *fakeHost, c *fakeConn) {
			h.endTask(c.param("task_id"), "failure", "", "OTHER_OPERATION_IN_PROGRESS", "VM", "r", "start", "op")
			c.write(errorPage("500 Internal Error", "INTERNAL_ERROR: [ whatever ]"))
		}, ErrBusy},
		"page only":  {func(_ *fakeHost, c *fakeConn) { c.write(errorPage("500 Internal Error", text)) }, ErrPowerState},
		"plain page": {func(_ *fakeHost, c *fakeConn) { c.write(errorPage("500 Internal Error", "oops")) }, ErrProtocol},
		"401":        {func(_ *fakeHost, c *fakeConn) { c.write(errorPage("401 Unauthorized", "")) }, ErrAuth},
		"403":        {func(_ *fakeHost, c *fakeConn) { c.write(errorPage("403 Forbidden", "")) }, ErrAuth},
		"closed":     {func(*fakeHost, *fakeConn) {}, ErrUnreachable},
		"no HTTP":    {func(_ *fakeHost, c *fakeConn) { c.write("what?\r\n\r\n") }, ErrProtocol},
		"large head": {func(_ *fakeHost, c *fakeConn) { c.write("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)) }, ErrUnreachable},
		"repeats URL": {func(_ *fakeHost, c *fakeConn) {
			c.write(errorPage("500 Internal Error", "bad request "+c.req.URL.Query().Get("session_id")))
		}, ErrProtocol},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		h.onGet = func(c *fakeConn) { tc.script(h, c) }
		c := connect(t, h, func(cfg *Config) { cfg.Timeouts.Cancel = 50 * time.Millisecond })
		_, err := c.Export(t.Context(), ExportRequest{VM: "OpaqueRef:vm"})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
		noSecrets(t, err)
		if !h.task("OpaqueRef:task-1").destroyed {
			t.Errorf("%s: task was left behind", name)
		}
	}
}

func TestExportBodyFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		body string
		want error
	}{
		"embedded 500":      {errorPage("500 Internal Error", "SR_BACKEND_FAILURE_44: [ ; no space; ]"), ErrNoSpace},
		"embedded, no code": {errorPage("500 Internal Error", "oops"), ErrProtocol},
		"short":             {"HTTP", nil},
		"nothing":           {"", nil},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		h.onGet = func(c *fakeConn) {
			c.write(exportHead("t"))
			for i := range len(tc.body) {
				c.write(tc.body[i : i+1])
			}
		}
		c := connect(t, h, nil)
		e, err := c.Export(t.Context(), ExportRequest{VM: "vm"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(e)
		if tc.want == nil && (err != nil || string(got) != tc.body) || tc.want != nil && (!errors.Is(err, tc.want) || len(got) > 0) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	// With a content length, which XAPI does not give, a cut can be told from the end.
	h := newFakeHost(t, "127.0.0.1:0", false)
	h.onGet = func(c *fakeConn) { c.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789") }
	e, err := connect(t, h, nil).Export(t.Context(), ExportRequest{VM: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(e); !errors.Is(err, ErrUnreachable) || len(got) != 10 {
		t.Errorf("cut: %d bytes, %v", len(got), err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func TestExportSilence(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", true)
	release := make(chan struct{})
	h.onGet = func(c *fakeConn) {
		c.write(exportHead(c.param("task_id")) + "be")
		<-release
		c.write("ginning")
		h.endTask(c.param("task_id"), "success", "")
	}
	standard := h.calls["task.get_record"]
	moving, looks := true, 0
	h.on("task.get_record", func(args []any) (any, error) {
		if looks++; looks == 3 {
			close(release)
		}
		if task := h.task(args[1].(string)); moving && task != nil {
			h.mu.Lock()
			task.progress += 0.1
			h.mu.Unlock()
		}
		return standard(args)
	})
	// Long enough that a busy machine delivers within it what was sent.
	c := connect(t, h, func(cfg *Config) { cfg.Timeouts.StreamIdle = 500 * time.Millisecond })
	e, err := c.Export(t.Context(), ExportRequest{VM: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(e); err != nil || string(got) != "beginning" {
		t.Errorf("silent, but on its way: %q, %v", got, err)
	}
	if p, err := e.TaskProgress(t.Context()); err != nil || p <= 0 {
		t.Errorf("progress %v, %v", p, err)
	}
	if s, err := e.Wait(t.Context()); err != nil || s != TaskSuccess {
		t.Errorf("%v, %v", s, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	moving, looks, release = false, 10, make(chan struct{})
	defer close(release)
	e, err = c.Export(t.Context(), ExportRequest{VM: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(e); !errors.Is(err, ErrStalled) {
		t.Errorf("silent and stuck: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func TestExportGivenUp(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	h.onGet = func(c *fakeConn) {
		c.write(exportHead(c.param("task_id")))
		for {
			if _, err := c.Write(archive); err != nil {
				return
			}
		}
	}
	c := connect(t, h, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	e, err := c.Export(ctx, ExportRequest{VM: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, e, 1<<20); err != nil {
		t.Fatal(err)
	}
	cancel(why)
	if _, err := io.Copy(io.Discard, e); !errors.Is(err, why) {
		t.Errorf("after the end of ctx: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if task := h.task(string(e.Task())); task.cancels != 1 || !task.destroyed {
		t.Errorf("task %+v", task)
	}
	if s, err := e.Wait(t.Context()); err == nil {
		t.Errorf("closed early, and yet %v", s)
	}
}

func TestExportWaitsForHeaders(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	release := make(chan struct{})
	defer close(release)
	h.onGet = func(*fakeConn) { <-release }
	c := connect(t, h, func(cfg *Config) { cfg.Timeouts.ExportHeaders = 50 * time.Millisecond })
	if _, err := c.Export(t.Context(), ExportRequest{VM: "vm"}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if d := (Timeouts{}).withDefaults().ExportHeaders; d < 150*time.Second {
		t.Errorf("default for the head of an export is %s, XAPI may take 2 min", d)
	}
}

func TestRequestHeadIsBounded(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	c := connect(t, h, nil)
	w, err := c.request(t.Context(), c.base, "GET", "/export", query{"ref", strings.Repeat("x", 1024)}, -1)
	if err == nil {
		w.close()
	}
	if !errors.Is(err, ErrConfig) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkExport(b *testing.B) {
	const chunk = 1 << 20
	h := newFakeHost(b, "127.0.0.1:0", false)
	data := make([]byte, chunk)
	h.onGet = func(c *fakeConn) {
		c.write(exportHead(c.param("task_id")))
		for range b.N {
			if _, err := c.Write(data); err != nil {
				return
			}
		}
		h.endTask(c.param("task_id"), "success", "")
	}
	c := connect(b, h, nil)
	b.SetBytes(chunk)
	e, err := c.Export(b.Context(), ExportRequest{VM: "vm"})
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, chunk)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, e, buf)
	if err != nil || n != int64(b.N)*chunk {
		b.Fatal(fmt.Errorf("%d bytes: %w", n, err))
	}
	if err := e.Close(); err != nil {
		b.Error(err)
	}
}
