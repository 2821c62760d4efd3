package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	skewWarn = 5 * time.Second // clocks that differ by more are told of
	skewFail = 5 * time.Minute // and by more than this break certificates and sweeps
)

// agents asks every agent, then looks at the pools behind them.
func (d *doctor) agents(ctx context.Context) {
	c, err := New(d.cfg, d.o.Options)
	if err != nil {
		d.fail("agents", "", "set the controller's certificate right first", "none could be asked: %v", err)
		return
	}
	defer func() { _ = c.Close() }() // all was said
	ctx, cancel := context.WithTimeout(ctx, d.o.Limit)
	defer cancel()
	asked := make([]answer, len(c.agents))
	first, stop := context.WithTimeout(ctx, d.o.Limit/2)
	defer stop()
	var g errgroup.Group
	for i, a := range c.agents {
		g.Go(func() error {
			asked[i] = c.askOne(first, a)
			return nil
		})
	}
	_ = g.Wait() // what failed is in the answers
	inv, err := inventoryOf(ctx, asked)
	for i := range asked {
		d.agent(&asked[i].status)
	}
	if err != nil {
		d.fail("pools", "", "set an agent right first", "no pool, storage or specification could be looked at, since no agent works")
		return
	}
	for i := range inv.Pools {
		d.pool(inv, &inv.Pools[i])
	}
	d.specs(c, inv)
}

// agent tells of one agent: what it said, its certificate, clock and version.
func (d *doctor) agent(s *AgentStatus) {
	if !s.OK {
		d.fail("agent", s.Name, s.Advice, "%s at %s: %s", s.Class, s.Address, s.Error)
	} else {
		d.pass("agent", s.Name, "it answers at %s, and XAPI answers it by %s", s.Address, s.XAPI)
		d.clock("clock", s.Name, "the agent's", s.ClockSkew)
	}
	if !s.CertEnds.IsZero() {
		d.certificate("certificate", s.Name, s.CertEnds, "dpxen certs renew agent/"+s.Name+", and copy it to the host")
	}
	switch {
	case s.Version == "":
	case s.Version != d.o.Version:
		d.warn("version", s.Name, "install the same version everywhere", "the agent is %s, this controller %s", s.Version, d.o.Version)
	default:
		d.pass("version", s.Name, "%s, as here", s.Version)
	}
	for _, w := range s.Warnings {
		d.warn("agent", s.Name, "see dpxen-agent --check on its host", "%s", w)
	}
}

func (d *doctor) clock(name, subject, whose string, skew time.Duration) {
	text := fmt.Sprintf("%s clock differs by %s from this machine's", whose, skew.Round(10*time.Millisecond))
	switch off := skew.Abs(); {
	case off > skewFail:
		d.fail(name, subject, "set both clocks by NTP", "%s", text)
	case off > skewWarn:
		d.warn(name, subject, "set both clocks by NTP", "%s", text)
	default:
		d.pass(name, subject, "%s", text)
	}
}

// pool tells of a pool: its master, clock, hosts without an agent, storage.
func (d *doctor) pool(inv *Inventory, p *Pool) {
	master := p.Host(p.MasterUUID)
	switch {
	case p.Error != "":
		d.fail("pool", p.Name, "see the agent's log", "its VMs could not be listed: %s", p.Error)
	case master == nil || !master.Live:
		d.fail("pool", p.Name, "see the pool's hosts: without a live master nothing can be changed", "its master is not known or not live")
	default:
		vms := 0
		for i := range inv.VMs {
			if inv.VMs[i].PoolUUID == p.UUID {
				vms++
			}
		}
		d.pass("pool", p.Name, "%s %s, master %s, %d hosts, %d VMs", p.ProductBrand, p.ProductVersion, master.Name, len(p.Hosts), vms)
	}
	for i := range inv.Agents {
		if a := &inv.Agents[i]; a.OK && a.PoolUUID == p.UUID {
			d.clock("clock", p.Name, "the pool master's", a.MasterSkew)
			break
		}
	}
	var bare []string
	for _, h := range p.Hosts {
		if h.Live && h.Agent == "" {
			bare = append(bare, h.Name)
		}
	}
	if len(bare) > 0 {
		d.warn("agents", p.Name, "one beside each host is faster, and the pool does not depend on one machine",
			"no agent is beside %s", strings.Join(bare[:min(len(bare), maxCandidates)], ", "))
	}
	for i := range p.SRs {
		d.storage(inv, p, &p.SRs[i])
	}
}

// storage tells whether an SR that holds VMs' disks can take their snapshots.
func (d *doctor) storage(inv *Inventory, p *Pool, sr *SR) {
	vms, rules := 0, d.cfg.diskRules()
	var need int64
	var largest string
	for i := range inv.VMs {
		vm := &inv.VMs[i]
		keep, _ := rules.split(vm)
		if vm.PoolUUID != p.UUID || !slices.ContainsFunc(keep, func(k Disk) bool { return k.SR == sr.UUID }) {
			continue
		}
		vms++
		if n := snapshotNeed(sr, keep); n >= need {
			need, largest = n, vm.Name
		}
	}
	if vms == 0 {
		return
	}
	name := p.Name + "/" + sr.Name
	free, known := sr.Free()
	text := fmt.Sprintf("%s, %s free of %s, disks of %d VMs", sr.Type, size(free), size(sr.Size), vms)
	switch able, sure := snapshots(sr.Type); {
	case sure && !able:
		d.warn("storage", name, "back these VMs up in an offline mode", "%s: this type takes no snapshots, which online modes need", text)
	case !known:
		d.warn("storage", name, "see the SR", "%s: its free room is not known", sr.Type)
	case free < need:
		d.warn("storage", name, "free room on it, or use an offline mode", "%s: less than the %s that a snapshot of %s may need", text, size(need), largest)
	case !sure:
		d.warn("storage", name, "try one online backup", "%s: it is not known whether this type takes snapshots", text)
	default:
		d.pass("storage", name, "%s; takes snapshots, at most %s for one VM", text, size(need))
	}
}

// snapshots tells whether SRs of a type take snapshots, as far as is known (the SM drivers' VDI_SNAPSHOT).
func snapshots(srType string) (able, sure bool) {
	switch strings.ToLower(srType) {
	case "ext", "nfs", "lvm", "lvmoiscsi", "lvmohba", "lvmofcoe", "smb", "cifs", "file", "gfs2", "xosan", "zfs", "largeblock", "xfs",
		"glusterfs", "cephfs", "moosefs", "linstor", "netapp", "equal", "btrfs", "zfs-vol":
		return true, true
	case "iso", "udev", "iscsi", "rawhba", "hba", "tmpfs", "dummy":
		return false, true
	}
	return false, false
}

// specs plans a backup of each specification, or of what holds for those that have no section.
func (d *doctor) specs(c *Controller, inv *Inventory) {
	names := sortedKeys(d.cfg.Specs)
	if mode, err := ParseMode(d.cfg.SpecDefaults.Mode); len(names) == 0 && err == nil && mode.All() {
		names = []string{""}
	}
	for _, name := range names {
		spec, _ := d.cfg.Spec(name)
		subject := name
		if name == "" {
			subject = "spec_defaults"
		}
		mode, err := ParseMode(spec.Mode)
		var plan *Plan
		if err == nil {
			plan, err = c.planOf(inv, Request{Mode: mode, Selection: spec.Selection(name, mode)})
		}
		if err != nil {
			d.fail("specification", subject, "correct its section, or the set that it selects", "%v", err)
			continue
		}
		d.plan(subject, mode, plan)
	}
}

func (d *doctor) plan(subject string, mode Mode, p *Plan) {
	text := fmt.Sprintf("mode %s, %d VMs, %d would run, %s at most", mode, p.Selected, p.Runnable, size(p.Bytes))
	refused := slices.IndexFunc(p.VMs, func(vm PlannedVM) bool { return vm.Refused != "" })
	switch {
	case p.Runnable == 0:
		why := ""
		if refused >= 0 {
			why = fmt.Sprintf(": %s: %s", p.VMs[refused].Name, p.VMs[refused].Refused)
		}
		d.fail("specification", subject, "see dpxen plan", "%s%s", text, why)
	case refused >= 0:
		d.warn("specification", subject, orElse(p.VMs[refused].Advice, "see dpxen plan"), "%s; %s: %s", text, p.VMs[refused].Name, p.VMs[refused].Refused)
	case p.Room.Short:
		d.warn("specification", subject, "give the staging folder more room: all files must be there when Data Protector begins",
			"%s, but %s are free in the staging folder", text, size(p.Room.Free))
	default:
		d.pass("specification", subject, "%s of %s free in the staging folder", text, size(p.Room.Free))
	}
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}
