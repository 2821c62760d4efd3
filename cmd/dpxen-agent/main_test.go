package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/agent"
	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/xensim"
)

// setup writes the files of an agent beside a simulated host and returns their folder and the configuration's text.
func setup(t *testing.T, id certs.Identity) (dir, config string) {
	t.Helper()
	pool, err := xensim.New(xensim.Config{Hosts: 1, VMs: 1, DiskSize: 1 << 20, Speedup: 1000, Data: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	pool.Start()
	t.Cleanup(func() { pool.Close() })
	info := pool.Info()
	dir = t.TempDir()
	ca, err := certs.CreateCA(filepath.Join(dir, "ca"), certs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(id, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := certs.WritePair(filepath.Join(dir, "agent.pem"), filepath.Join(dir, "agent.key"), cert, key); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "ca.pem", string(ca.CertPEM()))
	write(t, dir, "password", info.Password+"\n")
	config = fmt.Sprintf(`
name: xs1
listen: 127.0.0.1:0
tls: {ca: ca.pem, cert: agent.pem, key: agent.key}
xapi: {url: %q, username: root, password_file: password, fingerprints: [%q]}
`, info.Hosts[0].HTTPS, info.Hosts[0].Fingerprint)
	return dir, config
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheck(t *testing.T) {
	xs1 := certs.Identity{Role: certs.Agent, Name: "xs1"}
	dir, config := setup(t, xs1)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "https://" + closed.Addr().String()
	closed.Close()
	urlStart := strings.Index(config, "https://")
	url := config[urlStart : urlStart+strings.Index(config[urlStart:], `"`)]
	fingerprint := config[strings.Index(config, "sha256:") : strings.Index(config, "sha256:")+20]
	write(t, dir, "wrong", "not the password")
	for _, tc := range []struct {
		name, text, last string
		code             int
	}{
		{"good", config, "PASS pool: ", agent.CodeGood},
		{"fault in the configuration", config + "colour: blue\n", "FAIL configuration: ", agent.CodeConfig},
		{"no certificate", strings.Replace(config, "agent.pem", "none.pem", 1), "FAIL certificate: ", agent.CodeConfig},
		{"wrong password", strings.Replace(config, "password_file: password", "password_file: wrong", 1), "FAIL XAPI login: ", agent.CodeAuth},
		{"other host certificate", strings.Replace(config, fingerprint, "sha256:0000000000000", 1), "FAIL XAPI login: ", agent.CodeAuth},
		{"nobody there", strings.Replace(config, url, nobody, 1), "FAIL XAPI login: ", agent.CodeUnreachable},
	} {
		var out bytes.Buffer
		code := run(t.Context(), []string{"--config", write(t, dir, "agent.yaml", tc.text), "--check"}, &out, &out)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		at := len(lines) - 1
		if strings.HasPrefix(tc.last, "FAIL configuration") {
			at = 0 // the faults follow, one a line
		}
		if code != tc.code || !strings.HasPrefix(lines[at], tc.last) {
			t.Errorf("%s: got code %d, want %d and %q:\n%s", tc.name, code, tc.code, tc.last, out.String())
		}
	}
}

func TestCheckOtherName(t *testing.T) {
	dir, config := setup(t, certs.Identity{Role: certs.Agent, Name: "xs2"})
	var out bytes.Buffer
	code := run(t.Context(), []string{"--config", write(t, dir, "agent.yaml", config), "--check"}, &out, &out)
	if code != agent.CodeAuth || !strings.Contains(out.String(), "is for agent xs2, not for agent xs1") {
		t.Errorf("got code %d:\n%s", code, out.String())
	}
}

func TestArguments(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--version"}, agent.CodeGood, "dpxen-agent " + version},
		{[]string{"--help"}, agent.CodeGood, "-config"},
		{[]string{"--colour"}, agent.CodeConfig, "not defined"},
		{[]string{"backup"}, agent.CodeConfig, "unexpected argument"},
		{[]string{"--config", "/nonexistent/agent.yaml"}, agent.CodeConfig, "no such file"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), tc.args, &out, &out); code != tc.code || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%v: got code %d and %q, want %d and %q", tc.args, code, out.String(), tc.code, tc.want)
		}
	}
}

// An agent serves until it is told to stop, and then ends well.
func TestServe(t *testing.T) {
	dir, config := setup(t, certs.Identity{Role: certs.Agent, Name: "xs1"})
	path := write(t, dir, "agent.yaml", config)
	ctx, cancel := context.WithCancel(t.Context())
	log := &watchedLog{want: "agent started", seen: cancel}
	if code := run(ctx, []string{"--config", path}, log, log); code != agent.CodeGood {
		t.Errorf("got code %d:\n%s", code, log.text.String())
	}
	if !strings.Contains(log.text.String(), "agent stopped") {
		t.Errorf("log:\n%s", log.text.String())
	}
	// The address in use by somebody else.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path = write(t, dir, "agent.yaml", strings.Replace(config, "127.0.0.1:0", l.Addr().String(), 1))
	limited, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var out bytes.Buffer
	if code := run(limited, []string{"--config", path}, &out, &out); code != agent.CodeFailed {
		t.Errorf("address in use: got code %d:\n%s", code, out.String())
	}
}

// watchedLog calls seen once want is logged. hclog serialises writes.
type watchedLog struct {
	text bytes.Buffer
	want string
	seen func()
}

func (w *watchedLog) Write(p []byte) (int, error) {
	n, err := w.text.Write(p)
	if strings.Contains(string(p), w.want) {
		w.seen()
	}
	return n, err
}
