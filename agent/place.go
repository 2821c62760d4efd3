package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/xapi"
)

// poolInfo is the pool as manifests and reports know it.
type poolInfo struct {
	UUID, Name, MasterUUID, DefaultSRUUID    string
	ProductBrand, ProductVersion, APIVersion string
	HAEnabled, HAOvercommitted               bool
	HAPlanFor, HATolerate                    int64 // numbers of failing hosts
}

// hostInfo is a member of the pool.
type hostInfo struct {
	Ref                 xapi.Ref
	UUID, Name, Address string
	Live, Enabled       bool
}

// srInfo is a storage repository.
type srInfo struct {
	UUID, Name, Type, ContentType string
	Shared                        bool
	Size, Used                    int64 // bytes
	PluggedHosts                  []string
}

// networkInfo is a network of the pool.
type networkInfo struct{ UUID, Name, Bridge string }

// poolState is what Check tells.
type poolState struct {
	Pool     poolInfo
	Hosts    []hostInfo
	SRs      []srInfo
	Networks []networkInfo
	OwnHost  string // UUID, empty where it cannot be told
	Time     time.Time
	Warnings []string
}

// checkPool logs in and reads the pool, its hosts, SRs and networks.
func (a *Agent) checkPool(ctx context.Context) (*poolState, error) {
	inv := &inventory{}
	if err := a.loadPlaces(ctx, inv); err != nil {
		return nil, fmt.Errorf("read the pool: %w", err)
	}
	pool, err := a.xapi.Pool(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the pool: %w", err)
	}
	s := a.describe(inv, pool)
	if s.Time, err = a.journal.now(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// describe tells what the records say of the pool.
func (a *Agent) describe(inv *inventory, pool xapi.Pool) *poolState {
	s := &poolState{Pool: inv.pool(pool)}
	for ref := range inv.hosts {
		s.Hosts = append(s.Hosts, inv.host(ref))
	}
	slices.SortFunc(s.Hosts, func(x, y hostInfo) int { return strings.Compare(x.Name+x.UUID, y.Name+y.UUID) })
	for ref := range inv.srs {
		s.SRs = append(s.SRs, inv.sr(ref))
	}
	slices.SortFunc(s.SRs, func(x, y srInfo) int { return strings.Compare(x.Name+x.UUID, y.Name+y.UUID) })
	for _, n := range inv.networks {
		s.Networks = append(s.Networks, networkInfo{n.UUID, n.Name, n.Bridge})
	}
	slices.SortFunc(s.Networks, func(x, y networkInfo) int { return strings.Compare(x.Name+x.UUID, y.Name+y.UUID) })
	own, ok := a.ownHost(inv)
	if ok {
		s.OwnHost = own.UUID
	} else {
		s.Warnings = append(s.Warnings, "the host that the agent stands beside cannot be told from xapi.url; set xapi.host")
	}
	l := parseLedger(pool.OtherConfig)
	for _, key := range slices.Sorted(maps.Keys(l.unknown)) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("journal key %s is left alone: %s", key, l.unknown[key]))
	}
	return s
}

func (inv *inventory) sr(ref xapi.Ref) srInfo {
	sr := inv.srs[ref]
	return srInfo{UUID: sr.UUID, Name: sr.Name, Type: sr.Type, ContentType: sr.ContentType, Shared: sr.Shared, Size: sr.PhysicalSize,
		Used: sr.PhysicalUtilisation, PluggedHosts: inv.pluggedHosts(ref)}
}

func (inv *inventory) pool(p xapi.Pool) poolInfo {
	master := inv.hosts[p.Master]
	return poolInfo{UUID: p.UUID, Name: p.Name, MasterUUID: master.UUID, DefaultSRUUID: inv.srs[p.DefaultSR].UUID,
		ProductBrand: master.SoftwareVersion["product_brand"], ProductVersion: master.SoftwareVersion["product_version"],
		APIVersion: fmt.Sprintf("%d.%d", master.APIMajor, master.APIMinor), HAEnabled: p.HAEnabled,
		HAOvercommitted: p.HAOvercommitted, HAPlanFor: p.HAPlanExistsFor, HATolerate: p.HAHostFailures}
}

func (inv *inventory) host(ref xapi.Ref) hostInfo {
	h := inv.hosts[ref]
	return hostInfo{Ref: ref, UUID: h.UUID, Name: h.Name, Address: h.Address, Live: inv.live(h), Enabled: h.Enabled}
}

// live tells whether XAPI sees the host alive; one whose metrics are not known is taken to be.
func (inv *inventory) live(h xapi.Host) bool {
	live, known := inv.alive[h.Metrics]
	return live || !known
}

// hostsAlive reads which host metrics say live.
func (a *Agent) hostsAlive(ctx context.Context) (map[xapi.Ref]bool, error) {
	v, err := a.xapi.Call(ctx, "host_metrics.get_all_records")
	if err != nil {
		return nil, err
	}
	all, err := v.Record()
	if err != nil {
		return nil, fmt.Errorf("decode host metrics: %w", err)
	}
	out := make(map[xapi.Ref]bool, len(all))
	for ref := range all {
		one, err := all.Get(ref).Record()
		if err != nil {
			return nil, fmt.Errorf("decode host metrics %s: %w", ref, err)
		}
		if out[xapi.Ref(ref)], err = one.Get("live").Bool(); err != nil {
			return nil, fmt.Errorf("decode host metrics %s: %w", ref, err)
		}
	}
	return out, nil
}

// ownHost returns the host that the agent stands beside: the one that is named
// in the configuration, or whose address is in the URL, or the only one.
func (a *Agent) ownHost(inv *inventory) (hostInfo, bool) {
	u, err := url.Parse(a.cfg.XAPI.URL)
	if err != nil {
		return hostInfo{}, false
	}
	named := a.cfg.XAPI.Host
	for ref, h := range inv.hosts {
		switch {
		case named != "":
			if named == h.UUID || named == h.Name {
				return inv.host(ref), true
			}
		case sameAddress(h.Address, u), u.Host != "" && strings.EqualFold(h.Hostname, u.Hostname()):
			return inv.host(ref), true
		}
	}
	if named == "" && len(inv.hosts) == 1 {
		for ref := range inv.hosts {
			return inv.host(ref), true
		}
	}
	return hostInfo{}, false
}

// sameAddress compares a host's management address with that in the URL. An
// address with a port, as simulators have it, must match with its port.
func sameAddress(address string, u *url.URL) bool {
	if address == "" || u.Host == "" {
		return false
	}
	if _, _, err := net.SplitHostPort(address); err == nil {
		return strings.EqualFold(address, u.Host)
	}
	return strings.EqualFold(strings.Trim(address, "[]"), u.Hostname())
}

// servingHost guesses the host that will serve an export: the one where the VM
// runs, else our own, else the master.
func (a *Agent) servingHost(inv *inventory, vm xapi.VM, pool xapi.Pool) hostInfo {
	if _, ok := inv.hosts[vm.ResidentOn]; ok {
		return inv.host(vm.ResidentOn)
	}
	if own, ok := a.ownHost(inv); ok {
		return own
	}
	return inv.host(pool.Master)
}
