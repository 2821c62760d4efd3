package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// An offline file has the VM's network interfaces. XAPI has no setter for a VIF's MAC: one is replaced by VIF.destroy and
// VIF.create, so for a moment it is missing. What is to be there is in the journal before.

// vifPlan is one interface that is replaced: what is wanted there, and what was there, for the case that XAPI refuses that.
type vifPlan struct {
	Want vifNote  `json:"w"`
	Old  *vifNote `json:"o,omitempty"`
}

// vifNote is what a VIF is made of.
type vifNote struct {
	Device      string            `json:"d"`
	Network     string            `json:"n"` // UUID
	MAC         string            `json:"m,omitempty"`
	MTU         int64             `json:"t,omitempty"`
	Locking     string            `json:"l,omitempty"`
	IPv4        []string          `json:"v4,omitempty"`
	IPv6        []string          `json:"v6,omitempty"`
	OtherConfig map[string]string `json:"oc,omitempty"`
	QOSType     string            `json:"qt,omitempty"`
	QOSParams   map[string]string `json:"qp,omitempty"`
}

// planVIFs says which interfaces are to be replaced: those that are there already with the same MAC and network stay, as do
// those that the file does not have. missed is what cannot be done.
func planVIFs(ctx context.Context, c *xapi.Client, v *poolView, vm xapi.VM, ova *xva.OVA, mapped map[string]string) (plans []vifPlan, missed []string) {
	have := map[string]xapi.VIF{}
	for _, ref := range vm.VIFs {
		vif, err := c.VIF(ctx, ref)
		if errors.Is(err, xapi.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, []string{fmt.Sprintf("network interfaces: %v", err)}
		}
		have[vif.Device] = vif
	}
	for _, want := range ova.VM().VIFs {
		network, err := v.networkFor(want, mapped)
		old, exists := have[want.Device]
		delete(have, want.Device)
		if err != nil {
			missed = append(missed, fmt.Sprintf("interface %s: %v", want.Device, err))
			continue
		}
		if exists && strings.EqualFold(old.MAC, want.MAC) && old.Network == network {
			continue
		}
		p := vifPlan{Want: vifNote{Device: want.Device, Network: v.networks[network].UUID, MAC: want.MAC, MTU: want.MTU,
			Locking: want.LockingMode, IPv4: want.IPv4Allowed, IPv6: want.IPv6Allowed, OtherConfig: want.OtherConfig}}
		if exists {
			p.Old = &vifNote{Device: old.Device, Network: v.networks[old.Network].UUID, MAC: old.MAC, MTU: old.MTU,
				Locking: old.LockingMode, IPv4: old.IPv4Allowed, IPv6: old.IPv6Allowed, OtherConfig: old.OtherConfig,
				QOSType: old.QOSAlgorithmType, QOSParams: old.QOSAlgorithmParams}
		}
		plans = append(plans, p)
	}
	for _, device := range slices.Sorted(maps.Keys(have)) {
		missed = append(missed, fmt.Sprintf("interface %s is not in the file and stays", device))
	}
	return plans, missed
}

// replaceVIFs does what planVIFs has planned, and returns what could not be done. It may be repeated from any point.
func replaceVIFs(ctx context.Context, c *xapi.Client, retry backoff, vm xapi.Ref, plans []vifPlan) (missed []string) {
	for _, p := range plans {
		err := retry.do(ctx, passing, func(ctx context.Context) error { return replaceVIF(ctx, c, vm, p) })
		if err != nil {
			missed = append(missed, fmt.Sprintf("interface %s: %v", p.Want.Device, err))
		}
	}
	return missed
}

// replaceVIF puts the wanted interface in its place. If that fails, the former one is made again.
func replaceVIF(ctx context.Context, c *xapi.Client, vm xapi.Ref, p vifPlan) error {
	has, err := vifAt(ctx, c, vm, p.Want.Device)
	if err != nil {
		return err
	}
	if has != nil && p.Old != nil && !strings.EqualFold(has.MAC, p.Old.MAC) || has != nil && p.Old == nil {
		return nil // done already: a lost answer, or an attempt before this one
	}
	if has != nil {
		if err := c.DestroyVIF(ctx, has.Ref); err != nil && !errors.Is(err, xapi.ErrNotFound) {
			return fmt.Errorf("remove the interface there: %w", err)
		}
	}
	return fillVIF(ctx, c, vm, p)
}

// fillVIF makes the wanted interface where there is none, or, when XAPI refuses that, the former one.
func fillVIF(ctx context.Context, c *xapi.Client, vm xapi.Ref, p vifPlan) error {
	err := makeVIF(ctx, c, vm, p.Want)
	if err == nil || p.Old == nil || passing(err) {
		return err
	}
	return errors.Join(err, makeVIF(ctx, c, vm, *p.Old))
}

func makeVIF(ctx context.Context, c *xapi.Client, vm xapi.Ref, n vifNote) error {
	networks, err := c.Networks(ctx)
	if err != nil {
		return err
	}
	for ref, network := range networks {
		if network.UUID == n.Network {
			_, err := c.CreateVIF(ctx, xapi.VIFSpec{VM: vm, Network: ref, Device: n.Device, MAC: n.MAC, MTU: n.MTU, LockingMode: n.Locking,
				IPv4Allowed: n.IPv4, IPv6Allowed: n.IPv6, OtherConfig: n.OtherConfig, QOSAlgorithmType: n.QOSType, QOSAlgorithmParams: n.QOSParams})
			return err
		}
	}
	return fmt.Errorf("network %s is gone", n.Network)
}

// vifAt returns the VM's interface at a position, nil for none.
func vifAt(ctx context.Context, c *xapi.Client, vm xapi.Ref, device string) (*xapi.VIF, error) {
	rec, err := c.VM(ctx, vm)
	if err != nil {
		return nil, fmt.Errorf("read the VM's interfaces: %w", err)
	}
	for _, ref := range rec.VIFs {
		vif, err := c.VIF(ctx, ref)
		if errors.Is(err, xapi.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the VM's interfaces: %w", err)
		}
		if vif.Device == device {
			return &vif, nil
		}
	}
	return nil, nil
}

// interfaces gives a VM those interfaces that an interrupted restore has taken off it.
func (s *sweeping) interfaces(ctx context.Context) {
	var plans []vifPlan
	found, err := s.work.note(stepVIFs, &plans)
	if err != nil {
		s.report("read the plan of the network interfaces", s.work.nonce, err)
		return
	}
	if !found {
		return
	}
	for _, p := range plans {
		has, err := vifAt(ctx, s.a.xapi, s.vm.Ref, p.Want.Device)
		if err != nil {
			s.report("look for network interface", p.Want.Device, err)
			return
		}
		if has == nil {
			s.do("give the VM its network interface back", p.Want.Device, func() error {
				return fillVIF(ctx, s.a.xapi, s.vm.Ref, p)
			})
		}
	}
}

// networkFor finds the pool's network for an interface of the file: by the caller's map, else by UUID, else by name. A name
// that several networks have is no answer.
func (v *poolView) networkFor(vif xva.VIF, mapped map[string]string) (xapi.Ref, error) {
	wanted := []string{vif.NetworkUUID, vif.NetworkName}
	for _, key := range wanted {
		if to, ok := mapped[key]; ok && key != "" {
			wanted = []string{to}
			break
		}
	}
	for _, w := range wanted {
		var named []xapi.Ref
		for ref, n := range v.networks {
			if w != "" && strings.EqualFold(n.UUID, w) {
				return ref, nil
			}
			if w != "" && n.Name == w {
				named = append(named, ref)
			}
		}
		switch len(named) {
		case 0:
		case 1:
			return named[0], nil
		default:
			return "", fmt.Errorf("%d networks of this pool are called %q: give --network with a UUID", len(named), w)
		}
	}
	return "", fmt.Errorf("network %q is not in this pool", cmp.Or(wanted[len(wanted)-1], vif.NetworkName))
}
