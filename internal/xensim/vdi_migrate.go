package xensim

import (
	"slices"
	"time"
)

// mirrorSpeed is how many bytes a second a disk is copied to another SR with,
// roughly; mirrorSteps is how often the task's progress moves meanwhile.
const (
	mirrorSpeed = 100_000_000
	mirrorSteps = 10
)

func (p *Pool) registerStorageMigration() {
	p.slow("VDI.pool_migrate", func(c *call, args []any) (any, error) { return c.migrateVDI(args[0].(string), args[1].(string)) })
	p.slow("VM.migrate_send", func(c *call, args []any) (any, error) {
		m, err := p.sendOf(args)
		if err != nil {
			return nil, err
		}
		return m.vm, c.migrateSend(m)
	})
	p.slow("VM.assert_can_migrate", func(_ *call, args []any) (any, error) {
		m, err := p.sendOf(args)
		if err != nil {
			return nil, err
		}
		return "", p.locked(func() error {
			vm, err := p.db.need("VM", m.vm)
			if err != nil {
				return err
			}
			if err := p.checkVM(vm, "migrate_send"); err != nil {
				return err
			}
			_, err = p.planSend(vm, m)
			return err
		})
	})
	p.withHost("host.migrate_receive", func(c *call, host *object, args []any) (any, error) {
		return p.migrateReceive(c, host, args[0].(string))
	})
}

// migrateVDI moves a disk of a VM to another SR, with its snapshots. The VM may
// run; its VBD names the new disk at the end (xapi_vm_migrate.ml).
func (c *call) migrateVDI(ref, to string) (any, error) {
	p := c.pool
	var vm string
	err := p.locked(func() error {
		vdi, err := p.needVDI(ref, "mirror")
		if err != nil {
			return err
		}
		if _, err := p.db.need("SR", to); err != nil {
			return err
		}
		for _, vbd := range p.db.many("VBD", vdi.refs("VBDs")) {
			if o := p.db.find("VM", vbd.str("VM")); o != nil && !o.is("is_a_snapshot") && !o.is("is_control_domain") {
				vm = o.ref
			}
		}
		if vm == "" {
			return fail("VDI_NEEDS_VM_FOR_MIGRATE", ref)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	made := ref
	err = c.whileVM(vm, "migrate_send", standard, func() error {
		moved, err := c.moveDisks([]diskMove{{ref, to}})
		if err == nil && moved[ref] != "" {
			made = moved[ref]
		}
		return err
	})
	return made, err
}

// diskMove says which disk goes to which SR.
type diskMove struct{ vdi, sr string }

// moveDisks copies disks and their snapshots to other SRs, in simulated time, and
// then lets the copies take their places. It gives the new disks by the old ones.
func (c *call) moveDisks(moves []diskMove) (map[string]string, error) {
	p := c.pool
	var total int64
	err := p.locked(func() error {
		var err error
		if moves, total, err = p.prepareMoves(moves); err != nil {
			return err
		}
		for _, m := range moves {
			p.db.put(p.db.find("VDI", m.vdi), "current_operations", c.task, "mirror")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range mirrorSteps {
		step := time.Duration(float64(total) / mirrorSpeed / mirrorSteps * float64(time.Second))
		if err = p.wait(c.ctx, step); err != nil {
			err = c.cancelled()
			break
		}
		_ = p.locked(func() error {
			p.setProgress(c.task, float64(i+1)/(mirrorSteps+1))
			return nil
		})
	}
	moved := map[string]string{}
	return moved, p.locked(func() error {
		for _, m := range moves {
			if vdi := p.db.find("VDI", m.vdi); vdi != nil {
				p.db.drop(vdi, "current_operations", c.task)
			}
		}
		if err != nil {
			return err
		}
		return p.finishMoves(moves, moved)
	})
}

// prepareMoves adds the snapshots of the disks, leaves out what is in its place
// already, and wants room for the rest.
func (p *Pool) prepareMoves(moves []diskMove) ([]diskMove, int64, error) {
	var out []diskMove
	need := map[string]int64{}
	var total int64
	for _, m := range moves {
		vdi, err := p.needVDI(m.vdi, "mirror")
		if err != nil {
			return nil, 0, err
		}
		sr, err := p.db.need("SR", m.sr)
		if err != nil {
			return nil, 0, err
		}
		if err := p.usableSR(sr); err != nil {
			return nil, 0, err
		}
		if !holdsVHDs(sr) {
			return nil, 0, fail("SR_OPERATION_NOT_SUPPORTED", sr.ref)
		}
		if vdi.str("SR") == m.sr {
			continue
		}
		disks := []*object{vdi}
		for _, s := range p.db.many("VDI", vdi.refs("snapshots")) {
			if v := p.volumes[s.ref]; v != nil && v.image != nil {
				disks = append(disks, s)
			}
		}
		for _, d := range disks {
			used := p.volumes[d.ref].image.Utilisation() + vhdOverhead(d.num("virtual_size"))
			if isThick(sr) && !d.is("is_a_snapshot") {
				used = d.num("virtual_size") + vhdOverhead(d.num("virtual_size"))
			}
			need[m.sr] += used
			total += used
			out = append(out, diskMove{d.ref, m.sr})
		}
	}
	for ref, n := range need {
		if err := p.room(p.db.find("SR", ref), n); err != nil {
			return nil, 0, err
		}
	}
	return out, total, nil
}

// finishMoves puts the copies in the places of the disks.
func (p *Pool) finishMoves(moves []diskMove, moved map[string]string) error {
	for _, m := range moves {
		vdi, err := p.db.need("VDI", m.vdi)
		if err != nil {
			return err
		}
		sr, err := p.db.need("SR", m.sr)
		if err != nil {
			return err
		}
		made, err := p.copyVDI(vdi, sr)
		if err != nil {
			return err
		}
		for _, f := range []string{
			"is_a_snapshot", "snapshot_time", "snapshot_of", "xenstore_data", "sharable", "read_only", "on_boot", "allow_caching",
		} {
			p.db.set(made, f, vdi.get(f))
		}
		moved[vdi.ref] = made.ref
		for _, snapshot := range p.db.many("VDI", slices.Clone(vdi.refs("snapshots"))) {
			p.db.set(snapshot, "snapshot_of", made.ref)
		}
		for _, vbd := range p.db.many("VBD", slices.Clone(vdi.refs("VBDs"))) {
			p.db.set(vbd, "VDI", made.ref)
		}
		p.account(made)
		p.updateVDI(made)
		if err := p.deleteVDI(vdi); err != nil {
			return err
		}
	}
	return nil
}
