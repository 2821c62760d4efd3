package controller

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files")

// configDir returns a folder with empty TLS files and the given configuration.
func configDir(t *testing.T, yaml string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"ca.pem", "controller.pem", "controller.key"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "controller.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readTestdata(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestLoadConfigFull(t *testing.T) {
	path := configDir(t, readTestdata(t, "config/full.yaml"))
	elsewhere := t.TempDir()
	c, err := LoadConfig(path, func(c *Config) { c.State = elsewhere })
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	timing := DefaultConfig().Timing
	timing.Lease, timing.Window, timing.Heartbeat = 500*time.Millisecond, 4<<20, 100*time.Millisecond
	timing.BackoffMin, timing.BackoffMax = 100*time.Millisecond, time.Second
	timing.Retries, timing.ShutdownLimit = 0, 3*time.Second
	defaults := Spec{Mode: "allonline", Partial: "save", DPMode: "warn", Warnings: "ok"}
	nightly, db := defaults, defaults
	nightly.Mode, nightly.KeepSets = "allOnline", 2
	db.Mode, db.Select = "offline", "tier1"
	want := &Config{
		Staging: filepath.Join(dir, "staging"), Restore: filepath.Join(dir, "restore"), State: elsewhere,
		TLS: TLSFiles{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "controller.pem"),
			Key: filepath.Join(dir, "controller.key")},
		Digest: "xxh3-128", WireCompression: "none",
		Agents: []AgentConfig{{Name: "xs1", Address: "xs1.example:7443"}, {Name: "xs2", Address: "[2001:db8::2]:7443"}},
		Limits: Limits{Total: 8, PerHost: 2, PerSR: 2, PerPool: 4, Hosts: map[string]int{"xen 1.example": 1},
			SRs: map[string]int{"old SAN": 1}, Pools: map[string]int{"lab": 2}, Stagger: 500 * time.Millisecond},
		Timing:       timing,
		Sets:         map[string]Set{"tier1": {VM: []string{"db-*"}, Tag: []string{"gold"}, Exclude: []string{}}},
		SpecDefaults: defaults,
		Specs:        map[string]Spec{"XEN_NIGHTLY": nightly, "XEN_DB": db},
	}
	c.file = ""
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(Config{})); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if s, found := c.Spec("XEN_DB"); !found || s.Select != "tier1" {
		t.Errorf("Spec(XEN_DB) = %+v, %v", s, found)
	}
	if s, found := c.Spec("other"); found || !cmp.Equal(s, defaults) {
		t.Errorf("Spec(other) = %+v, %v, want the defaults", s, found)
	}
}

// TestLoadConfigFaults holds that every fault is reported at once, with key path and line.
func TestLoadConfigFaults(t *testing.T) {
	path := configDir(t, readTestdata(t, "config/wrong.yaml"))
	_, err := LoadConfig(path)
	var ce *ConfigError
	if !errors.As(err, &ce) {
		t.Fatalf("got %v, want a *ConfigError", err)
	}
	if code := ExitCode(nil, err); code != CodeUsage {
		t.Errorf("exit code %d, want %d", code, CodeUsage)
	}
	got := strings.ReplaceAll(err.Error(), filepath.Dir(path), "DIR") + "\n"
	golden := filepath.Join("testdata", "config", "wrong.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(readTestdata(t, "config/wrong.golden"), got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestLoadConfigUnreadable(t *testing.T) {
	for name, tt := range map[string]struct{ yaml, want string }{
		"not YAML":      {"staging: [", "did not find expected"},
		"key twice":     {"staging: a\nstaging: b\n", "already defined"},
		"a list":        {"- a\n- b\n", "cannot unmarshal"},
		"two documents": {"staging: a\n---\nstaging: b\n", "more than one YAML document"},
		"empty":         {"", "agents: is missing"},
		"specs a list":  {"specs: [a]\n", "specs (line 1): want a mapping"},
		"wire":          {"wire_compression: lzo\n", "wire_compression (line 1): want none or zstd, got \"lzo\""},
		"digest":        {"digest: md5\n", "digest (line 1): unknown digest \"md5\""},
		"other case":    {"Staging: a\n", "Staging (line 1): unknown key"},
		"key no text":   {"? [a]\n: b\n", "line 1: a key must be plain text"},
		"key a number":  {"limits: {1: 2}\n", "limits.1 (line 1): unknown key"},
		"merge key":     {"limits: {<<: {total: 1}}\n", "limits.<< (line 1): unknown key"},
		"huge":          {"#" + strings.Repeat("x", maxConfig), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadConfig(configDir(t, tt.yaml))
			var ce *ConfigError
			if !errors.As(err, &ce) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a *ConfigError with %q", err, tt.want)
			}
			if unread := !strings.Contains(tt.want, "missing") && !strings.Contains(tt.want, "(line"); unread &&
				strings.Contains(err.Error(), "is missing") {
				t.Errorf("got %v: nothing is known to be missing from what cannot be read", err)
			}
		})
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none.yaml")); ExitCode(nil, err) != CodeUsage {
		t.Errorf("missing file: %v", err)
	}
}

func TestConfigStateWithinStaging(t *testing.T) {
	for _, tt := range []struct {
		state string
		bad   bool
	}{{"/a/staging", true}, {"/a/staging/x", true}, {"/a/staging-x", false}, {"/a", false}, {"/a/restore/s", true}} {
		c := DefaultConfig()
		c.Staging, c.Restore, c.State = filepath.FromSlash("/a/staging"), filepath.FromSlash("/a/restore"), filepath.FromSlash(tt.state)
		err := c.Validate()
		if got := strings.Contains(err.Error(), "lies within"); got != tt.bad {
			t.Errorf("state %s: within = %v, want %v (%v)", tt.state, got, tt.bad, err)
		}
	}
}

func TestLoadConfigNulls(t *testing.T) {
	yaml := readTestdata(t, "config/full.yaml") + "\n"
	yaml = regexp.MustCompile(`limits: {total.*\n.*\n`).ReplaceAllString(yaml, "limits:\n")
	yaml = strings.Replace(yaml, "lease: 500ms", "lease: ", 1)
	c, err := LoadConfig(configDir(t, yaml))
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(c.Limits, DefaultConfig().Limits) || c.Timing.Lease != DefaultConfig().Timing.Lease {
		t.Errorf("empty values are not the defaults: %+v, %s", c.Limits, c.Timing.Lease)
	}
}

// FuzzParseConfig holds that no text makes the parser panic, and that what it accepts is checked.
func FuzzParseConfig(f *testing.F) {
	for _, name := range []string{"full", "wrong"} {
		data, err := os.ReadFile(filepath.Join("testdata", "config", name+".yaml"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"agents: [xs1]", "agents: {a: b}", "sets: [a]", "limits: 5", "specs: {a: 3, 4: {mode: x}}", "timing: {lease: [1]}",
		"? [a]\n: b", "a: &x [*x]", "tls: *none", "!!binary x", "sets: {a: {vm: [1, null, {}]}}", "\xff\xfe"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, lines, faults := parseConfig(data)
		for _, fault := range append(faults, c.faults()...) {
			if fault.Msg == "" || lines.of(fault.Key) < 0 {
				t.Errorf("fault without text: %+v", fault)
			}
		}
	})
}
