package xensim

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// corked keeps what is written until it is closed.
type corked struct {
	net.Conn
	held bytes.Buffer
	on   bool
}

func (c *corked) Write(p []byte) (int, error) {
	if c.on {
		return c.held.Write(p)
	}
	return c.Conn.Write(p)
}

func (c *corked) Close() error {
	if err := c.SetWriteDeadline(time.Time{}); err != nil { // TLS has set one for its farewell
		return err
	}
	if _, err := c.Conn.Write(c.held.Bytes()); err != nil {
		return err
	}
	return c.Conn.Close()
}

// A client asks for an import and goes away at once: its farewell comes with the last bytes of the request's head. The request is
// one all the same, and its task ends.
func TestFarewellWithTheHead(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	task := c.str("task.create", "import", "")
	raw, err := net.Dial("tcp", strings.TrimPrefix(p.Info().Hosts[0].HTTPS, "https://")) //nolint:noctx // loopback
	if err != nil {
		t.Fatal(err)
	}
	cork := &corked{Conn: raw}
	conn := tls.Client(cork, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}) //nolint:gosec // a certificate of its own
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	cork.on = true
	if _, err := fmt.Fprintf(conn, "PUT /import?%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n", c.query("task_id", task)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if r := c.task(task); r["status"] != "failure" {
		t.Errorf("the task: %v", r)
	}
}
