package agent

import (
	"bytes"
	"context"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// trouble is what goes wrong at one changing call of a restore.
type trouble struct {
	name   string
	dies   bool // the agent, as XAPI sees it
	after  bool // once the call was done, else before it arrives
	late   bool // the call reaches XAPI only when all is repaired
	cut    bool // the call is not answered
	fault  xensim.Fault
	rolled int // the database falls back to what it was that many changing calls before
}

// troubles are all kinds of it.
var troubles = []trouble{
	{name: "dies before", dies: true, cut: true},
	{name: "dies after", dies: true, cut: true, after: true},
	{name: "answer lost", cut: true, after: true},
	{name: "call lost", cut: true},
	{name: "toolstack restarts", fault: xensim.Fault{Name: "toolstack-restart", Times: 1, Delay: 20 * time.Second}},
	{name: "sessions gone", fault: xensim.Fault{Name: "session-invalid", Times: 1}},
	{name: "still booting", fault: xensim.Fault{Name: "host-booting", Times: 2}},
	{name: "refused", fault: xensim.Fault{Name: "call-fails", Times: 1}},
	{name: "rolled back by 1", rolled: 1},
	{name: "rolled back by 9", rolled: 9},
	{name: "rolled back by 9, dies", rolled: 9, dies: true, cut: true},
	{name: "dies, late", dies: true, cut: true, late: true},
}

// crossing stands between an agent and XAPI and lets trouble come at the n-th changing call.
type crossing struct {
	t     *testing.T
	b     *bench
	proxy *httputil.ReverseProxy
	what  trouble

	mu    sync.Mutex
	count int
	left  int
	at    string        // the call that it came at
	dead  chan struct{} // closed when the agent died
	later func()        // lets XAPI have the call that was held back; nil where there is none, or no more
}

var methodName = regexp.MustCompile(`<methodName>(?:Async\.)?([A-Za-z_.]+)</methodName>`)

// changes tells whether a call changes the pool in a way that matters to a restore.
func changes(method string) bool {
	class, name, _ := strings.Cut(method, ".")
	return class != "session" && class != "task" && class != "event" && !strings.HasPrefix(name, "get_")
}

// newCrossing returns the crossing and its address.
func newCrossing(b *bench, target string, n int, what trouble) (*crossing, string) {
	b.t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		b.t.Fatal(err)
	}
	c := &crossing{t: b.t, b: b, proxy: httputil.NewSingleHostReverseProxy(u), what: what, left: n, dead: make(chan struct{})}
	c.proxy.ErrorLog = log.New(io.Discard, "", 0)
	c.proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	s := httptest.NewServer(c)
	b.t.Cleanup(s.Close)
	return c, s.URL
}

// comes counts a call and tells whether trouble comes at this one.
func (c *crossing) comes(method string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !changes(method) {
		return false
	}
	c.count++
	if c.left == 0 {
		return false
	}
	if c.what.rolled > 0 && c.left == min(c.what.rolled+1, c.left+c.count-1) {
		c.inject(xensim.Fault{Name: "database-rolled-back", Times: 1, Method: rollBackNow, Delay: 20 * time.Second})
	}
	if c.left--; c.left > 0 {
		return false
	}
	c.at = method
	return true
}

// rollBackNow is no method of XAPI's: calling it makes the fault happen.
const rollBackNow = "host.fall_back"

func (c *crossing) inject(f xensim.Fault) {
	if err := c.b.pool.Inject(f); err != nil {
		c.t.Error(err)
	}
}

// fell returns the call at which trouble came, "" for none.
func (c *crossing) fell() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *crossing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case <-c.dead:
		panic(http.ErrAbortHandler)
	default:
	}
	method, comes := "", false
	switch {
	case r.Method == http.MethodPut && r.URL.Query().Get("task_id") != "":
		method, comes = "VM.import", c.comes("VM.import")
	case r.Method == http.MethodPost:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if m := methodName.FindSubmatch(body); m != nil {
			method, comes = string(m[1]), c.comes(string(m[1]))
		}
	}
	if comes {
		c.happens(r, method)
	}
	c.proxy.ServeHTTP(w, r)
}

// happens lets the trouble happen; it does not return where the call is not answered.
func (c *crossing) happens(r *http.Request, method string) {
	if c.what.fault.Name != "" {
		f := c.what.fault
		if f.Name == "call-fails" {
			f.Method = method
		}
		c.inject(f)
	}
	if c.what.rolled > 0 {
		resp, err := http.Post(c.b.info.Hosts[0].HTTP+"/RPC2", "text/xml",
			strings.NewReader("<?xml version='1.0'?><methodCall><methodName>"+rollBackNow+"</methodName><params/></methodCall>"))
		if err == nil {
			resp.Body.Close()
		}
	}
	if !c.what.cut {
		return
	}
	switch {
	case c.what.late && method != "VM.import": // which needs its sender
		c.later = func() {
			c.proxy.ServeHTTP(httptest.NewRecorder(), r.Clone(context.WithoutCancel(r.Context())))
		}
	case c.what.after:
		c.proxy.ServeHTTP(httptest.NewRecorder(), r)
	case method == "VM.import": // half of it arrives
		r.Body = io.NopCloser(io.LimitReader(r.Body, r.ContentLength/2))
		func() {
			defer func() { _ = recover() }() // the proxy panics at a body that is too short
			c.proxy.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithoutCancel(r.Context())))
		}()
	}
	if c.what.dies {
		close(c.dead)
	}
	panic(http.ErrAbortHandler)
}

// comesLate lets XAPI come to a call that was held back, once; it is false where there was none.
func (c *matrixCase) comesLate() bool {
	if c.cross.later == nil {
		return false
	}
	c.cross.later()
	c.cross.later = nil
	for slices.ContainsFunc(c.b.dump().Tasks, func(t string) bool { return strings.HasPrefix(t, "Async.") }) {
		if sleep(c.t.Context(), time.Millisecond) != nil {
			c.t.Fatal("the late call does not end")
		}
	}
	return true
}

// wantUnmarkedBut checks that no record of the pool's carries a key of ours, and no VM a block but those of its owner's.
func (b *bench) wantUnmarkedBut(uuid string, own map[string]string) {
	b.t.Helper()
	for _, vm := range b.dump().VMs {
		if want := map[bool]map[string]string{true: own}[vm.UUID == uuid]; !maps.Equal(vm.Blocked, want) {
			b.t.Errorf("VM %q is blocked: %v, want %v", vm.Name, vm.Blocked, want)
		}
		configs := []map[string]string{vm.Config}
		for _, d := range vm.Disks {
			configs = append(configs, d.VDI.Config)
		}
		for _, config := range configs {
			for key, value := range config {
				if strings.HasPrefix(key, "dpxen:") {
					b.t.Errorf("VM %q or a disk of its has the key %s=%s", vm.Name, key, value)
				}
			}
		}
	}
}
