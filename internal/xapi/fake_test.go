package xapi

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeHost is a scripted XAPI built from the reference alone: one listener, plain or TLS, that answers XML-RPC calls
// from a table and hands GET and PUT to a script that owns the connection.
type fakeHost struct {
	t    testing.TB
	ln   net.Listener
	cert *x509.Certificate // nil = plain

	mu     sync.Mutex
	calls  map[string]func(args []any) (any, error)
	log    []string // methods called
	raw    [][]byte // bodies of calls
	tasks  map[string]*fakeTask
	seq    int
	onGet  func(c *fakeConn)
	onPut  func(c *fakeConn)
	onRPC  func(c *fakeConn) bool // takes the call over when it returns true
	heads  []string               // of GET and PUT requests
	logins int
	conns  map[net.Conn]struct{}
}

type fakeTask struct {
	status, result string
	progress       float64
	errorInfo      []string
	destroyed      bool
	cancels        int
}

// fakeConn is a connection whose request head was read.
type fakeConn struct {
	net.Conn
	r    *bufio.Reader
	req  *http.Request
	host *fakeHost
}

const fakeUser, fakePassword = "root", "s3cret-pass"

func newFakeHost(t testing.TB, listen string, secure bool) *fakeHost {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(listen, "/") {
		network = "unix"
	}
	ln, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHost{t: t, ln: ln, calls: map[string]func([]any) (any, error){}, tasks: map[string]*fakeTask{}, conns: map[net.Conn]struct{}{}}
	if secure {
		pair, leaf := newCertificate(t)
		h.cert = leaf
		h.ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	}
	h.standardCalls()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := h.ln.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.conns[c] = struct{}{}
			h.mu.Unlock()
			wg.Go(func() { h.serve(c) })
		}
	})
	t.Cleanup(func() {
		h.stop()
		wg.Wait()
	})
	return h
}

// stop is a host that goes down.
func (h *fakeHost) stop() {
	h.ln.Close()
	h.cut()
}

// cut resets every connection.
func (h *fakeHost) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.Close()
	}
}

func newCertificate(t testing.TB) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "xen"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, leaf
}

func (h *fakeHost) address() string { return h.ln.Addr().String() }

func (h *fakeHost) url() string {
	switch {
	case h.ln.Addr().Network() == "unix":
		return "unix://" + h.address()
	case h.cert != nil:
		return "https://" + h.address()
	}
	return "http://" + h.address()
}

func (h *fakeHost) fingerprint() string {
	sum := sha256.Sum256(h.cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (h *fakeHost) caFile() string {
	path := filepath.Join(h.t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.cert.Raw}), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// on scripts a call.
func (h *fakeHost) on(method string, f func(args []any) (any, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[method] = f
}

// fail is a failure of XAPI.
func fail(words ...string) error { return &Error{Code: words[0], Params: words[1:]} }

func (h *fakeHost) called(method string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, m := range h.log {
		if m == method {
			n++
		}
	}
	return n
}

func (h *fakeHost) task(ref string) *fakeTask {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tasks[ref]
}

// endTask completes a task as a handler does.
func (h *fakeHost) endTask(ref, status, result string, info ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.tasks[ref]; t != nil && t.status == "pending" {
		t.status, t.result, t.errorInfo = status, result, info
	}
}

// newTask makes a task and gives its reference; the lock is not held.
func (h *fakeHost) newTask(status, result string, info ...string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	ref := fmt.Sprintf("OpaqueRef:task-%d", h.seq)
	h.tasks[ref] = &fakeTask{status: status, result: result, errorInfo: info}
	return ref
}

// standardCalls are those of sessions, tasks, pool and hosts.
func (h *fakeHost) standardCalls() {
	h.calls["session.login_with_password"] = func(args []any) (any, error) {
		if len(args) < 2 || args[0] != fakeUser || args[1] != fakePassword {
			return nil, fail("SESSION_AUTHENTICATION_FAILED", fmt.Sprint(args[0]), "password "+fmt.Sprint(args[1])+" is wrong")
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.logins++
		return fmt.Sprintf("OpaqueRef:session-%d", h.logins), nil
	}
	h.calls["session.logout"] = func([]any) (any, error) { return "", nil }
	h.calls["task.create"] = func([]any) (any, error) { return h.newTask("pending", ""), nil }
	withTask := func(f func(t *fakeTask) any) func([]any) (any, error) {
		return func(args []any) (any, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			t := h.tasks[args[1].(string)]
			if t == nil {
				return nil, fail("HANDLE_INVALID", "task", args[1].(string))
			}
			return f(t), nil
		}
	}
	h.calls["task.get_record"] = withTask(func(t *fakeTask) any {
		info := []any{}
		for _, w := range t.errorInfo {
			info = append(info, w)
		}
		return map[string]any{"uuid": "task-uuid", "status": t.status, "progress": t.progress, "result": t.result, "error_info": info,
			"created": time.Unix(1e9, 0), "name_label": "n", "brand_new_field": map[string]any{"a": 1}}
	})
	h.calls["task.cancel"] = withTask(func(t *fakeTask) any {
		t.cancels++
		if t.status == "pending" {
			t.status, t.errorInfo = "cancelled", []string{"TASK_CANCELLED", "x"}
		}
		return ""
	})
	h.calls["task.destroy"] = withTask(func(t *fakeTask) any { t.destroyed = true; return "" })
	h.calls["pool.get_all_records"] = func([]any) (any, error) {
		return map[string]any{"OpaqueRef:pool": map[string]any{"uuid": "p", "master": "OpaqueRef:host1", "name_label": "pool"}}, nil
	}
	h.calls["host.get_all_records"] = func([]any) (any, error) {
		return map[string]any{"OpaqueRef:host1": map[string]any{"uuid": "h1", "address": h.address()}}, nil
	}
}

// hosts makes the host records name those hosts.
func (h *fakeHost) hosts(hosts ...*fakeHost) {
	h.on("host.get_all_records", func([]any) (any, error) {
		out := map[string]any{}
		for i, x := range hosts {
			out[fmt.Sprintf("OpaqueRef:host%d", i+1)] = map[string]any{"uuid": fmt.Sprint(i), "address": x.address(), "enabled": true}
		}
		return out, nil
	})
}
