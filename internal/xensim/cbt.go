package xensim

import (
	"encoding/base64"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

// changeLog is what changed block tracking knows of a disk: which blocks were
// written since the snapshot before it. A snapshot's log is complete; that of a
// disk in use goes on in its image.
type changeLog struct {
	parent *changeLog
	blocks []byte
}

// dataDestroyPatience is how long VDI.data_destroy waits for VBDs to go.
const dataDestroyPatience = 4 * time.Second

func (p *Pool) registerCBT() {
	p.quick("VDI.enable_cbt", func(_ *call, args []any) (any, error) { return "", p.switchCBT(args[0].(string), true) })
	p.quick("VDI.disable_cbt", func(_ *call, args []any) (any, error) { return "", p.switchCBT(args[0].(string), false) })
	p.quick("VDI.list_changed_blocks", func(_ *call, args []any) (any, error) {
		return p.changedBlocks(args[0].(string), args[1].(string))
	})
	p.slow("VDI.data_destroy", c2((*call).dataDestroy))
	p.quick("VDI.get_nbd_info", func(c *call, args []any) (any, error) { return p.nbdInfo(c, args[0].(string)) })
}

// switchCBT begins or ends the tracking of a disk's changes.
func (p *Pool) switchCBT(ref string, on bool) error {
	op := "disable_cbt"
	if on {
		op = "enable_cbt"
	}
	vdi, err := p.needVDI(ref, op)
	if err != nil || vdi.is("cbt_enabled") == on {
		return err
	}
	v := p.volumes[ref]
	if v == nil || v.image == nil {
		return fail("VDI_NOT_AVAILABLE", ref)
	}
	v.image.TrackChanges(on)
	v.log = nil
	if on {
		v.log = &changeLog{}
	}
	p.db.set(vdi, "cbt_enabled", on)
	p.updateVDI(vdi)
	return nil
}

// forkLog gives a new snapshot the log of its disk, which begins a new one.
func (p *Pool) forkLog(vdi, snapshot *object) {
	v, s := p.volumes[vdi.ref], p.volumes[snapshot.ref]
	if v.log == nil || vdi.is("is_a_snapshot") {
		return
	}
	s.log = &changeLog{parent: v.log.parent, blocks: v.changed()}
	v.log = &changeLog{parent: s.log}
	v.image.TrackChanges(true)
	p.db.set(snapshot, "cbt_enabled", true)
}

// changed gives what a disk's own log holds, up to now.
func (v *volume) changed() []byte {
	if v.image == nil {
		return v.log.blocks
	}
	return orBlocks(v.log.blocks, v.image.Changes())
}

// orBlocks joins two change maps of which one may be shorter.
func orBlocks(a, b []byte) []byte {
	out := make([]byte, max(len(a), len(b)))
	copy(out, a)
	for i, x := range b {
		out[i] |= x
	}
	return out
}

// dropLog takes a deleted disk's log out of the chain: what it knows goes to those
// that follow it.
func (p *Pool) dropLog(gone *volume) {
	if gone == nil || gone.log == nil {
		return
	}
	for _, v := range p.volumes {
		if v.log != nil && v.log.parent == gone.log {
			v.log.parent, v.log.blocks = gone.log.parent, orBlocks(v.log.blocks, gone.changed())
		}
	}
}

// changedBlocks gives the blocks that differ between two disks of one line of
// snapshots, the older first, in base64.
func (p *Pool) changedBlocks(from, to string) (any, error) {
	old, err := p.db.need("VDI", from)
	if err != nil {
		return nil, err
	}
	vdi, err := p.needVDI(to, "list_changed_blocks")
	if err != nil {
		return nil, err
	}
	for _, o := range []*object{old, vdi} {
		if v := p.volumes[o.ref]; v == nil || v.log == nil {
			return nil, fail("VDI_NO_CBT_METADATA", o.ref)
		}
	}
	unrelated := fail("SR_BACKEND_FAILURE_460", "", "Failed to calculate changed blocks for given VDIs. "+
		"[opterr=No path from "+old.uuid()+" to "+vdi.uuid()+"]", "")
	if old.str("SR") != vdi.str("SR") || old.num("virtual_size") > vdi.num("virtual_size") {
		return nil, unrelated
	}
	target := p.volumes[to]
	size := (vdi.num("virtual_size") + disk.ChangeBlock - 1) / disk.ChangeBlock
	sum := make([]byte, (size+7)/8)
	if old == vdi {
		return base64.StdEncoding.EncodeToString(sum), nil
	}
	sum = orBlocks(sum, target.changed())
	for log := target.log.parent; ; log = log.parent {
		if log == nil {
			return nil, unrelated
		}
		if log == p.volumes[from].log {
			return base64.StdEncoding.EncodeToString(sum), nil
		}
		sum = orBlocks(sum, log.blocks)
	}
}

// dataDestroy frees the data of a snapshot and keeps its log, when its VBDs have
// gone.
func (c *call) dataDestroy(ref string) error {
	p := c.pool
	before := ""
	err := p.locked(func() error {
		vdi, err := p.needVDI(ref, "data_destroy")
		if err != nil {
			return err
		}
		if before = vdi.str("type"); before != "cbt_metadata" {
			p.db.set(vdi, "type", "cbt_metadata") // so that nobody makes new VBDs meanwhile
		}
		return nil
	})
	if err != nil || before == "cbt_metadata" {
		return err
	}
	err = c.awaitNoVBDs(ref)
	return p.locked(func() error {
		vdi := p.db.find("VDI", ref)
		if vdi == nil {
			return fail("HANDLE_INVALID", "VDI", ref)
		}
		if err == nil {
			err = p.destroyData(vdi)
		}
		if err != nil {
			p.db.set(vdi, "type", before)
		}
		p.updateVDI(vdi)
		return err
	})
}

// awaitNoVBDs waits until no VBD names a disk any more.
func (c *call) awaitNoVBDs(ref string) error {
	p := c.pool
	timer := time.NewTimer(p.scaled(dataDestroyPatience))
	defer timer.Stop()
	for {
		p.db.mu.Lock()
		vdi, changed := p.db.find("VDI", ref), p.db.change()
		p.db.mu.Unlock()
		if vdi == nil || len(p.vbdsOf(ref)) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return fail("VDI_IN_USE", ref, "data_destroy")
		case <-c.ctx.Done():
			return c.cancelled()
		}
	}
}

// vbdsOf gives the VBDs that name a disk; it locks the database.
func (p *Pool) vbdsOf(vdi string) []string {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if o := p.db.find("VDI", vdi); o != nil {
		return o.refs("VBDs")
	}
	return nil
}

// destroyData frees what a snapshot holds, but for its log.
func (p *Pool) destroyData(vdi *object) error {
	v := p.volumes[vdi.ref]
	if v == nil || v.image == nil {
		return fail("VDI_NOT_AVAILABLE", vdi.ref)
	}
	image, parent := v.image, vdi.m("sm_config")["vhd-parent"]
	v.image, v.own = nil, 0
	p.db.drop(vdi, "sm_config", "vhd-parent")
	p.account(vdi)
	p.collectBase(parent)
	if err := image.Release(); err != nil {
		return fail("SR_BACKEND_FAILURE_202", "", err.Error(), "")
	}
	return nil
}
