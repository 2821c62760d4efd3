package agent

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/internal/xensim"
)

func wantSame(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// guillotine stands between an agent and XAPI and kills it, as XAPI sees it, at its n-th changing call: before the call
// arrives, or after it was done and before it is answered.
type guillotine struct {
	proxy *httputil.ReverseProxy
	after bool

	mu   sync.Mutex
	left int
	at   string        // the call that it fell at
	dead chan struct{} // closed then
}

var methodName = regexp.MustCompile(`<methodName>(?:Async\.)?([A-Za-z_.]+)</methodName>`)

// changes tells whether a call changes the pool in a way that matters to a restore.
func changes(method string) bool {
	class, name, _ := strings.Cut(method, ".")
	return class != "session" && class != "task" && class != "event" && !strings.HasPrefix(name, "get_")
}

func newGuillotine(t *testing.T, target string, n int, after bool) (*guillotine, string) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	g := &guillotine{proxy: httputil.NewSingleHostReverseProxy(u), after: after, left: n, dead: make(chan struct{})}
	g.proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	s := httptest.NewServer(g)
	t.Cleanup(s.Close)
	return g, s.URL
}

// falls counts a call and tells whether this is the one.
func (g *guillotine) falls(method string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left == 0 || !changes(method) {
		return false
	}
	if g.left--; g.left > 0 {
		return false
	}
	g.at = method
	return true
}

func (g *guillotine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case <-g.dead:
		panic(http.ErrAbortHandler)
	default:
	}
	falls := false
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if m := methodName.FindSubmatch(body); m != nil {
			falls = g.falls(string(m[1]))
		}
	}
	if falls {
		if g.after {
			g.proxy.ServeHTTP(httptest.NewRecorder(), r)
		}
		close(g.dead)
		panic(http.ErrAbortHandler)
	}
	g.proxy.ServeHTTP(w, r)
}

// diesStep is the distance of the calls that an agent dies at; 1 tries them all.
var diesStep = flag.Int("dies.step", 7, "every how many changing calls of XAPI are tried by TestAgentDiesAnywhere")

// An agent dies at any changing call of an in-place restore. The next one of its name puts the VM wholly on its old or
// wholly on its new disks, running and free, removes all else, and a second sweep finds nothing more to do.
func TestAgentDiesAnywhere(t *testing.T) {
	for name, first := range map[string]bool{"old disks last": false, "delete first": true} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, answered %v", name, !after), func(t *testing.T) {
				t.Parallel()
				diesAnywhere(t, 1+len(name)%5, after, first)
			})
		}
	}
}

func diesAnywhere(t *testing.T, start int, after, deleteFirst bool) {
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	vm := b.vm(running, 0)
	archive := b.backUp(vm.UUID, online())
	good := digests(vm)
	for n := start; n < 200; n += *diesStep {
		changed := digests(b.scribble(b.vmNow(vm.UUID)))
		b.before = b.dump()
		cfg := b.config("mortal", 0)
		cfg.Timing.Claim, cfg.Timing.Shutdown, cfg.Timing.Stop = 300*time.Millisecond, 5*time.Second, time.Millisecond
		cfg.Timing.XAPI.Outage, cfg.Timing.XAPI.Cancel = 10*time.Millisecond, 10*time.Millisecond
		direct := cfg.XAPI.URL
		g, address := newGuillotine(t, direct, n, after)
		cfg.XAPI.URL = address
		a := b.start(cfg)
		p := newPusher(t, a, vm.UUID, archive, kindOnline)
		p.spec.DeleteFirst = deleteFirst
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			select {
			case <-g.dead:
				cancel()
			case <-ctx.Done():
			}
		}()
		err := p.push(ctx)
		if j, ok := a.agent.jobs.Lookup(p.opening.GetKey()); ok && err == nil { // the rest is its cleanup
			j.release()
			select {
			case <-j.done:
			case <-g.dead:
			}
		}
		cancel()
		a.stop()
		fell := g.at
		cfg.XAPI.URL = direct
		cfg.Timing.Stop, cfg.Timing.Sweep = 10*time.Second, 30*time.Millisecond
		again := b.start(cfg)
		again.awaitWatches(t, b)
		now := b.vmNow(vm.UUID)
		where := fmt.Sprintf("dead at call %d, %s", n, fell)
		lost := deleteFirst && len(digests(now)) == 0
		if got := digests(now); !lost && !cmp.Equal(got, changed) && !cmp.Equal(got, good) {
			t.Errorf("%s: the VM is on neither its old nor its restored disks", where)
		}
		if lost { // as asked: the VM is off and free, and can be restored again
			back := newPusher(t, again, vm.UUID, archive, kindOnline)
			back.spec.Start = true
			if err := back.push(t.Context()); err != nil {
				t.Fatalf("%s: restore again: %v", where, err)
			}
			wantGood(t, again.release(t, back.opening.GetKey()))
			wantSame(t, where, good, digests(b.vmNow(vm.UUID)))
		}
		b.wantCleanButTasks() // the import's is XAPI's to forget
		b.wantUnmarked()
		actions, err := again.agent.sweeper.sweep(t.Context(), sweepOptions{AtStart: true})
		if err != nil || len(actions) > 0 {
			t.Errorf("%s: a second sweep did %+v, %v", where, actions, err)
		}
		again.stop()
		if t.Failed() {
			t.Fatal(where)
		}
		if fell == "" {
			t.Logf("%d changing calls", n-1)
			return
		}
	}
	t.Error("the restore never came to its end")
}
