package xensim

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// exchange sends raw bytes and reads until the server closes.
func (c *client) exchange(request string) string {
	c.t.Helper()
	conn := c.dial()
	if _, err := io.WriteString(conn, request); err != nil {
		c.t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

func TestXMLRPCGolden(t *testing.T) {
	c := startPool(t).client(t, 0)
	for _, path := range []string{"/", "/RPC2", "/xmlrpc", "/anything"} {
		body := callBody("VM.get_all", "OpaqueRef:none")
		res := c.do(http.MethodPost, path, bytes.NewReader(body))
		if res.Header.Get("Content-Type") != "text/xml" || res.Header.Get("Access-Control-Allow-Origin") != "*" || res.ContentLength < 0 {
			t.Errorf("%s: headers %v", path, res.Header)
		}
		want := `<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name>` +
			`<value>Failure</value></member><member><name>ErrorDescription</name><value><array><data>` +
			`<value>SESSION_INVALID</value><value>OpaqueRef:none</value></data></array></value></member></struct></value>` +
			`</param></params></methodResponse>`
		if got := string(c.body(res)); got != want {
			t.Errorf("%s: %s", path, got)
		}
	}
	res := c.do(http.MethodPost, "/", bytes.NewReader(callBody("system.listMethods")))
	got := string(c.body(res))
	if !strings.HasPrefix(got, `<?xml version="1.0"?><methodResponse><params><param><value><array><data><value>Async.Bond.`) ||
		!strings.Contains(got, "<value>VM.get_all_records</value>") || !strings.Contains(got, "<value>session.login_with_password</value>") {
		t.Errorf("listMethods: %.300s", got)
	}
}

func TestHTTPRules(t *testing.T) {
	c := startPool(t).client(t, 0)
	cases := []struct{ name, request, first, part string }{
		{"no length", "POST / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 500 Internal Error", "require a content-length"},
		{"malformed", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n<a>", "HTTP/1.1 500 Internal Error", "malformed XML-RPC"},
		{"headers too long", "GET /" + strings.Repeat("x", 1100) + " HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 431 Request Header Fields Too Large", ""},
		{"unknown method", "DELETE /x HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 501 Method not implemented", ""},
		{"no method", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 501 Method not implemented", ""},
		{"unknown path", "PUT /nosuch HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 403 Forbidden", "<h1>HTTP 403 forbidden</h1>"},
		{"no file", "GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found", ""},
		{"no HTTP", "rubbish\r\n\r\n", "HTTP/1.1 500 Internal Error", "could not be parsed"},
		{"an error without parameters", "POST /jsonrpc HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.0 500 Internal Error", "<h1> Additional information </h1>INTERNAL_ERROR: [ "},
		{"no session", "GET /export?uuid=x HTTP/1.0\r\n\r\n", "HTTP/1.0 401 Unauthorized", `WWW-Authenticate: Basic realm="VM.export"`},
	}
	for _, tc := range cases {
		got := c.exchange(tc.request)
		first, _, _ := strings.Cut(got, "\r\n")
		if first != tc.first || !strings.Contains(got, tc.part) || !strings.Contains(got, "content-type: text/html\r\nconnection: close\r\ncache-control: no-cache, no-store") {
			t.Errorf("%s: %s", tc.name, got)
		}
		if n := strings.Count(got, "HTTP/1."); n != 1 {
			t.Errorf("%s: %d answers: %s", tc.name, n, got)
		}
	}
	body := string(callBody("system.listMethods"))
	if got := c.exchange(fmt.Sprintf("POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(body), body)); !strings.HasPrefix(got, "HTTP/1.0 200 OK\r\n") {
		t.Errorf("an HTTP/1.0 call: %.100s", got)
	}
	for head, connection := range map[string]string{
		"POST / HTTP/1.1\r\n":                               "keep-alive", // without a Host, which XAPI does not ask for
		"POST / HTTP/1.1\r\nConnection: close\r\n":          "close",
		"POST /any HTTP/1.0\r\n":                            "close",
		"POST /RPC2 HTTP/1.0\r\nConnection: keep-alive\r\n": "keep-alive",
	} {
		conn := c.dial()
		if _, err := fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%q: %v", head, err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK || res.Close != (connection == "close") || !res.Close && res.Header.Get("Connection") != connection || res.Header.Get("Cache-Control") != "no-cache, no-store" {
			t.Errorf("%q: %s %v", head, res.Status, res.Header)
		}
	}
	res := c.do(http.MethodOptions, "/jsonrpc", nil, func(r *http.Request) { r.Header.Set("Access-Control-Request-Headers", "content-type") })
	if got := res.Header; got.Get("Access-Control-Allow-Headers") != "content-type, X-Requested-With" || got.Get("Access-Control-Allow-Methods") != "PUT" ||
		got.Get("Access-Control-Allow-Origin") != "*" || got["Content-Type"] != nil || res.ContentLength != 0 {
		t.Errorf("OPTIONS: %v", got)
	}
	// A second request on a connection has no limit.
	conn := c.dial()
	r := bufio.NewReader(conn)
	for _, pad := range []int{10, 3000} {
		if _, err := fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nX-Pad: %s\r\nContent-Length: %d\r\n\r\n%s", strings.Repeat("p", pad), len(body), body); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request with %d bytes of header: %v", pad, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("request with %d bytes of header: %s, %v", pad, res.Status, err)
		}
		_ = res.Body.Close()
	}
}

func TestSessions(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.client(t, 0)
	for _, args := range [][]any{{"root", testPassword}, {"root", testPassword, "1.1"}, {"root", testPassword, "1.1", "me"}} {
		c.session = c.str("session.login_with_password", args...)
		if !strings.HasPrefix(c.session, "OpaqueRef:") {
			t.Errorf("session %q", c.session)
		}
		c.ok("VM.get_all")
		c.ok("session.logout", c.session)
		if got := c.fails("SESSION_INVALID", "VM.get_all"); got[0] != c.session {
			t.Errorf("SESSION_INVALID %v", got)
		}
	}
	if got := c.fails("SESSION_AUTHENTICATION_FAILED", "session.login_with_password", "root", "wrong"); got[0] != "root" {
		t.Errorf("SESSION_AUTHENTICATION_FAILED %v", got)
	}
	if got := c.fails("MESSAGE_PARAMETER_COUNT_MISMATCH", "session.login_with_password", "root"); !slices.Equal(got, []string{"session.login_with_password", "2", "1"}) {
		t.Errorf("count: %v", got)
	}
	if got := p.client(t, 1).fails("HOST_IS_SLAVE", "session.login_with_password", "root", testPassword); got[0] != strings.TrimPrefix(c.base, "http://") {
		t.Errorf("HOST_IS_SLAVE %v, master %s", got, c.base)
	}
	c = p.login(t)
	member := p.client(t, 1)
	member.session = c.session
	member.fails("HOST_IS_SLAVE", "VM.get_all")
	if err := p.SetMaster("xen2"); err != nil {
		t.Fatal(err)
	}
	member.ok("VM.get_all")
	c.fails("HOST_IS_SLAVE", "VM.get_all")
}

func TestArguments(t *testing.T) {
	p := startPool(t, withVMs(1), version("8.2.1"))
	c := p.login(t)
	vm := c.vm("vm-01")
	c.fails("MESSAGE_METHOD_UNKNOWN", "VM.no_such_call")
	c.fails("MESSAGE_METHOD_UNKNOWN", "Async.VM.get_record", vm)
	if got := c.fails("MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", vm); !slices.Equal(got, []string{"VM.snapshot", "2", "1"}) {
		t.Errorf("count: %v", got)
	}
	c.fails("MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", vm, "x", []string{}) // since 21.4.0
	if got := c.fails("FIELD_TYPE_ERROR", "VM.set_is_a_template", vm, "yes"); got[0] != "value" {
		t.Errorf("type: %v", got)
	}
	if got := c.fails("HANDLE_INVALID", "VM.get_record", "OpaqueRef:gone"); !slices.Equal(got, []string{"VM", "OpaqueRef:gone"}) {
		t.Errorf("handle: %v", got)
	}
	if got := c.fails("UUID_INVALID", "VM.get_by_uuid", "gone"); !slices.Equal(got, []string{"VM", "gone"}) {
		t.Errorf("uuid: %v", got)
	}
	if got := c.fails("NOT_IMPLEMENTED", "VM.send_sysrq", vm, "h"); !slices.Equal(got, []string{"VM.send_sysrq"}) {
		t.Errorf("not implemented: %v", got)
	}
}

func TestJSONRPC(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.client(t, 0)
	post := func(body string) map[string]any {
		t.Helper()
		res := c.do(http.MethodPost, "/jsonrpc", strings.NewReader(body))
		if got := res.Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("content type %q", got)
		}
		out := map[string]any{}
		if err := json.Unmarshal(c.body(res), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	r := post(`{"jsonrpc":"2.0","method":"session.login_with_password","params":["root","` + testPassword + `"],"id":0}`)
	session, _ := r["result"].(string)
	if session == "" || r["jsonrpc"] != "2.0" || r["id"] != 0.0 {
		t.Fatalf("login: %v", r)
	}
	r = post(`{"jsonrpc":"2.0","method":"pool.get_all_records","params":["` + session + `"],"id":"a"}`)
	for _, v := range r["result"].(map[string]any) {
		rec := v.(map[string]any)
		if rec["ha_enabled"] != false || rec["coordinator_bias"] != true || rec["update_sync_day"] != 0.0 || rec["last_update_sync"] != "19700101T00:00:00Z" {
			t.Errorf("pool record: %v", rec)
		}
	}
	r = post(`{"jsonrpc":"2.0","method":"VM.get_record","params":["` + session + `","x"],"id":1}`)
	e, _ := r["error"].(map[string]any)
	if e["message"] != "HANDLE_INVALID" || e["code"] != 1.0 || fmt.Sprint(e["data"]) != "[VM x]" {
		t.Errorf("2.0 error: %v", r)
	}
	r = post(`{"method":"VM.get_record","params":["` + session + `","x"],"id":1}`)
	if fmt.Sprint(r["error"]) != "[HANDLE_INVALID VM x]" || r["result"] != nil {
		t.Errorf("1.0 error: %v", r)
	}
	r = post(`{"method":"system.listMethods","params":[],"id":1}`)
	if len(r["result"].([]any)) < 1000 || r["error"] != nil {
		t.Errorf("listMethods: %.200v", r)
	}
	host, _ := post(`{"jsonrpc":"2.0","method":"host.get_all","params":["` + session + `"],"id":1}`)["result"].([]any)[0].(string)
	res := c.do(http.MethodPost, "/jsonrpc/", strings.NewReader(`{"jsonrpc":"2.0","method":"VM.get_all_records","params":["`+session+`"],"id":1}`))
	if body := string(c.body(res)); !strings.Contains(body, `"HVM_shadow_multiplier":1.0,`) || !strings.Contains(body, `"`+host+`"`) {
		t.Errorf("a float without a fraction: %.500s", body)
	}
	for _, body := range []string{
		`{"method":"system.listMethods","params":[]}`,
		`{"method":"system.listMethods","params":[],"id":null}`,
		`{"method":"system.listMethods","params":[],"id":1.5}`,
		`{"method":"system.listMethods","params":[],"id":true}`,
		`{"method":"system.listMethods","params":[],"id":[1]}`,
		`{"method":"system.listMethods","id":1}`,
		`{"method":"system.listMethods","params":null,"id":1}`,
		`{"method":"system.listMethods","params":{},"id":1}`,
		`{"jsonrpc":"2.0","method":"system.listMethods","params":"x","id":1}`,
		`{"jsonrpc":"1.0","method":"system.listMethods","params":[],"id":1}`,
		`{"jsonrpc":2.0,"method":"system.listMethods","params":[],"id":1}`,
		`{"jsonrpc":"2.0","params":[],"id":1}`,
		`[{"jsonrpc":"2.0","method":"system.listMethods","params":[],"id":1}]`,
	} {
		if res := c.do(http.MethodPost, "/jsonrpc", strings.NewReader(body)); res.StatusCode != http.StatusInternalServerError {
			t.Errorf("%s gave %s", body, res.Status)
		}
	}
	for _, params := range []string{"", `"params":null,`} {
		if r := post(`{"jsonrpc":"2.0",` + params + `"method":"system.listMethods","id":"x"}`); r["id"] != "x" || r["result"] == nil {
			t.Errorf("without parameters: %.200v", r)
		}
	}
}

func TestTLSAndSocket(t *testing.T) {
	dir := t.TempDir()
	p := startPool(t, withVMs(1), func(c *Config) { c.Socket = dir })
	for i, h := range p.Info().Hosts {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, CipherSuites: suites[i : i+1]}} //nolint:gosec // the fingerprint is what is tested
		conn, err := d.DialContext(context.Background(), "tcp", strings.TrimPrefix(h.HTTPS, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		state := conn.(*tls.Conn).ConnectionState()
		_ = conn.Close()
		sum := sha256.Sum256(state.PeerCertificates[0].Raw)
		if got := "sha256:" + hex.EncodeToString(sum[:]); got != h.Fingerprint || state.Version != tls.VersionTLS12 || state.CipherSuite != suites[i] {
			t.Errorf("host %d: fingerprint %s, said %s, TLS %x", i, got, h.Fingerprint, state.Version)
		}
		if strings.TrimPrefix(h.HTTP, "http://") != strings.TrimPrefix(h.HTTPS, "https://") || h.Socket != filepath.Join(dir, h.Name+".sock") {
			t.Errorf("addresses: %+v", h)
		}
	}
	onSocket := func(host int) *client {
		c := p.client(t, host)
		path := p.Info().Hosts[host].Socket
		c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}, DisableKeepAlives: true}
		return c
	}
	c := onSocket(0)
	c.session = c.str("session.login_with_password", "root", "any password")
	c.ok("VM.get_all")
	m := onSocket(1)
	m.session = m.str("session.login_with_password", "root", "")
	m.fails("HOST_IS_SLAVE", "VM.get_all")
	c.session = m.session
	c.ok("VM.get_all")
	c.ok("VM.clean_shutdown", c.vm("vm-01"))
	res := m.do(http.MethodGet, "/export?ref="+c.vm("vm-01"), nil)
	if res.StatusCode != http.StatusOK || len(m.body(res)) < 1<<20 {
		t.Errorf("export over a member's socket: %s", res.Status)
	}
}
