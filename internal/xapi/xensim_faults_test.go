package xapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

func TestSimExportFaults(t *testing.T) {
	for fault, tc := range map[string]struct {
		open, read error // what Export and Read give; errAny = some error
		status     TaskStatus
	}{
		"export-refused":       {open: errAny},
		"export-cut":           {},
		"export-embedded-500":  {},
		"export-task-fails":    {},
		"export-read-error":    {},
		"export-task-vanishes": {status: TaskGone},
		"export-slow-head":     {status: TaskSuccess},
		"export-stall":         {status: TaskSuccess},
	} {
		t.Run(fault, func(t *testing.T) {
			p := startSim(t, nil)
			c := masterClient(t, p)
			vm := aVM(t, c, "Halted")
			f := xensim.Fault{Name: fault, Delay: 20 * time.Second}
			if fault != "export-slow-head" {
				f.After = 1 << 20
			}
			if err := p.Inject(f); err != nil {
				t.Fatal(err)
			}
			e, err := c.Export(t.Context(), ExportRequest{VM: vm.Ref})
			if tc.open != nil {
				if !isAnswer(err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, readErr := io.Copy(io.Discard, e)
			status, err := e.Wait(t.Context())
			if status != tc.status || (tc.status == 0) != (err != nil) {
				t.Errorf("read: %v; task: %v, %v", readErr, status, err)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("embedded at once", func(t *testing.T) {
		p := startSim(t, nil)
		c := masterClient(t, p)
		if err := p.Inject(xensim.Fault{Name: "export-embedded-500"}); err != nil {
			t.Fatal(err)
		}
		e, err := c.Export(t.Context(), ExportRequest{VM: aVM(t, c, "Halted").Ref})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, e); n > 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestSimImportFaults(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	vm := aVM(t, c, "Halted")
	data := exported(t, c, vm.Ref)
	sr := must(c.VDI(t.Context(), must(c.VBD(t.Context(), vm.VBDs[0])).VDI)).SR
	count := func() int { return len(must(c.VMs(t.Context()))) + len(must(c.VDIs(t.Context()))) }
	before := count()
	for fault, want := range map[string]error{"import-fails-at-start": errAny, "import-fails-at-end": errAny, "sr-full": ErrNoSpace} {
		if err := p.Inject(xensim.Fault{Name: fault}); err != nil {
			t.Fatal(err)
		}
		refs, err := c.Import(t.Context(), ImportRequest{Body: bytes.NewReader(data), Length: int64(len(data)), SR: sr})
		if !isAnswer(err) || !is(err, want) {
			t.Errorf("%s: %v, %v", fault, refs, err)
		}
		p.Clear("")
	}
	bad := errors.New("bad block")
	for name, body := range map[string]io.Reader{
		"cut": bytes.NewReader(data[:len(data)/2]), "late fault": io.MultiReader(bytes.NewReader(data), &failing{bad}), "damaged": bytes.NewReader(damaged(data)),
	} {
		if refs, err := c.Import(t.Context(), ImportRequest{Body: body, Length: int64(len(data)), SR: sr}); err == nil {
			t.Errorf("%s: imported %v", name, refs)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d records before, %d after", before, after)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func damaged(data []byte) []byte {
	out := bytes.Clone(data)
	out[len(out)/2] ^= 4
	return out
}

func TestSimCallFaults(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	vm := aVM(t, c, "Halted")
	inject := func(f xensim.Fault) {
		t.Helper()
		if err := p.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	inject(xensim.Fault{Name: "session-invalid", Times: 1})
	if _, err := c.Pool(t.Context()); err != nil {
		t.Errorf("a lost session: %v", err)
	}
	inject(xensim.Fault{Name: "host-booting", Times: 1})
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrHostDown) {
		t.Errorf("booting: %v", err)
	}
	inject(xensim.Fault{Name: "answer-lost", Times: 1, Method: "VM.set_name_description"})
	if err := c.SetVMField(t.Context(), vm.Ref, "name_description", "changed"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a lost answer: %v", err)
	}
	if got := must(c.VM(t.Context(), vm.Ref)).Description; got != "changed" {
		t.Errorf("the call was not carried out: %q", got)
	}
	snap, _, err := c.Snapshot(t.Context(), vm.Ref, "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	inject(xensim.Fault{Name: "vdi-in-use", Times: 3})
	destroyWhole(t, c, snap)
	p.Clear("")
	inject(xensim.Fault{Name: "toolstack-restart", Times: 1, Delay: 100 * time.Second})
	_, err = c.Pool(t.Context())
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); _, err = c.Pool(t.Context()) {
		if !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrHostDown) {
			t.Fatalf("during the restart: %v", err)
		}
	}
	if err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

func TestSimFailover(t *testing.T) {
	p := startSim(t, func(cfg *xensim.Config) { cfg.Hosts = 3 })
	hosts := p.Info().Hosts
	c := simClient(t, p, hosts[1].HTTPS)
	must(c.Hosts(t.Context()))
	if err := p.SetMaster(hosts[2].Name); err != nil {
		t.Fatal(err)
	}
	cycle(t, c)
	if err := p.SetHostDown(hosts[1].Name, true, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pool(t.Context()); err != nil {
		t.Errorf("the configured host is down: %v", err)
	}
	if _, err := c.Export(t.Context(), ExportRequest{VM: aVM(t, c, "Halted").Ref}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a stream goes to the configured host, which is down: %v", err)
	}
	e, err := c.Export(t.Context(), ExportRequest{VM: aVM(t, c, "Halted").Ref, Host: strings.TrimPrefix(hosts[0].HTTPS, "https://")})
	if err != nil {
		t.Fatalf("a stream by way of another host: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func TestSimJournalKeys(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	now, err := c.ServerTime(t.Context())
	if err != nil || time.Since(now).Abs() > time.Hour {
		t.Errorf("time %v, %v", now, err)
	}
	value := `{"v":1,"name":"<ß&>"}`
	if err := c.AddToPoolOtherConfig(t.Context(), "dpxen:x:claim", value); err != nil {
		t.Fatal(err)
	}
	if err := c.AddToPoolOtherConfig(t.Context(), "dpxen:x:claim", value); !errors.Is(err, ErrDuplicateKey) {
		t.Errorf("twice: %v", err)
	}
	if m := must(c.PoolOtherConfig(t.Context())); m["dpxen:x:claim"] != value {
		t.Errorf("got %v", m)
	}
	for range 2 {
		if err := c.RemoveFromPoolOtherConfig(t.Context(), "dpxen:x:claim"); err != nil {
			t.Error(err)
		}
	}
}

// TestSimStreamGivenUpWhileItsTaskIsMade: whoever gives a stream up while XAPI makes its task leaves no task behind.
func TestSimStreamGivenUpWhileItsTaskIsMade(t *testing.T) {
	for name, begin := range map[string]func(context.Context, *Client, Ref) error{
		"export": func(ctx context.Context, c *Client, vm Ref) error {
			_, err := c.Export(ctx, ExportRequest{VM: vm})
			return err
		},
		"import": func(ctx context.Context, c *Client, _ Ref) error {
			_, err := c.Import(ctx, ImportRequest{Body: strings.NewReader("x"), Length: 1, Label: "given up"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := startSim(t, nil)
			c := masterClient(t, p)
			vm := aVM(t, c, "Halted")
			if err := p.Inject(xensim.Fault{Name: "call-slow", Method: "task.create", Times: 1, Delay: 300 * time.Second}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			if err := begin(ctx, c, vm.Ref); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			time.Sleep(time.Second) // XAPI is through with the call, whoever waits for it
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				v, err := c.Call(t.Context(), "task.get_all")
				if err != nil {
					t.Fatal(err)
				}
				tasks, err := v.Refs()
				if err == nil && len(tasks) == 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("tasks: %v, %v", tasks, err)
				}
			}
		})
	}
}

// A task whose host has sent us on is nobody's: cancelling it changes nothing, and destroying it only marks it.
func TestSimTasksThatNobodyWorksOn(t *testing.T) {
	p := startSim(t, func(cfg *xensim.Config) { cfg.Scenario = "demo" })
	c := masterClient(t, p)
	c.t.Cancel = 200 * time.Millisecond
	for name, end := range map[string]func(Ref) error{
		"given up":    func(task Ref) error { c.abandon(t.Context(), task, context.Canceled); return nil },
		"never heard": func(task Ref) error { c.abandon(t.Context(), task, errDial); return nil },
		"dropped":     func(task Ref) error { return c.DropTask(t.Context(), task) },
	} {
		task := must(c.createTask(t.Context(), "never heard"))
		if name != "never heard" {
			task = sentOn(t, p, c)
		}
		if err := end(task); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := c.Task(t.Context(), task); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: the task is still there: %+v, %v", name, got, err)
		}
	}
}

// sentOn asks hosts for exports until one sends us on to another, and returns the task.
func sentOn(t *testing.T, p *xensim.Pool, c *Client) Ref {
	t.Helper()
	s := must(c.open(t.Context()))
	for _, h := range p.Info().Hosts {
		at := must(parseURL(h.HTTPS))
		for _, vm := range must(c.VMs(t.Context())) {
			if vm.IsTemplate || vm.IsControlDomain || vm.PowerState != "Halted" {
				continue
			}
			task := must(c.createTask(t.Context(), "sent on"))
			w := must(c.request(t.Context(), at, http.MethodGet, "/export", query{"ref", string(vm.Ref), "session_id", s.ref, "task_id", string(task)}, -1))
			err := w.answer(http.MethodGet)
			w.close()
			if err == nil && isRedirect(w.resp.StatusCode) {
				return task
			}
		}
	}
	t.Fatal("no host has sent us on")
	return ""
}
