package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(path)
	return c, err
}

const goodConfig = `
name: xs1
listen: 0.0.0.0:7443
tls: {ca: ca.pem, cert: agent.pem, key: /abs/agent.key, crl: crl.pem}
allow: [backup-1]
xapi:
  url: https://127.0.0.1
  username: root
  password_file: xapi.password
  fingerprints: ["sha256:00"]
metrics: {listen: 127.0.0.1:9743}
timing: {lease: 300ms, shutdown: 90m}
`

func TestLoadConfig(t *testing.T) {
	c, err := loadText(t, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(c.TLS.CA) != "ca.pem" || !filepath.IsAbs(c.TLS.CA) || c.TLS.Key != "/abs/agent.key" || !filepath.IsAbs(c.XAPI.PasswordFile) {
		t.Errorf("paths: %+v %s", c.TLS, c.XAPI.PasswordFile)
	}
	if c.Timing.Lease != 300*time.Millisecond || c.Timing.Shutdown != 90*time.Minute || c.Timing.Stall != 30*time.Minute {
		t.Errorf("timing: %+v", c.Timing)
	}
	if c.Metrics.Listen != "127.0.0.1:9743" || len(c.Allow) != 1 || c.XAPI.Fingerprints[0] != "sha256:00" {
		t.Errorf("config: %+v", c)
	}
}

// Everything that is wrong is reported at once, with key path and line.
func TestConfigFaults(t *testing.T) {
	_, err := loadText(t, `
name: Not A Label
listen: nowhere
colour: blue
tls: {ca: ca.pem, sert: agent.pem, key: 5}
xapi:
  url: ftp://x
timing:
  lease: 120
  claim: 1ms
limits: {transfers: 0}
log: {level: loud}
`)
	var faults *ConfigError
	if !errors.As(err, &faults) {
		t.Fatalf("got %v, want a ConfigError", err)
	}
	for _, want := range []string{
		"line 2: name:", "line 3: listen:", "line 4: colour: unknown key", "line 5: tls.sert: unknown key", "line 5: tls.cert: missing",
		"line 5: tls.key:", "line 7: xapi.url:", "line 9: timing.lease: 120 is not a duration", "line 10: timing.claim: 1ms is less",
		"line 11: limits.transfers:", "line 12: log.level:",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}

func TestConfigTexts(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "not YAML": "a: [", "a list": "- x", "two documents": goodConfig + "\n---\nname: x\n",
		"key twice": goodConfig + "\nname: xs2\n", "no way to trust": strings.Replace(goodConfig, "fingerprints", "insecure: false\n  fingerprints_", 1),
		"two ways to trust": strings.Replace(goodConfig, "  username", "  insecure: true\n  username", 1),
	} {
		if _, err := loadText(t, text); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	unix := strings.Replace(goodConfig, "https://127.0.0.1", "unix:///var/lib/xcp/xapi", 1)
	if _, err := loadText(t, unix); err != nil {
		t.Errorf("unix: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(goodConfig)
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		file := &configFile{}
		file.decode([]byte(text), &c) // must not panic
		c.resolve("/x")
		c.validate(func(string, string, ...any) {})
	})
}
