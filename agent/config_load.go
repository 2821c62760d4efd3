package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"go.yaml.in/yaml/v3"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/transfer"
)

// minTiming is the smallest interval that a file may set.
const minTiming = 100 * time.Millisecond

// maxConfig bounds the file, in bytes.
const maxConfig = 1 << 20

// ConfigError holds all faults of a configuration file.
type ConfigError struct {
	Path   string
	Faults []string // each with its key path, and its line where known
}

// Error lists the faults, one a line.
func (e *ConfigError) Error() string {
	return fmt.Sprintf("configuration %s:\n  %s", e.Path, strings.Join(e.Faults, "\n  "))
}

// LoadConfig reads agent.yaml. It is strict: unknown keys, wrong types and
// missing or impossible values are all reported at once in a *ConfigError.
// Relative paths in it are relative to the file's folder.
func LoadConfig(path string) (*Config, error) {
	b, err := readConfig(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	f := &configFile{path: path}
	c := Defaults()
	f.decode(b, &c)
	if len(f.faults) == 0 || f.root != nil {
		c.resolve(filepath.Dir(path))
		c.validate(func(key, format string, a ...any) { f.fault(key, fmt.Sprintf(format, a...)) })
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return &c, nil
}

func readConfig(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxConfig)
	}
	return b, nil
}

// configFile collects the faults of one file.
type configFile struct {
	path   string
	root   *yaml.Node
	faults []configFault
}

// configFault is what is wrong with a key; line is 0 where it is not known.
type configFault struct {
	line      int
	key, text string
}

// fault adds a fault, unless the key has one already: what was of the wrong type is not missing too.
func (f *configFile) fault(key, text string) {
	if slices.ContainsFunc(f.faults, func(o configFault) bool { return o.key == key && key != "" }) {
		return
	}
	f.faults = append(f.faults, configFault{lineOf(f.root, strings.Split(key, ".")), key, text})
}

// err returns all faults in the order of their lines, or nil.
func (f *configFile) err() error {
	if len(f.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(f.faults, func(a, b configFault) int { return a.line - b.line })
	out := &ConfigError{Path: f.path}
	for _, o := range f.faults {
		s := o.text
		if o.key != "" {
			s = o.key + ": " + s
		}
		if o.line > 0 {
			s = fmt.Sprintf("line %d: %s", o.line, s)
		}
		out.Faults = append(out.Faults, s)
	}
	return out
}

// decode fills c from the text.
func (f *configFile) decode(b []byte, c *Config) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var root yaml.Node
	raw := map[string]any{}
	err := dec.Decode(&root)
	if errors.Is(err, io.EOF) {
		return // empty: what is missing is reported
	}
	if err == nil {
		err = root.Decode(&raw)
	}
	if err != nil {
		f.fault("", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if !errors.Is(dec.Decode(&yaml.Node{}), io.EOF) {
		f.fault("", "more than one YAML document")
	}
	f.root = &root
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{Result: c, DecodeHook: mapstructure.ComposeDecodeHookFunc(durationHook, sizeHook),
		MatchName: func(key, field string) bool { return key == field }})
	if err != nil {
		f.fault("", err.Error())
		return
	}
	if err := d.Decode(raw); err != nil {
		f.decodeFaults(err)
	}
	f.unknownKeys(raw, reflect.TypeFor[Config](), "")
}

// unknownKeys reports keys that the type has no field for. The decoder's own list of them is empty when a value has
// another fault.
func (f *configFile) unknownKeys(raw map[string]any, t reflect.Type, path string) {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("mapstructure"); key != "-" {
			fields[key] = t.Field(i).Type
		}
	}
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		field, known := fields[key]
		if !known {
			f.fault(path+key, "unknown key")
			continue
		}
		if inner, ok := raw[key].(map[string]any); ok && field.Kind() == reflect.Struct {
			f.unknownKeys(inner, field, path+key+".")
		}
	}
}

// decodeFaults takes a mapstructure error apart, which joins one error for each value.
func (f *configFile) decodeFaults(err error) {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		for _, e := range joined.Unwrap() {
			f.decodeFaults(e)
		}
		return
	}
	var one *mapstructure.DecodeError
	if errors.As(err, &one) {
		f.fault(one.Name(), one.Unwrap().Error())
		return
	}
	f.fault("", err.Error())
}

// durationHook reads durations, which need a unit.
func durationHook(_, to reflect.Type, data any) (any, error) {
	if to != reflect.TypeFor[time.Duration]() {
		return data, nil
	}
	s, ok := data.(string)
	if !ok {
		return nil, fmt.Errorf("%v is not a duration; write it with a unit, such as 120s", data)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not a duration, such as 120s", s)
	}
	return d, nil
}

// lineOf finds the line of a key, or of the nearest key above it; 0 when unknown.
func lineOf(n *yaml.Node, path []string) int {
	if n == nil {
		return 0
	}
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	line := 0
	for _, want := range path {
		if n.Kind != yaml.MappingNode {
			return line
		}
		found := false
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == want {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			return line
		}
	}
	return line
}

// resolve makes paths relative to dir.
func (c *Config) resolve(dir string) {
	for _, p := range []*string{&c.TLS.CA, &c.TLS.Cert, &c.TLS.Key, &c.TLS.CRL, &c.XAPI.PasswordFile, &c.XAPI.CA} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// validate tells add what is missing or impossible.
func (c *Config) validate(add func(key, format string, a ...any)) {
	if c.Name == "" {
		add("name", "missing: the agent's name, as in its certificate")
	} else if err := certs.CheckName(c.Name); err != nil {
		add("name", "%v", err)
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || port == "" {
		add("listen", "%q is not HOST:PORT", c.Listen)
	}
	for _, f := range []struct{ key, file string }{{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}} {
		if f.file == "" {
			add(f.key, "missing")
		}
	}
	for _, name := range c.Allow {
		if err := certs.CheckName(name); err != nil {
			add("allow", "%v", err)
		}
	}
	if c.Metrics.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Metrics.Listen); err != nil {
			add("metrics.listen", "%q is not HOST:PORT", c.Metrics.Listen)
		}
	}
	if c.Limits.Transfers < 1 {
		add("limits.transfers", "must be at least 1")
	}
	if c.Limits.Window < transfer.FrameSize || c.Limits.Window > transfer.MaxWindow {
		add("limits.window", "must be between %d and %d bytes", transfer.FrameSize, int64(transfer.MaxWindow))
	}
	c.Limits.validate(add)
	if !slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, c.Log.Level) {
		add("log.level", "%q is none of trace, debug, info, warn, error", c.Log.Level)
	}
	if !slices.Contains([]string{"", "json", "text"}, c.Log.Format) {
		add("log.format", "%q is neither json nor text", c.Log.Format)
	}
	c.XAPI.validate(add)
	c.Timing.validate(add)
}

func (x *XAPIConfig) validate(add func(key, format string, a ...any)) {
	u, err := url.Parse(x.URL)
	if err != nil || !slices.Contains([]string{"https", "http", "unix"}, u.Scheme) {
		add("xapi.url", "%q is neither https://HOST, http://HOST nor unix:///PATH", x.URL)
		return
	}
	if u.Scheme == "unix" {
		return
	}
	if u.Host == "" {
		add("xapi.url", "%q names no host", x.URL)
	}
	if x.Username == "" {
		add("xapi.username", "missing")
	}
	if x.PasswordFile == "" {
		add("xapi.password_file", "missing: a file with mode 0600 that holds the password")
	}
	ways := 0
	for _, given := range []bool{len(x.Fingerprints) > 0, x.CA != "", x.Insecure} {
		if given {
			ways++
		}
	}
	if u.Scheme == "https" && ways != 1 {
		add("xapi", "https needs exactly one of fingerprints, ca and insecure: true; %d are given", ways)
	}
}

func (t *Timing) validate(add func(key, format string, a ...any)) {
	v := reflect.ValueOf(*t)
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("mapstructure")
		d, ok := v.Field(i).Interface().(time.Duration)
		if ok && key != "-" && d < minTiming {
			add("timing."+key, "%s is less than %s", d, minTiming)
		}
	}
	if t.Lease > transfer.MaxLease {
		add("timing.lease", "%s is more than %s", t.Lease, transfer.MaxLease)
	}
	if t.RetryMax < t.RetryMin {
		add("timing.retry_max", "less than retry_min")
	}
}
