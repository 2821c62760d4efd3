package xensim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

const testPassword = "secret"

// startPool starts a pool that checks itself after every call, quickly.
func startPool(t *testing.T, change ...func(*Config)) *Pool {
	t.Helper()
	cfg := Config{
		Hosts: 2, DiskSize: 3<<20 + 4096, Content: "sparse", Password: testPassword, Speedup: 1000, Seed: 7, Check: true,
		Data: t.TempDir(), Log: func(s string) { t.Log(s) },
	}
	for _, f := range change {
		f(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Start()
	t.Cleanup(func() {
		if err := p.CheckInvariants(); err != nil {
			t.Errorf("the database contradicts itself: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return p
}

func withVMs(n int) func(*Config)    { return func(c *Config) { c.VMs = n } }
func demo(c *Config)                 { c.Scenario = "demo"; c.DiskSize = 4 << 20 }
func version(v string) func(*Config) { return func(c *Config) { c.ProductVersion = v } }

// client speaks raw XML-RPC to one host.
type client struct {
	t       *testing.T
	base    string
	http    *http.Client
	session string
}

func (p *Pool) client(t *testing.T, host int) *client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{t: t, base: p.Info().Hosts[host].HTTP, http: &http.Client{
		Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// login gives a client with a session on the master.
func (p *Pool) login(t *testing.T) *client {
	t.Helper()
	c := p.client(t, 0)
	c.session = c.ok("session.login_with_password", "root", testPassword, "1.1", "test").(string)
	return c
}

func callBody(method string, params ...any) []byte {
	b := []byte(`<?xml version="1.0"?><methodCall><methodName>` + method + `</methodName><params>`)
	for _, v := range params {
		b = append(xmlrpc.Append(append(b, "<param>"...), v), "</param>"...)
	}
	return append(b, "</params></methodCall>"...)
}

func (c *client) do(method, path string, body io.Reader, change ...func(*http.Request)) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, c.base+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	res, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// raw makes a call without a session.
func (c *client) raw(method string, params ...any) (any, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, c.base+"/", bytes.NewReader(callBody(method, params...)))
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	value, ok := strings.CutPrefix(string(body), `<?xml version="1.0"?><methodResponse><params><param>`)
	value, ok2 := strings.CutSuffix(value, `</param></params></methodResponse>`)
	if res.StatusCode != http.StatusOK || !ok || !ok2 {
		return nil, fmt.Errorf("%s: %s", res.Status, body)
	}
	v, err := xmlrpc.DecodeValue([]byte(value))
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return v, nil
	}
	if m["Status"] == "Success" {
		return m["Value"], nil
	}
	f := &Failure{}
	for i, e := range m["ErrorDescription"].([]any) {
		if i == 0 {
			f.Code = e.(string)
		} else {
			f.Params = append(f.Params, e.(string))
		}
	}
	return nil, f
}

// call makes a call; session.* and system.* go without the session.
func (c *client) call(method string, params ...any) (any, error) {
	if strings.HasPrefix(method, "session.") || strings.HasPrefix(method, "system.") {
		return c.raw(method, params...)
	}
	return c.raw(method, append([]any{c.session}, params...)...)
}

// ok makes a call that must succeed.
func (c *client) ok(method string, params ...any) any {
	c.t.Helper()
	v, err := c.call(method, params...)
	if err != nil {
		c.t.Fatalf("%s%v: %v", method, params, err)
	}
	return v
}

// fails makes a call that must fail with a code; it gives the parameters.
func (c *client) fails(code, method string, params ...any) []string {
	c.t.Helper()
	v, err := c.call(method, params...)
	var f *Failure
	if !errors.As(err, &f) || f.Code != code {
		c.t.Fatalf("%s%v gave %v, %v; want %s", method, params, v, err, code)
	}
	return f.Params
}

func (c *client) str(method string, params ...any) string {
	c.t.Helper()
	s, ok := c.ok(method, params...).(string)
	if !ok {
		c.t.Fatalf("%s gave no string", method)
	}
	return s
}

func (c *client) list(method string, params ...any) []string {
	c.t.Helper()
	out := []string{}
	for _, e := range c.ok(method, params...).([]any) {
		out = append(out, e.(string))
	}
	return out
}

func (c *client) record(class, ref string) map[string]any {
	c.t.Helper()
	return c.ok(class+".get_record", ref).(map[string]any)
}

// vm gives the reference of the VM with a name.
func (c *client) vm(name string) string {
	c.t.Helper()
	refs := c.list("VM.get_by_name_label", name)
	if len(refs) == 0 {
		c.t.Fatalf("no VM is named %s", name)
	}
	return refs[0]
}

// disks gives the VDIs of a VM's disks, by userdevice.
func (c *client) disks(vm string) map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, vbd := range c.list("VM.get_VBDs", vm) {
		r := c.record("VBD", vbd)
		if r["type"] == "Disk" {
			out[r["userdevice"].(string)] = r["VDI"].(string)
		}
	}
	return out
}

// task waits for a task and gives its record.
func (c *client) task(ref string) map[string]any {
	c.t.Helper()
	for range 2000 {
		r := c.record("task", ref)
		if s := r["status"]; s != "pending" && s != "cancelling" {
			return r
		}
		time.Sleep(2 * time.Millisecond) // the server is another party; it is polled as clients do
	}
	c.t.Fatalf("task %s does not end", ref)
	return nil
}

// export fetches /export with the given parameters, following a redirect.
func (c *client) export(args ...string) *http.Response {
	c.t.Helper()
	res := c.do(http.MethodGet, "/export?"+c.query(args...), nil)
	if res.StatusCode == http.StatusFound {
		u := res.Header.Get("Location")
		to := *c
		to.base = u[:strings.Index(u, "/export")]
		return to.do(http.MethodGet, u[len(to.base):], nil)
	}
	return res
}

func (c *client) query(args ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(args); i += 2 {
		q.Set(args[i], args[i+1])
	}
	if !q.Has("session_id") {
		q.Set("session_id", c.session)
	}
	return q.Encode()
}

// body reads a response to its end.
func (c *client) body(res *http.Response) []byte {
	c.t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// imports sends an archive to /import and gives the finished task.
func (c *client) imports(archive []byte, args ...string) map[string]any {
	c.t.Helper()
	task := c.str("task.create", "import", "")
	c.put(archive, append(args, "task_id", task)...)
	return c.task(task)
}

// result gives the VMs that a finished import names.
func (c *client) result(task map[string]any) []string {
	c.t.Helper()
	if task["status"] != "success" {
		c.t.Fatalf("the import failed: %v", task)
	}
	v, err := xmlrpc.DecodeValue([]byte(task["result"].(string)))
	if err != nil {
		c.t.Fatal(err)
	}
	out := []string{}
	for _, e := range v.([]any) {
		out = append(out, e.(string))
	}
	return out
}

// put sends an archive over a connection of its own and reads the early answer. A
// server that stops reading early is none of the test's business.
func (c *client) put(archive []byte, args ...string) string {
	c.t.Helper()
	conn := c.dial()
	head := fmt.Sprintf("PUT /import?%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", c.query(args...), len(archive))
	if _, err := io.WriteString(conn, head); err != nil {
		c.t.Fatal(err)
	}
	go func() { _, _ = conn.Write(archive) }()
	b, _ := io.ReadAll(conn)
	return string(b)
}

func (c *client) dial() net.Conn {
	c.t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(context.Background(), "tcp", strings.TrimPrefix(c.base, "http://"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// state is Dump, which must succeed.
func (p *Pool) state(t *testing.T) State {
	t.Helper()
	s, err := p.Dump(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s State) vm(t *testing.T, uuid string) VMState {
	t.Helper()
	for _, list := range [][]VMState{s.VMs, s.Snapshots, s.Templates} {
		for _, v := range list {
			if v.UUID == uuid {
				return v
			}
		}
	}
	t.Fatalf("no VM %s", uuid)
	return VMState{}
}

// digests gives the SHA-256 of a VM's disks by userdevice.
func (v VMState) digests() map[string]string {
	out := map[string]string{}
	for _, d := range v.Disks {
		if d.Type == "Disk" {
			out[d.UserDevice] = d.VDI.SHA256
		}
	}
	return out
}

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 2000 {
		if f() {
			return
		}
		time.Sleep(2 * time.Millisecond) // nothing tells; the simulator's own clock runs
	}
	t.Fatalf("not within the time: %s", what)
}
