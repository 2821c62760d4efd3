package xapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCallEncodesArguments(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	var got []any
	h.on("VM.echo", func(args []any) (any, error) { got = args[1:]; return "<ok>&", nil })
	c := connect(t, h, nil)
	text := " Größe <&>\"' \n\ttabs "
	v, err := c.Call(t.Context(), "VM.echo", text, Ref(""), Ref("OpaqueRef:1"), 7, int64(1)<<40, true, 1.5, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		[]string{"a", ""}, []Ref{"r"}, map[string]string{"k<&>": "v"}, Record{"n": int64(3), "m": map[string]string(nil), "s": []string(nil), "r": Ref("")})
	if err != nil || v.String() != "<ok>&" {
		t.Fatalf("got %q, %v", v, err)
	}
	want := []any{text, "OpaqueRef:NULL", "OpaqueRef:1", "7", "1099511627776", true, "double:1.500000", "20260102T03:04:05Z", []any{"a", ""}, []any{"r"},
		map[string]any{"k<&>": "v"}, map[string]any{"n": "3", "m": "", "s": []any{}, "r": "OpaqueRef:NULL"}}
	// An empty struct and array look alike to the test's parser where they have no members.
	if m, ok := got[len(got)-1].(map[string]any); ok {
		m["m"] = strings.Trim(fmt.Sprint(m["m"]), "map[]")
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
}

func TestSessionIsSharedAndRenewed(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", true)
	var mu sync.Mutex
	valid := "OpaqueRef:session-1"
	h.on("VM.get_all", func(args []any) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		if args[0] != valid {
			return nil, fail("SESSION_INVALID", args[0].(string))
		}
		return []any{"OpaqueRef:vm"}, nil
	})
	c := connect(t, h, nil)
	all := func() {
		t.Helper()
		var wg sync.WaitGroup
		for range 3 * laneCount {
			wg.Go(func() {
				if v, err := c.Call(t.Context(), "VM.get_all"); err != nil {
					t.Errorf("%v, %v", v, err)
				}
			})
		}
		wg.Wait()
	}
	all()
	if n := h.called("session.login_with_password"); n != 1 {
		t.Errorf("%d logins for many calls", n)
	}
	mu.Lock()
	valid = "OpaqueRef:session-2"
	mu.Unlock()
	all()
	if n := h.called("session.login_with_password"); n != 2 {
		t.Errorf("%d logins after one session was lost", n)
	}
	mu.Lock()
	valid = "none ever"
	mu.Unlock()
	_, err := c.Call(t.Context(), "VM.get_all")
	if !errors.Is(err, ErrSession) || !hasCode(err, "SESSION_INVALID") {
		t.Errorf("a host that takes no session: %v", err)
	}
	noSecrets(t, err)
}

func TestLoginForms(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	standard := h.calls["session.login_with_password"]
	var seen [][]any
	h.on("session.login_with_password", func(args []any) (any, error) {
		seen = append(seen, args)
		if len(args) > 2 {
			return nil, fail("MESSAGE_PARAMETER_COUNT_MISMATCH", "session.login_with_password", "2", "4")
		}
		return standard(args)
	})
	c := connect(t, h, nil)
	if _, err := c.Pool(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := [][]any{{"root", fakePassword, "1.1", "dpxen-agent/test"}, {"root", fakePassword}}; !reflect.DeepEqual(seen, want) {
		t.Errorf("logins: %v", seen)
	}
}

func TestLoginRefused(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	c := connect(t, h, func(cfg *Config) { cfg.Username = "nobody" })
	_, err := c.Pool(t.Context())
	if !errors.Is(err, ErrAuth) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("got %v", err)
	}
	noSecrets(t, err)

	path := passwordFile(t, fakePassword, 0o600)
	c = connect(t, h, func(cfg *Config) { cfg.PasswordFile = path })
	if err := os.WriteFile(path, []byte("stale"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrAuth) {
		t.Errorf("changed file: %v", err)
	}
	if err := os.WriteFile(path, []byte(fakePassword+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pool(t.Context()); err != nil {
		t.Errorf("file put right: %v", err)
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		c = connect(t, h, nil)
		c.cfg.PasswordFile = path
		if _, err := c.Pool(t.Context()); !errors.Is(err, ErrConfig) {
			t.Errorf("file that others may read: %v", err)
		}
	}
}

func TestTrust(t *testing.T) {
	h, other := newFakeHost(t, "127.0.0.1:0", true), newFakeHost(t, "127.0.0.1:0", true)
	for name, tc := range map[string]struct {
		change func(*Config)
		good   bool
	}{
		"second of several": {func(c *Config) { c.Fingerprints = []string{other.fingerprint(), strings.ToUpper(h.fingerprint())} }, true},
		"wrong fingerprint": {func(c *Config) { c.Fingerprints = []string{other.fingerprint()} }, false},
		"ca":                {func(c *Config) { c.Fingerprints, c.CAFile = nil, h.caFile() }, true},
		"other ca":          {func(c *Config) { c.Fingerprints, c.CAFile = nil, other.caFile() }, false},
		"ca, other name": {func(c *Config) {
			c.Fingerprints, c.CAFile, c.URL = nil, h.caFile(), strings.Replace(h.url(), "127.0.0.1", "localhost", 1)
		}, false},
		"insecure": {func(c *Config) { c.Fingerprints, c.Insecure = nil, true }, true},
	} {
		c := connect(t, h, tc.change)
		_, err := c.Pool(t.Context())
		if tc.good && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !tc.good && (!errors.Is(err, ErrCertificate) || !errors.Is(err, ErrUnreachable) || strings.Count(err.Error(), ErrCertificate.Error()) != 1) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := h.called("session.login_with_password"); n != 3 {
		t.Errorf("%d logins reached the host, 3 were trusted", n)
	}
}

func TestUnreachable(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	c := connect(t, h, nil)
	if _, err := c.Pool(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.stop()
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrProtocol) {
		t.Errorf("a host that is away: %v", err)
	}
}

func TestBrokenReplies(t *testing.T) {
	reply := func(body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	}
	for name, tc := range map[string]struct {
		raw  string
		want error
	}{
		"closed":              {"", ErrUnreachable},
		"cut":                 {"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + okHead, ErrUnreachable},
		"no HTTP":             {"SSH-2.0-OpenSSH\r\n", ErrUnreachable},
		"html":                {reply("<html>hello</html>"), ErrProtocol},
		"loop of the library": {reply(okHead + "<value><struct><member>" + okTail), ErrProtocol},
		"fault":               {reply("<methodResponse><fault><value><string>x</string></value></fault></methodResponse>"), ErrProtocol},
		"no envelope":         {reply("<methodResponse><params><param><value>x</value></param></params></methodResponse>"), ErrProtocol},
		"500":                 {errorPage("500 Internal Error", "xmlrpc.ml: not a method"), ErrProtocol},
		"500 with a failure":  {errorPage("500 Internal Error", "VM_BAD_POWER_STATE: [ OpaqueRef:1; halted; running ]"), ErrPowerState},
		"503":                 {errorPage("503 Service Unavailable", ""), ErrUnreachable},
		"401":                 {errorPage("401 Unauthorized", ""), ErrAuth},
		"redirect":            {redirectTo("http://127.0.0.1:1/RPC2"), ErrProtocol},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		c := connect(t, h, nil)
		if _, err := c.Pool(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.mu.Lock()
		h.onRPC = func(c *fakeConn) bool {
			_, _ = io.CopyN(io.Discard, c.r, c.req.ContentLength)
			c.write(tc.raw)
			return true
		}
		h.mu.Unlock()
		_, err := c.Call(t.Context(), "VM.set_name_label", "r", "n")
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
		noSecrets(t, err)
	}
}

func TestHugeReply(t *testing.T) {
	r := &watchedReader{r: zeros{}, w: newWatch(t.Context(), time.Minute), left: 1 << 20}
	defer r.w.stop()
	n, err := io.Copy(io.Discard, r)
	if n != 1<<20 || !errors.Is(err, ErrProtocol) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestReadsAreRepeatedWritesAreNot(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	c := connect(t, h, nil)
	if _, err := c.Pool(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.on("VM.set_x", func([]any) (any, error) { return "", nil })
	var asked atomic.Int32
	h.mu.Lock()
	h.onRPC = func(*fakeConn) bool { return asked.Add(1) == 1 } // the first call's connection breaks
	h.mu.Unlock()
	if _, err := c.Pool(t.Context()); err != nil || asked.Load() != 2 {
		t.Errorf("a read: %v, asked %d times", err, asked.Load())
	}
	asked.Store(0)
	if _, err := c.Call(t.Context(), "VM.set_x", "v"); !errors.Is(err, ErrUnreachable) || asked.Load() != 1 {
		t.Errorf("a write: %v, asked %d times", err, asked.Load())
	}
}

func TestSilentHostAndContext(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	release := make(chan struct{})
	h.on("VM.slow", func([]any) (any, error) { <-release; return "", nil })
	defer close(release)
	c := connect(t, h, func(cfg *Config) { cfg.Timeouts.Call = 300 * time.Millisecond })
	if _, err := c.Call(t.Context(), "VM.slow"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a silent host: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
	if _, err := c.Call(ctx, "VM.slow"); !errors.Is(err, why) || errors.Is(err, ErrUnreachable) {
		t.Errorf("a caller that gave up: %v", err)
	}
	// A slow login does not hold those who gave up, and serves those who did not.
	h.on("session.login_with_password", func([]any) (any, error) { <-release; return "OpaqueRef:s", nil })
	d := connect(t, h, nil)
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := d.Pool(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a login: %v", err)
	}
}

// XAPI does what it was asked for whether or not the caller has lost interest: the answer is waited for.
func TestChangesAreAwaited(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	ctx, cancel := context.WithCancel(t.Context())
	h.on("VBD.destroy", func([]any) (any, error) { cancel(); time.Sleep(50 * time.Millisecond); return "", nil })
	c := connect(t, h, func(cfg *Config) { cfg.Timeouts.Cancel = 10 * time.Second })
	if err := c.DestroyVBD(ctx, "OpaqueRef:1"); err != nil {
		t.Errorf("a call that was under way when its context ended: %v", err)
	}
	if err := c.DestroyVBD(ctx, "OpaqueRef:2"); !errors.Is(err, context.Canceled) || Unanswered(err) || h.called("VBD.destroy") != 1 {
		t.Errorf("a call after the end of its context: %v, made %d times in all", err, h.called("VBD.destroy"))
	}
	// One that is not answered in time is the caller's again.
	ctx, cancel = context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	h.on("VBD.destroy", func([]any) (any, error) { cancel(); <-release; return "", nil })
	c = connect(t, h, func(cfg *Config) { cfg.Timeouts.Cancel = 20 * time.Millisecond })
	if err := c.DestroyVBD(ctx, "OpaqueRef:3"); !errors.Is(err, context.Canceled) || !Unanswered(err) {
		t.Errorf("a call that is not answered: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	h.on("Async.VM.start", func([]any) (any, error) { cancel(); <-release; return "", nil })
	if err := c.Start(ctx, "OpaqueRef:4"); !errors.Is(err, context.Canceled) || !Unanswered(err) {
		t.Errorf("a long call that is not answered: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	h.on("VBD.get_record", func([]any) (any, error) { cancel(); <-release; return "", nil })
	if _, err := c.VBD(ctx, "OpaqueRef:5"); !errors.Is(err, context.Canceled) || Unanswered(err) {
		t.Errorf("a call that only reads: %v", err)
	}
}

func TestCloseLogsOutAndLeavesNothing(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	before := runtime.NumGoroutine()
	c := connect(t, h, nil)
	var wg sync.WaitGroup
	for range 4 * laneCount {
		wg.Go(func() {
			if _, err := c.Pool(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for range 2 {
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if h.called("session.logout") != 1 {
		t.Error("not logged out")
	}
	if _, err := c.Pool(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
	h.cut()
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
