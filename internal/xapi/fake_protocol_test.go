package xapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"
)

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
