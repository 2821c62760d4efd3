package controller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-viper/mapstructure/v2"
	"go.yaml.in/yaml/v3"
)

// maxConfig bounds a configuration file in bytes.
const maxConfig = 4 << 20

// Fault is one thing wrong in a configuration.
type Fault struct {
	Key  string // its path, such as agents[1].address
	Line int    // in the file, or 0
	Msg  string
}

// String returns the fault as one line.
func (f Fault) String() string {
	switch {
	case f.Key == "":
		return f.Msg
	case f.Line == 0:
		return f.Key + ": " + f.Msg
	}
	return fmt.Sprintf("%s (line %d): %s", f.Key, f.Line, f.Msg)
}

// ConfigError lists everything wrong in a configuration. Code 2.
type ConfigError struct {
	File   string
	Faults []Fault
}

// Error returns all faults, one a line below the file's name.
func (e *ConfigError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "configuration %s:", e.File)
	for _, f := range e.Faults {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// LoadConfig reads controller.yaml at path, lets each override change the result, and validates it. Paths in the file are
// relative to its folder; those that an override sets are made absolute from the working folder. Every fault of the file
// and of the result is in the *ConfigError.
func LoadConfig(path string, overrides ...func(*Config)) (*Config, error) {
	data, err := readBounded(path, maxConfig)
	if err != nil {
		return nil, &ConfigError{File: path, Faults: []Fault{{Msg: err.Error()}}}
	}
	c, lines, faults := parseConfig(data)
	if lines == nil && len(faults) > 0 { // nothing could be read, so nothing is known to be missing
		return nil, &ConfigError{File: path, Faults: faults}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find configuration %s: %w", path, err)
	}
	c.file = path
	c.resolve(filepath.Dir(abs))
	for _, o := range overrides {
		o(c)
	}
	for _, f := range c.faults() {
		f.Line = lines.of(f.Key)
		// What could not be read is not missing as well.
		if !slices.ContainsFunc(faults, func(g Fault) bool { return g.Key == f.Key }) {
			faults = append(faults, f)
		}
	}
	if len(faults) > 0 {
		return nil, &ConfigError{File: path, Faults: faults}
	}
	return c, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, limit)
	}
	return data, nil
}

// parseConfig decodes strictly over the defaults: every unknown key and wrong type is a fault.
func parseConfig(data []byte) (*Config, lineIndex, []Fault) {
	c := DefaultConfig()
	tree := map[string]any{}
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return c, nil, []Fault{{Msg: err.Error()}}
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return c, nil, []Fault{{Msg: "more than one YAML document"}}
	}
	if faults := plainKeys(&root); len(faults) > 0 {
		return c, nil, faults
	}
	if err := root.Decode(&tree); err != nil && root.Kind != 0 {
		return c, nil, []Fault{{Msg: err.Error()}} // not a mapping, or a key twice; it names the lines
	}
	lines := lineIndex{}
	lines.add("", &root)

	specs := tree["specs"]
	delete(tree, "specs")
	faults := decodeStrict("", tree, c)
	faults = append(faults, decodeSpecs(specs, c)...)
	for i := range faults {
		faults[i].Line = lines.of(faults[i].Key)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return a.Line - b.Line })
	return c, lines, faults
}

// plainKeys makes every key of every mapping text, whatever it looks like: mapstructure knows no others. What cannot be
// text is a fault.
func plainKeys(n *yaml.Node) []Fault {
	var faults []Fault
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if child.Kind != yaml.ScalarNode {
				faults = append(faults, Fault{Msg: fmt.Sprintf("line %d: a key must be plain text", child.Line)})
			}
			child.Tag = "!!str"
			continue
		}
		faults = append(faults, plainKeys(child)...)
	}
	return faults
}

// decodeSpecs reads each specification over the defaults of all.
func decodeSpecs(value any, c *Config) []Fault {
	c.Specs = map[string]Spec{}
	if value == nil {
		return nil
	}
	specs, ok := value.(map[string]any)
	if !ok {
		return []Fault{{Key: "specs", Msg: "want a mapping of names to specifications"}}
	}
	var faults []Fault
	for name, value := range specs {
		spec := c.SpecDefaults
		faults = append(faults, decodeStrict("specs."+name, value, &spec)...)
		c.Specs[name] = spec
	}
	return faults
}

func decodeStrict(at string, value, into any) []Fault {
	dec, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result:      into,
		ErrorUnused: true,
		MatchName:   func(key, field string) bool { return key == field },
		DecodeHook:  mapstructure.DecodeHookFuncType(convertScalar),
		RootName:    at,
	})
	if err == nil {
		err = dec.Decode(value)
	}
	return faultsOf(at, err)
}

// convertScalar turns the text of durations and sizes into numbers and refuses what mapstructure would bend silently.
func convertScalar(from, to reflect.Type, value any) (any, error) {
	switch text, isText := value.(string); {
	case to == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(text)
		if !isText || err != nil {
			return nil, fmt.Errorf("want a duration such as 120s, 20m or 100ms, got %v", value)
		}
		return d, nil
	case to.Kind() == reflect.Int64 && isText:
		n, err := humanize.ParseBytes(text)
		if err != nil || n > 1<<62 {
			return nil, fmt.Errorf("want a number of bytes such as 16MiB, got %q", text)
		}
		return int64(n), nil
	case from.Kind() == reflect.Float64 && to.Kind() != reflect.Float64:
		return nil, fmt.Errorf("want a whole number, got %v", value)
	}
	return value, nil
}

const unusedPrefix = "has invalid keys: "

// faultsOf takes mapstructure's tree of errors apart.
func faultsOf(at string, err error) []Fault {
	switch e := err.(type) { //nolint:errorlint // the tree is walked level by level
	case nil:
		return nil
	case *mapstructure.DecodeError:
		return faultOf(plainKey(e.Name()), e.Unwrap())
	case interface{ Unwrap() []error }:
		var faults []Fault
		for _, e := range e.Unwrap() {
			faults = append(faults, faultsOf(at, e)...)
		}
		return faults
	case interface{ Unwrap() error }:
		return faultsOf(at, e.Unwrap())
	}
	return []Fault{{Key: at, Msg: err.Error()}}
}

// faultOf is for one key, or for the unknown keys below it.
func faultOf(key string, cause error) []Fault {
	unused, ok := strings.CutPrefix(cause.Error(), unusedPrefix)
	if !ok {
		return []Fault{{Key: key, Msg: explainType(cause)}}
	}
	if key == reflect.TypeFor[Config]().String() || key == reflect.TypeFor[RestoreMap]().String() {
		key = "" // the root is named by its type
	}
	var faults []Fault
	for name := range strings.SplitSeq(unused, ", ") {
		faults = append(faults, Fault{Key: strings.TrimPrefix(key+"."+name, "."), Msg: "unknown key"})
	}
	return faults
}

// explainType puts mapstructure's message about a wrong type in the reader's words.
func explainType(err error) string {
	var unconvertible *mapstructure.UnconvertibleTypeError
	if !errors.As(err, &unconvertible) {
		return strings.Replace(err.Error(), "source data must be an array or slice", "want a list", 1)
	}
	want := map[reflect.Kind]string{
		reflect.String: "text", reflect.Int: "a whole number", reflect.Int64: "a whole number",
		reflect.Bool: "true or false", reflect.Slice: "a list", reflect.Map: "a mapping", reflect.Struct: "a mapping",
	}[unconvertible.Expected.Kind()]
	if want == "" {
		want = unconvertible.Expected.Type().String()
	}
	return fmt.Sprintf("want %s, got %v", want, unconvertible.Value)
}

var mapKey = regexp.MustCompile(`\[([^\]]*[^\]0-9][^\]]*)\]`)

// plainKey turns mapstructure's sets[tier1].vm[0] into sets.tier1.vm[0].
func plainKey(name string) string { return mapKey.ReplaceAllString(name, ".$1") }

// lineIndex maps key paths to lines.
type lineIndex map[string]int

func (x lineIndex) add(path string, n *yaml.Node) {
	x[path] = n.Line
	switch n.Kind {
	case yaml.DocumentNode:
		for _, child := range n.Content {
			x.add(path, child)
		}
	case yaml.SequenceNode:
		for i, child := range n.Content {
			x.add(fmt.Sprintf("%s[%d]", path, i), child)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := strings.TrimPrefix(path+"."+n.Content[i].Value, ".")
			x.add(key, n.Content[i+1])
			x[key] = n.Content[i].Line
		}
	case yaml.ScalarNode, yaml.AliasNode:
	}
}

// of returns the line of a key, or of the nearest thing above it that is in the file; 0 when there is none.
func (x lineIndex) of(key string) int {
	for key != "" {
		if line, ok := x[key]; ok {
			return line
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return 0
}
