package controller

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/staging"
)

// Bounds of tunables.
const (
	minDuration = 100 * time.Millisecond
	maxLease    = 10 * time.Minute // the agent's bound
	minWindow   = 1 << 20          // one frame
	maxWindow   = 1 << 30
	maxLimit    = 1024
	maxStagger  = time.Hour
)

// resolve makes the paths of the file absolute from its folder.
func (c *Config) resolve(dir string) {
	for _, p := range []*string{&c.Staging, &c.Restore, &c.State, &c.TLS.CA, &c.TLS.Cert, &c.TLS.Key, &c.TLS.CRL} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	for name, spec := range c.Specs {
		if spec.Restore != "" && !filepath.IsAbs(spec.Restore) {
			spec.Restore = filepath.Join(dir, spec.Restore)
			c.Specs[name] = spec
		}
	}
	if r := &c.SpecDefaults.Restore; *r != "" && !filepath.IsAbs(*r) {
		*r = filepath.Join(dir, *r)
	}
}

// Validate checks the values; the error is a *ConfigError with every fault. LoadConfig has done so already; it is for a
// Config made or changed by the caller.
func (c *Config) Validate() error {
	if faults := c.faults(); len(faults) > 0 {
		return &ConfigError{File: c.file, Faults: faults}
	}
	return nil
}

// faultList collects faults.
type faultList []Fault

func (l *faultList) add(key, format string, args ...any) {
	*l = append(*l, Fault{Key: key, Msg: fmt.Sprintf(format, args...)})
}

func (c *Config) faults() []Fault {
	var l faultList
	c.checkPaths(&l)
	c.checkAgents(&l)
	c.Limits.check(&l)
	if c.WireCompression != WireNone && c.WireCompression != WireZstd {
		l.add("wire_compression", "want %s or %s, got %q", WireNone, WireZstd, c.WireCompression)
	}
	if _, err := staging.NewDigest(c.Digest); err != nil {
		l.add("digest", "%v", err)
	}
	c.checkTiming(&l)
	for _, name := range sortedKeys(c.Sets) {
		c.checkSet(&l, "sets."+name, c.Sets[name])
	}
	c.checkDisks(&l)
	if c.MaxAge < 0 {
		l.add("max_age", "want 0 or more, got %s", c.MaxAge)
	}
	c.checkSpec(&l, "spec_defaults", c.SpecDefaults)
	for _, name := range sortedKeys(c.Specs) {
		c.checkSpec(&l, "specs."+name, c.Specs[name])
	}
	return l
}

func (l Limits) check(faults *faultList) {
	check := func(key string, n int) {
		if n < 1 || n > maxLimit {
			faults.add(key, "want 1 to %d, got %d", maxLimit, n)
		}
	}
	check("limits.total", l.Total)
	check("limits.per_host", l.PerHost)
	check("limits.per_sr", l.PerSR)
	check("limits.per_pool", l.PerPool)
	for _, list := range l.named() {
		for _, name := range sortedKeys(list.own) {
			check("limits."+list.key+"."+name, list.own[name])
		}
	}
	if l.Bandwidth != 0 && l.Bandwidth < minBandwidth {
		faults.add("limits.bandwidth", "want at least 1 MiB a second, or nothing, got %d", l.Bandwidth)
	}
	if l.Stagger < 0 || l.Stagger > maxStagger {
		faults.add("limits.stagger", "want 0 to %s, got %s", maxStagger, l.Stagger)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (c *Config) checkPaths(l *faultList) {
	for _, p := range []struct{ key, path string }{
		{"staging", c.Staging}, {"restore", c.Restore}, {"state", c.State},
	} {
		if p.path == "" {
			l.add(p.key, "is missing: name a folder")
		}
	}
	folders := []struct{ key, path string }{{"staging", c.Staging}, {"restore", c.Restore}, {"spec_defaults.restore", c.SpecDefaults.Restore}}
	for _, name := range sortedKeys(c.Specs) {
		if r := c.Specs[name].Restore; r != c.SpecDefaults.Restore {
			folders = append(folders, struct{ key, path string }{"specs." + name + ".restore", r})
		}
	}
	for _, p := range folders {
		if within(c.State, p.path) {
			l.add("state", "lies within %s: Data Protector would save and restore it", p.key)
		}
	}
	for _, p := range []struct{ key, path string }{
		{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}, {"tls.crl", c.TLS.CRL},
	} {
		switch info, err := os.Stat(p.path); {
		case p.path == "" && p.key == "tls.crl":
		case p.path == "":
			l.add(p.key, "is missing: name a file")
		case errors.Is(err, fs.ErrNotExist):
			l.add(p.key, "file %s does not exist", p.path)
		case err != nil:
			l.add(p.key, "%v", err)
		case !info.Mode().IsRegular():
			l.add(p.key, "%s is not a file", p.path)
		}
	}
}

// within tells whether path is dir or below it.
func within(path, dir string) bool {
	if path == "" || dir == "" {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

func (c *Config) checkAgents(l *faultList) {
	if len(c.Agents) == 0 {
		l.add("agents", "is missing: name at least one agent")
	}
	names, addresses := map[string]int{}, map[string]int{}
	for i, a := range c.Agents {
		key := fmt.Sprintf("agents[%d]", i)
		if err := certs.CheckName(a.Name); err != nil {
			l.add(key+".name", "%v", err)
		} else if j, dup := names[a.Name]; dup {
			l.add(key+".name", "%q is the name of agents[%d] as well", a.Name, j)
		}
		if err := checkAddress(a.Address); err != nil {
			l.add(key+".address", "%v", err)
		} else if j, dup := addresses[a.Address]; dup {
			l.add(key+".address", "%q is the address of agents[%d] as well", a.Address, j)
		}
		if a.Pool != "" && canonicalUUID(a.Pool) == "" {
			l.add(key+".pool", "want the UUID of its pool, got %q", a.Pool)
		}
		names[a.Name], addresses[a.Address] = i, i
	}
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.ContainsAny(host, "/ ") {
		return fmt.Errorf("want HOST:PORT, got %q", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("want a port from 1 to 65535, got %q", address)
	}
	return nil
}

func (c *Config) checkTiming(l *faultList) {
	t := c.Timing
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"lease", t.Lease}, {"heartbeat", t.Heartbeat}, {"backoff_min", t.BackoffMin}, {"backoff_max", t.BackoffMax},
		{"shutdown_limit", t.ShutdownLimit}, {"release_timeout", t.ReleaseTimeout},
		{"connect_timeout", t.ConnectTimeout}, {"call_timeout", t.CallTimeout}, {"cancel_poll", t.CancelPoll},
		{"stall_limit", t.StallLimit}, {"xapi_outage", t.XAPIOutage}, {"vm_limit", t.VMLimit}, {"lock_wait", t.LockWait},
		{"busy_wait", t.BusyWait}, {"claim_wait", t.ClaimWait},
	} {
		if d.value < minDuration {
			l.add("timing."+d.key, "want at least %s, got %s", minDuration, d.value)
		}
	}
	if t.Lease > maxLease {
		l.add("timing.lease", "want at most %s, got %s", maxLease, t.Lease)
	}
	if t.BackoffMax < t.BackoffMin {
		l.add("timing.backoff_max", "is less than backoff_min")
	}
	if t.Window < minWindow || t.Window > maxWindow {
		l.add("timing.window", "want 1MiB to 1GiB, got %d bytes", t.Window)
	}
	if t.Retries < 0 || t.Retries > 100 {
		l.add("timing.retries", "want 0 to 100, got %d", t.Retries)
	}
}

func (c *Config) checkSet(l *faultList, key string, s Set) {
	c.checkCriteria(l, key, s)
	if s.criteria("").empty() {
		l.add(key, "chooses nothing: give it vm, tag, pool, host, sr, power, min_size, max_size or set")
	}
	if name, isSet := strings.CutPrefix(key, "sets."); isSet {
		if path := cycle(c.Sets, name); path != "" {
			l.add(key, "names itself: %s", path)
		}
	}
}

// checkCriteria checks the patterns of a set, or of a specification.
func (c *Config) checkCriteria(l *faultList, key string, s Set) {
	s.criteria("").check(c.Sets, func(part string, at int, value, fault string) { l.addPart(key, part, at, value, fault) })
}

// addPart adds a fault of a value in a list of something, or of one that is in no list.
func (l *faultList) addPart(key, part string, at int, value, fault string) {
	if part != "" {
		key += "." + part
	}
	if at >= 0 {
		key = fmt.Sprintf("%s[%d]", key, at)
	}
	if value != "" && !strings.Contains(fault, strconv.Quote(value)) && part == "set" {
		fault = fmt.Sprintf("%q: %s", value, fault)
	}
	l.add(key, "%s", fault)
}

func (c *Config) checkDisks(l *faultList) {
	for i, rule := range c.ExcludeDisks {
		rule.check(func(part string, at int, value, fault string) {
			l.addPart(fmt.Sprintf("exclude_disks[%d]", i), part, at, value, fault)
		})
	}
}

func (c *Config) checkSpec(l *faultList, key string, s Spec) {
	own := key == "spec_defaults"
	mode, err := ParseMode(s.Mode)
	chooses := !s.criteria("").empty()
	switch {
	case err != nil:
		l.add(key+".mode", "%v", err)
	case mode.All() && s.Select != "":
		l.add(key+".select", "%s is about every VM: leave select out, or use mode online or offline", mode)
	case mode.All() && chooses && (own || !reflect.DeepEqual(s.Set, c.SpecDefaults.Set)):
		l.add(key+".mode", "%s is about every VM: leave out all that chooses some (exclude may stay), or use mode online or offline", mode)
	case !mode.All() && s.Select == "" && !chooses && !own:
		l.add(key+".select", "is missing: mode %s needs the name of a set, or vm, tag, pool, host, sr, power, min_size or max_size", mode)
	}
	if err == nil && s.OfflineSnapshot && mode.Kind() != KindOffline && key != "spec_defaults" && !c.SpecDefaults.OfflineSnapshot {
		l.add(key+".offline_snapshot", "mode %s takes snapshots anyway: leave it out, or use an offline mode", mode)
	}
	if _, ok := c.Sets[s.Select]; s.Select != "" && !ok {
		l.add(key+".select", "there is no set %q", s.Select)
	}
	if own || !reflect.DeepEqual(s.Set, c.SpecDefaults.Set) {
		c.checkCriteria(l, key, s.Set)
	}
	for _, v := range []struct {
		key, value, inherited string
		allowed               []string
	}{
		{"partial", s.Partial, c.SpecDefaults.Partial, []string{PartialSave, PartialFail}},
		{"dp_mode", s.DPMode, c.SpecDefaults.DPMode, []string{DPModeWarn, DPModeRefuse, DPModeIgnore}},
		{"warnings", s.Warnings, c.SpecDefaults.Warnings, []string{WarningsOK, WarningsFail}},
	} {
		// What is wrong in the defaults is not told again for each that has it from there.
		if !slices.Contains(v.allowed, v.value) && (own || v.value != v.inherited) {
			l.add(key+"."+v.key, "want %s, got %q", strings.Join(v.allowed, " or "), cmp.Or(v.value, "nothing"))
		}
	}
	if s.KeepSets < 0 && (own || s.KeepSets != c.SpecDefaults.KeepSets) {
		l.add(key+".keep_sets", "want 0 or more, got %d", s.KeepSets)
	}
}
