package xensim

import (
	"maps"
	"slices"
	"strconv"
)

// send is a migration with storage: to which host, which disks to which SRs,
// which interfaces to which networks.
type send struct {
	vm, host   string
	vdis, vifs map[string]string
}

// sendOf reads the arguments of VM.migrate_send and VM.assert_can_migrate.
func (p *Pool) sendOf(args []any) (send, error) {
	dest := args[1].(map[string]string)
	m := send{vm: args[0].(string), host: dest["host"], vdis: args[3].(map[string]string), vifs: args[4].(map[string]string)}
	if args[5].(map[string]string)["copy"] == "true" {
		return m, fail("OPERATION_NOT_ALLOWED", "A VM is copied within its pool by VM.copy")
	}
	for _, k := range []string{"SM", "host", "xenops", "session_id", "master"} {
		if dest[k] == "" {
			return m, fail("INVALID_VALUE", "dest", "missing key "+k)
		}
	}
	return m, nil
}

// migrateReceive tells where a VM that comes to a host is to be sent to.
func (p *Pool) migrateReceive(c *call, host *object, network string) (any, error) {
	if _, err := p.db.need("network", network); err != nil {
		return nil, err
	}
	h := p.hostByRef(host.ref)
	if h.dead {
		return nil, fail("HOST_OFFLINE", host.ref)
	}
	i := slices.IndexFunc(p.db.many("PIF", host.refs("PIFs")), func(pif *object) bool { return pif.str("network") == network })
	if i < 0 {
		return nil, fail("NO_HOSTS_AVAILABLE", host.ref)
	}
	pif := p.db.many("PIF", host.refs("PIFs"))[i]
	if pif.str("IP") == "" {
		return nil, fail("INTERFACE_HAS_NO_IP", pif.ref)
	}
	base := "http://" + h.address
	return map[string]string{
		"SM": base + "/services/SM?session_id=" + c.session, "host": host.ref, "xenops": base + "/services/xenops?session_id=" + c.session,
		"session_id": c.session, "master": "http://" + p.masterAddressLocked() + "/",
	}, nil
}

// planSend finds which disks must move, and says why a VM cannot be sent.
func (p *Pool) planSend(vm *object, m send) ([]diskMove, error) {
	host, err := p.db.need("host", m.host)
	if err != nil {
		return nil, err
	}
	h := p.hostByRef(m.host)
	switch {
	case h.dead || h.down:
		return nil, fail("HOST_OFFLINE", m.host)
	case !host.is("enabled"):
		return nil, fail("HOST_DISABLED", m.host)
	}
	for vif, network := range m.vifs {
		if _, err := p.db.need("VIF", vif); err != nil {
			return nil, err
		}
		if _, err := p.db.need("network", network); err != nil {
			return nil, err
		}
	}
	if vm.str("power_state") == running && vm.str("resident_on") != m.host {
		free := p.db.find("host_metrics", host.str("metrics")).num("memory_free")
		if need := vm.num("memory_static_max"); free < need {
			return nil, fail("HOST_NOT_ENOUGH_FREE_MEMORY", strconv.FormatInt(need, 10), strconv.FormatInt(free, 10))
		}
		if err := p.mayRun(vm, m.host); err != nil {
			return nil, err
		}
	}
	var moves []diskMove
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		vdi := p.db.find("VDI", vbd.str("VDI"))
		if vdi == nil || vbd.str("type") == "CD" {
			continue
		}
		to, mapped := m.vdis[vdi.ref]
		if !mapped {
			to = vdi.str("SR")
		}
		sr, err := p.db.need("SR", to)
		if err != nil {
			return nil, err
		}
		switch {
		case !p.sees(h, sr) && !mapped:
			return nil, fail("VDI_NOT_IN_MAP", vdi.ref)
		case !p.sees(h, sr):
			return nil, fail("VM_REQUIRES_SR", vm.ref, sr.ref)
		case to != vdi.str("SR"):
			moves = append(moves, diskMove{vdi.ref, to})
		}
	}
	for ref := range m.vdis {
		if _, err := p.db.need("VDI", ref); err != nil {
			return nil, err
		}
	}
	for _, m := range moves {
		if err := p.checkVDI(p.db.find("VDI", m.vdi), "mirror"); err != nil {
			return nil, err
		}
	}
	return moves, nil
}

// migrateSend moves a VM to a host of the pool together with disks.
func (c *call) migrateSend(m send) error {
	p := c.pool
	return c.whileVM(m.vm, "migrate_send", standard, func() error {
		var moves []diskMove
		err := p.locked(func() error {
			vm, err := p.db.need("VM", m.vm)
			if err != nil {
				return err
			}
			moves, err = p.planSend(vm, m)
			return err
		})
		if err != nil {
			return err
		}
		if _, err := c.moveDisks(moves); err != nil {
			return err
		}
		if p.wait(c.ctx, migrateTime) != nil {
			return c.cancelled()
		}
		return p.locked(func() error {
			vm, err := p.db.need("VM", m.vm)
			if err != nil {
				return err
			}
			for _, ref := range slices.Sorted(maps.Keys(m.vifs)) {
				if vif := p.db.find("VIF", ref); vif != nil {
					p.db.set(vif, "network", m.vifs[ref])
				}
			}
			if vm.str("power_state") == running {
				p.settle(vm, m.host)
			}
			return nil
		})
	})
}
