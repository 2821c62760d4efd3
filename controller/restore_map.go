package controller

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// RestoreMap says where VMs go whose files come from elsewhere, and in which order they are started: the file of `restore
// --map`. What is said of a VM beats what is said of its pool, and that what is said of all.
type RestoreMap struct {
	File string `json:"file"` // where it was read from

	Networks map[string]string        `mapstructure:"networks" json:"networks,omitempty"` // old to new, by name or UUID
	SRs      map[string]string        `mapstructure:"srs" json:"srs,omitempty"`
	Hosts    map[string]string        `mapstructure:"hosts" json:"hosts,omitempty"` // from the host that the VM was on
	Pools    map[string]RestorePool   `mapstructure:"pools" json:"pools,omitempty"` // by the name or UUID of the pool that the VMs were in
	VMs      map[string]RestoreMember `mapstructure:"vms" json:"vms,omitempty"`     // by name or UUID
}

// RestorePool says where the VMs of one pool go.
type RestorePool struct {
	Pool     string            `mapstructure:"pool" json:"pool,omitempty"` // the other pool
	Host     string            `mapstructure:"host" json:"host,omitempty"`
	SR       string            `mapstructure:"sr" json:"sr,omitempty"` // for all disks that srs does not name
	Networks map[string]string `mapstructure:"networks" json:"networks,omitempty"`
	SRs      map[string]string `mapstructure:"srs" json:"srs,omitempty"`
	Hosts    map[string]string `mapstructure:"hosts" json:"hosts,omitempty"`
}

// RestoreMember says where one VM goes, and when it is started.
type RestoreMember struct {
	Pool     string            `mapstructure:"pool" json:"pool,omitempty"`
	Host     string            `mapstructure:"host" json:"host,omitempty"`
	SR       string            `mapstructure:"sr" json:"sr,omitempty"`
	Networks map[string]string `mapstructure:"networks" json:"networks,omitempty"`
	SRs      map[string]string `mapstructure:"srs" json:"srs,omitempty"`
	Name     string            `mapstructure:"name" json:"name,omitempty"` // with --as-new
	// Start starts it at the end; Order and StartDelay take the place of the VM's own.
	Start      *bool          `mapstructure:"start" json:"start,omitempty"`
	Order      *int           `mapstructure:"order" json:"order,omitempty"`
	StartDelay *time.Duration `mapstructure:"start_delay" json:"start_delay,omitempty"`
}

// LoadRestoreMap reads a map's file, strictly; the *ConfigError has every fault.
func LoadRestoreMap(path string) (*RestoreMap, error) {
	data, err := readBounded(path, maxConfig)
	if err != nil {
		return nil, &ConfigError{File: path, Faults: []Fault{{Msg: err.Error()}}}
	}
	m, faults := parseRestoreMap(data)
	if len(faults) > 0 {
		return nil, &ConfigError{File: path, Faults: faults}
	}
	m.File = path
	return m, nil
}

func parseRestoreMap(data []byte) (*RestoreMap, []Fault) {
	var root yaml.Node
	tree := map[string]any{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return nil, []Fault{{Msg: err.Error()}}
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, []Fault{{Msg: "more than one YAML document"}}
	}
	if faults := plainKeys(&root); len(faults) > 0 {
		return nil, faults
	}
	if err := root.Decode(&tree); err != nil && root.Kind != 0 {
		return nil, []Fault{{Msg: err.Error()}}
	}
	lines := lineIndex{}
	lines.add("", &root)
	m := &RestoreMap{Pools: map[string]RestorePool{}, VMs: map[string]RestoreMember{}}
	faults := faultList(decodeEach("pools", tree, m.Pools))
	faults = append(faults, decodeEach("vms", tree, m.VMs)...)
	faults = append(faults, decodeStrict("", tree, m)...)
	m.check(&faults)
	for i := range faults {
		faults[i].Line = lines.of(faults[i].Key)
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return a.Line - b.Line })
	return m, faults
}

// decodeEach reads the entries of a mapping in the tree one by one, so that a fault of one hides none of another, and takes the
// mapping out of the tree.
func decodeEach[T any](key string, tree map[string]any, into map[string]T) (faults []Fault) {
	value, ok := tree[key]
	delete(tree, key)
	if !ok || value == nil {
		return nil
	}
	entries, ok := value.(map[string]any)
	if !ok {
		return []Fault{{Key: key, Msg: "want a mapping of names"}}
	}
	for _, name := range sortedKeys(entries) {
		var entry T
		faults = append(faults, decodeStrict(key+"."+name, entries[name], &entry)...)
		into[name] = entry
	}
	return faults
}

// check finds what makes no sense whatever there is.
func (m *RestoreMap) check(l *faultList) {
	m.pairs(l, "", m.Networks, m.SRs, m.Hosts)
	for _, name := range sortedKeys(m.Pools) {
		p := m.Pools[name]
		m.pairs(l, "pools."+name+".", p.Networks, p.SRs, p.Hosts)
	}
	for _, name := range sortedKeys(m.VMs) {
		vm, key := m.VMs[name], "vms."+name+"."
		m.pairs(l, key, vm.Networks, vm.SRs, nil)
		if vm.Order != nil && *vm.Order < 0 {
			l.add(key+"order", "is %d: orders begin at 0", *vm.Order)
		}
		if vm.StartDelay != nil && (*vm.StartDelay < 0 || *vm.StartDelay > maxStartDelay) {
			l.add(key+"start_delay", "is %s: want 0s to %s", *vm.StartDelay, maxStartDelay)
		}
	}
	if len(m.Networks)+len(m.SRs)+len(m.Hosts)+len(m.Pools)+len(m.VMs) == 0 && len(*l) == 0 {
		l.add("", "it says nothing: give it networks, srs, hosts, pools or vms")
	}
}

// maxStartDelay bounds what a restore waits between two orders.
const maxStartDelay = 24 * time.Hour

func (m *RestoreMap) pairs(l *faultList, at string, networks, srs, hosts map[string]string) {
	for _, list := range []struct {
		key   string
		pairs map[string]string
	}{{"networks", networks}, {"srs", srs}, {"hosts", hosts}} {
		for _, from := range sortedKeys(list.pairs) {
			if strings.TrimSpace(from) == "" || strings.TrimSpace(list.pairs[from]) == "" {
				l.add(at+list.key+"."+from, "want the old name and the new one")
			}
		}
	}
}

// wish is what is said of one VM: by the command line, then by the map.
type wish struct {
	pool, host, sr, name string
	networks, srs        map[string]string
	start                bool
	order                *int
	delay                *time.Duration
}

// wish puts together what is said of a file's VM. used notes the map's entries that were about it, by key.
func (req *RestoreRequest) wish(it *RestoreItem, used map[string]bool) wish {
	w := wish{pool: req.Pool, host: req.ToHost, sr: req.SR, name: req.NewName, start: req.Start,
		networks: maps.Clone(req.Networks), srs: maps.Clone(req.SRs)}
	if w.networks == nil {
		w.networks = map[string]string{}
	}
	if w.srs == nil {
		w.srs = map[string]string{}
	}
	m := req.Map
	if m == nil {
		return w
	}
	var names []string
	if man := it.Manifest(); man != nil {
		names = []string{man.VM.Host.UUID, man.VM.Host.Name}
	}
	for _, key := range []string{it.UUID, it.Name} {
		if vm, ok := m.VMs[key]; ok && key != "" {
			used["vms."+key] = true
			w.fill(vm.Pool, vm.Host, vm.SR, vm.Networks, vm.SRs)
			if vm.Start != nil {
				w.start = *vm.Start
			}
			w.order, w.delay = vm.Order, vm.StartDelay
			if w.name == "" {
				w.name = vm.Name
			}
			break
		}
	}
	for _, key := range []string{it.PoolUUID, it.Pool} {
		if p, ok := m.Pools[key]; ok && key != "" {
			used["pools."+key] = true
			w.fill(p.Pool, firstOf(p.Host, p.Hosts, names, used, "pools."+key+".hosts."), p.SR, p.Networks, p.SRs)
			break
		}
	}
	w.fill("", firstOf("", m.Hosts, names, used, "hosts."), "", m.Networks, m.SRs)
	return w
}

// firstOf is the host that is said plainly, else the one that takes the place of the former.
func firstOf(plain string, hosts map[string]string, former []string, used map[string]bool, at string) string {
	for _, name := range former {
		if to, ok := hosts[name]; ok && name != "" {
			used[at+name] = true
			if plain == "" {
				return to
			}
		}
	}
	return plain
}

// fill adds what was not said before.
func (w *wish) fill(pool, host, sr string, networks, srs map[string]string) {
	if w.pool == "" {
		w.pool = pool
	}
	if w.host == "" {
		w.host = host
	}
	if w.sr == "" {
		w.sr = sr
	}
	for from, to := range networks {
		if _, said := w.networks[from]; !said {
			w.networks[from] = to
		}
	}
	for from, to := range srs {
		if _, said := w.srs[from]; !said {
			w.srs[from] = to
		}
	}
}

// unused lists the entries of VMs and pools that no file was about: a slip of the pen would else send VMs elsewhere.
func (m *RestoreMap) unused(used map[string]bool) []Fault {
	var faults faultList
	for _, name := range sortedKeys(m.Pools) {
		if !used["pools."+name] {
			faults.add("pools."+name, "no file to be restored is of a VM of that pool")
		}
	}
	for _, name := range sortedKeys(m.VMs) {
		if !used["vms."+name] {
			faults.add("vms."+name, "no file to be restored is of that VM")
		}
	}
	return faults
}
