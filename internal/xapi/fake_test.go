package xapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"html"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beevik/etree"
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

func (h *fakeHost) serve(c net.Conn) {
	defer c.Close()
	defer func() {
		h.mu.Lock()
		delete(h.conns, c)
		h.mu.Unlock()
	}()
	r := bufio.NewReaderSize(c, 4096)
	for first := true; ; first = false {
		head, err := readHead(r)
		if err != nil {
			return
		}
		if first && len(head) >= maxRequestHead {
			_, _ = io.WriteString(c, "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection:close\r\n\r\n")
			h.t.Errorf("request head of %d bytes: %s", len(head), head)
			return
		}
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			h.t.Errorf("request head: %v: %q", err, head)
			return
		}
		fc := &fakeConn{Conn: c, r: r, req: req, host: h}
		h.mu.Lock()
		script := map[string]func(*fakeConn){"GET": h.onGet, "PUT": h.onPut}[req.Method]
		if req.Method != http.MethodPost {
			h.heads = append(h.heads, head)
		}
		takeOver := h.onRPC
		h.mu.Unlock()
		if script != nil {
			script(fc)
			return
		}
		if req.Method != http.MethodPost {
			_, _ = io.WriteString(c, "HTTP/1.1 501 Method not implemented\r\nconnection:close\r\n\r\n")
			return
		}
		if takeOver != nil && takeOver(fc) {
			return
		}
		if !h.rpc(fc) {
			return
		}
	}
}

func readHead(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		b.WriteString(line)
		if line == "\r\n" {
			return b.String(), nil
		}
	}
}

func (h *fakeHost) rpc(c *fakeConn) bool {
	if c.req.ContentLength < 0 {
		h.t.Errorf("call without Content-Length")
		return false
	}
	body := make([]byte, c.req.ContentLength)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return false
	}
	method, args, err := parseCall(body)
	if err != nil {
		h.t.Errorf("call: %v: %s", err, body)
		return false
	}
	h.mu.Lock()
	h.log, h.raw = append(h.log, method), append(h.raw, body)
	f := h.calls[method]
	h.mu.Unlock()
	var v any
	if f == nil {
		err = fail("MESSAGE_METHOD_UNKNOWN", method)
	} else {
		v, err = f(args)
	}
	var reply bytes.Buffer
	reply.WriteString(`<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>`)
	var e *Error
	if errors.As(err, &e) {
		words := []any{e.Code}
		for _, p := range e.Params {
			words = append(words, p)
		}
		reply.WriteString("Failure</value></member><member><name>ErrorDescription</name>" + xmlValue(words))
	} else {
		reply.WriteString("Success</value></member><member><name>Value</name>" + xmlValue(v))
	}
	reply.WriteString("</member></struct></value></param></params></methodResponse>")
	_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: %d\r\n\r\n%s", reply.Len(), reply.Bytes())
	return err == nil
}

// parseCall reads a methodCall with a decoder that is not the one under test.
func parseCall(body []byte) (string, []any, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(body); err != nil {
		return "", nil, err
	}
	var args []any
	for _, v := range doc.FindElements("/methodCall/params/param/value") {
		args = append(args, goValue(v))
	}
	return doc.FindElement("/methodCall/methodName").Text(), args, nil
}

func goValue(v *etree.Element) any {
	kids := v.ChildElements()
	if len(kids) == 0 {
		return v.Text()
	}
	switch k := kids[0]; k.Tag {
	case "boolean":
		return k.Text() == "1"
	case "array":
		out := []any{}
		for _, x := range k.FindElements("./data/value") {
			out = append(out, goValue(x))
		}
		return out
	case "struct":
		out := map[string]any{}
		for _, m := range k.SelectElements("member") {
			out[m.SelectElement("name").Text()] = goValue(m.SelectElement("value"))
		}
		return out
	case "double":
		return "double:" + k.Text()
	default:
		return k.Text()
	}
}

// xmlValue writes a value as XAPI does (reference section 1.4).
func xmlValue(v any) string {
	switch x := v.(type) {
	case nil:
		return "<value/>"
	case string:
		return "<value>" + html.EscapeString(x) + "</value>"
	case int:
		return fmt.Sprintf("<value>%d</value>", x)
	case bool:
		return "<value><boolean>" + map[bool]string{true: "1", false: "0"}[x] + "</boolean></value>"
	case float64:
		return fmt.Sprintf("<value><double>%.16g</double></value>", x)
	case time.Time:
		return "<value><dateTime.iso8601>" + x.UTC().Format("20060102T15:04:05Z") + "</dateTime.iso8601></value>"
	case []any:
		var b strings.Builder
		for _, i := range x {
			b.WriteString(xmlValue(i))
		}
		return "<value><array><data>" + b.String() + "</data></array></value>"
	case map[string]any:
		var b strings.Builder
		for k, i := range x {
			b.WriteString("<member><name>" + html.EscapeString(k) + "</name>" + xmlValue(i) + "</member>")
		}
		return "<value><struct>" + b.String() + "</struct></value>"
	}
	panic(fmt.Sprintf("no XML for %T", v))
}

// param gives a query parameter.
func (c *fakeConn) param(name string) string { return c.req.URL.Query().Get(name) }

func (c *fakeConn) write(s string) {
	if _, err := io.WriteString(c, s); err != nil {
		c.host.t.Logf("fake host: write: %v", err)
	}
}

// exportHead is the head of /export's answer (reference section 3.1).
func exportHead(task string) string {
	return "HTTP/1.0 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id: " + task +
		"\r\nServer: fake\r\ncontent-type: application/octet-stream\r\nContent-Disposition: attachment; filename=\"export.xva\"\r\n\r\n"
}

// importHead is the early answer of /import (reference section 3.2).
func importHead(task string) string {
	return "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id: " + task +
		"\r\ncontent-type: application/octet-stream\r\n\r\n"
}

// errorPage is one of XAPI's error pages (reference section 1.1).
func errorPage(status, detail string) string {
	body := "<html><body><h1>HTTP " + status + "</h1>An error occurred. <h1>Additional information</h1>" + html.EscapeString(detail) + "</body></html>"
	return fmt.Sprintf("HTTP/1.1 %s\r\ncontent-length: %d\r\ncontent-type:text/html\r\nconnection:close\r\ncache-control:no-cache, no-store\r\n\r\n%s",
		status, len(body), body)
}

func redirectTo(location string) string {
	return "HTTP/1.1 302 Found\r\nLocation: " + location + "\r\nConnection: close\r\n\r\n"
}

// quick are limits for tests: nothing in them is waited for in full but where a test wants it.
func quick() Timeouts {
	const long = 30 * time.Second
	return Timeouts{Connect: long, Call: long, ExportHeaders: long, StreamIdle: long, TaskPollMin: time.Millisecond,
		TaskPollMax: 5 * time.Millisecond, Outage: 200 * time.Millisecond, Cancel: long, InUse: long, InUsePause: time.Millisecond}
}

func passwordFile(t testing.TB, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// connect makes a client of a host that trusts all of trusted.
func connect(t testing.TB, h *fakeHost, change func(*Config), trusted ...*fakeHost) *Client {
	t.Helper()
	cfg := Config{URL: h.url(), Username: fakeUser, PasswordFile: passwordFile(t, fakePassword+"\n", 0o600), Originator: "dpxen-agent/test", Timeouts: quick()}
	for _, x := range append(slices.Clone(trusted), h) {
		if x.cert != nil && !slices.Contains(cfg.Fingerprints, x.fingerprint()) {
			cfg.Fingerprints = append(cfg.Fingerprints, x.fingerprint())
		}
	}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer stop()
		if err := c.Close(ctx); err != nil {
			t.Logf("close: %v", err)
		}
	})
	return c
}

// noSecrets checks that an error tells no secret.
func noSecrets(t testing.TB, err error) {
	t.Helper()
	for _, s := range []string{"OpaqueRef:session", "session_id", fakePassword} {
		if err != nil && strings.Contains(fmt.Sprintf("%v %+v", err, err), s) {
			t.Errorf("error tells %q: %v", s, err)
		}
	}
}
