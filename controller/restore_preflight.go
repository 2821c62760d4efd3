package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dpxen/dpxen/internal/rpc"
)

// aim finds where all files of a set go, and what speaks against it: everything that can be known before the first byte goes
// to a host. Every item has a target; one that cannot be restored says why, and the others are restored all the same. The
// error is a UsageError about what was asked for, or ctx's.
func (c *Controller) aim(ctx context.Context, req *RestoreRequest, set *RestoreSet, inv *Inventory) ([]*target, error) {
	p := newPlacing(req, inv)
	var targets, placed []*target
	for _, item := range set.Items {
		t := &target{RestoreItem: item}
		targets = append(targets, t)
		if item.Refused != "" {
			t.refuse(item.Reason, item.Refused, item.Advice)
			p.see(t)
			continue
		}
		if reason, err := p.place(t); err != nil {
			t.refuse(reason, err.Error(), "")
		} else {
			placed = append(placed, t)
		}
	}
	if err := p.err(true); err != nil {
		return nil, err
	}
	for _, t := range placed {
		t.readStart()
		t.warnOfSnapshot(req)
	}
	if err := c.preview(ctx, req, placed); err != nil {
		return nil, err
	}
	f := &preflight{req: req, inv: inv, free: map[string]int64{}, macs: map[string]*target{}}
	for _, t := range inStartOrder(placed) {
		f.check(t)
	}
	return targets, nil
}

// see notes what the map says of a file that is refused anyway.
func (p *placing) see(t *target) { t.wish = p.req.wish(&t.RestoreItem, p.used) }

// refuse keeps the first reason.
func (t *target) refuse(reason, why, advice string) {
	if t.Refused == "" || t.Reason == "" {
		t.Refused, t.Reason, t.Advice = why, reason, cmp.Or(advice, t.Advice)
	}
}

// readStart finds the VM's start order and delay: as the map says, else its own.
func (t *target) readStart() {
	own := func(field string) int {
		if m := t.Manifest(); m != nil {
			for _, v := range []any{m.VM.Record[field], m.VM.Settings[field]} {
				if s, ok := v.(string); ok && s != "" {
					n, _ := strconv.Atoi(s) // what is no number is none
					return max(n, 0)
				}
			}
		}
		if t.ova != nil {
			if v, ok := t.ova.VMField(field); ok {
				n, _ := v.Int()
				return int(min(max(n, 0), 1<<31-1))
			}
		}
		return 0
	}
	t.order, t.delay = own("order"), time.Duration(own("start_delay"))*time.Second
	if t.wish.order != nil {
		t.order = *t.wish.order
	}
	if t.wish.delay != nil {
		t.delay = *t.wish.delay
	}
	t.delay = min(t.delay, maxStartDelay)
}

// inStartOrder returns the targets by their start order, and as they were within one.
func inStartOrder(targets []*target) []*target {
	out := slices.Clone(targets)
	slices.SortStableFunc(out, func(a, b *target) int { return cmp.Compare(a.order, b.order) })
	return out
}

// asking bounds how many agents are asked for plans at the same time.
const asking = 8

// preview asks an agent of each VM's pool what it would do. An agent that does not know the question, or cannot answer now,
// leaves the target without a preview: then its restore finds out.
func (c *Controller) preview(ctx context.Context, req *RestoreRequest, targets []*target) error {
	var g errgroup.Group
	g.SetLimit(asking)
	for _, t := range targets {
		if t.ova == nil {
			continue
		}
		g.Go(func() error {
			for _, name := range t.agents {
				preview, err := c.agent(name).planRestore(ctx, t.UUID, t.spec(req, c.cfg.Timing.ShutdownLimit), t.rawOVA)
				switch {
				case err == nil:
					t.preview = preview
				case refusal(err):
					t.refuse(string(rpc.ReasonOf(err)), err.Error(), adviceRestore(rpc.ReasonOf(err)))
				case anotherMay(err):
					continue // another one may know
				}
				break
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// adviceRestore says what to do about a VM that an agent would not restore.
func adviceRestore(r rpc.Reason) string {
	switch r {
	case rpc.SRFull:
		return "free room on the SR, name another by --sr, or give up the safety by --delete-first"
	case rpc.PowerState:
		return "see the power states in the documentation: resume, unpause or shut the VM down first"
	}
	return ""
}

// preflight holds the VMs of a session against each other and against what there is.
type preflight struct {
	req  *RestoreRequest
	inv  *Inventory
	free map[string]int64 // bytes left on an SR, once it was asked for
	macs map[string]*target
}

// check refuses a target that has no room or conflicts with something.
func (f *preflight) check(t *target) {
	if t.Refused != "" {
		return
	}
	f.conflicts(t)
	f.stranger(t)
	if t.Refused == "" {
		f.room(t)
	}
}

// conflict refuses a target, or warns of it where conflicts are allowed.
func (f *preflight) conflict(t *target, advice, format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	if f.req.AllowConflicts {
		t.warnings = append(t.warnings, text+" (allowed by --allow-conflicts)")
		return
	}
	t.refuse(string(rpc.Conflict), text, advice)
}

func (f *preflight) conflicts(t *target) {
	if t.vm == nil && !f.req.AsNew {
		for _, vm := range f.inv.FindVMs(t.UUID) {
			if vm.PoolUUID == t.pool.UUID {
				continue
			}
			f.conflict(t, "restore into that pool, or as another VM with --as-new; --allow-conflicts makes it all the same",
				"the VM exists in pool %s, where it is %s: two VMs with one UUID and the same MAC addresses", vm.Pool, vm.Power)
		}
	}
	if t.preview == nil {
		return
	}
	for _, n := range t.preview.NICs {
		if !n.Made {
			continue
		}
		if n.ToUUID == "" && n.To != "" && !hasNetwork(t.pool, n.To) {
			if t.preview.InPlace {
				t.warnings = append(t.warnings, fmt.Sprintf("network %q of interface %s is not in pool %s: the interface stays as it is", n.To, n.Device, t.pool.Name))
			} else {
				f.conflict(t, fmt.Sprintf("say which network takes its place: --network %q=NEW; there are: %s", n.Network, networkNames(t.pool)),
					"pool %s has no network %q for interface %s", t.pool.Name, n.To, n.Device)
			}
		}
		f.mac(t, n)
	}
}

// stranger refuses to exchange a VM's disks for those of another VM: the export of a snapshot names no VM, and without its
// manifest only the file's name says whose it is. Its network interfaces say so too.
func (f *preflight) stranger(t *target) {
	if !t.ofSnapshot || t.vm == nil || t.ova == nil || f.req.AsNew || t.entry.Name.UUID == "" {
		return
	}
	var macs []string
	for _, vif := range t.ova.VM().VIFs {
		macs = append(macs, strings.ToLower(vif.MAC))
	}
	owns := func(n NIC) bool { return slices.Contains(macs, strings.ToLower(n.MAC)) }
	if len(macs) == 0 || len(t.vm.NICs) == 0 || slices.ContainsFunc(t.vm.NICs, owns) {
		return
	}
	whose := ""
	for i := range f.inv.VMs {
		if vm := &f.inv.VMs[i]; slices.ContainsFunc(vm.NICs, owns) {
			whose = fmt.Sprintf("; VM %s (%s) has them", vm.Name, vm.UUID)
			break
		}
	}
	f.conflict(t, "give the file the name that it was staged under, or restore it as another VM with --as-new; --allow-conflicts restores it all the same",
		"by its name the file is of this VM, and by its MAC addresses (%s) it is not%s", strings.Join(macs, ", "), whose)
}

// mac refuses an address that another VM of the pool has.
func (f *preflight) mac(t *target, n restoreNIC) {
	mac := strings.ToLower(n.MAC)
	if mac == "" || f.req.AsNew {
		return // it gets another one
	}
	for i := range f.inv.VMs {
		vm := &f.inv.VMs[i]
		if vm.PoolUUID != t.pool.UUID || vm.UUID == t.UUID {
			continue
		}
		for _, other := range vm.NICs {
			if strings.EqualFold(other.MAC, mac) {
				f.conflict(t, "take the address from that VM, or restore as another VM with --as-new; --allow-conflicts restores it all the same",
					"VM %s (%s) has the MAC address %s of interface %s", vm.Name, vm.UUID, n.MAC, n.Device)
				return
			}
		}
	}
	key := t.pool.UUID + " " + mac
	if other := f.macs[key]; other != nil && other.UUID != t.UUID {
		t.warnings = append(t.warnings, fmt.Sprintf("VM %s, restored as well, has the same MAC address %s", other.Name, n.MAC))
		return
	}
	f.macs[key] = t
}

// room refuses a target whose disks do not fit beside those of the ones before it. An SR that does not tell its size has room.
func (f *preflight) room(t *target) {
	if t.preview == nil {
		return
	}
	need := map[string]int64{}
	for _, d := range t.preview.Disks {
		need[d.ToSR] += d.Need - d.Freed
	}
	for _, uuid := range sortedKeys(need) {
		sr := t.pool.SR(uuid)
		if sr == nil {
			continue
		}
		key := t.pool.UUID + " " + uuid
		left, asked := f.free[key]
		if !asked {
			var known bool
			if left, known = sr.Free(); !known {
				continue
			}
			f.free[key] = left
		}
		if need[uuid] > left {
			all, _ := sr.Free()
			t.refuse(string(rpc.SRFull), fmt.Sprintf("SR %s has %s free, of which the VMs before it may need %s; this one needs %s",
				sr.Name, size(all), size(all-left), size(need[uuid])), adviceRestore(rpc.SRFull))
			return
		}
	}
	for uuid, n := range need {
		key := t.pool.UUID + " " + uuid
		if _, asked := f.free[key]; asked {
			f.free[key] -= n
		}
	}
}

func hasNetwork(p *Pool, asked string) bool {
	return slices.ContainsFunc(p.Networks, func(n Network) bool { return n.Name == asked || strings.EqualFold(n.UUID, asked) })
}

func networkNames(p *Pool) string {
	var names []string
	for _, n := range p.Networks {
		names = appendNew(names, n.Name)
	}
	return orNone(strings.Join(names, ", "))
}
