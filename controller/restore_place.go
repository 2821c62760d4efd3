package controller

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// placing finds where each file goes, by the names that the command line and the map give.
type placing struct {
	req    *RestoreRequest
	inv    *Inventory
	load   map[string]int  // files that each agent has got before
	used   map[string]bool // entries of the map
	found  map[string]bool // OLDs of the command line that a file has
	blind  bool            // a file could not be read
	faults []string        // what was asked for and makes no sense, each once
}

func newPlacing(req *RestoreRequest, inv *Inventory) *placing {
	return &placing{req: req, inv: inv, load: map[string]int{}, used: map[string]bool{}, found: map[string]bool{}}
}

// fault notes what is wrong with what was asked for.
func (p *placing) fault(err error) {
	if err != nil {
		p.faults = appendNew(p.faults, err.Error())
	}
}

// err is a UsageError with every fault, once all files were placed.
func (p *placing) err(all bool) error {
	faults := slices.Clone(p.faults)
	if all && !p.req.Rerun {
		for _, list := range []struct {
			flag, what string
			pairs      map[string]string
		}{{"--network", "network", p.req.Networks}, {"--sr", "SR", p.req.SRs}} {
			for _, from := range sortedKeys(list.pairs) {
				if !p.found[list.flag+from] && !p.blind {
					faults = append(faults, fmt.Sprintf("%s %s=%s: no file has a %s %q", list.flag, from, list.pairs[from], list.what, from))
				}
			}
		}
		if p.req.Map != nil {
			for _, f := range p.req.Map.unused(p.used) {
				faults = append(faults, p.req.Map.File+": "+f.String())
			}
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &UsageError{Failure{What: strings.Join(faults, "\n")}}
}

// place finds pool, agents, host, SRs and networks for a file. What is wrong with what was asked for is noted, and is no
// error; an error is about this VM.
func (p *placing) place(t *target) (reason string, err error) {
	if t.ova, t.rawOVA, err = peekOVA(t.entry); err != nil {
		p.blind = true // that it cannot be read is found when it is proven
	}
	t.wish = p.req.wish(&t.RestoreItem, p.used)
	if t.pool, err = p.poolFor(t); err != nil {
		if is[*UsageError](err) {
			p.fault(err)
			return "", nil
		}
		return ReasonUnreachable, err
	}
	for _, vm := range p.inv.FindVMs(t.UUID) {
		if vm.PoolUUID == t.pool.UUID {
			t.vm = vm
		}
	}
	if t.wish.host != "" {
		host, err := hostIn(t.pool, t.wish.host)
		p.fault(err)
		t.host = host
	}
	if err := p.agents(t); err != nil {
		return ReasonUnreachable, err
	}
	if t.wish.sr != "" {
		t.sr, err = srIn(t.pool, t.wish.sr)
		p.fault(err)
	}
	p.pairs(t)
	return "", nil
}

// agents orders the agents of the pool by how well they suit: beside the wanted host, where the VM is, the least busy.
func (p *placing) agents(t *target) error {
	switch {
	case t.vm != nil && len(t.vm.Agents) > 0:
		t.agents = slices.Clone(t.vm.Agents)
	case len(t.pool.Agents) > 0:
		t.agents = slices.Clone(t.pool.Agents)
		slices.SortStableFunc(t.agents, func(a, b string) int { return cmp.Compare(p.load[a], p.load[b]) })
	default:
		return Failure{What: "no agent of pool " + t.pool.Name + " answers", Advice: "see dpxen hosts"}
	}
	if h := t.pool.Host(t.host); h != nil && h.Agent != "" {
		t.agents = slices.DeleteFunc(t.agents, func(name string) bool { return name == h.Agent })
		t.agents = slices.Insert(t.agents, 0, h.Agent)
	}
	p.load[t.agents[0]]++
	return nil
}

// pairs takes, of what is to take the place of what, what the file has, and finds it in the pool.
func (p *placing) pairs(t *target) {
	t.networks, t.srs = map[string]string{}, map[string]string{}
	if t.ova == nil {
		return
	}
	for _, vif := range t.ova.VM().VIFs {
		for _, from := range []string{vif.NetworkUUID, vif.NetworkName} {
			to, ok := t.wish.networks[from]
			if !ok || from == "" {
				continue
			}
			p.found["--network"+from] = true
			uuid, err := networkIn(t.pool, from, to)
			p.fault(err)
			if uuid != "" {
				t.networks[from] = uuid
			}
		}
	}
	disks, err := t.ova.Disks()
	if err != nil {
		return // found when it is proven
	}
	for _, d := range disks {
		for _, from := range []string{d.SRUUID, d.SRName} {
			to, ok := t.wish.srs[from]
			if !ok || from == "" {
				continue
			}
			p.found["--sr"+from] = true
			uuid, err := srIn(t.pool, to)
			p.fault(err)
			t.srs[from] = uuid
		}
	}
}

// poolFor is the pool that was asked for, else the one that the file's VM is in, else the one that it was in.
func (p *placing) poolFor(t *target) (*Pool, error) {
	if t.wish.pool != "" {
		return poolIn(p.inv, t.wish.pool)
	}
	if t.wish.host != "" { // a host says its pool as well
		if pool := poolOfHost(p.inv, t.wish.host); pool != nil {
			return pool, nil
		}
	}
	if t.PoolUUID != "" {
		if pool := p.inv.PoolByUUID(t.PoolUUID); pool != nil {
			return pool, nil
		}
	} else if there := p.inv.FindVMs(t.UUID); len(there) == 1 {
		return p.inv.PoolByUUID(there[0].PoolUUID), nil
	} else if len(p.inv.Pools) == 1 {
		return &p.inv.Pools[0], nil
	}
	if t.PoolUUID == "" {
		return nil, &UsageError{Failure{What: fmt.Sprintf("%s: no manifest says which pool it is for", t.File), Advice: "name the pool by --pool"}}
	}
	return nil, Failure{What: fmt.Sprintf("its pool %s (%s) is not among those that answer", t.Pool, t.PoolUUID),
		Advice: "see dpxen hosts, or name another pool by --pool"}
}

func poolIn(inv *Inventory, asked string) (*Pool, error) {
	var found []*Pool
	var names []string
	for i := range inv.Pools {
		p := &inv.Pools[i]
		names = append(names, fmt.Sprintf("%s (%s)", p.Name, p.UUID))
		if p.Name == asked || strings.EqualFold(p.UUID, asked) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return nil, &UsageError{Failure{What: fmt.Sprintf("--pool %q names %d pools; there are: %s", asked, len(found), orNone(strings.Join(names, ", ")))}}
	}
	return found[0], nil
}

// poolOfHost is the only pool that has a host of that name or UUID, else nil.
func poolOfHost(inv *Inventory, asked string) *Pool {
	var found *Pool
	for i := range inv.Pools {
		for _, h := range inv.Pools[i].Hosts {
			if h.Name == asked || strings.EqualFold(h.UUID, asked) {
				if found != nil {
					return nil
				}
				found = &inv.Pools[i]
			}
		}
	}
	return found
}

func hostIn(p *Pool, asked string) (string, error) {
	var found, names []string
	for _, h := range p.Hosts {
		names = append(names, fmt.Sprintf("%s (%s)", h.Name, h.UUID))
		if h.Name == asked || strings.EqualFold(h.UUID, asked) {
			if !h.Live || !h.Enabled {
				return "", errors.New("--to-host " + asked + ": the host is not alive, or takes no VMs")
			}
			found = append(found, h.UUID)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("--to-host %q names %d hosts of pool %s; there are: %s", asked, len(found), p.Name, orNone(strings.Join(names, ", ")))
	}
	return found[0], nil
}

func srIn(p *Pool, asked string) (string, error) {
	var found, names []string
	for _, sr := range p.SRs {
		if sr.ContentType != "iso" {
			names = append(names, fmt.Sprintf("%s (%s)", sr.Name, sr.UUID))
		}
		if sr.Name == asked || strings.EqualFold(sr.UUID, asked) {
			found = append(found, sr.UUID)
		}
	}
	slices.Sort(names)
	if len(found) != 1 {
		return "", &UsageError{Failure{What: fmt.Sprintf("--sr %q names %d SRs of pool %s; there are: %s", asked, len(found), p.Name, orNone(strings.Join(names, ", ")))}}
	}
	return found[0], nil
}

func networkIn(p *Pool, from, asked string) (string, error) {
	var found, names []string
	for _, n := range p.Networks {
		names = append(names, fmt.Sprintf("%s (%s)", n.Name, n.UUID))
		if n.Name == asked || strings.EqualFold(n.UUID, asked) {
			found = append(found, n.UUID)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("--network %s=%s: %q names %d networks of pool %s; there are: %s", from, asked, asked, len(found), p.Name,
			orNone(strings.Join(names, ", ")))
	}
	return found[0], nil
}
