package xapi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestNewValidates(t *testing.T) {
	pin := "sha256:" + strings.Repeat("ab", 32)
	good := passwordFile(t, "pw\n", 0o600)
	base := Config{URL: "https://h", Username: "root", PasswordFile: good, Fingerprints: []string{pin}}
	for name, tc := range map[string]struct {
		change func(*Config)
		bad    string // part of the error; "" = good
	}{
		"pinned": {func(*Config) {}, ""},
		"colons and case": {func(c *Config) {
			c.Fingerprints = []string{"SHA256:" + strings.TrimSuffix(strings.Repeat("AB:", 32), ":")}
		}, ""},
		"insecure":              {func(c *Config) { c.Fingerprints, c.Insecure = nil, true }, ""},
		"port":                  {func(c *Config) { c.URL = "https://10.0.0.1:8443/" }, ""},
		"IPv6":                  {func(c *Config) { c.URL = "https://[fd00::1]:443" }, ""},
		"plain":                 {func(c *Config) { c.URL, c.Fingerprints = "http://h", nil }, ""},
		"socket":                {func(c *Config) { *c = Config{URL: "unix:///var/lib/xcp/xapi"} }, ""},
		"no trust":              {func(c *Config) { c.Fingerprints = nil }, "https needs one of"},
		"two ways":              {func(c *Config) { c.Insecure = true }, "only one of"},
		"short fingerprint":     {func(c *Config) { c.Fingerprints = []string{"sha256:abcd"} }, "64 hex digits"},
		"other digest":          {func(c *Config) { c.Fingerprints = []string{strings.Repeat("ab", 32)} }, "64 hex digits"},
		"missing ca":            {func(c *Config) { c.Fingerprints, c.CAFile = nil, filepath.Join(t.TempDir(), "none") }, "ca:"},
		"empty ca":              {func(c *Config) { c.Fingerprints, c.CAFile = nil, good }, "no certificate"},
		"scheme":                {func(c *Config) { c.URL = "ftp://h" }, "want https://"},
		"no host":               {func(c *Config) { c.URL = "https://" }, "host"},
		"path":                  {func(c *Config) { c.URL = "https://h/x" }, "nothing else"},
		"user":                  {func(c *Config) { c.URL = "https://u:p@h" }, "nothing else"},
		"bad port":              {func(c *Config) { c.URL = "https://h:0" }, "port"},
		"relative socket":       {func(c *Config) { c.URL = "unix://var/lib" }, "unix:///"},
		"no password file":      {func(c *Config) { c.PasswordFile = "" }, "password_file is needed"},
		"missing password file": {func(c *Config) { c.PasswordFile = filepath.Join(t.TempDir(), "none") }, "password file"},
		"folder":                {func(c *Config) { c.PasswordFile = t.TempDir() }, "no regular file"},
		"large":                 {func(c *Config) { c.PasswordFile = passwordFile(t, strings.Repeat("x", maxPassword+1), 0o600) }, "longer"},
		"no user":               {func(c *Config) { c.Username = "" }, "username"},
	} {
		cfg := base
		tc.change(&cfg)
		c, err := New(cfg)
		switch {
		case tc.bad == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.bad != "" && (!errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tc.bad)):
			t.Errorf("%s: got %v, want %q", name, err, tc.bad)
		case err == nil:
			if err := c.Close(t.Context()); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
			if _, err := c.Call(t.Context(), "VM.get_all"); err == nil {
				t.Errorf("%s: a closed client calls", name)
			}
		}
	}
}

func TestPasswordFileMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // no such modes
	}
	for _, mode := range []os.FileMode{0o600, 0o400} {
		if pw, err := readPassword(passwordFile(t, "two words \r\n", mode)); err != nil || pw != "two words " {
			t.Errorf("%#o: %q, %v", mode, pw, err)
		}
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o610, 0o666} {
		if _, err := readPassword(passwordFile(t, "pw", mode)); !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%#o: %v", mode, err)
		}
	}
}

func TestEndpointAddresses(t *testing.T) {
	for _, tc := range []struct {
		scheme, address, dial, authority string
	}{
		{schemeHTTPS, "10.0.0.1", "10.0.0.1:443", "10.0.0.1"}, {schemeHTTP, "xen-1.example", "xen-1.example:80", "xen-1.example"},
		{schemeHTTPS, "127.0.0.2:8443", "127.0.0.2:8443", "127.0.0.2:8443"}, {schemeHTTPS, "fd00::1", "[fd00::1]:443", "[fd00::1]"},
		{schemeHTTPS, "[fd00::1]", "[fd00::1]:443", "[fd00::1]"}, {schemeHTTP, "[fd00::1]:81", "[fd00::1]:81", "[fd00::1]:81"},
	} {
		e, err := newEndpoint(tc.scheme, tc.address)
		if err != nil {
			t.Errorf("%s: %v", tc.address, err)
			continue
		}
		if _, a := e.dial(); a != tc.dial || e.authority() != tc.authority {
			t.Errorf("%s: dials %s as %s", tc.address, a, e.authority())
		}
	}
	for _, bad := range []string{"", "a b", "h:", "h:x", "h:70000", "h/p", "h?q", "h\r\nX: y", "u@h", "fe80::1%eth0", strings.Repeat("a", 300)} {
		if e, err := newEndpoint(schemeHTTPS, bad); err == nil {
			t.Errorf("%q is taken as %s", bad, e)
		}
	}
	e := endpoint{scheme: schemeHTTPS, host: "10.0.0.1", port: "8443"}
	for address, want := range map[string]bool{"10.0.0.1": true, "10.0.0.1:8443": true, "::ffff:10.0.0.1": true, "10.0.0.1:443": false, "10.0.0.2": false, "": false} {
		if e.isAt(address) != want {
			t.Errorf("%s at %q: want %v", e, address, want)
		}
	}
	name := endpoint{scheme: schemeHTTPS, host: "Xen1.Example"}
	if !name.isAt("xen1.example") || !name.isAt("xen1.example.:443") || name.isAt("xen1.example:80") {
		t.Error("names")
	}
}

func TestEncodeArgsRefuses(t *testing.T) {
	c := connect(t, newFakeHost(t, "127.0.0.1:0", false), nil)
	for name, call := range map[string]func(context.Context) error{
		"type":   func(ctx context.Context) error { return second(c.Call(ctx, "VM.x", struct{}{})) },
		"nested": func(ctx context.Context) error { return second(c.Call(ctx, "VM.x", Record{"a": []any{nil}})) },
		"bytes":  func(ctx context.Context) error { return second(c.Call(ctx, "VM.x", "\xff")) },
		"key":    func(ctx context.Context) error { return second(c.Call(ctx, "VM.x", map[string]string{"\xff": ""})) },
		"method": func(ctx context.Context) error { return second(c.Call(ctx, "VM.x</methodName>")) },
		"field":  func(ctx context.Context) error { return c.SetVMField(ctx, "r", "a b", "") },
	} {
		if err := call(t.Context()); err == nil {
			t.Errorf("%s is sent", name)
		}
	}
}
