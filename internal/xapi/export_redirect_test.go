package xapi

import (
	"errors"
	"io"
	"testing"
	"time"
)

func TestExportRedirects(t *testing.T) {
	a, b, stranger := newFakeHost(t, "127.0.0.1:0", true), newFakeHost(t, "127.0.0.1:0", true), newFakeHost(t, "127.0.0.1:0", true)
	plain := newFakeHost(t, "127.0.0.1:0", false)
	a.hosts(a, b, plain)
	exports(b, "success")
	exports(stranger, "success")
	exports(plain, "success")
	location := ""
	a.onGet = func(c *fakeConn) { c.write(redirectTo(location)) }
	c := connect(t, a, func(cfg *Config) { cfg.Timeouts.Cancel = 50 * time.Millisecond }, b, stranger)
	for name, tc := range map[string]struct {
		location string
		want     error
	}{
		"to the other host": {b.url() + "/export?ref=x&session_id=y", nil},
		"to a stranger":     {stranger.url() + "/export", ErrProtocol},
		"to plain http":     {plain.url() + "/export", ErrProtocol},
		"to itself":         {a.url() + "/export", ErrProtocol},
		"relative":          {"/export", ErrProtocol},
		"nowhere":           {"", ErrProtocol},
		"other scheme":      {"gopher://" + b.address(), ErrProtocol},
		"user in it":        {"https://" + a.address() + "@" + stranger.address() + "/", ErrProtocol},
	} {
		location = tc.location
		e, err := c.Export(t.Context(), ExportRequest{VM: "vm"})
		if tc.want != nil {
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: %v", name, err)
			}
			noSecrets(t, err)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := io.ReadAll(e); err != nil || len(got) != len(archive) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		a.endTask(string(e.Task()), "success", "")
		if _, err := e.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(stranger.heads)+len(plain.heads) > 0 {
		t.Error("a session was shown to a stranger")
	}
	// The caller may name the host to ask first, also one of the pool's only.
	if e, err := c.Export(t.Context(), ExportRequest{VM: "vm", Host: b.address()}); err != nil || len(b.heads) != 2 {
		t.Errorf("host by address: %v", err)
	} else {
		a.endTask(string(e.Task()), "success", "")
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, host := range []string{stranger.address(), stranger.url(), plain.url(), "a b"} {
		if _, err := c.Export(t.Context(), ExportRequest{VM: "vm", Host: host}); err == nil {
			t.Errorf("host %s was asked", host)
		}
	}
}

func TestPlainClientIsSentToTLS(t *testing.T) {
	// The host's records and its redirect name one address; over http:// without trust it is asked over http.
	h := newFakeHost(t, "127.0.0.1:0", false)
	first := true
	h.onGet = func(c *fakeConn) {
		if first {
			first = false
			c.write(redirectTo("https://" + h.address() + "/export"))
			return
		}
		c.write(exportHead("t") + "x")
	}
	e, err := connect(t, h, nil).Export(t.Context(), ExportRequest{VM: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	secure := newFakeHost(t, "127.0.0.1:0", true)
	exports(secure, "success")
	h.hosts(h, secure)
	first, h.onGet = true, func(c *fakeConn) { c.write(redirectTo(secure.url() + "/export")) }
	e, err = connect(t, h, nil, secure).Export(t.Context(), ExportRequest{VM: "vm"})
	if err != nil || len(secure.heads) != 1 {
		t.Fatalf("with trust: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
