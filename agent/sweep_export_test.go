package agent

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// A member of the pool died while it exported a VM that was off anyway, and its agent too: XAPI does not start the VM until its
// toolstack is restarted, and a sweep does not say that nothing is left.
func TestSweepOfExportThatDoesNotEnd(t *testing.T) {
	for _, before := range []string{halted, running} {
		t.Run(before, func(t *testing.T) {
			t.Parallel()
			testExportThatDoesNotEnd(t, before)
		})
	}
}

func testExportThatDoesNotEnd(t *testing.T, before string) {
	t.Helper()
	b := newBench(t, xensim.Config{VMs: 6})
	x, a := b.client(), b.agent(func(c *Config) { c.Timing.Settle, c.Timing.Start = 200*time.Millisecond, time.Second })
	b.inject(xensim.Fault{Name: "export-stall", Times: 1, After: 1 << 20, Delay: time.Hour})
	vm := xapi.Ref(b.vm(halted, 0).Ref)
	c := b.deadWork(x, b.vm(halted, 0).UUID, "0123456789abcdef", time.Minute)
	task, err := x.Call(t.Context(), "task.create", exportLabel("0123456789abcdef"), "")
	b.must(nil, err)
	ref, err := task.Ref()
	b.must(nil, err)
	body := b.exportBy(1, string(vm), string(ref))
	b.must(nil, b.pool.SetHostDown(b.info.Hosts[1].Name, true, true))
	if _, err := io.Copy(io.Discard, body); err == nil {
		t.Error("the export came to its end")
	}
	b.must(nil, b.pool.SetHostDown(b.info.Hosts[1].Name, false, false))
	b.must(nil, c.note(t.Context(), stepPower, powerNote{Before: before}))
	var actions []sweepAction
	for _, dry := range []bool{false, true} {
		actions, err = a.agent.sweeper.sweep(t.Context(), sweepOptions{DryRun: dry, DeadSessions: []string{"session-dead"}})
		if err != nil || len(actions) == 0 || actions[len(actions)-1].PowerNotRestored != (before == running) {
			t.Fatalf("the host is up again, dry=%t: %+v, %v", dry, actions, err)
		}
		last := actions[len(actions)-1]
		why := last.Waiting
		if last.Err != nil {
			why = last.Err.Error()
		}
		if !strings.Contains(why, "restart the toolstack") {
			t.Errorf("dry=%t: %q", dry, why)
		}
	}
	dead := sweepOptions{DeadSessions: []string{"session-dead"}}
	master, err := x.Call(t.Context(), "host.get_by_uuid", b.info.Hosts[0].UUID)
	b.must(nil, err)
	ref, err = master.Ref()
	b.must(nil, err)
	b.must(x.Call(t.Context(), "host.restart_agent", ref))
	for range 100 { // XAPI is away for a moment
		actions, err = a.agent.sweeper.sweep(t.Context(), dead)
		if err == nil && !slices.ContainsFunc(actions, func(s sweepAction) bool { return s.Err != nil || s.Waiting != "" }) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if before == halted {
		b.must(nil, x.Start(t.Context(), vm))
	}
	b.must(nil, x.HardShutdown(t.Context(), vm))
	b.wantClean()
}

// exportBy has a host export a VM and gives the stream, of which a first piece was read.
func (b *bench) exportBy(host int, vm, task string) io.Reader {
	b.t.Helper()
	to := b.info.Hosts[host].HTTP + "/export?ref=" + url.QueryEscape(vm) + "&task_id=" + url.QueryEscape(task)
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, to, http.NoBody)
	b.must(nil, err)
	req.SetBasicAuth(b.info.Username, b.info.Password)
	res, err := http.DefaultTransport.RoundTrip(req)
	b.must(nil, err)
	b.t.Cleanup(func() { _ = res.Body.Close() }) // its end was looked at
	if res.StatusCode != http.StatusOK {
		b.t.Fatalf("export: %s", res.Status)
	}
	return res.Body
}
